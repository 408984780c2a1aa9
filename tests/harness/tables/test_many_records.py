"""The table of a large grid: its work grows with the number of records, not with its square.

benchmarks/speed/leaderboard.py has the seconds of 10,000 records.
"""

import cProfile
import gc
import pstats
from pathlib import Path

from adir.harness.tables.leaderboard import load_board
from benchmarks.speed import leaderboard as study


def test_twice_the_records_are_twice_the_work(tmp_path: Path) -> None:
    calls = {}
    for n_records in (800, 1600):  # in 8 rows, and in 16
        folder = tmp_path / str(n_records)
        assert study.write_records(folder, n_records) == n_records
        profile = cProfile.Profile()
        board = profile.runcall(load_board, folder)
        assert len(board.rows) == n_records / 100 and all(row.have == 100 for row in board.rows)
        calls[n_records] = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
    # 328 calls a record today. Comparing each record with each other one would cost 800 at least,
    # and 1,600.
    assert calls[1600] < 2.2 * calls[800] and calls[1600] < 1600 * 650


def test_two_thousand_records_are_a_table_with_all_of_them(tmp_path: Path) -> None:
    assert study.write_records(tmp_path, 2000) == 2000
    board = load_board(tmp_path)
    assert len(board.rows) == 20 and all(row.have == row.expected == 100 for row in board.rows)
    assert gc.isenabled() and gc.get_freeze_count() == 0
    study.time_command(tmp_path)
    assert (tmp_path / "leaderboard.csv").read_text().count("\n") == 21
