"""`adir leaderboard`: print the table of results folders and submissions.

The table of one results folder is also written into that folder.
"""

from pathlib import Path

from adir.errors import count_of
from adir.files import write_bytes
from adir.harness.records.layout import Layout
from adir.harness.tables.formats import FORMATS, explanation, tidy, to_terminal
from adir.harness.tables.leaderboard import load_board
from adir.harness.tables.terminal import wide_console


def main(folders: list[Path], no_write: bool = False, against: str = "none") -> int:
    """Print one table of all results folders and submissions.

    If the only input is a folder, leaderboard.csv, .md, .tex and .html are written into it.

    Args:
        folders: results folders and submission files.
        no_write: whether to write no files.
        against: mode with which all others are compared. If it is not `none`, the names of the
            written files contain it.

    Returns:
        0, or 1 if a damaged file was skipped.
    """
    board = load_board(*folders, against=against)
    written: list[Path] = []
    if not no_write and len(folders) == 1 and folders[0].is_dir():
        # Written before anything is printed, because printing to the terminal may fail.
        for ending, text_of in FORMATS.items():
            written.append(Layout(folders[0]).leaderboard(ending, against))
            write_bytes(written[-1], text_of(board).encode())
    console = wide_console()
    for table in to_terminal(board, ", ".join(map(str, folders)), console.width):
        console.print(table)
    if board.summary:
        console.print(tidy(board.summary), highlight=False, markup=False)
    for line in [explanation(board), *board.notes]:
        console.print(tidy(line), style="dim", highlight=False, markup=False)
    if written:
        console.print(f"written: {', '.join(map(str, written))}", markup=False, highlight=False)
    elif not no_write:
        merge = "to write files, run `adir merge ... --out FOLDER`, then `adir leaderboard FOLDER`"
        console.print(f"no files were written; {merge}", markup=False, highlight=False)
    if board.damaged:
        print(f"skipped {count_of(board.damaged, 'damaged file')}; see the notes above")
    return 1 if board.damaged else 0
