"""`adir run`: Hydra composes the cells and hands them to its launcher; every cell is checked before the first one starts."""

import functools
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra._internal.hydra import Hydra  # hydra.main would print its own errors, exit with 1 and return nothing
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from adir.configuration import config_dir
from adir.errors import InputError
from adir.harness.cell import first_line, resolve_cell
from adir.harness.run import Options, Outcome, require_test_pictures, run_cell
from adir.retrieval.corpus import Corpus

EXISTING = ("skip", "redo", "report")


def run_grid(overrides: list[str], multirun: bool) -> int:
    """Run one cell or a grid. Returns the exit status: 0, or 1 when pictures failed. Raises InputError before any work."""
    plain = "hydra/launcher=basic"  # checking is quick, and its errors belong in this process
    checked = launch(check_job, [*overrides, plain] if multirun else overrides, multirun)
    results = checked[0][0]
    first = {folder: number for number, (_, folder) in reversed(list(enumerate(checked)))}  # equal cells run once
    if multirun:
        duplicates = f" ({len(checked)} combinations, some of them equal)" if len(first) < len(checked) else ""
        say(f"{len(first)} cells{duplicates} in {results}")

    kept = frozenset(first.values()) if multirun else None
    outcomes: list[Outcome] = launch(functools.partial(run_job, kept), overrides, multirun)
    failed = sum(outcome.failed for outcome in outcomes)
    done, skipped = sum(o.done for o in outcomes), sum(o.skipped for o in outcomes)
    say(f"{done} pictures done, {skipped} were there, {failed} failed; records and pictures: {results}/cells")
    if failed:
        say("what failed says so in its record; retry=failed runs it again")
    return 1 if failed else 0


def launch(function: Callable[[DictConfig], Any], overrides: list[str], multirun: bool) -> list[Any]:
    """What `function` returns for each cell that Hydra composes from the overrides, in the launcher's processes.

    Raises InputError for bad overrides, and the exception of the first cell whose function raised one.
    """
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("adir", create_config_search_path(str(config_dir())))
    job = functools.partial(guarded, function, secrets.token_hex(8))
    try:
        if multirun or experiment_wants_multirun(hydra, overrides):
            batches = hydra.multirun("run", job, overrides, with_log_configuration=False)
            results = [one.return_value for batch in batches for one in batch]
        else:
            results = [hydra.run("run", job, overrides, with_log_configuration=False).return_value]
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(plain_words(error)) from error
    finally:
        GlobalHydra.instance().clear()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


_stopped: dict[str, BaseException] = {}
"""By grid, what ended this process's share of it: on a full disk no further cell shall adapt for minutes to find that out."""


def guarded(function: Callable[[DictConfig], Any], grid: str, cfg: DictConfig) -> Any:
    """The function's result, or the exception it raised: Hydra would print a line of its own about it.

    After an OSError or InputError, the jobs of that grid that follow in this process return it at once.
    """
    if grid in _stopped:
        return _stopped[grid]
    try:
        return function(cfg)
    except (OSError, InputError) as error:
        _stopped[grid] = error
        return error
    except Exception as error:
        return error


def plain_words(error: Exception) -> str:
    """Hydra's message on one line, without its search path and internal types."""
    message = first_line(error)
    for tail in (" Config search path:", " full_key:", " object_type="):
        message = message.split(tail)[0]
    return message


def experiment_wants_multirun(hydra: Hydra, overrides: list[str]) -> bool:
    """False: -m says it. An experiment that is a grid raises InputError without -m: it would run its first cell only."""
    cfg = hydra.compose_config("run", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    if str(cfg.hydra.mode).endswith("MULTIRUN"):
        raise InputError("this experiment is a grid: run it with -m")
    return False


def compose(overrides: list[str]) -> DictConfig:
    """One composed configuration, without running anything. Raises InputError for bad overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra_compose("run", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(plain_words(error)) from error


def check_job(cfg: DictConfig) -> tuple[Path, Path]:
    """Resolve one cell: (results folder, its folder). Raises InputError for what could not run."""
    options_of(cfg)
    cell = resolve_cell(cfg)
    require_test_pictures(cell)
    if cell.corpus is not None:
        tell_rejects(cell.corpus)
    return cell.results, cell.identity.folder


@functools.cache
def tell_rejects(corpus: Corpus) -> None:
    """Say once which pictures of a corpus could not be read; it is used without them."""
    if corpus.rejects:
        image_id, reason = next(iter(corpus.rejects.items()))
        count = f"{len(corpus.rejects)} unreadable pictures"
        say(f"warning: corpus {corpus.name} is used without {count}, such as {image_id}: {reason}")


def run_job(kept: frozenset[int] | None, cfg: DictConfig) -> Outcome:
    """Run one cell, in whatever process the launcher chose; nothing where a grid's job number is not among `kept`."""
    if kept is not None and HydraConfig.get().job.num not in kept:
        return Outcome()
    torch.set_num_threads(cfg.threads)
    torch.backends.cudnn.allow_tf32 = False  # its 1e-3 is no float rounding, which is all that devices may differ by
    cell = resolve_cell(cfg)
    tracker = instantiate(cfg.tracking)
    tracker.start(cell)
    try:
        return run_cell(cell, options_of(cfg), say, tracker)
    finally:
        tracker.finish()


def options_of(cfg: DictConfig) -> Options:
    """The options that change no result. Raises InputError for unknown words."""
    if cfg.existing not in EXISTING:
        raise InputError(f"existing={cfg.existing}: choose one of {', '.join(EXISTING)}")
    if cfg.retry not in (None, "failed"):
        raise InputError(f"retry={cfg.retry}: failed is the only choice")
    progress = sys.stderr.isatty() if cfg.progress is None else bool(cfg.progress)
    return Options(cfg.existing, cfg.retry == "failed", progress and not beside_others(), bool(cfg.oracle))


def beside_others() -> bool:
    """Whether this job runs in a launcher's worker, where several progress bars would write over one another."""
    return HydraConfig.initialized() and not HydraConfig.get().launcher._target_.endswith("BasicLauncher")


def say(message: str) -> None:
    """A line on stdout, at once: launchers' workers share it."""
    print(message, flush=True)
