"""What trackers share: a cell's records, their summary and loss curves, and a guard through which no failure gets out."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adir.errors import first_line
from adir.harness.cells.cell import Cell
from adir.harness.records.record import Record
from adir.harness.running.stores import AdapterStore
from adir.harness.tables.statistics import cluster_means, mean_interval, mean_over_pictures

T = TypeVar("T")


class Tracking(Protocol):
    """Where a cell's progress is told besides its records. Nothing here raises: a record is worth more than a line
    elsewhere."""

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Called before a cell's first picture. grid: the hash that cells of one grid share; None for a cell alone."""

    def record(self, record: Record, picture: Path) -> None:
        """Called after each record is written. picture: the restored one; there only where the record's status is done."""

    def finish(self) -> None:
        """Called after the cell, also when it stopped with an error."""


class GuardedTracking:
    """A tracker whose own failures are said once, on one line, after which it is silent for the rest of the cell.

    A subclass has `called` (its name in that line), opened, told and closed; each may raise anything.
    """

    called: str

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.grid: str | None = None

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """See Tracking."""
        self.cell, self.grid = cell, grid
        self._guarded(lambda: self.opened(cell))

    def record(self, record: Record, picture: Path) -> None:
        """See Tracking."""
        self._guarded(lambda: self.told(record, picture))

    def finish(self) -> None:
        """See Tracking."""
        cell = self.cell
        if cell is not None:
            self._guarded(lambda: self.closed(cell))
        self.cell = None

    def opened(self, cell: Cell) -> None:
        """Begin a cell."""

    def told(self, record: Record, picture: Path) -> None:
        """One picture is done."""

    def closed(self, cell: Cell) -> None:
        """The cell is over. Its records on disk say everything, also of pictures that were there before."""

    def _guarded(self, call: Callable[[], None]) -> None:
        if self.cell is None:
            return
        try:
            call()
        except Exception as error:
            print(
                f"warning: {self.called} failed ({type(error).__name__}: {first_line(error)}); going on without it",
                flush=True,
            )
            self.cell = None


def within(seconds: float, call: Callable[[], T]) -> T:
    """What the call returns or raises; TimeoutError where it takes longer, and then it is left to itself.

    In a thread of its own: a library that waits for a server that is gone must not hold up the next cell.
    """
    answer: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        fine, value = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if not fine:
        raise value
    result: T = value
    return result


def records_of(cell: Cell) -> list[Record]:
    """The records of the cell that are there, in the order of its pictures; damaged ones are left out."""
    found = (cell.ledger.peek(image_id) for image_id in cell.data.ids)
    return [record for record in found if record is not None]


def metrics_of(records: list[Record]) -> list[str]:
    """The names of all scores, in the order in which they appear."""
    return list(dict.fromkeys(name for record in records for name in record.scores))


def summary_of(records: list[Record], n_pictures: int) -> dict[str, float | int]:
    """Per metric its mean over clusters, `_se`, and `_low` and `_high` of the 95 % interval where there is one; counts.

    n_pictures: of the cell, with those that have no record yet. As in the leaderboard: a mean that lacks a picture, as one
    failed or the cell was interrupted, is missing, and so is no key here.
    """
    done = [record for record in records if record.status == "done"]
    clusters = {record.image.id: record.image.cluster or record.image.id for record in records}
    summary: dict[str, float | int] = {"pictures": len(done), "failed": len(records) - len(done)}
    for name in metrics_of(done) if len(records) >= n_pictures else []:
        by_image = {record.image.id: record.value(name) for record in records}  # a failed one has none
        values = list(cluster_means(by_image, clusters).values())
        estimate = mean_over_pictures(values)
        if estimate.value is None:
            continue
        summary[name] = estimate.value
        if estimate.standard_error is not None:
            summary[f"{name}_se"] = estimate.standard_error
        interval = mean_interval([value for value in values if value is not None])  # none is missing, or it had no mean
        if interval is not None:
            summary[f"{name}_low"], summary[f"{name}_high"] = interval
    if done and len(done) == n_pictures:
        summary["seconds"] = sum(sum(record.seconds.values()) for record in done) / len(done)
        summary["network_evaluations"] = max(
            record.sampler.network_evaluations for record in done if record.sampler is not None
        )
    return summary


def loss_curves(cell: Cell, records: list[Record]) -> dict[str, list[float]]:
    """{picture: loss of each training iteration}, from the facts stored with the adapters; empty without adaptation."""
    store = AdapterStore(cell.results)
    curves: dict[str, list[float]] = {}
    for record in records:
        adapter = store.find(record.adapter.key, warn=lambda _: None) if record.adapter is not None else None
        if adapter is not None and adapter.facts["losses"]:
            curves[record.image.id] = adapter.facts["losses"]
    return curves


def mean_curve(curves: dict[str, list[float]]) -> list[float]:
    """The mean over pictures at each iteration, as far as the shortest goes."""
    return [sum(losses) / len(losses) for losses in zip(*curves.values(), strict=False)]


class NoTracking:
    """The records on disk, and nothing else."""

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Called before a cell's first picture."""

    def record(self, record: Record, picture: Path) -> None:
        """Called after each record is written."""

    def finish(self) -> None:
        """Called after the cell, also when it stopped with an error."""


def table_of(records: list[Record]) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows): per picture its status, restored picture (a path in the results folder), scores, y, seconds, error."""
    metrics = metrics_of(records)
    columns = ["image", "status", "restored", *metrics, "y", "seconds", "error"]
    rows = [
        [
            record.image.id,
            record.status,
            record.picture,
            *(record.value(name) for name in metrics),
            record.y_file,
            sum(record.seconds.values()),
            record.error,
        ]
        for record in records
    ]
    return columns, rows
