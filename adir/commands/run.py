"""`adir run`: restore and score the images of one cell or of a grid.

A cell is one combination of settings, and a grid is a set of cells.
"""

import functools
import os
import shlex

from adir.errors import InputError, count_of, one_line
from adir.harness.cells.cell import label_of
from adir.harness.cells.compose import launch
from adir.harness.records.layout import Layout
from adir.harness.running.claims import Claims
from adir.harness.running.grid import (
    LOCAL_LAUNCHERS,
    check_grid,
    missing_metric_warnings,
    run_job,
    say,
    write_plan,
)
from adir.harness.running.interruption import new_stop_file, stop_file_on_interrupt
from adir.harness.running.worker import Outcome


def main(overrides: list[str], multirun: bool) -> int:
    """Run one cell or a grid, and print how many images are done, failed and missing.

    Args:
        overrides: KEY=VALUE settings; with `multirun`, values may be separated by commas.
        multirun: whether -m was given.

    Returns:
        0, or 1 if images failed or have no record, or 130 if interrupted.

    Raises:
        InputError: before the first image, if a cell cannot run or if no cell is applicable.
            Otherwise cells that are not applicable are skipped.
    """
    # Refuse the grid if a cell cannot run, and name the cells that are skipped.
    grid = check_grid(overrides, multirun)
    for problem in grid.problems.values():
        if problem.applicable or not grid.cells:
            more = sum(other.applicable for other in grid.problems.values()) - 1
            raise InputError(
                f"{problem}"
                + (
                    f" ({count_of(more, 'more cell')} cannot run; see `adir plan`)"
                    if more > 0
                    else ""
                )
            )
        say(f"skipped {label_of(problem.axes)}, which is not applicable: {problem}")
    cells = list(grid.cells.values())
    results = cells[0].results
    if multirun:
        equal = grid.combinations - len(grid.problems) - len(cells)
        duplicates = (
            f" ({grid.combinations} combinations, {count_of(equal, 'duplicate')})" if equal else ""
        )
        say(f"{count_of(len(cells), 'cell')}{duplicates} in {results}")
    for note in missing_metric_warnings(cells):
        say(note)
    plan = write_plan(grid) if cells[0].configuration["existing"] != "report" else None
    stop = new_stop_file(plan) if plan is not None else None

    # Run the cells, in this process or in workers, until all are done or the run is interrupted.
    job = functools.partial(
        run_job, frozenset(grid.cells) if multirun else None, plan, stop, os.getpid()
    )
    # Jobs of some launchers may outlive this process. The stop file must then stay for them.
    all_ended = not LOCAL_LAUNCHERS.get(grid.launcher, True)
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
                # A second Ctrl-C, or a worker that had not yet installed its handler for the first.
                outcomes = []
                say(
                    f"the workers ended early ({type(error).__name__}: {one_line(error)}); "
                    "how many images they restored is unknown"
                )
                for folder in {Layout(results).adapters, *(cell.ledger.claims for cell in cells)}:
                    Claims(folder).clear_dead()  # workers may have been killed while holding claims
        stopped = bool(interrupted) or (stop is not None and stop.exists())
    finally:
        if stop is not None and all_ended:
            stop.unlink(missing_ok=True)
    # Print the counts. `outcomes` has those of the workers.
    total = sum(outcomes, Outcome())
    # Failures are counted from the records, because they may come from another process that worked
    # on the same cell, or from an earlier run.
    found = [cell.ledger.peek(image_id) for cell in cells for image_id in cell.data.ids]
    total.failed = sum(record is not None and record.status == "failed" for record in found)
    missing = sum(record is None for record in found)
    done = f"{count_of(total.done, 'image')} done, {total.skipped} already done"
    if not outcomes:
        done = f"{len(found) - missing - total.failed} of {len(found)} images are done"
    say(f"{done}, {total.failed} failed; records and images: {results}/cells")
    if missing and not stopped:
        why = (
            "another process is working on them or was killed; run the same command again"
            if plan
            else "existing=report runs nothing"
        )
        say(f"{count_of(missing, 'image')} without a record, because {why}")
    if total.failed:
        say("the records of failed images contain the errors; retry=failed runs these images again")
    if stopped:
        say(f"interrupted with {count_of(missing, 'image')} left; to continue, run")
        say(f"  adir run {'-m ' if multirun else ''}{shlex.join(overrides)}")
        return 130
    return 1 if total.failed or missing else 0
