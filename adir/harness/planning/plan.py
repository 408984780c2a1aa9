"""Plan of a grid, printed by `adir plan`: cells, seconds and disk space that `adir run` would need.

No cell is run. Short runs of single images measure the cost (harness.planning.cost).
"""

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adir.files import hash_of
from adir.harness.cells.cell import Cell
from adir.harness.planning.cost import Cost, estimate
from adir.harness.running.neighbours import excluded_ids, training_ids
from adir.harness.running.out_of_memory import out_of_memory_explained
from adir.harness.running.pipeline import adapter_key_parts, neighbours_key
from adir.harness.running.stores import (
    AdapterStore,
    MeasurementStore,
    read_note,
    stored_neighbours,
)
from adir.harness.running.worker import image_hashes, image_shapes
from adir.images import hash_of_image


@dataclass
class CellPlan:
    """Plan of one cell: its numbers of images by status, its adapters to train, and its cost."""

    cell: Cell
    done: int = 0
    failed: int = 0
    to_do: int = 0
    adapters_cached: int = 0
    """The number of images still to restore whose adapter is cached, from this or another cell."""
    adapters: int = 0
    """The number of adapters to train for this cell that no earlier cell of the grid trains."""
    cost: Cost | None = None
    """The cost of one image; None if no image is left to restore."""
    seconds: float = 0.0
    """The time for all images, without `seconds_once`."""
    seconds_once: float = 0.0
    disk_mb: float = 0.0

    def status(self) -> str:
        """Return the status for the table, such as `done` or `6 to do, 2 adapters cached`."""
        if self.to_do == 0:
            return "failed" if self.failed else "done"
        counts = {
            "to do": self.to_do,
            "adapters cached": self.adapters_cached,
            "done": self.done,
            "failed": self.failed,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def plan_cells(cells: list[Cell]) -> list[CellPlan]:
    """Return one plan per cell of a grid, without running the cells or downloading anything.

    Work that several cells share, such as training an adapter, counts only for the first of them.
    Cells that differ only in their seeds cost the same, and their cost is measured once.
    """
    plans: list[CellPlan] = []
    costs: dict[str, Cost] = {}
    adapters: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            plan = look(cell, adapters)
            plans.append(plan)
            if plan.to_do == 0:
                continue
            alike = hash_of(cell.configuration | {"seed": None, "noise_seed": None})
            if alike not in costs:
                torch.set_num_threads(cell.configuration["threads"])  # as `adir run` does
                largest = max(image_shapes(cell.data).values(), key=math.prod)
                kept = f"no cell was run, because this happened while planning {cell.label}"
                with out_of_memory_explained(cell, largest, kept=kept):
                    costs[alike] = estimate(cell, Path(folder))
                plan.seconds_once = costs[alike].seconds_once
            plan.cost = cost = costs[alike]
            training = cost.seconds_per_image["adapt"]
            others = sum(cost.seconds_per_image.values()) - training
            plan.seconds = plan.to_do * others + plan.adapters * training
            plan.disk_mb = plan.to_do * cost.image_disk_mb + plan.adapters * cost.adapter_disk_mb
    return plans


def look(cell: Cell, adapters: set[str]) -> CellPlan:
    """Return a cell's plan with its numbers of images and adapters, but without costs.

    Args:
        cell: the cell.
        adapters: names of adapters that earlier cells will train; those of this cell are added.
    """
    plan = CellPlan(cell)
    existing, retry = cell.configuration["existing"], cell.configuration["retry"] == "failed"
    for image_id in cell.data.ids:
        record = cell.ledger.peek(image_id) if existing != "redo" else None
        if record is not None and (record.status == "done" or not retry or existing == "report"):
            plan.done += record.status == "done"
            plan.failed += record.status == "failed"
            continue
        if existing == "report":
            continue
        plan.to_do += 1
        if not cell.mode.trains:
            continue
        bound = dataclasses.replace(cell, task=cell.task.bound(cell.data, image_id))
        key = adapter_key(bound, image_id)
        name = key or adapter_to_come(bound, image_id)
        if key is not None and AdapterStore(cell.results).path(key).is_file():
            plan.adapters_cached += 1
        elif name not in adapters:
            plan.adapters += 1
            adapters.add(name)
    return plan


def adapter_key(cell: Cell, image_id: str) -> str | None:
    """Return the cache key of an image's adapter, or None if it is not yet known.

    The key depends on y or on the neighbours, which may not be cached yet. The cell's task is bound
    to the image.
    """
    store = MeasurementStore(
        cell.results, cell.task, cell.identity.configuration["task"], cell.noise_seed
    )
    path = store.path(image_id)
    known = read_note(path.with_suffix(".json"))
    if cell.mode.depends_on_y and (known is None or not path.is_file()):
        return None
    if cell.mode.encoder is None:
        images = [hash_of_image(cell.task.image_of(cell.task.read_y(path)))]
    else:
        y_sha256 = known["sha256"] if known is not None else ""
        key = neighbours_key(cell, image_id, image_hashes(cell.data)[image_id], y_sha256)
        found = stored_neighbours(cell.results, key, cell.k)
        if found is None:
            return None
        excluded = excluded_ids(cell, image_id, found.excluded)
        used = set(training_ids(cell, [near.id for near in found.neighbours], excluded))
        images = [str(near.image) for near in found.neighbours if near.id in used]
    return hash_of(adapter_key_parts(cell, image_id, cell.task, images))


def adapter_to_come(cell: Cell, image_id: str) -> str:
    """Return a name for an image's adapter whose training images are not yet known.

    The name is a hash of everything that will determine the adapter. Cells that will share the
    adapter get the same name, for example cells that differ only in the sampler, or cells of the
    mode `random` that differ only in the task. The cell's task is bound to the image.
    """
    configuration = cell.identity.configuration
    follows: dict[str, Any] = {"mode": cell.mode.name, "x": image_hashes(cell.data)[image_id]}
    if cell.mode.encoder is not None:
        follows |= {"retrieval": configuration["retrieval"], "k": cell.k}
    if cell.mode.depends_on_y:
        follows |= {"task": configuration["task"], "noise_seed": cell.noise_seed}
    return hash_of([adapter_key_parts(cell, image_id, cell.task, []), follows])
