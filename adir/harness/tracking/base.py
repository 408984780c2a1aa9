"""Base class of the trackers, and functions that collect the data of a cell for the log."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from adir.errors import one_line
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import losses_of
from adir.harness.records.record import Record
from adir.harness.tables.board import make_board
from adir.harness.tables.statistics import mean_interval

T = TypeVar("T")


class Tracking:
    """Tracker that logs nothing (tracking=none), and base class of the other trackers.

    A tracker logs a cell's progress in addition to its records. A subclass sets `called`, its name
    in warnings, and overrides some of the methods `opened`, `told` and `closed`. These methods may
    raise any exception. After an exception, a tracker prints one line and logs nothing more of the
    cell, because a failed log must not stop the cell.
    """

    called = "tracking"

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.grid: str | None = None

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Begin to log a cell. This method is called before the cell's first image.

        Args:
            cell: the cell.
            grid: hash of the grid that contains the cell; None for a single cell.
        """
        self.cell, self.grid = cell, grid
        self._guarded(lambda: self.opened(cell))

    def record(self, record: Record, image: Path) -> None:
        """Log a record. This method is called after the record was written.

        Args:
            record: the record.
            image: path of the restored image, which exists only if the record's status is done.
        """
        self._guarded(lambda: self.told(record, image))

    def finish(self) -> None:
        """Finish the log of the cell.

        This method is called even if the cell stopped with an error.
        """
        cell = self.cell
        if cell is not None:
            self._guarded(lambda: self.closed(cell))
        self.cell = None

    def opened(self, cell: Cell) -> None:
        """Begin to log a cell; called by `start` and overridden by subclasses."""

    def told(self, record: Record, image: Path) -> None:
        """Log one record; called by `record` and overridden by subclasses."""

    def closed(self, cell: Cell) -> None:
        """Finish the log of a cell; called by `finish` and overridden by subclasses.

        At this time, all records made so far are on disk, including those of earlier runs.
        """

    def _guarded(self, call: Callable[[], None]) -> None:
        if self.cell is None:
            return
        try:
            call()
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            print(
                f"warning: {self.called} failed ({reason}); the run continues without it",
                flush=True,
            )
            self.cell = None


def within(seconds: float, call: Callable[[], T]) -> T:
    """Call a function with a time limit, and return its result or raise its exception.

    The function runs in its own thread, so that a library that waits for a dead server does not
    delay the next cell.

    Raises:
        TimeoutError: if the function takes longer than `seconds`. Its thread is not stopped.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError as error:
        raise error if answer.done() else TimeoutError(f"no answer within {seconds:g} s") from None


def records_of(cell: Cell) -> list[Record]:
    """Return those records of a cell that can be read, in the order of the cell's images."""
    found = (cell.ledger.peek(image_id) for image_id in cell.data.ids)
    return [record for record in found if record is not None]


def table_of(records: list[Record]) -> list[dict[str, Any]]:
    """Return one row per record, {column: value}.

    The columns are image, status, restored (path of the restored image), the metrics, y (path),
    seconds and error. Paths are relative to the results folder.
    """
    metrics = dict.fromkeys(name for record in records for name in record.scores)
    return [
        {
            "image": record.image.id,
            "status": record.status,
            "restored": record.restored,
            **{name: record.value(name) for name in metrics},
            "y": record.y_file,
            "seconds": sum(record.seconds.values()),
            "error": record.error,
        }
        for record in records
    ]


def summary_of(records: list[Record], n_images: int) -> dict[str, float | int]:
    """Return {name: value} with the numbers of done and failed images, and statistics.

    As in the leaderboard, the statistics are left out if an image is missing or failed. The
    statistics of a metric are its mean over clusters of images, the standard error of the mean
    (suffix `_se`) and, where it can be computed, the 95 % interval of the mean (`_low`, `_high`).
    The other statistics are the mean seconds per image and the largest number of network
    evaluations of an image.

    Args:
        records: the records of the cell.
        n_images: number of images of the cell, including those without a record.
    """
    done = [record for record in records if record.status == "done"]
    summary: dict[str, float | int] = {"images": len(done), "failed": len(records) - len(done)}
    if not done or len(done) < n_images:
        return summary
    (row,) = make_board(done).rows
    found: dict[str, float | None] = {}
    for name, estimate in row.estimates.items():
        values = [value for value in row.means(name).values() if value is not None]
        low, high = mean_interval(values) or (None, None)
        told = {"": estimate.value, "_se": estimate.standard_error, "_low": low, "_high": high}
        found |= {name + what: value for what, value in told.items() if estimate.value is not None}
    found["seconds"] = sum(sum(record.seconds.values()) for record in done) / len(done)
    found["network_evaluations"] = max(
        record.sampler.network_evaluations for record in done if record.sampler is not None
    )
    return summary | {name: value for name, value in found.items() if value is not None}


def loss_curves(cell: Cell, records: list[Record]) -> dict[str, list[float]]:
    """Return {image id: loss at each training iteration} for the images that have an adapter.

    The losses are read from the adapters in the results folder.
    """
    adapters = {
        record.image.id: record.adapter.key for record in records if record.adapter is not None
    }
    return {
        name: losses
        for name, key in adapters.items()
        if (losses := losses_of(cell.results, key)) is not None
    }


def mean_curve(curves: dict[str, list[float]]) -> list[float]:
    """Return the mean of several curves at each iteration, as far as the shortest curve goes."""
    return [sum(losses) / len(losses) for losses in zip(*curves.values(), strict=False)]
