"""`adir plan`: print the cells, run time and disk space of `adir run` with the same arguments.

A cell is one combination of settings.
"""

import shutil
import time

from rich.table import Table
from rich.text import Text

from adir.errors import count_of
from adir.files import read_json
from adir.harness.cells.cell import label_of
from adir.harness.planning.plan import CellPlan, plan_cells
from adir.harness.records.layout import Layout
from adir.harness.records.record import Axes
from adir.harness.running.grid import Grid, check_grid, missing_metric_warnings
from adir.harness.tables.terminal import wide_console

HEADINGS = ("cell", "images", "status", "s per\nimage", "minutes", "memory\nMB", "disk\nMB")


def main(overrides: list[str], multirun: bool) -> int:
    """Print a table of the cells with their estimated costs, and why some of them cannot run.

    Args:
        overrides: KEY=VALUE settings, as for `adir run`.
        multirun: whether -m was given.

    Returns:
        0, or 2 if a cell cannot run, if no cell is left, or if the disk is too small. Cells that
        are not applicable are skipped, as in `adir run`, and do not change the status.
    """
    console = wide_console()
    started = time.perf_counter()
    grid = check_grid(overrides, multirun, measuring=True)
    # A run also spends this time, before its first image.
    loading = time.perf_counter() - started
    # One row per cell. The reasons why cells cannot run are numbered and printed below the table.
    plans = plan_cells(list(grid.cells.values()))
    rows = {number: planned_row(plan) for number, plan in zip(grid.cells, plans, strict=True)}
    reasons: dict[str, int] = {}
    for number, problem in sorted(grid.problems.items()):
        numbers = sorted(reasons.setdefault(reason, len(reasons) + 1) for reason in problem.reasons)
        status = "CANNOT RUN" if problem.applicable else "not applicable"
        rows[number] = [
            cell_name(problem.axes),
            "–",
            f"{status} ({', '.join(map(str, numbers))})",
            *["–"] * 4,
        ]

    headings = HEADINGS if plans else HEADINGS[:3]
    table = Table(header_style="bold")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column in (0, 2) else "right", overflow="fold")
    for number in sorted(rows):
        table.add_row(*map(Text, rows[number][: len(headings)]))
    console.print(table)

    # Notes below the table: reasons, missing weights, totals, disk space.
    notes = [f"({number}) {reason}" for reason, number in reasons.items()] + score_notes(grid)
    cannot = not plans or any(problem.applicable for problem in grid.problems.values())
    if plans:
        results = plans[0].cell.results
        disk_mb = sum(plan.disk_mb for plan in plans)
        free_mb = (
            shutil.disk_usage(
                next(path for path in (results, *results.absolute().parents) if path.exists())
            ).free
            / 1e6
        )
        notes.append(
            summary(grid, plans, loading)
            + f", {disk_mb:.0f} MB in {results} ({free_mb:.0f} MB free)"
        )
        if disk_mb > free_mb:
            notes.append(
                "CANNOT RUN: too little disk space is free; use another disk with results=FOLDER"
            )
            cannot = True
        planned = Layout(results).plan(grid.sha256)
        if planned.is_file() and read_json(planned).get("grid") == grid.sha256:
            notes.append("this grid was started before; `adir run` continues it")
    for note in notes:
        console.print(Text(note))
    return 2 if cannot else 0


def planned_row(plan: CellPlan) -> list[str]:
    """Return the table row of a cell that can run: one text per column of HEADINGS."""
    figures = ["–"] * 4
    if plan.cost is not None:
        per_image = sum(plan.cost.seconds_per_image.values())
        figures = [
            f"{per_image:.1f}",
            f"{plan.seconds / 60:.1f}",
            f"{plan.cost.memory_mb:.0f}",
            f"{plan.disk_mb:.1f}",
        ]
    return [cell_name(plan.cell.identity.axes), str(len(plan.cell.data)), plan.status(), *figures]


def cell_name(axes: Axes) -> str:
    """Return the name of a cell: its backbone, task, mode, seed and other settings.

    Example: `embedded sr4 knn k=20 full seed=0`.
    """
    return f"{axes.backbone} {label_of(axes)}"


def score_notes(grid: Grid) -> list[str]:
    """Return messages about scores that may stay empty because weights are missing.

    This function does not download the weights.
    """
    notes = missing_metric_warnings(list(grid.cells.values()), fetch=False)
    wanted = {
        name: files
        for cell in grid.cells.values()
        for name, files in cell.scoring.weights_to_fetch.items()
    }
    if wanted:
        entries = dict.fromkeys(file.entry for files in wanted.values() for file in files)
        notes.append(
            f"the weights of {', '.join(wanted)} are missing; `adir run` or `adir weights get "
            f"{' '.join(entries)}` downloads the weights, and if the download fails, these scores "
            "stay empty"
        )
    return notes


def summary(grid: Grid, plans: list[CellPlan], loading: float) -> str:
    """Return a sentence with the size of the grid and its estimated run time.

    Args:
        grid: grid of cells.
        plans: plans of the grid's cells that can run.
        loading: seconds that a run takes to load and check the grid.
    """
    equal = grid.combinations - len(grid.cells) - len(grid.problems)
    note = f" ({count_of(equal, 'duplicate')} left out)" if equal else ""
    images, adapters = sum(plan.to_do for plan in plans), sum(plan.adapters for plan in plans)
    once = loading + sum(plan.seconds_once for plan in plans) if images else 0.0
    return (
        f"{count_of(len(plans), 'cell')}{note}: {count_of(images, 'image')} to restore and "
        f"{count_of(adapters, 'adapter')} to train, about "
        f"{duration(once + sum(plan.seconds for plan in plans))} with one worker "
        f"(including {duration(once)} spent once, for loading and the corpus)"
    )


def duration(seconds: float) -> str:
    """Format a duration as seconds below 90 s (`40 s`), else as minutes (`3 minutes`)."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
