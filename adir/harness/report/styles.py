"""Colours and marker shapes of the leaderboard's rows, for the page and the figures."""

from dataclasses import dataclass
from typing import Any

from adir.harness.tables.board import ORDER, Board, Row

LIGHT = ("#858585", "#cf6f00", "#0057a8", "#006f4c", "#bf529a", "#3393cf", "#8a1c10", "#1a1a1a")
DARK = ("#828282", "#e69f00", "#5b8def", "#2cc496", "#e08cc0", "#8fd0f5", "#e2603c", "#f4f2ec")
"""Colours after Okabe and Ito (2008) for light and dark backgrounds.

Each has a contrast ratio of at least 3 with the background. Colour-blind readers can distinguish
them.
"""

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
"""{name of the shape in the page's scripts: marker in matplotlib}."""


@dataclass(frozen=True)
class RowStyle:
    """Colour and marker of one row of the leaderboard.

    Attributes:
        colour: index into LIGHT and DARK.
        shape: key of SHAPES.
        open: whether the marker is an outline instead of filled.
    """

    colour: int
    shape: str
    open: bool


def row_styles(board: Board) -> list[RowStyle]:
    """Return the style of each row of a leaderboard.

    Rows that differ only in the task have the same style. With the paper's sampler, `adir`, the
    colour stands for the adaptation mode. With any other sampler, it stands for the sampler. Among
    rows of one colour, the shape stands for K and the other settings. Markers of LoRA adapters are
    outlines.

    The other samplers get the colours that no mode in the leaderboard uses. If there are too few of
    these, several samplers share a colour and differ in shape. The 8 colours, 8 shapes and 2 fills
    distinguish at most 128 rows of a task.
    """
    families = dict.fromkeys(map(family, board.rows))
    free = [
        place for place in range(len(LIGHT)) if place not in [ORDER.get(name) for name in families]
    ]
    others = [name for name in families if name not in ORDER]
    # The colour of a mode is its place in the order of the leaderboard.
    colours = ORDER | {name: free[place % len(free)] for place, name in enumerate(others)}
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
    """Return the name that determines a row's colour.

    With the paper's sampler, `adir`, it is the adaptation mode. With any other sampler, it is the
    sampler.
    """
    name: str = row.axes["adaptation"] if row.axes["sampler"] == "adir" else row.axes["sampler"]
    return name


def colours_css() -> str:
    """Return CSS that defines the colours as variables --c0 to --c7, and as classes c0 to c7.

    The colours are those of LIGHT. On a screen in dark mode, they are those of DARK.
    """
    light, dark = (
        " ".join(f"--c{n}: {value};" for n, value in enumerate(values)) for values in (LIGHT, DARK)
    )
    classes = " ".join(f".c{n} {{ color: var(--c{n}); }}" for n in range(len(LIGHT)))
    return (
        f':root {{ {light} }}\n@media screen {{ :root[data-theme="dark"] {{ {dark} }} '
        f"}}\n{classes}\n"
    )
