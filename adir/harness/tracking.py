"""Trackers that need nothing: none and csv; and `adir sync`. The others: tracking_wandb.py and tracking_tensorboard.py."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.cell import Cell
from adir.harness.tracking_base import GuardedTracking, Record, loss_curves, records_of
from adir.harness.tracking_wandb import WandbTracking, has_key, table_of

__all__ = ["CsvTracking", "NoTracking", "WandbTracking", "has_key", "offline_runs", "sync"]


class NoTracking:
    """The records on disk, and nothing else."""

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Called before a cell's first picture."""

    def record(self, record: Record, picture: Path) -> None:
        """Called after each record is written."""

    def finish(self) -> None:
        """Called after the cell, also when it stopped with an error."""


class CsvTracking(GuardedTracking):
    """RESULTS/tracking/CELL.csv, a line per picture, and CELL-losses.csv, a column per adapted picture.

    Each is written whole and atomically after every record, so it can be watched, and two workers on one cell agree.
    """

    called = "tracking=csv"

    def told(self, record: Record, picture: Path) -> None:
        """Write both files anew."""
        assert self.cell is not None
        self.closed(self.cell)

    def closed(self, cell: Cell) -> None:
        """Write both files anew."""
        records = records_of(cell)
        if not records:
            return
        folder, name = cell.results / "tracking", "-".join(cell.identity.folder.parts[1:])
        columns, rows = table_of(records)
        write_bytes(folder / f"{name}.csv", to_csv([columns, *rows]))
        curves = loss_curves(cell, records)
        if curves:
            steps = [[number, *losses] for number, losses in enumerate(zip(*curves.values(), strict=False), start=1)]
            write_bytes(folder / f"{name}-losses.csv", to_csv([["iteration", *curves], *steps]))


def to_csv(rows: list[list[object]] | list[list[str]]) -> bytes:
    """The rows as CSV; None is an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def sync(folder: Path) -> int:
    """Send the W&B runs of a results folder that were tracked offline, by `wandb sync`. Returns its exit status.

    Runs that were sent are marked by W&B and not sent again. Raises InputError where there is no such folder or no key.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the results folder of a run with tracking=wandb")
    runs = offline_runs(folder)
    if not runs:
        print(f"{folder}: no W&B run waits to be sent")
        return 0
    if not has_key():
        raise InputError(f"{len(runs)} W&B runs in {folder / 'wandb'}, but no key: set WANDB_API_KEY or `wandb login`")
    print(f"sending {len(runs)} W&B runs of {folder / 'wandb'}", flush=True)
    # What a run staged beside itself is found there; offline mode, which made these runs, would forbid sending them.
    environment = os.environ | {"WANDB_DATA_DIR": str(folder.absolute() / "wandb")}
    environment.pop("WANDB_MODE", None)
    return subprocess.run(sync_command(runs), env=environment, check=False).returncode


def sync_command(runs: list[Path]) -> list[str]:
    """The command that sends these runs' folders."""
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]


def offline_runs(folder: Path) -> list[Path]:
    """The folders of runs below RESULTS/wandb that were tracked offline and not sent yet, oldest first."""
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [run for run in found if list(run.glob("run-*.wandb")) and not list(run.glob("run-*.wandb.synced"))]
