"""`adir run`: run one cell or a grid."""

import functools
import os
import shlex

from adir.errors import InputError, first_line
from adir.harness.cells.cell import label_of
from adir.harness.cells.compose import launch
from adir.harness.records.layout import Layout
from adir.harness.running.claims import Claims
from adir.harness.running.grid import (
    LOCAL_LAUNCHERS,
    check_grid,
    empty_scores,
    run_job,
    say,
    write_plan,
)
from adir.harness.running.interruption import new_stop_file, stop_file_on_interrupt
from adir.harness.running.worker import Outcome


def main(overrides: list[str], multirun: bool) -> int:
    """Run one cell or a grid.

    Returns the exit status: 0; 1 if images failed or are missing; 130 if interrupted.

    Raises InputError before any work if a cell cannot run.
    """
    grid = check_grid(overrides, multirun)
    for problem in grid.problems.values():
        if problem.applicable or not grid.cells:
            more = sum(other.applicable for other in grid.problems.values()) - 1
            raise InputError(
                f"{problem}"
                + (f" ({more} more cells cannot run: adir plan tells)" if more > 0 else "")
            )
        say(f"left out, not applicable: {label_of(problem.axes)}: {problem}")
    cells = list(grid.cells.values())
    results = cells[0].results
    if multirun:
        equal = grid.combinations - len(grid.problems) - len(cells)
        duplicates = (
            f" ({grid.combinations} combinations, {equal} equal to others)" if equal else ""
        )
        say(f"{len(cells)} cells{duplicates} in {results}")
    for note in empty_scores(cells):
        say(note)
    plan = write_plan(grid) if cells[0].configuration["existing"] != "report" else None
    stop = new_stop_file(plan) if plan is not None else None

    job = functools.partial(
        run_job, frozenset(grid.cells) if multirun else None, plan, stop, os.getpid()
    )
    all_ended = not LOCAL_LAUNCHERS.get(grid.launcher, True)  # also where `launch` raises
    try:
        with stop_file_on_interrupt(stop) as interrupted:
            try:
                outcomes: list[Outcome] = launch(job, overrides, multirun)
                all_ended = True
            except (InputError, OSError):
                raise
            except BaseException as error:
                if not interrupted:
                    raise
                # by a second Ctrl-C, or because a worker that was just starting did not yet handle
                # the first
                outcomes = []
                say(
                    f"the workers ended early ({type(error).__name__}: {first_line(error)}); "
                    "their counts are lost"
                )
                for folder in {Layout(results).adapters, *(cell.ledger.claims for cell in cells)}:
                    Claims(folder).clear_dead()  # some workers were killed while they held claims
        stopped = bool(interrupted) or (stop is not None and stop.exists())
    finally:
        if stop is not None and all_ended:
            stop.unlink(missing_ok=True)
    total = sum(outcomes, Outcome())
    # Count from the records: failures may come from a worker that helped with a cell, or from an
    # earlier run.
    found = [cell.ledger.peek(image_id) for cell in cells for image_id in cell.data.ids]
    total.failed = sum(record is not None and record.status == "failed" for record in found)
    missing = sum(record is None for record in found)
    done = f"{total.done} images done, {total.skipped} were there"
    if not outcomes:
        done = f"of {len(found)} images {len(found) - missing - total.failed} are done"
    say(f"{done}, {total.failed} failed; records and images: {results}/cells")
    if missing and not stopped:
        why = (
            "another worker is at them, or was; run the same command again"
            if plan
            else "existing=report runs nothing"
        )
        say(f"{missing} images have no record yet: {why}")
    if total.failed:
        say("what failed says so in its record; retry=failed runs it again")
    if stopped:
        say(f"interrupted, {missing} images are left; to go on:")
        say(f"  adir run {'-m ' if multirun else ''}{shlex.join(overrides)}")
        return 130
    return 1 if total.failed or missing else 0
