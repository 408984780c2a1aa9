"""Contact sheet of a search: the query on the left, its neighbours on the right, nearest first."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

TILE = 160  # pixels: side of the square for a neighbour
QUERY = 256  # pixels: side of the square for the query
GAP = 12
CAPTION = 36  # two lines under an image
TITLE = 30
FONT = 13
COLUMNS = 6  # neighbours per row
GROUND, FRAME, QUIET = "white", (238, 238, 238), (110, 110, 110)


class Found(NamedTuple):
    """One neighbour of a query; its image is None if its source can no longer provide it."""

    id: str
    distance: float
    image: Image.Image | None


def contact_sheet(
    query: Image.Image | str, found: Sequence[Found], title: str, unit: str
) -> Image.Image:
    """Draw the sheet, in RGB.

    Args:
        query: an image, or the words of a text query.
        found: the neighbours, nearest first.
        title: the sheet's title, shortened to one line.
        unit: the unit of the distances, for the captions.
    """
    columns = min(COLUMNS, max(len(found), 1))
    rows = -(-len(found) // columns)
    left = QUERY + 2 * GAP
    width = left + GAP + columns * (TILE + GAP)
    height = TITLE + max(QUERY + CAPTION, rows * (TILE + CAPTION + GAP)) + GAP
    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(FONT), ImageFont.load_default(FONT - 2)
    draw.text((GAP, 8), shortened(title, (width - 2 * GAP), font), "black", font)
    asked = written(textwrap.wrap(query, 32), QUERY) if isinstance(query, str) else query
    paste(sheet, asked, GAP, TITLE, QUERY)
    caption = "these words" if isinstance(query, str) else f"{query.width}x{query.height}"
    draw.text((GAP, TITLE + QUERY + 4), f"looked for: {caption}", "black", font)
    draw.line([(left, TITLE), (left, height - GAP)], FRAME, 2)
    for rank, neighbour in enumerate(found):
        x = left + GAP + rank % columns * (TILE + GAP)
        y = TITLE + rank // columns * (TILE + CAPTION + GAP)
        image = (
            neighbour.image if neighbour.image is not None else written(["image not found"], TILE)
        )
        paste(sheet, image, x, y, TILE)
        draw.text((x, y + TILE + 3), f"{rank + 1}.  {neighbour.distance:.4f} {unit}", "black", font)
        draw.text((x, y + TILE + 19), shortened(neighbour.id, TILE, small), QUIET, small)
    return sheet


def paste(sheet: Image.Image, image: Image.Image, x: int, y: int, side: int) -> None:
    """Paste an image into the square at (x, y) on a light ground, as large as fits.

    A small image is enlarged with nearest-neighbour interpolation.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    sheet.paste(FRAME, (x, y, x + side, y + side))
    sheet.paste(
        image.convert("RGB").resize(size, way),
        (x + (side - size[0]) // 2, y + (side - size[1]) // 2),
    )


def written(lines: list[str], side: int) -> Image.Image:
    """Return a square with the lines of text on it, to stand in for an image.

    At most 12 lines are drawn.
    """
    square = Image.new("RGB", (side, side), FRAME)
    shown = lines[:12] + ["..."] * (len(lines) > 12)
    ImageDraw.Draw(square).multiline_text(
        (12, 12), "\n".join(shown), "black", ImageFont.load_default(FONT), spacing=4
    )
    return square


def shortened(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return a text of at most `width` pixels.

    A longer text loses its middle, because the end of an id tells it apart from others.
    """
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    cuts = (
        f"{text[: kept // 3]}...{text[len(text) - (kept - kept // 3) :]}"
        for kept in range(len(text) - 1, 1, -1)
    )
    return next((short for short in cuts if font.getlength(short) <= width), "...")
