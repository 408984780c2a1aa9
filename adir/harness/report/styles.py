"""How the rows of a board look in every drawing, of the page and of the figures alike: a colour, a
shape, filled or open.
"""

from dataclasses import dataclass
from typing import Any

from adir.harness.tables.board import Board, Row

LIGHT = ("#858585", "#cf6f00", "#0057a8", "#006f4c", "#bf529a", "#3393cf", "#8a1c10", "#1a1a1a")
DARK = ("#828282", "#e69f00", "#5b8def", "#2cc496", "#e08cc0", "#8fd0f5", "#e2603c", "#f4f2ec")
"""After Okabe and Ito (2008), on light and on dark paper: of contrast 3 and more to it, and apart
for the colour-blind.
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
"""{name on the page: matplotlib's}"""


@dataclass(frozen=True)
class RowStyle:
    """colour: its place in LIGHT and DARK.  shape: a key of SHAPES.  open: drawn as an outline."""

    colour: int
    shape: str
    open: bool


def row_styles(board: Board) -> list[RowStyle]:
    """Of each row: the colour of its mode, or of its sampler where that is not the paper's; a shape
    for each K and whatever else rows of one colour differ in; open for lora. A row looks the same
    in every task.

    More than eight samplers share colours, and differ in shape; 128 rows of a task can be told
    apart.
    """
    families = dict.fromkeys(map(family, board.rows))
    free = [
        place for place in range(len(LIGHT)) if place not in [MODES.get(name) for name in families]
    ]
    others = [name for name in families if name not in MODES]
    colours = MODES | {name: free[place % len(free)] for place, name in enumerate(others)}
    alike: dict[int, dict[Any, int]] = {}  # of each colour: {setting: how many came before it}
    found = []
    for row in board.rows:
        colour = colours[family(row)]
        setting = tuple(
            row.axes[name] for name in ("data", "backbone", "sampler", "adaptation", "k", "variant")
        )
        place = alike.setdefault(colour, {}).setdefault(setting, len(alike[colour]))
        shape = list(SHAPES)[(colour + place) % len(SHAPES)]  # also colours apart differ in shape
        found.append(RowStyle(colour, shape, row.axes["adapter"] == "lora"))
    return found


def family(row: Row) -> str:
    """What has a colour of its own: a mode of the paper's sampler, or another sampler."""
    name: str = row.axes["adaptation"] if row.axes["sampler"] == "adir" else row.axes["sampler"]
    return name


def colours_css() -> str:
    """--c0 to --c7 of the style sheet; print is light."""
    light, dark = (
        " ".join(f"--c{n}: {value};" for n, value in enumerate(values)) for values in (LIGHT, DARK)
    )
    classes = " ".join(f".c{n} {{ color: var(--c{n}); }}" for n in range(len(LIGHT)))
    return (
        f':root {{ {light} }}\n@media screen {{ :root[data-theme="dark"] {{ {dark} }} '
        f"}}\n{classes}\n"
    )
