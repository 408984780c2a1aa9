"""Functions that read, reduce, embed and link the images of a report, and draw error maps."""

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
"""The number of colours of an error map, one per grey level of |x̂ - x|.

Larger errors have the last colour.
"""


class PageImages:
    """Images of a page, each stored once as a data URI or as a link to its file.

    The number of an image is its index in `sources`. An image file is embedded if there is room for
    it, and linked otherwise. There is no room before the first call of `allow`.

    Args:
        folder: results folder.
        page: folder of the page, to which links are relative.
        exact: whether image files are embedded in full size and without loss.
    """

    def __init__(self, folder: Path, page: Path, exact: bool) -> None:
        self.folder, self.page, self.exact = folder, page, exact
        self.size = (None, None) if exact else (LONGEST_SIDE, QUALITY)
        """(longest side in pixels, WebP quality) of embedded image files.

        (None, None) means full size, without loss.
        """
        self.budget = 0  # bytes left for data URIs
        self.pixels = 0  # pixels left to encode; a megapixel takes about 0.1 s
        self.sources: list[str] = []
        self.linked = 0
        self._numbers: dict[str, int] = {}
        self._by_source: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """True if no room is left, so that further image files will be linked."""
        return self.budget <= 0 or self.pixels <= 0

    def allow(self, n_bytes: int, pixels: int) -> None:
        """Make room for the next kind of image, such as thumbnails of neighbours.

        Args:
            n_bytes: bytes of data URIs, added to the bytes that are left.
            pixels: pixels to encode, replacing the pixels that are left.
        """
        self.budget += n_bytes
        self.pixels = pixels

    def file(self, name: str | None) -> int | None:
        """Return the number of an image file, adding the file to the page at the first call.

        The file is embedded if there is room, and linked otherwise. Returns None if it is missing,
        or if there is room but it cannot be read.

        name: path of the file in the results folder, or None.
        """
        path = file_in(self.folder, name)
        if path is None or name is None:
            return None
        if self.full and name not in self._numbers:
            self.linked += 1
            self._numbers[name] = len(self.sources)
            # quote: the file names of records contain percent signs.
            self.sources.append(quote(Path(os.path.relpath(path, self.page)).as_posix()))
        image = None if name in self._numbers else open_rgb(self.folder, name)
        return self.made(name, image, *self.size)

    def made(
        self, key: str, image: Image.Image | None, longest_side: int | None, quality: int | None
    ) -> int | None:
        """Return the number of the image with this key, embedding it at the first call.

        Returns None if the key is new and the image cannot be embedded, because it is None or no
        room is left.

        Args:
            key: unique name of the image.
            image: image to embed, or None if it is missing.
            longest_side: largest side in pixels; larger images are reduced. None: full size.
            quality: WebP quality. None: without loss.
        """
        if key in self._numbers or image is None or self.full:
            return self._numbers.get(key)
        # Encoding without loss takes about four times as long as with loss.
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
        return self._numbers[key]


def file_in(folder: Path, name: str | None) -> Path | None:
    """Return the path of a file that a record names, or None if there is no such file.

    Returns None also if the path leads out of the results folder: records may come from other
    people, so their paths are not trusted.
    """
    path = PurePosixPath(name or "..")
    inside = not path.is_absolute() and ".." not in path.parts
    return folder / path if inside and (folder / path).is_file() else None


@functools.lru_cache(maxsize=64)
def open_rgb(folder: Path, name: str | None) -> Image.Image | None:
    """Return an image file of a results folder in RGB, or None if it cannot be read.

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
    """Return an image of the data sets embedded in the adir package, computed from its id.

    Returns None if no embedded image has this id, or if `sha256` is given and is not the hash of
    the computed image.
    """
    field = field_named(image_id)
    if field is None or (sha256 is not None and hash_of_image(from_uint8(cut(field))) != sha256):
        return None
    return Image.fromarray(cut(field))


def ground_truth(folder: Path, image_id: str, sha256: str | None) -> Image.Image | None:
    """Return the ground truth of a test image, or None if it is not available.

    The image is read from the results folder. If it is not saved there, it is computed from its id,
    which works for the data sets embedded in the adir package only.

    sha256: hash of the ground truth, or None if unknown.
    """
    # The first stored image is the one of full size.
    kept = next((open_rgb(folder, name) for name in stored_images(sha256)), None)
    return kept if kept is not None else embedded_field(image_id, sha256)


def error_map(restored: Image.Image | None, truth: Image.Image | None) -> Image.Image | None:
    """Return a palette image of |x̂ - x|, averaged over the channels.

    The pixel values are grey levels, clipped to [0, ERROR_SCALE - 1]. The palette is
    `error_colours`. Returns None if an image is missing or if the two sizes differ.
    """
    if restored is None or truth is None or restored.size != truth.size:
        return None
    difference = np.abs(np.asarray(restored, np.int16) - np.asarray(truth, np.int16)).mean(axis=2)
    heat = Image.fromarray(np.minimum(np.rint(difference), ERROR_SCALE - 1).astype(np.uint8))
    heat.putpalette([channel for colour in error_colours() for channel in colour])
    return heat


@functools.cache
def error_colours() -> list[tuple[int, int, int]]:
    """Return ERROR_SCALE colours (r, g, b) from matplotlib's colour map inferno.

    The colour map is perceptually uniform and runs from black to pale yellow. matplotlib is
    imported in this function because the import takes 0.3 s.
    """
    from matplotlib import colormaps

    table = (colormaps["inferno"](np.linspace(0, 1, ERROR_SCALE))[:, :3] * 255).round().astype(int)
    return [(int(r), int(g), int(b)) for r, g, b in table]
