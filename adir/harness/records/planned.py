"""Plans of grids, the files RESULTS/grids/*.json.

A plan lists the cells and images of a grid, and so reveals which records are missing.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, ValidationError

from adir.harness.records.comparable import name_of
from adir.harness.records.record import Axes, Part, Record, Sha256, TestImage, first_error


class PlannedCell(Part):
    """Planned cell of a grid, with the ids of its test images."""

    cell: Sha256
    """The SHA-256 of `identity`."""
    folder: str | None = None
    """The folder of its records, relative to the results folder."""
    axes: Axes
    identity: dict[str, Any]
    images: list[str]
    """The ids of the test images."""
    data: str
    """The name of the data set."""
    manifest: str | None = None
    """The SHA-256 of the data set's manifest, which identifies the data set."""
    image_hashes: dict[str, str] = Field(default_factory=dict)
    """{id: SHA-256 of the image}"""
    configuration: dict[str, Any] = Field(default_factory=dict)
    """The whole configuration, from which another worker can build the cell and help with it."""

    def missing(self, image_id: str) -> Record:
        """Return a record with the status `missing` for a planned image."""
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
    """Return the cells of a plan, given as a JSON value.

    Raises ValueError if it is not a valid plan.
    """
    cells = plan.get("cells") if isinstance(plan, dict) else None
    if not isinstance(cells, list):
        raise ValueError("the plan has no list of cells")
    try:
        found = [PlannedCell.model_validate(cell, extra="allow") for cell in cells]
        for cell in found:
            cell.missing("")  # raises if identity and axes contradict each other
    except ValidationError as error:
        raise ValueError(first_error(error)) from error
    return found


def missing_records(plans: list[PlannedCell], records: Iterable[Record]) -> list[Record]:
    """Return one `missing` record per planned image without a finished record.

    A failed record has no image hash, so its image gets a `missing` record too. Of the two records,
    `by_image` keeps the failed one.
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
