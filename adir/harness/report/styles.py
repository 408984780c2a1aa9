"""Colour, shape and fill of the board's rows, the same on the page and in the figures."""

from dataclasses import dataclass
from typing import Any

from adir.harness.tables.board import Board, Row

LIGHT = ("#858585", "#cf6f00", "#0057a8", "#006f4c", "#bf529a", "#3393cf", "#8a1c10", "#1a1a1a")
DARK = ("#828282", "#e69f00", "#5b8def", "#2cc496", "#e08cc0", "#8fd0f5", "#e2603c", "#f4f2ec")
"""Colours after Okabe and Ito (2008), for light and dark paper.

Each has a contrast of at least 3 with the paper. Colour-blind readers can tell them apart.
"""
MODES = {"none": 0, "self": 1, "knn": 2, "pixel": 3, "random": 4}
SHAPES = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "down": "v",
    "plus": "P",
    "cross": "X",
    "star": "*",
}
"""{shape on the page: matplotlib's marker}."""


@dataclass(frozen=True)
class RowStyle:
    """Style of one row of the board.

    Attributes:
        colour: index into LIGHT and DARK.
        shape: a key of SHAPES.
        open: whether the shape is an outline.
    """

    colour: int
    shape: str
    open: bool


def row_styles(board: Board) -> list[RowStyle]:
    """Return the style of each row; a row looks the same in every task.

    The colour is that of the mode, or that of the sampler if the sampler is not the paper's. Rows
    of one colour that differ in K or another setting have different shapes. Outlines are lora.
    More than eight samplers share colours and differ in shape. Up to 128 rows of a task can be
    told apart.
    """
    families = dict.fromkeys(map(family, board.rows))
    free = [
        place for place in range(len(LIGHT)) if place not in [MODES.get(name) for name in families]
    ]
    others = [name for name in families if name not in MODES]
    colours = MODES | {name: free[place % len(free)] for place, name in enumerate(others)}
    alike: dict[int, dict[Any, int]] = {}  # {colour: {setting: its place}}
    found = []
    for row in board.rows:
        colour = colours[family(row)]
        setting = tuple(
            row.axes[name] for name in ("data", "backbone", "sampler", "adaptation", "k", "variant")
        )
        place = alike.setdefault(colour, {}).setdefault(setting, len(alike[colour]))
        # The shape also depends on the colour, so rows can be told apart without seeing colours.
        shape = list(SHAPES)[(colour + place) % len(SHAPES)]
        found.append(RowStyle(colour, shape, row.axes["adapter"] == "lora"))
    return found


def family(row: Row) -> str:
    """Return the name behind the colour: the mode for the paper's sampler, else the sampler."""
    name: str = row.axes["adaptation"] if row.axes["sampler"] == "adir" else row.axes["sampler"]
    return name


def colours_css() -> str:
    """Return CSS that defines the colours --c0 to --c7; printed pages use the light ones."""
    light, dark = (
        " ".join(f"--c{n}: {value};" for n, value in enumerate(values)) for values in (LIGHT, DARK)
    )
    classes = " ".join(f".c{n} {{ color: var(--c{n}); }}" for n in range(len(LIGHT)))
    return (
        f':root {{ {light} }}\n@media screen {{ :root[data-theme="dark"] {{ {dark} }} '
        f"}}\n{classes}\n"
    )
