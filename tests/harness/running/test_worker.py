"""What becomes of an error, by the place where it is raised."""

from pathlib import Path

import pytest

from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.records.record import Record
from adir.harness.running import worker
from adir.harness.running.worker import Options, run_cell


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return resolve_cell(
        compose(
            [
                f"results={tmp_path}",
                "data.only=[coffee-s2-y002-x080,coins-s1-y020-x250]",
                "sampler=bicubic",
                "scoring.metrics=[psnr]",
            ]
        )
    )


def statuses(cell: Cell) -> list[str]:
    return [cell.ledger.read(image_id).status for image_id in cell.data.ids]


def test_a_log_that_fails_stops_the_run_and_leaves_the_record_done(cell: Cell) -> None:
    def track(record: Record, image: Path) -> None:
        raise RuntimeError("no log")

    with pytest.raises(RuntimeError, match="no log"):
        run_cell(cell, Options(), print, track)
    assert cell.ledger.read(cell.data.ids[0]).status == "done"


@pytest.mark.parametrize("stage", ["prepare", "sample", "finish"])
def test_an_image_that_fails_at_a_stage_leaves_the_other_one_done(
    cell: Cell, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(worker, stage), []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise ValueError("broken")
        return real(*args)

    monkeypatch.setattr(worker, stage, failing)
    outcome = run_cell(cell, Options(), print)
    assert (outcome.done, outcome.failed) == (1, 1) and statuses(cell) == ["failed", "done"]


def test_a_full_disk_stops_the_run_and_leaves_no_record(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker, "sample", full)
    with pytest.raises(OSError, match="No space left"):
        run_cell(cell, Options(), print)
    assert not any(cell.ledger.read(image_id) for image_id in cell.data.ids)
