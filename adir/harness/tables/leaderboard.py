"""Make the table of `adir leaderboard` from records of results folders and submissions."""

from pathlib import Path

from adir.harness.records.sources import read_sources
from adir.harness.tables.board import Board, make_board


def load_board(*results: Path, against: str = "none") -> Board:
    """Return one leaderboard of several results folders and submission files.

    Args:
        results: the folders and files.
        against: mode of the reference rows.

    Raises:
        InputError: if there are no records, or if no row has the mode `against` (unless it is
            `none`).
    """
    found = read_sources(results)
    records, planned, notes = found.counted()
    board = make_board(records, planned, against)
    board.notes, board.damaged = notes + board.notes, len(found.notes)
    return board
