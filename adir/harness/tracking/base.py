"""Base of the trackers, and the table, summary and loss curves of a cell that they log."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from adir.errors import first_line
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import losses_of
from adir.harness.records.record import Record
from adir.harness.tables.board import make_board
from adir.harness.tables.statistics import mean_interval

T = TypeVar("T")


class Tracking:
    """Tracker that logs nothing (tracking=none), and base of the other trackers.

    A tracker logs a cell's progress in addition to its records. A subclass sets `called`, its name
    in warnings, and overrides any of `opened`, `told` and `closed`. These may raise any exception.
    The tracker then prints one line and stays silent for the rest of the cell, because a record is
    worth more than a log entry.
    """

    called = "tracking"

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.grid: str | None = None

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Begin a cell, before its first image.

        Args:
            cell: the cell.
            grid: hash of the grid that contains the cell; None for a single cell.
        """
        self.cell, self.grid = cell, grid
        self._guarded(lambda: self.opened(cell))

    def record(self, record: Record, image: Path) -> None:
        """Log a record that was just written.

        Args:
            record: the record.
            image: path of the restored image, which exists only if the record's status is done.
        """
        self._guarded(lambda: self.told(record, image))

    def finish(self) -> None:
        """End the cell, even if it stopped with an error."""
        cell = self.cell
        if cell is not None:
            self._guarded(lambda: self.closed(cell))
        self.cell = None

    def opened(self, cell: Cell) -> None:
        """Begin a cell, as `start` does; overridden by trackers."""

    def told(self, record: Record, image: Path) -> None:
        """Log one record, as `record` does; overridden by trackers."""

    def closed(self, cell: Cell) -> None:
        """End the cell, as `finish` does; overridden by trackers.

        The records on disk are complete and include images finished by earlier runs.
        """

    def _guarded(self, call: Callable[[], None]) -> None:
        if self.cell is None:
            return
        try:
            call()
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            print(f"warning: {self.called} failed ({reason}); going on without it", flush=True)
            self.cell = None


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of `call`, or raise its exception.

    The call runs in a thread of its own, so that a library that waits for a dead server does not
    delay the next cell.

    Raises:
        TimeoutError: if the call takes longer than `seconds`. Its thread is then left running.
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
    """Return the readable records of the cell, in the order of its images."""
    found = (cell.ledger.peek(image_id) for image_id in cell.data.ids)
    return [record for record in found if record is not None]


def table_of(records: list[Record]) -> list[dict[str, Any]]:
    """Return one row per image: status, restored image, scores, y, seconds and error.

    Paths are relative to the results folder.
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
    """Return counts of images, and statistics of each metric if every image is done.

    The statistics are the mean over clusters, its standard error (`_se`), and the ends of its 95 %
    interval (`_low`, `_high`) if there is one. The mean seconds and the largest number of network
    evaluations are added. As in the leaderboard, there is no mean if an image is missing or failed.

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
    """Return {image: loss at each training iteration}, read from the adapter cache.

    An image without adaptation has no curve.
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
    """Return the mean over images at each iteration, up to the end of the shortest curve."""
    return [sum(losses) / len(losses) for losses in zip(*curves.values(), strict=False)]
