"""Compose configurations with Hydra, and call a function for each job of a grid."""

import functools
import re
import secrets
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# hydra.main would print its own errors, exit with status 1 and return nothing.
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adir.configuration import config_dir
from adir.errors import InputError, one_line
from adir.harness.cells.devices import gpu_count
from adir.harness.cells.paths import parses, quoted, with_paths_quoted

OmegaConf.register_new_resolver("gpu_count", gpu_count, replace=True)
# The resolver `half` computes LoRA's alpha from its rank.
OmegaConf.register_new_resolver("half", lambda number: number / 2, replace=True)
OmegaConf.register_new_resolver(
    "tenfold_without_noise", lambda s, sigma_y: s if sigma_y > 0 else 10 * s, replace=True
)


def for_task(task: str, values: DictConfig) -> Any:
    """Return `values[task]`, a value that was tuned for this task.

    Raises ValueError if no value was tuned for the task.
    """
    if task not in values:
        raise ValueError(
            f"no value is tuned for task={task}, only for task={', '.join(values)}; set a value, "
            "or use the sampler without tuned/"
        )
    return values[task]


OmegaConf.register_new_resolver("for_task", for_task, replace=True)
# Windows editors write a byte order mark. Hydra would not find `# @package` behind it, and would
# ignore the file's settings.
_header_of = ConfigSource._get_header_dict
ConfigSource._get_header_dict = staticmethod(lambda text: _header_of(text.removeprefix("\ufeff")))
# loky restarts workers whose memory grew and warns each time; harmless here.
warnings.filterwarnings(
    "ignore", message="A worker stopped while some jobs were given to the executor"
)


def launch(
    function: Callable[[DictConfig], Any],
    overrides: list[str],
    multirun: bool,
    config_name: str = "run",
) -> list[Any]:
    """Call `function` on each job that Hydra composes, and return the results.

    The jobs run in the processes of the configured launcher.

    Args:
        function: called with the configuration of a job.
        overrides: arguments of the command line.
        multirun: whether the overrides describe a grid.
        config_name: root file in `conf/`.

    Raises:
        InputError: for bad overrides.
        Exception: the exception of the first job in which `function` failed.
    """
    overrides = with_paths_quoted(overrides, multirun)
    job = functools.partial(guarded, function, secrets.token_hex(8))
    with main_hydra() as hydra:
        if multirun:
            batches = hydra.multirun(config_name, job, overrides, with_log_configuration=False)
            results = [one.return_value for batch in batches for one in batch]
        else:
            require_single(hydra, overrides, config_name)
            results = [
                hydra.run(config_name, job, overrides, with_log_configuration=False).return_value
            ]
    for result in results:
        if isinstance(result, Raised):
            raise result.error
    return results


@contextmanager
def main_hydra() -> Iterator[Hydra]:
    """Yield a Hydra object for adir's configuration folder.

    Raises InputError if Hydra cannot compose the overrides.
    """
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("adir", create_config_search_path(str(config_dir())))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line_message(error)) from error
    finally:
        GlobalHydra.instance().clear()


