"""Ctrl-C: every worker of a run ends the record it is on and then stops, as a file tells it."""

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def new_stop_file(plan: Path) -> Path:
    """The file whose being there will tell all workers of one run to stop after the picture at hand. Beside the plan, as they
    share that folder; named by chance, as the same grid may be run twice at once."""
    return plan.with_suffix(f".{secrets.token_hex(4)}.stop")


@contextmanager
def stop_file_on_interrupt(stop_file: Path | None) -> Iterator[threading.Event]:
    """While a grid runs, the first Ctrl-C (or SIGTERM, as clusters send before they kill) writes the stop file, the second
    raises KeyboardInterrupt. Neither loses a record. The event tells whether there was one.

    A terminal sends Ctrl-C to the workers too: they ignore it (`leave_to_the_launching_process`).
    """
    interrupted = threading.Event()
    if stop_file is None or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def on_signal(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        stop_file.touch()
        with contextlib.suppress(
            OSError
        ):  # not print, which may be what was interrupted, and refuses to be called twice
            os.write(1, b"interrupted: finishing the pictures at hand; once more to stop at once\n")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_the_launching_process(stop_file: Path | None) -> None:
    """For a worker: Ctrl-C reaches the process that launched it as well, and that one writes the stop file.

    SIGTERM may reach this one alone: it writes the file too, unless a cluster's launcher has a use of its own for it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if stop_file is not None and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: stop_file.touch())
