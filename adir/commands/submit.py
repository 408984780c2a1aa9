"""`adir submit`: pack the records of a results folder into one file that others can check."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import adir
from adir.errors import InputError
from adir.files import sha256_of_file, shortened
from adir.harness.records.archive import require_placed, write_archive
from adir.harness.records.comparable import grouped
from adir.harness.records.layout import kind_of
from adir.harness.records.merge import (
    content_fault,
    content_in,
    files_of,
    losses_names,
    manifests_of,
    shown_pictures,
)
from adir.harness.records.record import Record
from adir.harness.records.sources import plans_of, read_sources

PART = ".part"


def main(folder: Path, pictures: bool, out: Path | None) -> int:
    """Pack the records of a results folder and the manifests of its data, and with `pictures` what its report shows, into one
    file for another machine: restored pictures and y, ground truths, neighbours, losses of the adapters (not the adapters).

    out: the file; FOLDER-submission.zip in the current folder where None. Returns 0, or 1 where a damaged record was left
    out. Raises InputError when there is nothing to pack, a record would be refused elsewhere, or another file is there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = read_sources([folder])
    out = out or Path(f"{shortened(folder.resolve().name.lstrip('.-') or 'results')}-submission.zip")
    members: dict[str, Path | bytes] = {name: folder / name for name in manifests_of(folder)}
    for name in members:
        if fault := content_fault(name, (folder / name).read_bytes()):
            raise InputError(f"{folder / name}: {fault}; remove it, and `adir run` of its grid makes it anew")
    for record in found.records.values():
        name = record.path
        try:
            require_placed(record)
        except ValueError as error:
            raise InputError(f"{folder / name}: {error}; it would be refused elsewhere") from error
        members[name] = folder / name
        if pictures:
            shown = [*files_of(record), *shown_pictures([record])]
            members |= {name: folder / name for name in shown if (folder / name).is_file()}
    members |= {name: folder / name for name in plans_of(found, folder)}
    if pictures:
        losses = {name: content_in(folder, name) for name in losses_names(found.records.values())}
        members |= {name: bytes_of_it for name, bytes_of_it in losses.items() if bytes_of_it is not None}
    fresh = out.with_name(f".{shortened(out.name)}{PART}")
    write_archive(fresh, about(found.records.values(), pictures), members)
    try:
        if out.exists() and not (out.is_file() and sha256_of_file(out) == sha256_of_file(fresh)):
            raise InputError(f"{out}: is there already and holds something else; name another file with --out")
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    for note in found.notes:
        print(f"warning: left out: {note}")
    n_pictures = sum(kind_of(name) == "picture" for name in members)
    print(f"{len(found.records)} records, {n_pictures} pictures: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    print(f"SHA-256 {sha256_of_file(out)}; `adir leaderboard {out}` shows its table anywhere")
    return 1 if found.notes else 0


def about(records: Iterable[Record], pictures: bool) -> dict[str, Any]:
    """What a manifest says besides its files: by whom and with what the records were made."""
    records = list(records)
    versions = grouped(pair for record in records for pair in record.versions.items())
    return {
        "packed_by": f"adir {adir.__version__}",
        "records": len(records),
        "pictures": pictures,
        "commits": sorted({record.commit for record in records if record.commit is not None}),
        "versions": {package: sorted(set(found)) for package, found in sorted(versions.items())},
        "weights": sorted({str(w) for r in records if (w := (r.identity.get("backbone") or {}).get("weights_sha256"))}),
    }
