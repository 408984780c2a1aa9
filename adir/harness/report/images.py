"""The images of a report: read, compared with the ground truth, made small, embedded within a
budget, or linked.
"""

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

LONGEST_SIDE = 512  # pixels of an image that was made smaller
THUMBNAIL = 80  # pixels of a neighbour
QUALITY = 88  # of WebP, where images do not fit as they are
HEAT_QUALITY = 70  # of an error map, whose numbers nobody reads off its pixels
PER_IMAGE = 5000  # pixels that could be encoded in the time it takes to open a file
ERROR_SCALE = 64
"""Grey levels of |x̂ - x| at which the colours of an error map end."""


class PageImages:
    """Images by number, each once: as a data URI while there is room, and as a link to its file
    when there is none.

    folder: the results.  page: the folder that links are relative to.  exact: images are embedded
        in full size and without
    loss.  There is no room before `allow` gives some.
    """

    def __init__(self, folder: Path, page: Path, exact: bool) -> None:
        self.folder, self.page, self.exact = folder, page, exact
        self.size = (None, None) if exact else (LONGEST_SIDE, QUALITY)
        """Longest side in pixels and quality of images; None: as they are, without loss."""
        self.budget = 0  # bytes of data URIs
        self.pixels = 0  # that may be encoded, as a megapixel takes about 0.1 s
        self.sources: list[str] = []
        self.linked = 0
        self._numbers: dict[str, int] = {}
        self._by_source: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether everything further is linked."""
        return self.budget <= 0 or self.pixels <= 0

    def allow(self, n_bytes: int, pixels: int) -> None:
        """Room for the next kind of image: so many bytes beside what is left, and so many pixels in
        place of it.
        """
        self.budget += n_bytes
        self.pixels = pixels

    def file(self, name: str | None) -> int | None:
        """An image file of the results folder, by its path in it; None where there is none or it
        cannot be read.
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
        """An image known under `key` from now on. None when there is none or no room for it."""
        if key not in self._numbers and image is not None and not self.full:
            self._encode(key, image, longest_side, quality)
        return self._numbers.get(key)

    def _encode(
        self, key: str, image: Image.Image, longest_side: int | None, quality: int | None
    ) -> None:
        """quality None: without loss, which takes about four times as long."""
        self.pixels -= image.width * image.height * (4 if quality is None else 1) + PER_IMAGE
        shown = image.convert("RGB")  # a copy, also of RGB
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
        if source not in self._by_source:  # two files can hold one image
            self._by_source[source] = len(self.sources)
            self.sources.append(source)
            self.budget -= len(source)
        self._numbers[key] = self._by_source[source]

    def _link(self, key: str, path: Path) -> None:
        self.linked += 1
        self._numbers[key] = len(self.sources)
        below = Path(os.path.relpath(path, self.page)).as_posix()
        self.sources.append(quote(below))  # file names of records are percent-encoded themselves


def file_in(folder: Path, name: str | None) -> Path | None:
    """A file that a record names, where it is there and inside the results folder: records may come
    from somebody else.
    """
    path = PurePosixPath(name or "..")
    inside = not path.is_absolute() and ".." not in path.parts
    return folder / path if inside and (folder / path).is_file() else None


@functools.lru_cache(maxsize=64)
def open_rgb(folder: Path, name: str | None) -> Image.Image | None:
    """An image file of the results, or None when it is not there or is no image.

    The last ones are kept: do not change what it gives.
    """
    path = file_in(folder, name)
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
    ):  # Pillow's words for missing, foreign and damaged files
        return None


@functools.cache
def embedded_field(image_id: str, sha256: str | None) -> Image.Image | None:
    """An embedded field, built again; None for other ids, and where it is not the image of this
    hash.
    """
    field = field_named(image_id)
    if field is None or (sha256 is not None and hash_of_image(from_uint8(cut(field))) != sha256):
        return None
    return Image.fromarray(cut(field))


def ground_truth(folder: Path, image_id: str, sha256: str | None) -> Image.Image | None:
    """x as the results keep it, or else an embedded field; None where there is neither. sha256: of
    x, None where not known.
    """
    kept = next(
        (open_rgb(folder, name) for name in stored_images(sha256)), None
    )  # the first is of full size
    return kept if kept is not None else embedded_field(image_id, sha256)


def error_map(restored: Image.Image | None, truth: Image.Image | None) -> Image.Image | None:
    """|x̂ - x|, mean over the channels, from 0 to ERROR_SCALE grey levels and above, in the colours
    of `error_colours`.

    None where either is missing or their sizes differ. A palette image: its numbers are the grey
    levels themselves.
    """
    if restored is None or truth is None or restored.size != truth.size:
        return None
    difference = np.abs(np.asarray(restored, np.int16) - np.asarray(truth, np.int16)).mean(axis=2)
    heat = Image.fromarray(np.minimum(np.rint(difference), ERROR_SCALE - 1).astype(np.uint8))
    heat.putpalette([channel for colour in error_colours() for channel in colour])
    return heat


@functools.cache
def error_colours() -> list[tuple[int, int, int]]:
    """ERROR_SCALE colours from black to pale yellow, of even perceived steps (matplotlib's
    inferno).
    """
    from matplotlib import colormaps  # here: 0.3 s that a folder without ground truth need not wait

    table = (colormaps["inferno"](np.linspace(0, 1, ERROR_SCALE))[:, :3] * 255).round().astype(int)
    return [(int(r), int(g), int(b)) for r, g, b in table]
