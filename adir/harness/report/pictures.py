"""The pictures of a report: read, compared with the ground truth, made small, embedded within a budget, or linked."""

import base64
import functools
import io
import os
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
from PIL import Image

from adir.data.fields import cut, field_named
from adir.images import from_uint8, hash_of_picture

LONGEST_SIDE = 512  # pixels of a picture that was made smaller
THUMBNAIL = 80  # pixels of a neighbour
QUALITY = 88  # of WebP, where pictures do not fit as they are
HEAT_QUALITY = 70  # of an error map, whose numbers nobody reads off its pixels
PER_PICTURE = 5000  # pixels that could be encoded in the time it takes to open a file
ERROR_SCALE = 64
"""Grey levels of |x̂ - x| at which the colours of an error map end."""


class Album:
    """Pictures by number, each once: as a data URI while there is room, and as a link to its file when there is none.

    folder: the results.  page: the folder that links are relative to.  exact: pictures are embedded in full size and without
    loss.  There is no room before `allow` gives some.
    """

    def __init__(self, folder: Path, page: Path, exact: bool) -> None:
        self.folder, self.page, self.exact = folder, page, exact
        self.budget = 0  # bytes of data URIs
        self.pixels = 0  # that may be encoded, as a megapixel takes about 0.1 s
        self.sources: list[str] = []
        self.embedded = 0
        self.linked = 0
        self._numbers: dict[str, int] = {}
        self._by_source: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether everything further is linked."""
        return self.budget <= 0 or self.pixels <= 0

    def allow(self, n_bytes: int, pixels: int) -> None:
        """Room for the next kind of picture: so many bytes beside what is left, and so many pixels in place of it."""
        self.budget += n_bytes
        self.pixels = pixels

    def file(self, name: str | None) -> int | None:
        """A picture file of the results folder, by its path in it; None where there is none or it cannot be read."""
        if name is None or not is_inside(name):
            return None
        if name not in self._numbers:
            path = self.folder / name
            if self.full:
                return self._link(name, path) if path.is_file() else None
            picture = open_rgb(path)
            if picture is None:
                return None
            self._encode(name, picture, None if self.exact else LONGEST_SIDE, None if self.exact else QUALITY)
        return self._numbers[name]

    def truth(self, key: str, picture: Image.Image | None) -> int | None:
        """A picture that no file holds, treated as those of files."""
        return self._made(key, picture, None if self.exact else LONGEST_SIDE, None if self.exact else QUALITY)

    def heat(self, key: str, picture: Image.Image | None) -> int | None:
        """An error map."""
        return self._made(key, picture, LONGEST_SIDE, HEAT_QUALITY)

    def thumbnail(self, key: str, picture: Image.Image | None) -> int | None:
        """A picture at the size of a thumbnail."""
        return self._made(key, picture, THUMBNAIL, QUALITY)

    def _made(self, key: str, picture: Image.Image | None, longest_side: int | None, quality: int | None) -> int | None:
        """A picture known under `key` from now on. None when there is none or no room for it."""
        if key not in self._numbers:
            if picture is None or self.full:
                return None
            self._encode(key, picture, longest_side, quality)
        return self._numbers[key]

    def _encode(self, key: str, picture: Image.Image, longest_side: int | None, quality: int | None) -> None:
        """quality None: without loss, which takes about four times as long."""
        self.pixels -= picture.width * picture.height * (4 if quality is None else 1) + PER_PICTURE
        shown = picture.convert("RGB")  # a copy, also of RGB
        if longest_side is not None:
            shown.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        shown.save(
            buffer, format="webp", lossless=quality is None, quality=60 if quality is None else quality, method=2
        )
        source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if source not in self._by_source:  # two files can hold one picture
            self._by_source[source] = len(self.sources)
            self.sources.append(source)
            self.budget -= len(source)
            self.embedded += 1
        self._numbers[key] = self._by_source[source]

    def _link(self, key: str, path: Path) -> int:
        below = Path(os.path.relpath(path, self.page)).as_posix()
        self.linked += 1
        self._numbers[key] = len(self.sources)
        self.sources.append(quote(below))  # file names of records are percent-encoded themselves
        return self._numbers[key]


@functools.lru_cache(maxsize=64)
def open_rgb(path: Path) -> Image.Image | None:
    """A picture file, or None when it is not there or is no picture. The last ones are kept: do not change what it gives."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # Pillow's words for missing, foreign and damaged files
        return None


def is_inside(name: str) -> bool:
    """Whether a path that a record names stays inside the results folder: records may come from somebody else."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


@functools.cache
def embedded_test_field(image_id: str, sha256: str | None) -> Image.Image | None:
    """x of an embedded test field, built again; None for other ids, and where it is not the picture of the record."""
    field = field_named(image_id)
    if field is None or (sha256 is not None and hash_of_picture(from_uint8(cut(field))) != sha256):
        return None
    return Image.fromarray(cut(field))


@functools.cache
def embedded_corpus_field(image_id: str) -> Image.Image | None:
    """A picture of the embedded corpus by its id, built again; None for other ids."""
    field = field_named(image_id)
    return None if field is None else Image.fromarray(cut(field))


def error_map(restored: Image.Image | None, truth: Image.Image | None) -> Image.Image | None:
    """|x̂ - x|, mean over the channels, from 0 to ERROR_SCALE grey levels and above, in the colours of `error_colours`.

    None where either is missing or their sizes differ. A palette picture: its numbers are the grey levels themselves.
    """
    if restored is None or truth is None or restored.size != truth.size:
        return None
    difference = np.abs(np.asarray(restored, np.int16) - np.asarray(truth, np.int16)).mean(axis=2)
    levels = np.minimum(np.rint(difference), ERROR_SCALE - 1).astype(np.uint8)
    heat = Image.fromarray(levels)
    heat.putpalette([channel for colour in error_colours() for channel in colour])
    return heat


@functools.cache
def error_colours() -> list[tuple[int, int, int]]:
    """ERROR_SCALE colours from black to pale yellow, of even perceived steps (matplotlib's inferno)."""
    from matplotlib import colormaps  # here: 0.3 s that a folder without ground truth need not wait

    table = (colormaps["inferno"](np.linspace(0, 1, ERROR_SCALE))[:, :3] * 255).round().astype(int)
    return [(int(r), int(g), int(b)) for r, g, b in table]
