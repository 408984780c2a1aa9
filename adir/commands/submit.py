"""`adir submit`: pack the records of a results folder into one file that others can check."""

import functools
from pathlib import Path
from typing import Any

import adir
from adir.errors import InputError, count_of
from adir.files import sha256_of_file, shortened
from adir.harness.records.archive import require_consistent, write_archive
from adir.harness.records.comparable import grouped
from adir.harness.records.layout import kind_of
from adir.harness.records.merge import (
    content_in,
    files_of,
    losses_names,
    manifests_of,
    shown_images,
)
from adir.harness.records.record import Record
from adir.harness.records.sources import plans_of, read_sources


def main(folder: Path, images: bool, out: Path | None) -> int:
    """Pack the records of a results folder, and the manifests of its data, into one file.

    Args:
        folder: results folder.
        images: whether to add the files that a report shows: restored images, degraded images y,
            ground truths, neighbours, and losses of the adapters. The adapters themselves are never
            added.
        out: file to write; None takes FOLDER-submission.zip in the current folder.

    Returns:
        0, or 1 if a damaged record was skipped.

    Raises:
        InputError: if the folder has no records, if `adir merge` would reject a record, or if the
            file already exists.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = read_sources([folder])
    out = out or Path(
        f"{shortened(folder.resolve().name.lstrip('.-') or 'results')}-submission.zip"
    )
    if out.exists():
        raise InputError(f"{out} already exists; remove this file, or name another one with --out")
    records = list(found.records.values())
    for record in records:
        try:
            require_consistent(record)
        except ValueError as error:
            raise InputError(
                f"{folder / record.path}: {error}; other machines would reject this record, so "
                "remove the file and run `adir run` again"
            ) from error
    names = [*manifests_of(folder), *plans_of(found, folder), *(record.path for record in records)]
    if images:
        names += [name for record in records for name in files_of(record)]
        names += [*shown_images(records), *losses_names(records)]
    held = write_archive(out, about(records, images), names, functools.partial(content_in, folder))
    for note in found.notes:
        print(f"warning: skipped {note}")
    n_images = sum(kind_of(name) == "restored" for name in held)
    print(
        f"{count_of(len(records), 'record')} and {count_of(n_images, 'image')} in {out} "
        f"({out.stat().st_size / 1e6:.1f} MB)"
    )
    print(
        f"SHA-256 {sha256_of_file(out)}; `adir leaderboard {out}` prints its table on any machine"
    )
    return 1 if found.notes else 0


def about(records: list[Record], images: bool) -> dict[str, Any]:
    """Return the description of a submission that is stored in its manifest.

    It contains the number of records, and the commits, package versions and hashes of weights with
    which they were made.

    images: whether the submission contains images.
    """
    versions = grouped(pair for record in records for pair in record.versions.items())
    return {
        "packed_by": f"adir {adir.__version__}",
        "records": len(records),
        "images": images,
        "commits": sorted({record.commit for record in records if record.commit is not None}),
        "versions": {package: sorted(set(found)) for package, found in sorted(versions.items())},
        "weights": sorted(
            {
                str(w)
                for r in records
                if (w := (r.identity.get("backbone") or {}).get("weights_sha256"))
            }
        ),
    }
