"""What grids planned: the cells and images of RESULTS/grids/*.json, so that what never began is
seen to be missing.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, ValidationError

from adir.harness.records.comparable import name_of
from adir.harness.records.record import Axes, Part, Record, Sha256, TestImage, first_error


class PlannedCell(Part):
    """One cell of a grid, as it was asked for."""

    cell: Sha256
    """SHA-256 of `identity`."""
    folder: str | None = None
    """Where its records go, relative to the results folder."""
    axes: Axes
    identity: dict[str, Any]
    images: list[str]
    """Ids of the test images."""
    data: str
    """Name of the data set."""
    manifest: str | None = None
    """SHA-256 of its manifest, which is what it is."""
    image_hashes: dict[str, str] = Field(default_factory=dict)
    """{id: SHA-256 of the image}"""
    configuration: dict[str, Any] = Field(default_factory=dict)
    """The whole configuration, by which a worker can help with another's cell."""

    def missing(self, image_id: str) -> Record:
        """Return what stands for a planned image without a record."""
        return Record(
            status="missing",
            cell=self.cell,
            axes=self.axes,
            identity=self.identity,
            seed=self.axes.seed,
            image=TestImage(
                id=image_id,
                data=self.data,
                sha256=self.image_hashes.get(image_id),
                manifest=self.manifest,
            ),
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
        raise ValueError(first_error(error)) from error
    return found


def missing_records(plans: list[PlannedCell], records: Iterable[Record]) -> list[Record]:
    """Return one `missing` record per planned image without a finished record.

    An image whose record has no hash (one that failed) is listed too; `by_image` merges the two.
    """
    done = {
        (record.cell, *name_of(record)) for record in records if record.image.sha256 is not None
    }
    missing: dict[tuple[str, str, str], Record] = {}
    for planned in plans:
        for image_id in planned.images:
            place = (planned.cell, planned.manifest or planned.data, image_id)
            if place not in done and (place not in missing or planned.image_hashes):
                missing[place] = planned.missing(image_id)
    return list(missing.values())
