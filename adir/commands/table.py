"""`adir table`: print a published table, with the results of a folder beside its numbers."""

import sys
from pathlib import Path

from adir.errors import count_of
from adir.harness.tables.formats import tidy
from adir.harness.tables.leaderboard import load_board
from adir.harness.tables.published import (
    INSIDE,
    columns_of,
    command_of,
    compare,
    published,
    published_names,
    to_latex,
)
from adir.harness.tables.terminal import stacked, wide_console


def main(name: str | None, folder: Path | None, latex: bool) -> int:
    """Print a published table, with the results of a folder beside its numbers.

    Args:
        name: name of the table; None prints a list of the published tables.
        folder: results folder; None prints the published numbers only.
        latex: whether to print LaTeX in the paper's layout.

    Returns:
        0, or 1 if a damaged file was skipped.

    Raises:
        InputError: if the table is unknown, or if the folder contains no records.
    """
    console = wide_console()
    if name is None:
        for each in published_names():
            known = sum(
                cell["value"] is not None
                for row in published(each)["rows"]
                for cell in row["cells"].values()
            )
            state = f"{known} numbers known" if known else "numbers unknown"
            console.print(
                f"{each:<18} {published(each)['title']} ({state})", highlight=False, markup=False
            )
        return 0
    table = published(name)
    ours = load_board(folder) if folder is not None else None
    comparisons = compare(table, ours)
    damaged = ours.damaged if ours is not None else 0
    status = 1 if damaged else 0
    if damaged:
        print(
            f"warning: skipped {count_of(damaged, 'damaged file')} in {folder}; `adir leaderboard` "
            "names damaged files",
            file=sys.stderr,
        )
    if latex:
        print(to_latex(table, comparisons), end="")
        return status
    names, values, notes = columns_of(comparisons, table["source"])
    for stack in stacked(tidy(f"{name}: {table['title']}"), names, values, console.width):
        console.print(stack)
    lines = [f"[{number}] {note}" for number, note in enumerate(notes, 1)] + [
        f"paper: {table['source']}"
    ]
    lines += [f"unknown: {unknown}" for unknown in table["unknown"]] + [INSIDE]
    for line in lines:
        console.print(tidy(line), style="dim", highlight=False, markup=False)
    command = command_of(table["experiment"])
    # soft_wrap keeps the command on one line, so that it can be copied.
    console.print(
        f"to run this experiment: {command}", highlight=False, markup=False, soft_wrap=True
    )
    return status