def launcher_of(overrides: list[str], multirun: bool) -> str:
    """Return the class name of the launcher, such as `SlurmLauncher`.

    A single job runs in this process, so its launcher is always `BasicLauncher`.
    """
    if not multirun:
        return "BasicLauncher"
    overrides = with_paths_quoted(overrides, multirun)
    with main_hydra() as hydra:
        cfg = hydra.compose_config(
            "run", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
    return str(cfg.hydra.launcher._target_).rpartition(".")[2]


@dataclass
class Raised:
    """Exception of a job, returned as a value instead of raised.

    If a job raised the exception, Hydra would print its own error message.
    """

    error: BaseException


_stopped: dict[str, Raised] = {}
"""{launch: exception that stopped its jobs in this process}.

On a full disk, later cells must not adapt for minutes before they fail.
"""


def guarded(function: Callable[[DictConfig], Any], launched: str, cfg: DictConfig) -> Any:
    """Return the function's result, or its exception as a `Raised` object.

    After an OSError or InputError, later jobs of the same launch in this process return the same
    exception without calling the function.

    Args:
        function: called with `cfg`.
        launched: random id of the launch.
        cfg: configuration of the job.
    """
    if launched in _stopped:
        return _stopped[launched]
    try:
        return function(cfg)
    except (OSError, InputError) as error:
        _stopped[launched] = Raised(error)
        return _stopped[launched]
    except Exception as error:
        return Raised(error)


def one_line_message(error: Exception) -> str:
    """Return Hydra's message on one line, without search path and internal types."""
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        as_text = f"{key}={quoted(value)}"
        if value.startswith(("[", "{")):
            return (
                f"{error.override}: not a valid list or mapping; put quotes around each text, as "
                "in ['a b','c,d']"
            )
        if equals and parses(as_text):
            return (
                f"{error.override}: not a valid value; to pass a text, type {shlex.quote(as_text)}"
            )
        return f"{error.override}: not of the form KEY=VALUE"
    message = one_line(error)
    if missing := re.search(r".*Could not load 'hydra/launcher/submitit\w*'", message):
        return f"{missing[0]}: run pip install 'adir[slurm]'"
    for tail in (" Config search path:", " full_key:", " object_type="):
        message = message.split(tail)[0]
    return message


def require_composable(overrides: list[str], multirun: bool) -> None:
    """Raise InputError for overrides that Hydra cannot compose or that `require_options` refuses.

    With `multirun`, only the grid's launcher is checked. No large library is imported, so a typing
    error is reported within a second.
    """
    if multirun:
        launcher_of(overrides, multirun)
        return
    with main_hydra() as hydra:
        require_options(require_single(hydra, with_paths_quoted(overrides), "run"))


EXISTING = ("skip", "redo", "report")


def require_options(cfg: DictConfig) -> None:
    """Raise InputError for an invalid value of `existing`, `retry` or `batch_size`.

    These settings change no result.
    """
    if cfg.existing not in EXISTING:
        raise InputError(f"existing={cfg.existing}: choose one of {', '.join(EXISTING)}")
    if cfg.retry not in (None, "failed"):
        raise InputError(f"retry={cfg.retry}: use retry=failed or retry=null")
    if (
        isinstance(cfg.batch_size, bool)
        or not isinstance(cfg.batch_size, int)
        or cfg.batch_size < 1
    ):
        raise InputError(f"batch_size={cfg.batch_size}: a whole number of at least 1 is needed")


def require_single(hydra: Hydra, overrides: list[str], config_name: str) -> DictConfig:
    """Return the composed configuration of a single cell.

    Raises InputError for an experiment that is a grid, because only its first cell would run.
    """
    cfg = hydra.compose_config(
        config_name, overrides, run_mode=RunMode.RUN, with_log_configuration=False
    )
    if str(cfg.hydra.mode).endswith("MULTIRUN"):
        raise InputError("this experiment is a grid; run it with -m")
    return cfg


def is_override(word: str) -> bool:
    """Return whether an argument is an override (KEY=VALUE or ~KEY) rather than a file name.

    No key begins with a dot or a slash, so `./a=b` is a file name.
    """
    return re.fullmatch(r"(\+{0,2}|~)\w[\w/.@]*=.*|~\w[\w/.@]*", word, re.DOTALL) is not None


def compose(overrides: list[str], config_name: str = "run") -> DictConfig:
    """Return a composed configuration without running anything.

    Args:
        overrides: arguments of the command line.
        config_name: root file in `conf/`.

    Raises:
        InputError: for bad overrides.
    """
    from hydra import compose as hydra_compose, initialize_config_dir

    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra_compose(config_name, with_paths_quoted(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line_message(error)) from error
