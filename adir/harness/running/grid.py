"""Run a grid (`adir run`): check its cells, write its plan, and run each cell as a Hydra job.

A cell is one combination of settings, such as backbone, task, sampler and adaptation mode; a grid
is a set of cells. Hydra composes the cells and hands them to its launcher. Every cell is checked
before the first one starts.
"""

import dataclasses
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adir.data.base import Corpus
from adir.environment import disable_bitsandbytes, use_tolerant_streams
from adir.errors import InputError, count_of
from adir.files import hash_of, json_bytes, read_json, write_bytes, write_json
from adir.harness.cells.cell import CannotRun, Cell, Refused, resolve_cell
from adir.harness.cells.compose import launch, launcher_of, require_options
from adir.harness.cells.devices import on_the_cpu, use_own_gpu
from adir.harness.cells.paths import from_plain, quoted
from adir.harness.records.layout import Layout
from adir.harness.records.ledger import Ledger
from adir.harness.records.planned import PlannedCell, plan_cells
from adir.harness.records.record import SCHEMA
from adir.harness.running.claims import Claims
from adir.harness.running.interruption import leave_to_the_launching_process
from adir.harness.running.neighbours import require_enough
from adir.harness.running.stores import MeasurementStore
from adir.harness.running.worker import (
    Options,
    Outcome,
    image_hashes,
    require_test_images,
    run_cell,
)

LOCAL_LAUNCHERS = {"BasicLauncher": False, "JoblibLauncher": False, "LocalLauncher": True}
"""The Hydra launchers that run jobs on this machine; all others submit jobs to a cluster.

A value is true if jobs may outlive the process that launched them.
"""


def missing_metric_warnings(cells: list[Cell], fetch: bool = True) -> list[str]:
    """Return one warning per metric whose weights are missing; the records will miss the metric.

    The warnings are printed before the work starts.

    Args:
        cells: the cells of the grid.
        fetch: try to download missing weights first, as the run would. If False, only metrics whose
            weights files are present are checked.
    """
    scorings = {hash_of(cell.configuration["scoring"]): cell.scoring for cell in cells}.values()
    asked = scorings if fetch else [scoring.with_local_weights() for scoring in scorings]
    reasons = {name: reason for scoring in asked for name, reason in scoring.unavailable.items()}
    return [
        f"warning: the records will have no {name}, which `adir score` can add later: {reason}"
        for name, reason in reasons.items()
    ]


class Grid:
    """Checked grid: its cells, and the combinations of settings that cannot run.

    Attributes:
        launcher: class name of the Hydra launcher.
        combinations: number of jobs in the grid.
        cells: {job number: cell}. If several jobs have the same cell and test set, only the first
            job is listed.
        problems: {job number: error with the reasons why the job cannot run}. If several jobs have
            equal axes (backbone, task, mode and so on) and equal reasons, only the first job is
            listed.
    """

    def __init__(self, checked: list[Cell | Refused], launcher: str) -> None:
        self.launcher = launcher
        self.combinations = len(checked)
        self.problems: dict[int, Refused] = {}
        self.cells: dict[int, Cell] = {}
        # The test set is not part of a cell's identity, but images of every test set are wanted.
        first: dict[tuple[Path, str], int] = {}
        for number, found in enumerate(checked):
            if isinstance(found, Refused):
                if (found.axes, found.reasons) not in [
                    (other.axes, other.reasons) for other in self.problems.values()
                ]:
                    self.problems[number] = found
            elif first.setdefault((found.identity.folder, found.data.sha256), number) == number:
                self.cells[number] = found

    @property
    def sha256(self) -> str:
        """The hash of the cells and their images, equal for every run of the same grid."""
        return hash_of([[cell.identity.sha256, cell.data.ids] for cell in self.cells.values()])


