"""`adir`, and the workers that its launcher starts, forked from a server that has torch imported: a
new Python takes nine seconds of processor time to get there. How a user's processes start is tested
by fewer (test_launchers.py, and a test of each kind).
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["adir.commands.run", "adir.commands.index_build", "adir.harness.running.grid"]
)


class Forked:
    """As much of subprocess.Popen as the tests use."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid: int = process.pid
        self.kill = process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("adir", timeout)
        return self._process.exitcode


def start(*words: object, log: Path) -> Forked:
    """`adir` with these words in a process group of its own, as a shell starts it; what it and its
    workers say is in `log`.
    """
    process = FORKS.Process(
        target=_adir, args=([*map(str, words)], log, Path.cwd(), dict(os.environ))
    )
    process.start()
    return Forked(process)


def _adir(words: list[str], log: Path, folder: Path, environment: dict[str, str]) -> None:
    import joblib.externals.loky  # noqa: F401 # here: it sets the context that is replaced below

    from adir.cli import main

    os.chdir(folder)
    _become(0, log, environment)
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined] # the tests' own runs
    multiprocessing.context._concrete_contexts["loky"] = _Workers(log)  # type: ignore[attr-defined]
    try:
        sys.exit(main(words))
    finally:
        # What ends a Python that was started: the workers are dismissed, and their folder is
        # removed.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


class _Workers(ForkServerContext):
    """In place of loky's context, which starts each worker as a new Python."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def Process(  # type: ignore[override]
        self, target: Callable[..., Any], args: tuple[Any, ...], env: dict[str, str] | None = None
    ) -> ForkServerProcess:
        return ForkServerProcess(
            target=_work,
            args=(os.getpgrp(), self.log, dict(os.environ) | (env or {}), target, args),
        )


def _work(
    group: int,
    log: Path,
    environment: dict[str, str],
    target: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    _become(group, log, environment)
    target(*args)


def _become(group: int, log: Path, environment: dict[str, str]) -> None:
    os.setpgid(0, group)
    os.environ.update(environment)
    with open(log, "ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
