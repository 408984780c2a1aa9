"""Images of a report: read, compared with the ground truth, reduced, and embedded or linked."""

import base64
import functools
import io
import os
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
from PIL import Image

from adir.data.fields import cut, field_named
from adir.harness.records.layout import stored_images
from adir.images import from_uint8, hash_of_image

LONGEST_SIDE = 512  # pixels of a reduced image
THUMBNAIL = 80  # longest side of a neighbour in pixels
QUALITY = 88  # WebP quality of reduced images
HEAT_QUALITY = 70  # WebP quality of an error map, whose exact values nobody reads off
PER_IMAGE = 5000  # opening a file takes as long as encoding this many pixels
ERROR_SCALE = 64
"""The colours of an error map end at this |x̂ - x|, in grey levels."""


class PageImages:
    """Numbered images of a page, each stored once as a data URI or as a link to its file.

    Images are embedded while there is room and linked after that. There is no room before the
    first `allow`.

    Args:
        folder: the results folder.
        page: the folder that links are relative to.
        exact: embed images in full size and without loss.
    """

    def __init__(self, folder: Path, page: Path, exact: bool) -> None:
        self.folder, self.page, self.exact = folder, page, exact
        self.size = (None, None) if exact else (LONGEST_SIDE, QUALITY)
        """(longest side in pixels, WebP quality) of images; None: full size, without loss."""
        self.budget = 0  # bytes left for data URIs
        self.pixels = 0  # pixels left to encode; a megapixel takes about 0.1 s
        self.sources: list[str] = []
        self.linked = 0
        self._numbers: dict[str, int] = {}
        self._by_source: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether no room is left, so that further images are linked."""
        return self.budget <= 0 or self.pixels <= 0

    def allow(self, n_bytes: int, pixels: int) -> None:
        """Make room for the next kind of image.

        Args:
            n_bytes: added to the bytes that are left.
            pixels: replaces the pixels that are left.
        """
        self.budget += n_bytes
        self.pixels = pixels

    def file(self, name: str | None) -> int | None:
        """Return the number of an image file, given by its path in the results folder.

        Return None if the file is missing or cannot be read.
        """
        path = file_in(self.folder, name)
        if path is None or name is None:
            return None
        if self.full and name not in self._numbers:
            self._link(name, path)
        image = None if name in self._numbers else open_rgb(self.folder, name)
        return self.made(name, image, *self.size)

    def made(
        self, key: str, image: Image.Image | None, longest_side: int | None, quality: int | None
    ) -> int | None:
        """Return the number of an image and remember it under `key`; None without image or room."""
        if key not in self._numbers and image is not None and not self.full:
            self._encode(key, image, longest_side, quality)
        return self._numbers.get(key)

    def _encode(
        self, key: str, image: Image.Image, longest_side: int | None, quality: int | None
    ) -> None:
        """Embed an image; quality None is lossless, which takes about four times as long."""
        self.pixels -= image.width * image.height * (4 if quality is None else 1) + PER_IMAGE
        shown = image.convert("RGB")  # copies RGB images too, so `image` is not resized
        if longest_side is not None:
            shown.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        shown.save(
            buffer,
            format="webp",
            lossless=quality is None,
            quality=60 if quality is None else quality,
            method=2,
        )
        source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if source not in self._by_source:  # two files can hold the same image
            self._by_source[source] = len(self.sources)
            self.sources.append(source)
            self.budget -= len(source)
        self._numbers[key] = self._by_source[source]

    def _link(self, key: str, path: Path) -> None:
        self.linked += 1
        self._numbers[key] = len(self.sources)
        below = Path(os.path.relpath(path, self.page)).as_posix()
        # quote: the file names of records contain percent signs.
        self.sources.append(quote(below))


def file_in(folder: Path, name: str | None) -> Path | None:
    """Return the path of a file that a record names; None if it is missing or outside the folder.

    Records may come from other people, so their paths are not trusted.
    """
    path = PurePosixPath(name or "..")
    inside = not path.is_absolute() and ".." not in path.parts
    return folder / path if inside and (folder / path).is_file() else None


@functools.lru_cache(maxsize=64)
def open_rgb(folder: Path, name: str | None) -> Image.Image | None:
    """Return an image file of the results, or None if it is missing or not an image.

    The last 64 images are cached, so callers must not change them.
    """
    path = file_in(folder, name)
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # Pillow's errors for missing and damaged files
        return None


@functools.cache
def embedded_field(image_id: str, sha256: str | None) -> Image.Image | None:
    """Return an embedded image, computed again.

    Return None if the id is not that of an embedded image, or if its hash is not `sha256`.
    """
    field = field_named(image_id)
    if field is None or (sha256 is not None and hash_of_image(from_uint8(cut(field))) != sha256):
        return None
    return Image.fromarray(cut(field))


def ground_truth(folder: Path, image_id: str, sha256: str | None) -> Image.Image | None:
    """Return the ground truth as saved in the results, or an embedded image computed again.

    Return None if neither exists. sha256: the ground truth's hash, None if unknown.
    """
    # The first stored image is the one of full size.
    kept = next((open_rgb(folder, name) for name in stored_images(sha256)), None)
    return kept if kept is not None else embedded_field(image_id, sha256)


def error_map(restored: Image.Image | None, truth: Image.Image | None) -> Image.Image | None:
    """Return |x̂ - x|, the mean over the channels, in the colours of `error_colours`.

    The result is a palette image whose pixel values are grey levels, clipped to
    [0, ERROR_SCALE - 1]. Return None if an image is missing or their sizes differ.
    """
    if restored is None or truth is None or restored.size != truth.size:
        return None
    difference = np.abs(np.asarray(restored, np.int16) - np.asarray(truth, np.int16)).mean(axis=2)
    heat = Image.fromarray(np.minimum(np.rint(difference), ERROR_SCALE - 1).astype(np.uint8))
    heat.putpalette([channel for colour in error_colours() for channel in colour])
    return heat


@functools.cache
def error_colours() -> list[tuple[int, int, int]]:
    """Return ERROR_SCALE colours from black to pale yellow: matplotlib's perceptually even inferno.

    matplotlib is imported here, because importing it takes 0.3 s and a folder without ground truth
    does not need it.
    """
    from matplotlib import colormaps

    table = (colormaps["inferno"](np.linspace(0, 1, ERROR_SCALE))[:, :3] * 255).round().astype(int)
    return [(int(r), int(g), int(b)) for r, g, b in table]
