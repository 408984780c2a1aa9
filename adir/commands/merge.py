"""`adir merge`: put the records of several folders and submissions into one folder."""

from pathlib import Path

from adir.errors import InputError
from adir.harness.records.layout import Layout, kind_of
from adir.harness.records.merge import copy_from, require_whole
from adir.harness.records.record import Record
from adir.harness.records.sources import read_sources


def main(folders: list[Path], out: Path) -> int:
    """Copy the records of several folders and submissions into one folder, with whatever they have
    of what its report shows: restored images and y, ground truths, neighbours, manifests of the
    data, losses of the adapters (not the adapters).

    The records already in `out` are included. Reads and checks everything before it writes
    anything. A duplicate record is taken once; two that differ raise InputError. Returns 0, or 1 if
    a damaged record was skipped.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder with --out")
    found = read_sources([*([out] if out.is_dir() else []), *folders])
    paths: dict[str, Record] = {}
    for record in found.records.values():
        name = record.path
        if kind_of(name) != "record":
            raise InputError(
                f"{name!r}: no place for a record; only results folders as `adir run` makes "
                "them can be merged"
            )
        if paths.setdefault(name.casefold(), record) is not record:
            raise InputError(
                f"{name}: two sources have records of different cells or images here; make "
                "tables of them apart"
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
        print(f"warning: left out: {note}")
    for source, n in counts.items():
        print(f"{n} records taken from {source}")
    print(f"{len(found.records)} records in {out}; `adir leaderboard {out}` shows their table")
    return 1 if found.notes else 0
