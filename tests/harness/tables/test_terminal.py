"""Tables in terminals of few and of many columns: nothing is broken, and nothing is lost."""

import io
import re

import pytest
from made_records import made_record
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adir.harness.records.record import Record
from adir.harness.tables.board import make_board
from adir.harness.tables.formats import cells, headings, to_terminal
from adir.harness.tables.terminal import Column, stacked

METRICS = ("psnr", "ssim", "lpips-alex", "musiq-koniq", "piqe")


def record(image: str, task: str, mode: str, k: int | None, sampler: str, number: int) -> Record:
    """One of five scores, other in each image, that are larger after adapting."""
    scores = {
        name: 20 + 7 * place + number + (k or 0) / 9.1 * (1 + number / 7)
        for place, name in enumerate(METRICS)
    }
    return made_record(image, task=task, mode=mode, k=k, sampler=sampler, scores=scores)


@pytest.fixture(scope="module")
def board():
    return make_board(
        record(image, task, mode, k, sampler, number)
        for number, image in enumerate("abcde")
        for task in ("deblur", "sr4")
        for mode, k, sampler in (
            ("none", None, "adir"),
            ("knn", 20, "adir"),
            ("none", None, "pseudo_inverse"),
        )
    )


def printed(tables: list[Table], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in tables:
        console.print(table)
    return console.export_text().splitlines()


def body(lines: list[str]) -> list[list[str]]:
    """The lines of the tables as cells, one for each line of text in them."""
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in lines
        if line[:1] in ("│", "┃")
    ]


@pytest.mark.parametrize("width, n_tables", [(80, 5), (200, 1)])
def test_no_cell_of_the_leaderboard_is_broken_and_every_row_has_its_names_in_every_table(
    board, width, n_tables
) -> None:
    tables = to_terminal(board, "runs", width)
    lines = printed(tables, width)
    assert len(tables) == n_tables and max(map(len, lines)) <= width
    shown = {cell for line in body(lines) for cell in line} | set(
        str(tables[0].title).replace(",", "").split()
    )
    for row in board.rows:
        assert {part for text in cells(board, row) for part in text.split("\n")} <= shown
    assert set(headings(board)) <= shown
    samplers = [line[1] for line in body(lines) if line[1] in ("adir", "pseudo_inverse")]
    assert samplers == ["adir", "adir", "pseudo_inverse"] * 2 * n_tables


def test_a_column_that_says_one_thing_moves_to_the_title_where_it_would_take_room() -> None:
    names = [
        Column("row", [Text("a"), Text("b")]),
        Column("mode", [Text("none")] * 2),
        Column("K", [Text("–")] * 2),
    ]
    values = [Column(f"metric {n}", [Text("1.00 ± 0.1")] * 2, number=True) for n in range(4)]
    (wide,) = stacked("runs", names, values, 200)
    assert str(wide.title) == "runs" and len(wide.columns) == 7
    narrow = stacked("runs", names, values, 40)
    assert str(narrow[0].title) == "runs, mode none" and [
        len(table.columns) for table in narrow
    ] == [3, 3]


def test_a_terminal_too_narrow_for_one_number_breaks_names_and_not_numbers() -> None:
    names = [Column("sampler", [Text("pseudo_inverse"), Text("dps")])]
    lines = body(
        printed(
            stacked("", names, [Column("psnr", [Text("24.47 ± 0.89")] * 2, number=True)], 26), 26
        )
    )
    assert [line[1] for line in lines if line[1]] == ["psnr", "24.47 ± 0.89", "24.47 ± 0.89"]
    assert "".join(line[0] for line in lines) == "samplerpseudo_inversedps"


def test_where_even_that_is_too_wide_a_number_is_seen_to_be_cut() -> None:
    names = [Column("sampler", [Text("dps"), Text("ddrm")])]
    lines = body(
        printed(
            stacked("", names, [Column("psnr", [Text("24.47 ± 0.89")] * 2, number=True)], 14), 14
        )
    )
    assert [line[1][-1] for line in lines if line[1].startswith("24")] == ["…", "…"]
