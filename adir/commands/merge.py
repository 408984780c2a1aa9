"""`adir merge`: put the records of several folders and submissions into one folder."""

from pathlib import Path

from adir.errors import InputError, count_of
from adir.harness.records.layout import Layout, kind_of
from adir.harness.records.merge import copy_from, require_whole
from adir.harness.records.record import Record
from adir.harness.records.sources import read_sources


def main(folders: list[Path], out: Path) -> int:
    """Copy the records of several folders and submissions into one folder.

    The files that a report shows are copied too, if the sources have them: restored images,
    degraded images y, ground truths, neighbours, manifests of the data, and losses of the adapters.
    The adapters themselves are not copied. All sources are read and checked before anything is
    written.

    Args:
        folders: results folders and submission files.
        out: folder for the merged records. Records that it already contains are kept.

    Returns:
        0, or 1 if a damaged record was skipped.

    Raises:
        InputError: if a source does not exist, if a submission is damaged, if there are no records,
            or if two sources have different records of one image and cell (combination of
            settings). Equal records are copied once.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder with --out")
    found = read_sources([*([out] if out.is_dir() else []), *folders])
    paths: dict[str, Record] = {}
    for record in found.records.values():
        name = record.path
        if kind_of(name) != "record":
            raise InputError(
                f"{name!r} is not the path of a record; only results folders written by `adir run` "
                "can be merged"
            )
        if paths.setdefault(name.casefold(), record) is not record:
            raise InputError(
                f"{name}: two sources have records of different cells or images under this name; "
                "make a separate table of each source instead of merging the sources"
            )
    for source in folders:
        if not source.is_dir():
            require_whole(source)
    Layout(out).mark()
    counts = {
        source: copy_from(source, out, found)
        for source in folders
        if source.resolve() != out.resolve()
    }
    for note in found.notes:
        print(f"warning: skipped {note}")
    for source, n in counts.items():
        print(f"{count_of(n, 'record')} copied from {source}")
    total = count_of(len(found.records), "record")
    print(f"{out} now contains {total}; print the table with `adir leaderboard {out}`")
    return 1 if found.notes else 0
