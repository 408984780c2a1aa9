"""Read records of several results folders and submissions; a duplicate record counts once."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adir.environment import uncollected
from adir.errors import InputError
from adir.files import read_json
from adir.harness.records.archive import open_archive
from adir.harness.records.comparable import by_image, name_of, set_of
from adir.harness.records.layout import Layout, kind_of
from adir.harness.records.ledger import DamagedFile, all_records
from adir.harness.records.planned import PlannedCell, missing_records, plan_cells
from adir.harness.records.record import Record

Place = tuple[str, str | None, str]
"""(cell, SHA-256 of the image or else the name of its data set, its id): what there is one record
of.
"""


@dataclass
class Sources:
    """All that was read."""

    records: dict[Place, Record] = field(default_factory=dict)
    """Each with `path`, relative to its source."""
    origins: dict[Place, Path] = field(default_factory=dict)
    """The source each record was first found in."""
    places: dict[tuple[str, str | None, str], Place] = field(default_factory=dict)
    """By (cell, data set, id)."""
    plans: dict[tuple[Path, str], list[PlannedCell]] = field(default_factory=dict)
    """{(source, name in it): cells} of every plan that can be read."""
    notes: list[str] = field(default_factory=list)
    """One note per file that could not be read."""

    def counted(self) -> tuple[list[Record], list[Record], list[str]]:
        """(records, records of status `missing` for whatever a plan names and no record is there
        of, notes), each image under one name and once in a cell: see `by_image`.
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
    """The records of folders and submissions.

    A damaged record in a folder is named in the notes; one in a submission, two unlike records of
    one place, and none at all raise InputError.
    """
    found = Sources()
    with uncollected():
        for source in sources:
            if source.is_dir():
                read_folder(source, found)
            elif not source.exists():
                raise InputError(f"{source}: no such folder or submission")
            elif zipfile.is_zipfile(source):
                read_archive(source, found)
            else:
                raise InputError(
                    f"{source}: neither a results folder nor a submission (a .zip that `adir "
                    "submit` wrote)"
                )
    if not found.records:
        names = ", ".join(map(str, sources))
        raise InputError(
            f"{names}: no records below it; `adir run ... results={sources[0]}` makes them"
        )
    return found


def plans_of(found: Sources, source: Path) -> list[str]:
    """Return the paths of a source's plans that a submission may hold."""
    return [name for origin, name in found.plans if origin == source and kind_of(name) == "plan"]


def read_archive(path: Path, found: Sources) -> None:
    """Add the records and the plan of a submission."""
    archive = open_archive(path)
    for record in archive.records():
        add(found, record, path)
    found.plans |= {(path, name): cells for name, cells in archive.plans()}


def read_folder(folder: Path, found: Sources) -> None:
    """Add the records and the plans of a results folder."""
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
                f"{plan}: damaged plan ({error}); what it planned is not counted as missing"
            )


def add(found: Sources, record: Record, source: Path) -> None:
    """Add a record once.

    Raises InputError if the records so far have another result for its cell and image.
    """
    cell, image = record.cell, record.image
    place: Place = (cell, image.sha256 or set_of(record), image.id)
    place = found.places.setdefault((cell, *name_of(record)), place)  # one that failed has no hash
    first = found.records.setdefault(place, record)
    found.origins.setdefault(place, source)
    if first is not record and (field_name := disagreement(first, record)):
        raise InputError(
            f"{found.origins[place] / str(first.path)} and {source / str(record.path)}: records "
            "of one cell and image that "
            f"differ in {field_name}; remove the one that is wrong, or make tables of the two apart"
        )


def disagreement(one: Record, other: Record) -> str | None:
    """Return the first part of the result in which two records differ, or None."""
    ours, theirs = result_of(one), result_of(other)
    return next((name for name in ours | theirs if ours.get(name) != theirs.get(name)), None)


def result_of(record: Record) -> dict[str, Any]:
    """Return what duplicates of a record must agree in; seconds, versions and paths may differ
    between machines.
    """
    found = {name: getattr(record, name) for name in ("status", "axes", "identity", "error")}
    found |= {f"score {name}": score for name, score in record.scores.items()}
    return found | {"image": record.image.sha256, "y": record.y and record.y.sha256}
