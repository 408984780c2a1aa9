"""Handle Ctrl-C: a stop file makes every worker of a run finish its current image and stop."""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def new_stop_file(plan: Path) -> Path:
    """Return the path of the stop file for a new run.

    Once the file exists, all workers of the run stop after their current image. The path lies
    beside the plan, in a folder that the workers share. Its name contains random digits, because
    the same grid may be run twice at once.
    """
    return plan.with_suffix(f".{secrets.token_hex(4)}.stop")


@contextmanager
def stop_file_on_interrupt(stop_file: Path | None) -> Iterator[list[int]]:
    """Yield the list of signals received so far; write the stop file at the first signal.

    SIGINT (Ctrl-C) and SIGTERM are handled; clusters send SIGTERM before they kill a job. The
    second signal raises KeyboardInterrupt. No record is lost in either case. A terminal sends
    Ctrl-C to the workers too, which ignore it (`leave_to_the_launching_process`).

    If `stop_file` is None, or outside the main thread, no signal is handled and the list stays
    empty.
    """
    received: list[int] = []  # not an Event: a second signal could wait forever for its lock
    if stop_file is None or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def on_signal(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop_file.touch()
        # os.write, not print: the signal may interrupt a print, which cannot be re-entered.
        with suppress(OSError):
            os.write(
                1,
                b"interrupted: finishing the current images; press Ctrl-C again to stop at once\n",
            )

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_the_launching_process(stop_file: Path | None) -> None:
    """Ignore Ctrl-C in a worker, because the launching process handles it.

    A terminal sends Ctrl-C to all processes of a run, and the launching process writes the stop
    file. SIGTERM may reach a worker alone. The worker then writes the stop file itself. If a
    cluster's launcher has installed a handler of SIGTERM, that handler is kept instead.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if stop_file is not None and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: stop_file.touch())
