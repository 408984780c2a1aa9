"""`adir run`: Hydra composes the cells and hands them to its launcher; every cell is checked before the first one starts."""

import functools
import os
import sys
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adir.errors import InputError
from adir.files import read_json, write_json
from adir.harness.cell import Cell, NotApplicable, first_line, resolve_cell
from adir.harness.claims import Claims
from adir.harness.devices import use_own_gpu
from adir.harness.identity import hash_of
from adir.harness.interruption import leave_to_the_launching_process, stop_file, stop_file_on_interrupt
from adir.harness.launch import launch
from adir.harness.run import Options, Outcome, picture_hashes, require_test_pictures, run_cell
from adir.harness.stages import MeasurementStore, OtherPicture, read_note
from adir.retrieval.corpus import Corpus

EXISTING = ("skip", "redo", "report")


def run_grid(overrides: list[str], multirun: bool) -> int:
    """Run one cell or a grid. Returns the exit status: 0, or 1 when pictures failed, or 130 when interrupted.

    Raises InputError before any work where a cell cannot run.
    """
    grid = check_grid(overrides, multirun)
    for problem in grid.problems.values():
        if not isinstance(problem, NotApplicable) or not grid.cells:
            more = sum(not isinstance(other, NotApplicable) for other in grid.problems.values()) - 1
            raise InputError(f"{problem}" + (f" ({more} more cells cannot run: adir plan tells)" if more > 0 else ""))
        say(f"left out, not applicable: {problem}")
    cells = list(grid.cells.values())
    results = cells[0].results
    if multirun:
        equal = grid.combinations - len(grid.problems) - len(cells)
        duplicates = f" ({grid.combinations} combinations, {equal} equal to others)" if equal else ""
        say(f"{len(cells)} cells{duplicates} in {results}")
    plan = write_plan(grid) if cells[0].configuration["existing"] != "report" else None

    job = functools.partial(run_job, frozenset(grid.cells) if multirun else None, plan, os.getpid())
    with stop_file_on_interrupt(plan) as interrupted:
        try:
            outcomes: list[Outcome] = launch(job, overrides, multirun)
        except (InputError, OSError):
            raise
        except BaseException as error:
            if not interrupted.is_set:
                raise
            outcomes = []  # a worker that was still being started did not know of stop files
            say(f"the workers ended early ({type(error).__name__}: {first_line(error)}); their counts are lost")
    total = sum(outcomes, Outcome())
    # From the records, as a worker that helped with a cell, or an earlier run, may have met a failure.
    found = [cell.ledger.peek(image_id) for cell in cells for image_id in cell.data.ids]
    total.failed = sum(record is not None and record["status"] == "failed" for record in found)
    missing = sum(record is None for record in found)
    say(
        f"{total.done} pictures done, {total.skipped} were there, {total.failed} failed; "
        f"records and pictures: {results}/cells"
    )
    if missing and plan is not None and not interrupted.is_set:
        say(f"{missing} pictures have no record yet: another worker is at them, or was; run the same command again")
    if total.failed:
        say("what failed says so in its record; retry=failed runs it again")
    if interrupted.is_set:
        say(f"interrupted, {missing} pictures are left; to go on:")
        say(f"  adir run {'-m ' if multirun else ''}{' '.join(overrides)}")
        return 130
    return 1 if total.failed else 0


class Grid:
    """The cells of a grid, by the number of the first job that makes them, and what is wrong with the other jobs."""

    def __init__(self, checked: list[Cell | InputError]) -> None:
        self.combinations = len(checked)
        self.problems = {number: found for number, found in enumerate(checked) if isinstance(found, InputError)}
        self.cells: dict[int, Cell] = {}
        first: dict[
            tuple[Path, str], int
        ] = {}  # the test set is no part of a cell's identity, and all of its pictures are wanted
        for number, found in enumerate(checked):
            if not isinstance(found, Cell):
                continue
            if first.setdefault((found.identity.folder, found.data.sha256), number) == number:
                self.cells[number] = found

    @property
    def sha256(self) -> str:
        """Of its cells and their pictures: the same grid, whenever it is run."""
        return hash_of([[cell.identity.sha256, cell.data.ids] for cell in self.cells.values()])


def check_grid(overrides: list[str], multirun: bool) -> Grid:
    """Every cell resolved and checked, in this process. Raises InputError where the overrides themselves are wrong."""
    plain = "hydra/launcher=basic"  # checking is quick, and its errors belong in this process
    own = [word for word in overrides if not word.startswith(("hydra/launcher=", "hydra.launcher."))]
    return Grid(launch(check_job, [*own, plain] if multirun else overrides, multirun))


def check_job(cfg: DictConfig) -> Cell | InputError:
    """The cell, or why it cannot run."""
    options_of(cfg)
    try:
        cell = resolve_cell(cfg)
        require_test_pictures(cell)
        require_same_pictures(cell)
    except InputError as error:
        return error
    if cell.corpus is not None:
        tell_rejects(cell.corpus)
    return cell


