"""Ctrl-C: a file tells every worker of a run to finish its current record and then stop."""

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
    """Return the path of a file that, once it exists, tells all workers of one run to stop after
    their current image.

    It is beside the plan, in a folder that they share. Its name is random, as the same grid may be
    run twice at once.
    """
    return plan.with_suffix(f".{secrets.token_hex(4)}.stop")


@contextmanager
def stop_file_on_interrupt(stop_file: Path | None) -> Iterator[list[int]]:
    """Write the stop file at the first Ctrl-C (or SIGTERM, which clusters send before they kill);
    at the second, raise KeyboardInterrupt. Neither loses a record. Yields the list of signals
    received.

    A terminal sends Ctrl-C to the workers too: they ignore it (`leave_to_the_launching_process`).
    """
    received: list[int] = []  # not an Event, whose lock a second signal would wait for
    if stop_file is None or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def on_signal(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop_file.touch()
        with contextlib.suppress(
            OSError
        ):  # not print: it may be what was interrupted, and cannot be re-entered
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
    """Ignore Ctrl-C in a worker: it also reaches the process that launched it, which writes the
    stop file.

    SIGTERM may reach the worker alone. The worker then writes the stop file, unless a cluster's
    launcher handles this signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if stop_file is not None and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: stop_file.touch())
