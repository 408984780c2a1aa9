"""Contact sheet of a search: the query on the left and the nearest images on the right."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE = 160  # pixels: side of the square for a neighbour
QUERY = 256  # pixels: side of the square for the query
GAP = 12
CAPTION = 36  # two lines under an image
TITLE = 30
FONT = 13
COLUMNS = 6  # neighbours per row
GROUND, FRAME, QUIET = "white", (238, 238, 238), (110, 110, 110)


class Found(NamedTuple):
    """One neighbour of a query: its id, distance and image.

    `image` is None if it can no longer be read from the corpus.
    """

    id: str
    distance: float
    image: Image.Image | None


def contact_sheet(
    query: Image.Image | str, found: Sequence[Found], title: str, unit: str
) -> Image.Image:
    """Return an RGB image of the query and its neighbours, with captions.

    Args:
        query: query image, or the words of a text query.
        found: neighbours, nearest first.
        title: title of the sheet; a long title is shortened to one line.
        unit: unit of the distances, for the captions.
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
    asked = text_image(textwrap.wrap(query, 32), QUERY) if isinstance(query, str) else query
    paste(sheet, asked, GAP, TITLE, QUERY)
    caption = "text" if isinstance(query, str) else f"{query.width}x{query.height}"
    draw.text((GAP, TITLE + QUERY + 4), f"query: {caption}", "black", font)
    draw.line([(left, TITLE), (left, height - GAP)], FRAME, 2)
    for rank, neighbour in enumerate(found):
        x = left + GAP + rank % columns * (TILE + GAP)
        y = TITLE + rank // columns * (TILE + CAPTION + GAP)
        image = (
            neighbour.image
            if neighbour.image is not None
            else text_image(["image not found"], TILE)
        )
        paste(sheet, image, x, y, TILE)
        draw.text((x, y + TILE + 3), f"{rank + 1}.  {neighbour.distance:.4f} {unit}", "black", font)
        draw.text((x, y + TILE + 19), shortened(neighbour.id, TILE, small), QUIET, small)
    return sheet


def paste(sheet: Image.Image, image: Image.Image, x: int, y: int, side: int) -> None:
    """Paste an image into a square of the sheet, as large as fits, on a light grey background.

    An image smaller than the square is enlarged with nearest-neighbour interpolation.

    Args:
        sheet: sheet, which is changed in place.
        image: image to paste.
        x: left edge of the square in pixels.
        y: upper edge of the square in pixels.
        side: side of the square in pixels.
    """
    way = Image.Resampling.LANCZOS if max(image.size) > side else Image.Resampling.NEAREST
    sheet.paste(ImageOps.pad(image.convert("RGB"), (side, side), way, FRAME), (x, y))


def text_image(lines: list[str], side: int) -> Image.Image:
    """Return an image of `side` x `side` pixels with lines of text.

    The sheet shows it for a text query, or for a neighbour whose image is missing. At most 12 lines
    are drawn; if there are more, "..." follows.
    """
    square = Image.new("RGB", (side, side), FRAME)
    shown = lines[:12] + ["..."] * (len(lines) > 12)
    ImageDraw.Draw(square).multiline_text(
        (12, 12), "\n".join(shown), "black", ImageFont.load_default(FONT), spacing=4
    )
    return square


def shortened(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return a text, shortened if it is wider than `width` pixels.

    The middle of a long text is replaced by "...", because ids often differ only at their ends.
    Unprintable characters are replaced by "?".
    """
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    cuts = (
        f"{text[: kept // 3]}...{text[len(text) - (kept - kept // 3) :]}"
        for kept in range(len(text) - 1, 1, -1)
    )
    return next((short for short in cuts if font.getlength(short) <= width), "...")
