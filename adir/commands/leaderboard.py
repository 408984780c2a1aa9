"""`adir leaderboard`: print the table of results folders and submissions; write it into the folder
if there is only one.
"""

from pathlib import Path

from adir.files import write_bytes
from adir.harness.records.layout import Layout
from adir.harness.tables.formats import FORMATS, explanation, tidy, to_terminal
from adir.harness.tables.leaderboard import load_board
from adir.harness.tables.terminal import wide_console


def main(folders: list[Path], no_write: bool = False, against: str = "none") -> int:
    """Print the table.

    For one results folder, unless `no_write`, also write leaderboard.csv, .md, .tex and .html into
    it.

    against: the mode whose rows the others are compared with; file names contain it, unless it is
        none.
    The table of several folders or of submission files is only printed. Returns 0, or 1 if a
    damaged file was skipped.
    """
    board = load_board(*folders, against=against)
    written: list[Path] = []
    if not no_write and len(folders) == 1 and folders[0].is_dir():
        for (
            ending,
            text_of,
        ) in FORMATS.items():  # before anything is printed: a terminal may refuse it
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
        several = "`adir merge ... --out FOLDER` makes one folder of them, which gets its files"
        console.print(f"not written: {several}", markup=False, highlight=False)
    if board.damaged:
        print(f"{board.damaged} damaged files are left out; the notes name them")
    return 1 if board.damaged else 0
