"""What grids planned: the cells and pictures of RESULTS/grids/*.json, so that what never began is seen to be missing."""

from collections.abc import Iterable
from typing import Any

from adir.harness.records.comparable import Record
from adir.harness.records.record_check import fault_of

PLANS = "grids/*.json"
"""{cells: [{cell, axes, identity, data, images: [id], pictures: {id: SHA-256}}]} in each: every planned cell of one grid of
a results folder. Early ones have no `pictures`."""


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
        pictures = cell.get("pictures", {})
        if not isinstance(pictures, dict) or not all(isinstance(sha256, str) for sha256 in pictures.values()):
            raise ValueError("a cell's pictures are no list of hashes")
        if not isinstance(cell.get("data"), str):
            raise ValueError("a cell lacks the name of its data set")
        if fault := fault_of({**missing_record(cell, ""), "status": "failed"}):
            raise ValueError(fault)
    return cells


def missing_records(plans: list[dict[str, Any]], records: Iterable[Record]) -> list[Record]:
    """Records of status `missing` for planned pictures that have none under this name of theirs, or one without the hash of
    its picture, which the plan may have: `by_picture` makes one of the two."""
    images = [(record["cell"], record["image"]) for record in records if "sha256" in record["image"]]
    done = {(cell, image.get("data"), image["id"]) for cell, image in images}
    missing: dict[tuple[str, str, str], Record] = {}
    for planned in plans:
        for image in planned["images"]:
            place = (planned["cell"], planned["data"], image)
            if place not in done and (place not in missing or "pictures" in planned):
                missing[place] = missing_record(planned, image)
    return list(missing.values())


def missing_record(planned: dict[str, Any], image: str) -> Record:
    """What stands for a planned picture without a record."""
    sha256 = planned.get("pictures", {}).get(image)
    return {
        "status": "missing",
        "cell": planned["cell"],
        "axes": planned["axes"],
        "identity": planned.get("identity"),
        "seed": planned["axes"].get("seed"),
        "image": {"id": image, "data": planned.get("data")} | ({"sha256": sha256} if sha256 is not None else {}),
        "y": None,
        "scores": {},
    }
