"""`adir plan`: what `adir run` would do with the same words, before any of it is done: cells, seconds, disk."""

import dataclasses
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adir.errors import InputError
from adir.files import hash_of, read_json
from adir.harness.cell import Cell, build, label_of
from adir.harness.cost import Cost, estimate
from adir.harness.grid import Grid, check_grid, empty_scores
from adir.harness.identity import WITH_NEIGHBOURS
from adir.harness.out_of_memory import out_of_memory_explained
from adir.harness.picture import adapter_made_of, neighbours_key
from adir.harness.refused import Refused
from adir.harness.run import picture_hashes, picture_shapes
from adir.harness.stages import AdapterStore, Measurement, MeasurementStore, NeighbourStore, read_note
from adir.images import hash_of_picture

HEADINGS = ("cell", "pictures", "status", "s per\npicture", "minutes", "memory\nMB", "disk\nMB")


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
            plan.done += record["status"] == "done"
            plan.failed += record["status"] == "failed"
            if record["status"] == "done" or not retry:
                continue
            plan.failed -= 1
        plan.to_do += 1
        if cell.mode == "none":
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
    store = MeasurementStore(cell.results, task, cell.configuration["task"], cell.noise_seed)
    path = store.path(image_id)
    known, _ = read_note(path.with_suffix(".json"))
    if cell.mode != "random" and (known is None or not path.is_file()):
        return None
    if cell.mode in WITH_NEIGHBOURS:
        nothing = torch.empty(0)  # the key needs the hash of y alone, and that of a random draw not even this
        measurement = Measurement(nothing, known["sha256"] if known is not None else "", path)
        key = neighbours_key(
            dataclasses.replace(cell, task=task), image_id, picture_hashes(cell.data)[image_id], measurement
        )
        found = NeighbourStore(cell.results).find(key, cell.k)
        if found is None:
            return None
        pictures = found.pictures
    else:
        pictures = [hash_of_picture(task.picture_of(task.read_y(path)))]
    return hash_of(adapter_made_of(cell, image_id, task, pictures))


def adapter_to_come(cell: Cell, image_id: str) -> str:
    """What names the adapter of a picture before its pictures are known: what they will follow from. Equal for the cells
    that will share it, such as two samplers, or `random` of two tasks."""
    configuration = cell.identity.configuration
    follows: dict[str, Any] = {"mode": cell.mode, "x": picture_hashes(cell.data)[image_id]}
    if cell.mode in WITH_NEIGHBOURS:
        follows |= {"retrieval": configuration["retrieval"], "k": cell.k}
    if cell.mode != "random":
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


def print_plan(overrides: list[str], multirun: bool) -> int:
    """Print the plan. Returns 0, or 2 where a cell cannot run or none is left; cells that are not applicable are left out,
    as in a run."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))
    started = time.perf_counter()
    grid = check_grid(overrides, multirun, measuring=True)
    loading = time.perf_counter() - started  # which a run does too, before its first picture
    totals, reasons = Totals(), Numbered()
    plans = {number: plan_cell(cell) for number, cell in grid.cells.items()}
    table = Table(header_style="bold")
    headings = HEADINGS if plans else HEADINGS[:3]
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number in (0, 2) else "right", overflow="fold")
    for number in sorted(plans.keys() | grid.problems.keys()):
        row = planned_row(plans[number], totals) if number in plans else refused_row(grid.problems[number], reasons)
        table.add_row(*map(Text, row[: len(headings)]))
    console.print(table)
    notes = [*reasons.lines(), *score_notes(grid)]
    cannot = not plans or any(problem.applicable for problem in grid.problems.values())
    if plans:
        results = grid.cells[min(plans)].results
        free = free_mb(results)
        notes.append(summary(grid, plans, totals, loading, free))
        if totals.disk_mb > free:
            notes.append("CANNOT RUN: the disk is too small")
            cannot = True
        planned = results / "grids" / f"{grid.sha256[:16]}.json"
        if planned.is_file() and read_json(planned).get("grid") == grid.sha256:
            notes.append("this grid was begun before; adir run goes on with it")
    for note in notes:
        console.print(Text(note))
    return 2 if cannot else 0


class Numbered:
    """Footnotes: equal ones have one number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def number(self, text: str) -> int:
        """From 1."""
        if text not in self._texts:
            self._texts.append(text)
        return self._texts.index(text) + 1

    def lines(self) -> list[str]:
        """`(1) text`, in order."""
        return [f"({number}) {text}" for number, text in enumerate(self._texts, start=1)]


def planned_row(plan: CellPlan, totals: Totals) -> list[str]:
    """The row of a cell that can run, which is counted."""
    own_seconds, own_disk = totals.add(plan)
    cost = plan.cost
    figures = ["–"] * 4
    if cost is not None:
        per_picture = sum(cost.seconds_per_picture.values())
        figures = [f"{per_picture:.1f}", f"{own_seconds / 60:.1f}", f"{cost.memory_mb:.0f}", f"{own_disk:.1f}"]
    return [cell_name(plan.cell.identity.axes), str(len(plan.cell.data)), plan.status(), *figures]


def refused_row(problem: Refused, reasons: Numbered) -> list[str]:
    """The row of a cell that cannot run or is not applicable, with the numbers of its reasons."""
    numbers = ", ".join(map(str, sorted(map(reasons.number, problem.reasons))))
    status = "CANNOT RUN" if problem.applicable else "not applicable"
    return [cell_name(problem.axes), "–", f"{status} ({numbers})", *["–"] * 4]


def cell_name(axes: dict[str, Any]) -> str:
    """`embedded sr4 knn k=20 full seed=0`: a grid may hold several backbones."""
    return f"{axes['backbone']} {label_of(axes)}"


def score_notes(grid: Grid) -> list[str]:
    """What says which scores may stay empty for want of weights. Nothing is fetched."""
    scorings = [cell.scoring for cell in grid.cells.values()]
    notes = []
    for problem in grid.problems.values():
        try:
            scorings.append(build(problem.scoring, "scoring"))
        except InputError:
            pass  # which is among its reasons
    wanted = {name: files for scoring in scorings for name, files in scoring.to_fetch.items()}
    if wanted:
        entries = dict.fromkeys(file.entry for files in wanted.values() for file in files)
        notes.append(
            f"weights of {', '.join(wanted)} are not here: adir run fetches them where it can, or `adir weights get "
            f"{' '.join(entries)}`; else these scores stay empty"
        )
    return notes + empty_scores(list(grid.cells.values()), fetch=False)


def summary(grid: Grid, plans: dict[int, CellPlan], totals: Totals, loading: float, free: float) -> str:
    """The grid in one sentence. loading: seconds.  free: MB."""
    equal = grid.combinations - len(grid.cells) - len(grid.problems)
    note = f", {equal} more combinations equal one of them" if equal else ""
    pictures = sum(plan.to_do for plan in plans.values())
    once = loading + sum(totals.once.values()) if pictures else 0.0
    return (
        f"{len(plans)} cells{note}: {pictures} pictures and {len(totals.adapters)} adapters to do, about "
        f"{duration(totals.seconds + once)} of one worker ({duration(once)} of them once, for loading and the "
        f"corpus), {totals.disk_mb:.0f} MB in {grid.cells[min(plans)].results} ({free:.0f} MB free)"
    )


def free_mb(folder: Path) -> float:
    """Of the disk where a folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e6


def duration(seconds: float) -> str:
    """For people: `40 s`, or `3 minutes` from 90 seconds on."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
