"""What grids planned: the cells and pictures of RESULTS/grids/*.json, so that what never began is seen to be missing."""

from typing import Any

from adir.harness.record_check import fault_of
from adir.harness.sameness import Record

PLANS = "grids/*.json"
"""{cells: [{cell, axes, identity, data, images: [id]}]} in each: every planned cell of one grid of a results folder."""

Place = tuple[str, str | None, str]
"""(cell, data set, picture): what there is one record of."""


def plan_cells(plan: Any) -> list[dict[str, Any]]:
    """The cells of a plan. Raises ValueError where it is none."""
    cells = plan.get("cells") if isinstance(plan, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it has no list of cells")
    for cell in cells:
        if (
            not isinstance(cell, dict)
            or not isinstance(cell.get("cell"), str)
            or not isinstance(cell.get("axes"), dict)
        ):
            raise ValueError("a cell lacks its hash or its axes")
        if not isinstance(cell.get("images"), list) or not all(isinstance(image, str) for image in cell["images"]):
            raise ValueError("a cell lacks its list of pictures")
        if not isinstance(cell.get("data"), str):
            raise ValueError("a cell lacks the name of its data set")
        if fault := fault_of({**missing_record(cell, ""), "status": "failed"}):
            raise ValueError(fault)
    return cells


def missing_records(plans: list[dict[str, Any]], records: dict[Place, Record]) -> list[Record]:
    """Records of status `missing` for planned pictures that have none."""
    done = set(records)
    missing: dict[Place, Record] = {}
    for planned in plans:
        for image in planned["images"]:
            place = (planned["cell"], planned["data"], image)
            if place not in done:
                missing[place] = missing_record(planned, image)
    return list(missing.values())


def missing_record(planned: dict[str, Any], image: str) -> Record:
    """What stands for a planned picture without a record."""
    return {
        "status": "missing",
        "cell": planned["cell"],
        "axes": planned["axes"],
        "identity": planned.get("identity"),
        "seed": planned["axes"].get("seed"),
        "image": {"id": image, "data": planned.get("data")},
        "y": None,
        "scores": {},
    }
