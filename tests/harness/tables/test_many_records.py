"""The table of a large grid, as benchmarks/speed/leaderboard.py measures its seconds."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from adir.harness.tables.leaderboard import load_board


@pytest.fixture(scope="module")
def study(repository: Path) -> ModuleType:
    """benchmarks/speed/leaderboard.py, which makes the records up."""
    spec = importlib.util.spec_from_file_location("leaderboard_speed", repository / "benchmarks/speed/leaderboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_thousand_records_are_a_table_with_all_of_them(study: ModuleType, tmp_path: Path) -> None:
    assert study.write_records(tmp_path, 2000) == 2000
    board = load_board(tmp_path)
    assert len(board.rows) == 20 and all(row.have == row.expected == 100 for row in board.rows)
    study.time_command(tmp_path)
    assert (tmp_path / "leaderboard.csv").read_text().count("\n") == 21
