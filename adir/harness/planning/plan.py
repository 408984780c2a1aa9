"""`adir plan`: what `adir run` would do with the same words, before any of it is done: cells, seconds, disk."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from adir.files import hash_of
from adir.harness.cells.cell import Cell
from adir.harness.planning.cost import Cost, estimate
from adir.harness.running.neighbours import tuned_on
from adir.harness.running.out_of_memory import out_of_memory_explained
from adir.harness.running.pipeline import adapter_made_of, neighbours_key
from adir.harness.running.stores import AdapterStore, Measurement, MeasurementStore, NeighbourStore, read_note
from adir.harness.running.worker import picture_hashes, picture_shapes
from adir.images import hash_of_picture


@dataclass
class CellPlan:
    """What would be done for one cell, in pictures; and what that costs."""

    cell: Cell
    done: int = 0
    failed: int = 0
    to_do: int = 0
    adapters_cached: int = 0
    """Of those to do: how many have their adapter already, trained for this cell or another."""
    new_adapters: set[str] = field(default_factory=set)
    """Of those to be trained: what each follows from, by which cells share it."""
    cost: Cost | None = None
    """Of one picture; None where nothing is to do."""

    def status(self) -> str:
        """For the table: `done`, `to do`, `to do, adapters cached`, ..."""
        if self.to_do == 0:
            return "failed" if self.failed else "done"
        parts = [f"{self.to_do} to do"]
        parts += [f"{self.adapters_cached} adapters cached"] if self.adapters_cached else []
        parts += [f"{self.done} done"] if self.done else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)


def plan_cell(cell: Cell) -> CellPlan:
    """Look what is there; nothing is made, written or downloaded."""
    plan = CellPlan(cell)
    retry = cell.configuration["retry"] == "failed"
    redo = cell.configuration["existing"] == "redo"
    for image_id in cell.data.ids:
        record = cell.ledger.peek(image_id)
        if record is not None and not redo:
            plan.done += record.status == "done"
            plan.failed += record.status == "failed"
            if record.status == "done" or not retry:
                continue
            plan.failed -= 1
        plan.to_do += 1
        if not cell.mode.trains:
            continue
        key = adapter_key(cell, image_id)
        if key is not None and AdapterStore(cell.results).path(key).is_file():
            plan.adapters_cached += 1
        else:
            plan.new_adapters.add(key or adapter_to_come(cell, image_id))
    if cell.configuration["existing"] == "report":
        plan.to_do = 0
    if plan.to_do:
        largest = max(picture_shapes(cell.data).values(), key=math.prod)
        with out_of_memory_explained(cell, largest, f"this is for the plan of {cell.label}: nothing was run"):
            plan.cost = estimate(cell)
    return plan


def adapter_key(cell: Cell, image_id: str) -> str | None:
    """Where the adapter of a picture would be stored, as far as the stored stages before it tell; else None."""
    task = cell.task.bound(cell.data, image_id)
    store = MeasurementStore(cell.results, task, cell.identity.configuration["task"], cell.noise_seed)
    path = store.path(image_id)
    known, _ = read_note(path.with_suffix(".json"))
    if cell.mode.follows_y and (known is None or not path.is_file()):
        return None
    if cell.mode.encoder is not None:
        nothing = torch.empty(0)  # the key needs the hash of y alone, and that of a random draw not even this
        measurement = Measurement(nothing, known["sha256"] if known is not None else "", path)
        key = neighbours_key(
            dataclasses.replace(cell, task=task), image_id, picture_hashes(cell.data)[image_id], measurement
        )
        found = NeighbourStore(cell.results).find(key, cell.k)
        if found is None:
            return None
        used = set(tuned_on(cell, [near.id for near in found.neighbours], found.excluded))
        pictures = [str(near.picture) for near in found.neighbours if near.id in used]
    else:
        pictures = [hash_of_picture(task.picture_of(task.read_y(path)))]
    return hash_of(adapter_made_of(cell, image_id, task, pictures))


def adapter_to_come(cell: Cell, image_id: str) -> str:
    """What names the adapter of a picture before its pictures are known: what they will follow from. Equal for the cells
    that will share it, such as two samplers, or `random` of two tasks."""
    configuration = cell.identity.configuration
    follows: dict[str, Any] = {"mode": cell.mode.name, "x": picture_hashes(cell.data)[image_id]}
    if cell.mode.encoder is not None:
        follows |= {"retrieval": configuration["retrieval"], "k": cell.k}
    if cell.mode.follows_y:
        follows |= {"task": configuration["task"], "noise_seed": cell.noise_seed}
    task = cell.task.bound(cell.data, image_id)
    return hash_of([adapter_made_of(cell, image_id, task, []), follows])


@dataclass
class Totals:
    """Of a grid, as its cells are counted one after the other: what several of them need counts for the first."""

    seconds: float = 0.0
    disk_mb: float = 0.0
    adapters: set[str] = field(default_factory=set)
    once: dict[str, float] = field(default_factory=dict)
    """Seconds of what is done once for all cells, by what it is."""

    def add(self, plan: CellPlan) -> tuple[float, float]:
        """Count a cell; (seconds, MB) that it adds, what is done once aside."""
        if plan.cost is None:
            return 0.0, 0.0
        training = plan.cost.seconds_per_picture.get("adapt", 0.0)
        others = sum(plan.cost.seconds_per_picture.values()) - training
        new = plan.new_adapters - self.adapters
        seconds = plan.to_do * others + len(new) * training
        disk_mb = plan.to_do * plan.cost.picture_disk_mb + len(new) * plan.cost.adapter_disk_mb
        self.seconds, self.disk_mb = self.seconds + seconds, self.disk_mb + disk_mb
        self.adapters |= new
        for what, how_long in plan.cost.seconds_once.items():
            self.once[what] = max(how_long, self.once.get(what, 0.0))
        return seconds, disk_mb
