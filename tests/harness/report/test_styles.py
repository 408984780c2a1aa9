"""No two rows of a task look the same, to anybody, on the page or in a figure."""

import itertools
import json
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from made_records import made_record

from adir.harness.report.figures import marker_style
from adir.harness.report.gather import gather
from adir.harness.report.page import HERE, row_data
from adir.harness.report.styles import DARK, LIGHT, SHAPES, RowStyle, row_styles
from adir.harness.tables.board import Board, make_board

PAPER = {"light": "#fbfaf7", "dark": "#131416"}
# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0: on linear RGB.
EYES = {
    "all three cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a colour."""
    value = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio."""
    low, high = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65."""
    ratio = XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme, colours", [("light", LIGHT), ("dark", DARK)])
def test_colours_are_seen_on_their_paper_and_apart_by_every_eye(
    theme: str, colours: tuple[str, ...]
) -> None:
    assert f"--paper: {PAPER[theme]};" in (HERE / "style.css").read_text()
    assert (
        len(colours) == 8 and min(contrast(colour, PAPER[theme]) for colour in colours) >= 3
    )  # WCAG 2, of graphics
    for eye, matrix in EYES.items():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in colours]
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert nearest >= 12, (
            eye,
            nearest,
        )  # a difference of 2.3 is just noticeable beside each other


def board_of(
    rows: list[tuple[str, str, int | None, str | None]], tasks: tuple[str, ...] = ("sr4",)
) -> Board:
    """A board of (sampler, mode, K, adapter), one image each."""
    return make_board(
        made_record(task=task, mode=mode, k=k, sampler=sampler, adapter=adapter or "full")
        for task, (sampler, mode, k, adapter) in itertools.product(tasks, rows)
    )


UNSEEN = [("adir", "none", None, None)] + [
    ("adir", mode, k, adapter)
    for adapter in ("full", "lora")
    for mode, ks in (
        ("self", (None,)),
        ("knn", (1, 5, 20)),
        ("pixel", (1, 5, 20)),
        ("random", (1, 5, 20)),
    )
    for k in ks
]
SAMPLERS = ["adir", *"adjoint bicubic ddpg ddrm diffpir dmsp dps pseudo_inverse dsg tv".split()]
BASELINES = [(sampler, "none", None, None) for sampler in SAMPLERS]
ADAPTED = BASELINES + [
    (sampler, mode, 20, "lora") for sampler in SAMPLERS for mode in ("knn", "random")
]


@pytest.mark.parametrize(
    "rows", [UNSEEN, BASELINES, ADAPTED], ids=["21 rows", "11 samplers", "33 rows"]
)
def test_no_two_rows_of_a_task_look_alike_and_a_row_looks_the_same_in_every_task(
    rows: list[Any],
) -> None:
    board = board_of(rows, ("deblur", "sr4"))
    found = row_styles(board)
    by_task = {
        task: {
            json.dumps([row.axes[name] for name in ("sampler", "adaptation", "k", "adapter")]): look
            for row, look in zip(board.rows, found, strict=True)
            if row.axes["task"] == task
        }
        for task in ("deblur", "sr4")
    }
    assert len(rows) == len(by_task["sr4"]) == len(set(by_task["sr4"].values()))
    assert by_task["sr4"] == by_task["deblur"]


def test_eight_samplers_have_eight_colours_and_eight_shapes() -> None:
    found = row_styles(board_of(BASELINES[:8]))
    assert len({look.colour for look in found}) == len({look.shape for look in found}) == 8


def test_full_and_lora_of_one_setting_differ_in_filling_alone() -> None:
    board = board_of(UNSEEN)
    (full,), (lora,) = (
        [
            look
            for row, look in zip(board.rows, row_styles(board), strict=True)
            if row.axes["k"] == 5 and of(row.axes)
        ]
        for of in (
            lambda a, w=w: (a["adaptation"], a["adapter"]) == ("knn", w) for w in ("full", "lora")
        )
    )
    assert lora == RowStyle(full.colour, full.shape, open=True) and not full.open


def test_the_page_and_the_figures_know_the_same_shapes(results: Any) -> None:
    script = (HERE / "base.js").read_text()
    assert all(f"\n  {shape}:" in script for shape in SHAPES)
    gathered = gather(results)
    for number in range(len(gathered.board.rows)):
        shown, drawn = row_data(gathered, number)["style"], marker_style(gathered, number)
        assert drawn == {
            "color": LIGHT[shown["colour"]],
            "marker": SHAPES[shown["shape"]],
            "markerfacecolor": "white" if shown["open"] else LIGHT[shown["colour"]],
        }