def check_grid(overrides: list[str], multirun: bool, measuring: bool = False) -> Grid:
    """Return the grid after building and checking every cell in this process.

    A cell's networks are built on the cell's device if this process will run the cell, and on the
    CPU if another process will. A cell that a cluster will run may name a device that this machine
    does not have.

    Args:
        overrides: Hydra's overrides from the command line.
        multirun: whether the overrides describe a grid; False for a single cell.
        measuring: whether this process will make short runs of each cell on the cell's device.

    Raises:
        InputError: if the overrides themselves are wrong.
    """
    launcher = launcher_of(overrides, multirun)
    own_device = measuring or launcher == "BasicLauncher"
    here = own_device or launcher in LOCAL_LAUNCHERS
    job = functools.partial(check_job, here=here, own_device=own_device)
    own = [
        word for word in overrides if not word.startswith(("hydra/launcher=", "hydra.launcher."))
    ]
    with tempfile.TemporaryDirectory() as nowhere:
        # Hydra writes a file into the folder of a grid's results, even if the grid is refused.
        words = [f"hydra.{mode}.dir={quoted(nowhere)}" for mode in ("run", "sweep")]
        # Checks are fast, and must raise their errors in this process.
        words += ["hydra/launcher=basic"] if multirun else []
        return Grid(launch(job, [*(own if multirun else overrides), *words], multirun), launcher)


def check_job(cfg: DictConfig, here: bool = True, own_device: bool = True) -> Cell | Refused:
    """Return the cell of one job, or the reasons why the cell cannot run.

    Args:
        cfg: the composed configuration of the cell.
        here: check that this machine has the cell's devices.
        own_device: build the cell on its own devices; otherwise on the CPU.
    """
    options_of(cfg)
    lacking: list[str] = []
    try:
        twin = OmegaConf.create(on_the_cpu(OmegaConf.to_container(cfg), lacking if here else None))
        cell = resolve_cell(cfg if own_device and not lacking else twin)
        if lacking:
            raise CannotRun([])  # missing devices are the only reason
        if not own_device:
            asked: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
            cell = dataclasses.replace(cell, configuration=asked)
        if cfg.oracle and cell.backbone.kind == "latent":
            raise InputError(
                f"oracle=true needs a pixel backbone, but {cell.backbone.name} works on latents; "
                "leave out oracle=true"
            )
        require_test_images(cell)
        measured = MeasurementStore(
            cell.results, cell.task, cell.identity.configuration["task"], cell.noise_seed
        )
        for image_id, sha256 in image_hashes(cell.data).items():
            measured.note(image_id, sha256)
        require_enough(cell)
    except InputError as error:
        return Refused(cfg, error, lacking)
    if cell.corpus is not None:
        warn_of_rejects(cell.corpus)
    return cell


def write_plan(grid: Grid) -> Path:
    """Write the plan of a grid and the manifest of each test set; return the plan's path.

    The plan is RESULTS/grids/HASH.json. It lists the requested cells and images, so that a table
    can show which are missing. It also holds the cells' configurations, so that a worker can help
    with another worker's cell. A manifest lists the images of a test set with their hashes.
    """
    cells = list(grid.cells.values())
    layout = Layout(cells[0].results)
    layout.mark()
    planned = [
        PlannedCell(
            cell=cell.identity.sha256,
            folder=cell.identity.folder.as_posix(),
            axes=cell.identity.axes,
            identity=cell.identity.configuration,
            images=cell.data.ids,
            data=cell.data.name,
            manifest=cell.data.sha256,
            image_hashes=image_hashes(cell.data),
            configuration=cell.configuration,
        ).model_dump(mode="json")
        for cell in cells
    ]
    path = layout.plan(grid.sha256)
    content = json_bytes({"schema": SCHEMA, "grid": grid.sha256, "cells": planned})
    # An unchanged plan is not rewritten, so a finished grid can be run again on a read-only disk.
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)
    for data in {id(cell.data): cell.data for cell in cells}.values():
        manifest = layout.manifest(data.name, data.sha256)
        if not manifest.is_file():
            images = {
                image_id: {
                    "sha256": data.manifest[image_id],
                    "pixels": image_hashes(data)[image_id],
                }
                | data.attribution(image_id)
                for image_id in data.ids
            }
            write_json(manifest, {"name": data.name, "sha256": data.sha256, "images": images})
    return path


@functools.cache
def warn_of_rejects(corpus: Corpus) -> None:
    """Print once how many images of a corpus cannot be read; the corpus is used without them."""
    if corpus.rejects:
        image_id, reason = next(iter(corpus.rejects.items()))
        count = count_of(len(corpus.rejects), "unreadable image")
        say(f"warning: corpus {corpus.name} is used without {count}, such as {image_id}: {reason}")


