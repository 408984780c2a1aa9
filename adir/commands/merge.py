"""`adir merge`: put the records of several folders and submissions into one folder."""

from pathlib import Path

from adir.errors import InputError
from adir.harness.records.layout import Layout, kind_of
from adir.harness.records.merge import copy_from, require_whole
from adir.harness.records.record import Record
from adir.harness.records.sources import read_sources


def main(folders: list[Path], out: Path) -> int:
    """Put the records of several folders and submissions into one folder, with what its report shows as far as they have it:
    restored pictures and y, ground truths, neighbours, manifests of the data, losses of the adapters (not the adapters).

    What `out` holds already is one of the sources. Everything is read and checked before anything is written; a record that
    is there twice is taken once, and InputError names two that differ. Returns 0, or 1 where a damaged record was left out.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder with --out")
    found = read_sources([*([out] if out.is_dir() else []), *folders])
    paths: dict[str, Record] = {}
    for record in found.records.values():
        name = record.path
        if kind_of(name) != "record":
            raise InputError(
                f"{name!r}: no place for a record; only results folders as `adir run` makes them can be merged"
            )
        if paths.setdefault(name.casefold(), record) is not record:
            raise InputError(
                f"{name}: two sources have records of different cells or pictures here; make tables of them apart"
            )
    for source in folders:
        if not source.is_dir():
            require_whole(source)
    Layout(out).mark()
    counts = {source: copy_from(source, out, found) for source in folders if source.resolve() != out.resolve()}
    for note in found.notes:
        print(f"warning: left out: {note}")
    for source, n in counts.items():
        print(f"{n} records taken from {source}")
    print(f"{len(found.records)} records in {out}; `adir leaderboard {out}` shows their table")
    return 1 if found.notes else 0