def require_same_pictures(cell: Cell) -> None:
    """Raise OtherPicture where a y of another picture with the id of one of ours lies in the results folder."""
    store = MeasurementStore(cell.results, cell.task, cell.configuration["task"], cell.noise_seed)
    if not store.folder.is_dir():
        return
    for image_id in cell.data.ids:
        path = store.path(image_id)
        known, _ = read_note(path.with_suffix(".json"))
        if known is not None and known["image_sha256"] != picture_hashes(cell.data)[image_id]:
            raise OtherPicture(
                f"{path}: was made of another picture with the id {image_id!r}; use another results folder"
            )


def write_plan(grid: Grid) -> Path:
    """RESULTS/grids/HASH.json: the cells and pictures that were asked for, so that a table shows what is missing, and the
    cells' configurations, so that a worker can help with another's; and the manifest of each test set."""
    cells = list(grid.cells.values())
    results = cells[0].results
    planned = [
        {
            "cell": cell.identity.sha256,
            "folder": str(cell.identity.folder),
            "axes": cell.identity.axes,
            "identity": cell.identity.configuration,
            "images": cell.data.ids,
            "data": cell.data.name,
            "configuration": cell.configuration,
        }
        for cell in cells
    ]
    path = results / "grids" / f"{grid.sha256[:16]}.json"
    try:
        unchanged = read_json(path)["cells"] == planned
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        unchanged = False
    if not unchanged:
        write_json(path, {"schema": 1, "grid": grid.sha256, "cells": planned})
    for data in {id(cell.data): cell.data for cell in cells}.values():
        manifest = results / "manifests" / f"{data.name}-{data.sha256[:10]}.json"
        if not manifest.is_file():
            pictures = {
                image_id: {"sha256": data.manifest[image_id], "pixels": picture_hashes(data)[image_id]}
                | data.attribution(image_id)
                for image_id in data.ids
            }
            write_json(manifest, {"name": data.name, "sha256": data.sha256, "pictures": pictures})
    return path


@functools.cache
def tell_rejects(corpus: Corpus) -> None:
    """Say once which pictures of a corpus could not be read; it is used without them."""
    if corpus.rejects:
        image_id, reason = next(iter(corpus.rejects.items()))
        count = f"{len(corpus.rejects)} unreadable pictures"
        say(f"warning: corpus {corpus.name} is used without {count}, such as {image_id}: {reason}")


def run_job(kept: frozenset[int] | None, plan: Path | None, launched_by: int, cfg: DictConfig) -> Outcome:
    """Run one cell, in whatever process the launcher chose, then help with those that other workers are at.

    Nothing where a grid's job number is not among `kept`.
    """
    if kept is not None and HydraConfig.get().job.num not in kept:
        return Outcome()
    if os.getpid() != launched_by:
        leave_to_the_launching_process()
    if plan is not None and stop_file(plan).exists():
        return Outcome()
    torch.set_num_threads(cfg.threads)
    torch.backends.cudnn.allow_tf32 = False  # its 1e-3 is no float rounding, which is all that devices may differ by
    use_own_gpu(beside_others())
    outcome = run_tracked(cfg, plan)
    if plan is not None and beside_others() and cfg.existing == "skip":
        for other in read_json(plan)["cells"]:
            folder = Path(cfg.results) / other["folder"]
            if Claims(folder / "claims").any_alive():
                helped = run_tracked(OmegaConf.create(other["configuration"]), plan)
                outcome.done, outcome.left = outcome.done + helped.done, outcome.left + helped.left
    return outcome


def run_tracked(cfg: DictConfig, plan: Path | None) -> Outcome:
    """Run the cell of a composed configuration, telling its tracker."""
    cell = resolve_cell(cfg)
    tracker = instantiate(cfg.tracking)
    tracker.start(cell, plan.stem if plan is not None else None)
    try:
        return run_cell(cell, options_of(cfg, stop_file(plan) if plan is not None else None), say, tracker)
    finally:
        tracker.finish()


def options_of(cfg: DictConfig, stop: Path | None = None) -> Options:
    """The options that change no result. Raises InputError for unknown words."""
    if cfg.existing not in EXISTING:
        raise InputError(f"existing={cfg.existing}: choose one of {', '.join(EXISTING)}")
    if cfg.retry not in (None, "failed"):
        raise InputError(f"retry={cfg.retry}: failed is the only choice")
    if isinstance(cfg.batch_size, bool) or not isinstance(cfg.batch_size, int) or cfg.batch_size < 1:
        raise InputError(f"batch_size={cfg.batch_size}: a whole number of at least 1 is needed")
    progress = sys.stderr.isatty() if cfg.progress is None else bool(cfg.progress)
    retry = cfg.retry == "failed"
    return Options(cfg.existing, retry, progress and not beside_others(), bool(cfg.oracle), cfg.batch_size, stop)


def beside_others() -> bool:
    """Whether this job runs in a launcher's worker, where several progress bars would write over one another."""
    return HydraConfig.initialized() and not HydraConfig.get().launcher._target_.endswith("BasicLauncher")


def say(message: str) -> None:
    """A line on stdout, at once: launchers' workers share it."""
    print(message, flush=True)
