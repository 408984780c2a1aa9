"""`adir leaderboard`: the table of results folders and of submissions, from their records."""

from pathlib import Path

from adir.environment import uncollected
from adir.harness.records.sources import read_sources
from adir.harness.tables.board import Board, make_board


def load_board(*results: Path, against: str = "none") -> Board:
    """The board of results folders and submission files, taken together.

    against: the mode whose rows the others are compared with.

    Raises InputError when they hold no records, or none of that mode.
    """
    with uncollected():
        found = read_sources(list(results))
        records, planned, notes = found.counted()
        board = make_board(records, planned, against)
    board.notes, board.damaged = notes + board.notes, len(found.notes)
    return board
