"""`adir plan`: print what `adir run` would do with the same words."""

import argparse
import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adir.errors import InputError
from adir.files import read_json
from adir.harness.cells.cell import build, label_of
from adir.harness.cells.refused import Refused
from adir.harness.planning.plan import CellPlan, Totals, plan_cell
from adir.harness.records.layout import Layout
from adir.harness.records.record import Axes
from adir.harness.running.grid import Grid, check_grid, empty_scores


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. Returns the exit status."""
    return print_plan(args.overrides, args.multirun)


HEADINGS = ("cell", "pictures", "status", "s per\npicture", "minutes", "memory\nMB", "disk\nMB")


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
        planned = Layout(results).plan(grid.sha256)
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
    """Return the table row of a cell that cannot run or is not applicable; it refers to its reasons by number."""
    numbers = ", ".join(map(str, sorted(map(reasons.number, problem.reasons))))
    status = "CANNOT RUN" if problem.applicable else "not applicable"
    return [cell_name(problem.axes), "–", f"{status} ({numbers})", *["–"] * 4]


def cell_name(axes: Axes) -> str:
    """`embedded sr4 knn k=20 full seed=0`: a grid may hold several backbones."""
    return f"{axes.backbone} {label_of(axes)}"


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
