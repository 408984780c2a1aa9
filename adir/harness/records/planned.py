"""What grids planned: the cells and pictures of RESULTS/grids/*.json, so that what never began is seen to be missing."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, ValidationError

from adir.harness.records.comparable import name_of
from adir.harness.records.record import Axes, Part, Record, Sha256, TestImage, fault_text


class PlannedCell(Part):
    """One cell of a grid, as it was asked for."""

    cell: Sha256
    """SHA-256 of `identity`."""
    folder: str | None = None
    """Where its records go, relative to the results folder."""
    axes: Axes
    identity: dict[str, Any]
    images: list[str]
    """Ids of the test pictures."""
    data: str
    """Name of the data set."""
    manifest: str | None = None
    """SHA-256 of its manifest, which is what it is."""
    pictures: dict[str, str] = Field(default_factory=dict)
    """{id: SHA-256 of the picture}"""
    configuration: dict[str, Any] = Field(default_factory=dict)
    """The whole configuration, by which a worker can help with another's cell."""

    def missing(self, image_id: str) -> Record:
        """Return what stands for a planned picture without a record."""
        return Record(
            status="missing",
            cell=self.cell,
            axes=self.axes,
            identity=self.identity,
            seed=self.axes.seed,
            image=TestImage(id=image_id, data=self.data, sha256=self.pictures.get(image_id), manifest=self.manifest),
            configuration=self.configuration,
            y=None,
            scores={},
        )


def plan_cells(plan: Any) -> list[PlannedCell]:
    """Return the cells of a plan. Raises ValueError where it is none."""
    cells = plan.get("cells") if isinstance(plan, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it has no list of cells")
    try:
        found = [PlannedCell.model_validate(cell, extra="allow") for cell in cells]
        for cell in found:
            cell.missing("")  # the identity and the axes must not contradict each other
    except ValidationError as error:
        raise ValueError(fault_text(error)) from error
    return found


def missing_records(plans: list[PlannedCell], records: Iterable[Record]) -> list[Record]:
    """Return one `missing` record per planned picture without a finished record.

    A picture whose record has no hash (one that failed) is listed too; `by_picture` merges the two.
    """
    done = {(record.cell, *name_of(record)) for record in records if record.image.sha256 is not None}
    missing: dict[tuple[str, str, str], Record] = {}
    for planned in plans:
        for image_id in planned.images:
            place = (planned.cell, planned.manifest or planned.data, image_id)
            if place not in done and (place not in missing or planned.pictures):
                missing[place] = planned.missing(image_id)
    return list(missing.values())
