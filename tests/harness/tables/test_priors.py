"""The column of what a prior was trained on, and the warning where the test set may be part of it."""

import csv
import io
from typing import Any

import pytest
import yaml
from made_records import made_record

from adir.configuration import config_dir
from adir.harness.records.record import Prior, Record
from adir.harness.tables.board import Board, make_board
from adir.harness.tables.formats import FORMATS, headings, lead

IMAGENET = "ImageNet (ILSVRC 2012), and more"


def records(
    trained_on: str | None,
    data: str = "kodak",
    path: str = "photographs",
    n_steps: int = 50,
    **made: Any,
) -> list[Record]:
    """Four images of one row."""
    found = []
    for image in "abcd":
        record = made_record(image, data=data, **made)
        assert record.sampler is not None
        changes = {
            "prior": Prior(trained_on=trained_on),
            "configuration": {"data": {"path": path}},
            "sampler": record.sampler.model_copy(update={"n_steps": n_steps}),
        }
        found.append(record.model_copy(update=changes))
    return found


def warnings(board: Board) -> list[str]:
    return [note for note in board.notes if note.startswith("WARNING")]


def test_the_column_says_what_each_rows_prior_was_trained_on():
    board = make_board(
        [
            *records(IMAGENET, backbone="gd256"),
            *records("FFHQ", backbone="ffhq256"),
            *records(None, backbone="own"),
        ]
    )
    place = headings(board).index("prior trained on")
    assert {row.axes["backbone"]: lead(board, row)[place] for row in board.rows} == {
        "gd256": "ImageNet",
        "ffhq256": "FFHQ",
        "own": "–",
    }
    lines = csv.DictReader(io.StringIO(FORMATS["csv"](board)))
    assert {line["backbone"]: line["prior_trained_on"] for line in lines} == {
        "gd256": IMAGENET,
        "ffhq256": "FFHQ",
        "own": "",
    }
    assert all("prior trained on" in FORMATS[form](board) for form in ("md", "tex", "html"))
    assert warnings(board) == []


def test_a_board_that_knows_no_prior_has_no_such_column():
    assert "prior trained on" not in headings(make_board(records(None)))


def test_a_sampler_without_a_network_has_no_prior():
    board = make_board(
        [*records(IMAGENET, n_steps=0, sampler="bicubic", data="imagenet"), *records("FFHQ")]
    )
    assert {row.axes["sampler"]: row.trained_on for row in board.rows} == {
        "bicubic": None,
        "adir": "FFHQ",
    }
    assert warnings(board) == []


@pytest.mark.parametrize(
    "backbone, data, path, seen",
    [
        ("gd256", "imagenet_val", "images", "ImageNet"),
        ("gd512", "mine", "/data/ILSVRC2012/val", "ImageNet"),
        ("ffhq256", "FFHQ-1k", "images", "FFHQ"),
        ("ffhq256", "imagenet", "images", None),
        ("gd256", "ffhq", "images", None),
        ("gd256", "div2k", "images", None),
        ("embedded", "imagenet", "images", None),
    ],
)
def test_a_test_set_of_the_priors_own_collection_is_warned_of(backbone, data, path, seen):
    trained_on = yaml.safe_load((config_dir() / "backbone" / f"{backbone}.yaml").read_text())[
        "trained_on"
    ]
    found = warnings(make_board(records(trained_on, data, path, backbone=backbone)))
    assert [seen in note and data in note for note in found] == ([] if seen is None else [True])
    assert all(note.endswith(": sr4 none") for note in found)
