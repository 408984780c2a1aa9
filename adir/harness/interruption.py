"""Ctrl-C: every worker of a grid ends the record it is on and then stops, as a file tells it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adir.files import write_bytes


def stop_file(plan: Path) -> Path:
    """The file whose being there tells all workers of a grid to stop after the picture at hand."""
    return plan.with_suffix(".stop")


class Interrupted:
    """Whether Ctrl-C was pressed."""

    is_set = False


@contextmanager
def stop_file_on_interrupt(plan: Path | None) -> Iterator[Interrupted]:
    """While a grid runs, the first Ctrl-C (or SIGTERM, as clusters send before they kill) writes the stop file, the second
    raises KeyboardInterrupt. Neither loses a record.

    A terminal sends Ctrl-C to the workers too: they ignore it (`leave_to_the_launching_process`).
    """
    interrupted = Interrupted()
    if plan is None or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    stop_file(plan).unlink(missing_ok=True)

    def on_signal(number: int, frame: Any) -> None:
        if interrupted.is_set:
            raise KeyboardInterrupt
        interrupted.is_set = True
        print("interrupted: finishing the pictures at hand; once more to stop at once", flush=True)
        write_bytes(stop_file(plan), b"")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file(plan).unlink(missing_ok=True)


def leave_to_the_launching_process() -> None:
    """For a worker: Ctrl-C reaches the process that launched it as well, and that one writes the stop file."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
