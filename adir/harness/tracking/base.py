"""What trackers share: a guard through which no failure gets out; a cell's records as a table, a
summary and loss curves.
"""

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
    """Where a cell's progress is logged besides its records.

    This one logs nothing (tracking=none); the others derive from it.

    A record is worth more than a line elsewhere: a tracker's own failures are said once, on one
    line, after which it is silent for the rest of the cell. A subclass has `called` (its name in
    that line) and `opened`, `told` and `closed`; each may raise anything.
    """

    called = "tracking"

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.grid: str | None = None

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Begin a cell, before its first image. grid: the hash that cells of one grid share; None
        for a cell alone.
        """
        self.cell, self.grid = cell, grid
        self._guarded(lambda: self.opened(cell))

    def record(self, record: Record, image: Path) -> None:
        """Take a record that was just written. image: the restored image; there only where the
        record's status is done.
        """
        self._guarded(lambda: self.told(record, image))

    def finish(self) -> None:
        """End the cell, also when it stopped with an error."""
        cell = self.cell
        if cell is not None:
            self._guarded(lambda: self.closed(cell))
        self.cell = None

    def opened(self, cell: Cell) -> None:
        """Begin a cell."""

    def told(self, record: Record, image: Path) -> None:
        """Log one image."""

    def closed(self, cell: Cell) -> None:
        """End the cell.

        Its records on disk say everything, also of images that were there before.
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
    """Return what the call returns, or raise what it raises; TimeoutError where it takes longer,
    and then it is left to itself.

    In a thread of its own: a library that waits for a server that is gone must not hold up the next
    cell.
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
    """Return the records of the cell that are there, in the order of its images; damaged ones are
    left out.
    """
    found = (cell.ledger.peek(image_id) for image_id in cell.data.ids)
    return [record for record in found if record is not None]


def table_of(records: list[Record]) -> list[dict[str, Any]]:
    """Return a row per image: its status, restored image (a path in the results folder), scores, y,
    seconds, error.
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
    """Return each metric's mean over clusters, `_se`, and `_low` and `_high` of the 95 % interval
    where there is one; counts.

    n_images: of the cell, with those that have no record yet. As in the leaderboard: a mean that
        lacks an image, as one
    failed or the cell was interrupted, is missing, and so is no key here.
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
    """Return {image: loss of each training iteration}, from the facts stored with the adapters;
    empty without adaptation.
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
    """Return the mean over images at each iteration, as far as the shortest goes."""
    return [sum(losses) / len(losses) for losses in zip(*curves.values(), strict=False)]