def run_job(
    kept: frozenset[int] | None,
    plan: Path | None,
    stop: Path | None,
    launched_by: int,
    cfg: DictConfig,
) -> Outcome:
    """Run one cell in a process of the launcher, then help other workers with their cells.

    Args:
        kept: numbers of the jobs that may run; a job with another number does nothing. None if the
            run has a single cell.
        plan: path of the grid's plan; None if `existing` is `report`, which runs nothing.
        stop: stop file of this run (`new_stop_file`).
        launched_by: process id of the launching process.
        cfg: the composed configuration of the cell.

    Returns:
        The counts of the cell's images by result. `done` and `left` also count images of the cells
        that this job helped with.
    """
    if kept is not None and HydraConfig.get().job.num not in kept:
        return Outcome()
    if os.getpid() != launched_by:
        use_tolerant_streams()
        disable_bitsandbytes()
        leave_to_the_launching_process(stop)
    if stop is not None and stop.exists():
        return Outcome()
    torch.set_num_threads(cfg.threads)
    use_own_gpu(in_parallel_worker())
    if kept is None or plan is None or cfg.existing != "skip" or cfg.retry is not None:
        return run_tracked(cfg, plan, stop)
    # First restore all free images of all cells; only then wait for images of other workers.
    outcome = run_tracked(cfg, plan, stop, wait=False)
    if in_parallel_worker() or HydraConfig.get().job.num == max(kept):
        helped = help_others(Path(cfg.results), plan, stop)
        outcome.done, outcome.left = outcome.done + helped.done, outcome.left + helped.left
    return outcome


def help_others(results: Path, plan: Path, stop: Path | None) -> Outcome:
    """Help with the cells of a plan that other workers have begun; return the counts of images.

    The first pass restores images that no worker holds. The second pass waits for the images of
    other workers and takes over images of workers that die. The second pass is skipped if any cell
    has not begun, because the job of that cell will run it.
    """
    planned = [(one, Ledger(results / str(one.folder))) for one in plan_cells(read_json(plan))]
    outcome = Outcome()
    for wait in (False, True):
        planned = [(one, ledger) for one, ledger in planned if ledger.any_missing(one.images)]
        begun = [one for one, ledger in planned if Claims(ledger.claims).any_claims()]
        if wait and len(begun) < len(planned):
            break
        for one in begun:
            outcome += run_tracked(from_plain(one.configuration), plan, stop, wait)
    return outcome


def run_tracked(
    cfg: DictConfig, plan: Path | None, stop: Path | None, wait: bool = True
) -> Outcome:
    """Run the cell of a composed configuration and log it; return the counts of its images.

    The configuration names the tracker that keeps the log, such as TensorBoard.

    Args:
        cfg: the composed configuration.
        plan: path of the grid's plan, whose name identifies the run for the tracker.
        stop: stop file of this run (`new_stop_file`).
        wait: wait for images that other workers hold. If False, leave these images out.
    """
    cell = resolve_cell(cfg)
    tracker = instantiate(cfg.tracking)
    tracker.start(cell, plan.stem if plan is not None else None)
    try:
        options = dataclasses.replace(options_of(cfg), stop_file=stop, wait=wait)
        return run_cell(cell, options, say, tracker.record)
    finally:
        tracker.finish()


def options_of(cfg: DictConfig) -> Options:
    """Return the options of a run from a configuration; none of them changes a result.

    Raises:
        InputError: if an option is invalid.
    """
    require_options(cfg)
    progress = sys.stderr.isatty() if cfg.progress is None else bool(cfg.progress)
    retry = cfg.retry == "failed"
    return Options(
        cfg.existing, retry, progress and not in_parallel_worker(), bool(cfg.oracle), cfg.batch_size
    )


def in_parallel_worker() -> bool:
    """Check whether this job runs in a launcher's worker, beside other workers.

    Such a job shows no progress bar, because the bars of several workers would overwrite one
    another.
    """
    return HydraConfig.initialized() and not HydraConfig.get().launcher._target_.endswith(
        "BasicLauncher"
    )


def say(message: str) -> None:
    """Print a line on stdout and flush it, because workers share stdout."""
    print(message, flush=True)
