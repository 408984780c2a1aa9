"""Split a wide table into several tables, one above the other, for a narrow terminal.

Each of these tables repeats the columns that name the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

AROUND = 3  # extra width of a column: a blank on each side and a line


@dataclass(frozen=True)
class Column:
    """Column of a table: a heading and one text per row.

    If `number` is true, the texts are right-aligned and never wrapped.
    """

    heading: str
    texts: Sequence[Text]
    number: bool = False

    @property
    def width(self) -> int:
        """The width in characters of the longest line, with the blanks and border around it."""
        return AROUND + max(
            cell_len(line) for text in (self.heading, *self.texts) for line in str(text).split("\n")
        )

    @property
    def constant(self) -> bool:
        """True if there are several rows and all have the same text in this column."""
        return len(self.texts) > 1 and len(set(map(str, self.texts))) == 1


def stacked(
    title: str, names: list[Column], values: list[Column], width: int, ends: Sequence[int] = ()
) -> list[Table]:
    """Return as many tables as needed to show all columns of `values` unwrapped within `width`.

    If a single table would be too wide, columns of `names` with the same text in every row move to
    the title. If the terminal is too narrow for one column of values, names are wrapped.

    Args:
        title: title of the first table.
        names: columns that name the rows, on the left of each table.
        values: columns to show, in this order.
        width: width of the terminal, in characters.
        ends: indices of the rows with a line under them.
    """
    if 1 + sum(column.width for column in [*names, *values]) > width:
        title = ", ".join(
            [
                title,
                *(
                    f"{c.heading} {c.texts[0]}"
                    for c in names
                    if c.constant and str(c.texts[0]) != "–"
                ),
            ]
        )
        names = [column for column in names if not column.constant] or names[:1]
    room = width - 1 - sum(column.width for column in names)
    groups: list[list[Column]] = []
    for column in values:
        if not groups or sum(c.width for c in [*groups[-1], column]) > room:
            groups.append([])
        groups[-1].append(column)
    return [
        table_of(title if n == 0 else "", [*names, *group], ends)
        for n, group in enumerate(groups or [[]])
    ]


def table_of(title: str, columns: list[Column], ends: Sequence[int]) -> Table:
    """Return one table of these columns, with a line under each row in `ends`."""
    table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.heading),
            justify="right" if column.number else "left",
            overflow="ellipsis" if column.number else "fold",
            no_wrap=column.number,
        )
    for place, texts in enumerate(zip(*(column.texts for column in columns), strict=True)):
        table.add_row(*texts, end_section=place in ends)
    return table


def wide_console() -> Console:
    """Return a console for stdout, at least 160 columns wide if stdout is not a terminal.

    Text in a file needs no wrapping.
    """
    console = Console()
    return console if console.is_terminal else Console(width=max(160, console.width))
