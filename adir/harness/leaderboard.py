"""`adir leaderboard`: the table of results folders and of submissions, from their records."""

from pathlib import Path

from rich.console import Console

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.board import Board, Row, label, make_board, row_order
from adir.harness.formats import (
    EXPLANATION,
    FORMATS,
    cell_text,
    cells,
    headings,
    tidy,
    to_csv,
    to_markdown,
    to_terminal,
)
from adir.harness.sameness import without_seed
from adir.harness.sources import read_sources, uncollected

__all__ = [
    "EXPLANATION",
    "Board",
    "Row",
    "cell_text",
    "cells",
    "headings",
    "label",
    "load_board",
    "make_board",
    "row_order",
    "show_leaderboard",
    "to_csv",
    "to_markdown",
    "without_seed",
]


def load_board(*results: Path) -> Board:
    """The board of results folders and submission files, taken together. Raises InputError when they hold no records."""
    with uncollected():
        found = read_sources(list(results))
        if not found.records:
            names = ", ".join(map(str, results))
            raise InputError(f"{names}: no records below it; `adir run ... results={results[0]}` makes them")
        records, planned, notes = found.counted()
        board = make_board(records, planned)
    board.notes = notes + board.notes
    return board


def show_leaderboard(folders: list[Path], write: bool) -> int:
    """Print the table; with `write`, also put leaderboard.csv, .md, .tex and .html into the one results folder.

    Of several folders, and of submission files, the table is only printed: it belongs to no one of them.
    """
    board = load_board(*folders)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))  # a log has no edge to wrap at
    for table in to_terminal(board, ", ".join(map(str, folders)), console.width):
        console.print(table)
    for line in [EXPLANATION, *board.notes]:
        console.print(tidy(line), style="dim", highlight=False, markup=False)
    if write and len(folders) == 1 and folders[0].is_dir():
        written = []
        for ending, text_of in FORMATS.items():
            written.append(folders[0] / f"leaderboard.{ending}")
            write_bytes(written[-1], text_of(board).encode())
        console.print(f"written: {', '.join(map(str, written))}", markup=False, highlight=False)
    elif write:
        several = "`adir leaderboard merge ... --out FOLDER` makes one folder of them, which gets its files"
        console.print(f"not written: {several}", markup=False, highlight=False)
    return 0
