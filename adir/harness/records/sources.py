"""Read the records of several results folders and submissions; a duplicate record counts once."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adir.environment import garbage_collection_paused
from adir.errors import InputError
from adir.files import read_json
from adir.harness.records.archive import open_archive
from adir.harness.records.comparable import by_image, name_of, set_of
from adir.harness.records.layout import Layout, kind_of
from adir.harness.records.ledger import DamagedFile, all_records
from adir.harness.records.planned import PlannedCell, missing_records, plan_cells
from adir.harness.records.record import Record

Place = tuple[str, str | None, str]
"""(cell, SHA-256 of the image or else its data set, image id), which identifies a record."""


@dataclass
class Sources:
    """Records and plans read from several sources."""

    records: dict[Place, Record] = field(default_factory=dict)
    """{identifying key: record}; the `path` of a record is relative to its source."""
    origins: dict[Place, Path] = field(default_factory=dict)
    """{identifying key: first source that contained the record}"""
    places: dict[tuple[str, str | None, str], Place] = field(default_factory=dict)
    """{(cell, data set, id): key in `records`}"""
    plans: dict[tuple[Path, str], list[PlannedCell]] = field(default_factory=dict)
    """{(source, file name): cells} of every readable plan."""
    notes: list[str] = field(default_factory=list)
    """One note per unreadable file."""

    def counted(self) -> tuple[list[Record], list[Record], list[str]]:
        """Return (existing records, `missing` records, notes).

        A `missing` record stands for a planned image that has no record. Each image has one name
        and one record per cell (see `by_image`).
        """
        records = list(self.records.values())
        planned = [cell for cells in self.plans.values() for cell in cells]
        counted, notes = by_image([*records, *missing_records(planned, records)])
        there = [record for record in counted if record.status != "missing"]
        return (
            there,
            [record for record in counted if record.status == "missing"],
            self.notes + notes,
        )


def read_sources(sources: Sequence[Path]) -> Sources:
    """Read the records and plans of results folders and submissions.

    A damaged record in a folder only adds a note.

    Raises:
        InputError: for a damaged record in a submission, for duplicates with different results, or
            if no record was found.
    """
    found = Sources()
    with garbage_collection_paused():
        for source in sources:
            if source.is_dir():
                read_folder(source, found)
            elif not source.exists():
                raise InputError(f"{source}: no such folder or submission; check the path")
            elif zipfile.is_zipfile(source):
                read_archive(source, found)
            else:
                raise InputError(
                    f"{source} is neither a results folder nor a submission; name a folder, or a "
                    ".zip written by `adir submit`"
                )
    if not found.records:
        names = ", ".join(map(str, sources))
        raise InputError(
            f"{names}: no records found; create some with `adir run ... results={sources[0]}`"
        )
    return found


def plans_of(found: Sources, source: Path) -> list[str]:
    """Return the paths of a source's plans, restricted to names that a submission may hold."""
    return [name for origin, name in found.plans if origin == source and kind_of(name) == "plan"]


def read_archive(path: Path, found: Sources) -> None:
    """Add the records and plans of a submission to `found`."""
    archive = open_archive(path)
    for record in archive.records():
        add(found, record, path)
    found.plans |= {(path, name): cells for name, cells in archive.plans()}


def read_folder(folder: Path, found: Sources) -> None:
    """Add the records and plans of a results folder to `found`."""
    for item in all_records(folder):
        if isinstance(item, DamagedFile):
            found.notes.append(str(item))
        else:
            add(found, item, folder)
    for plan in Layout(folder).plans():
        try:
            found.plans[folder, plan.relative_to(folder).as_posix()] = plan_cells(read_json(plan))
        except ValueError as error:
            found.notes.append(
                f"{plan}: damaged plan ({error}); its images without a record are not counted"
            )


def add(found: Sources, record: Record, source: Path) -> None:
    """Add a record to `found` unless it is a duplicate.

    Raises InputError if an earlier record of the same cell and image has another result.
    """
    cell, image = record.cell, record.image
    place: Place = (cell, image.sha256 or set_of(record), image.id)
    place = found.places.setdefault((cell, *name_of(record)), place)  # a failed image has no hash
    first = found.records.setdefault(place, record)
    found.origins.setdefault(place, source)
    if first is not record and (field_name := disagreement(first, record)):
        raise InputError(
            f"{found.origins[place] / str(first.path)} and {source / str(record.path)} are records "
            f"of the same cell and image but differ in {field_name}; remove the wrong record, or "
            "make a separate table of each source"
        )


def disagreement(one: Record, other: Record) -> str | None:
    """Return the name of the first field in which two records of one image differ, or None."""
    ours, theirs = result_of(one), result_of(other)
    return next((name for name in ours | theirs if ours.get(name) != theirs.get(name)), None)


def result_of(record: Record) -> dict[str, Any]:
    """Return {field: value} for the fields in which duplicates of a record must agree.

    All other fields, such as seconds, versions and paths, may differ between machines.
    """
    found = {name: getattr(record, name) for name in ("status", "axes", "identity", "error")}
    found |= {f"score {name}": score for name, score in record.scores.items()}
    return found | {"image": record.image.sha256, "y": record.y and record.y.sha256}
