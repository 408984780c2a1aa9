"""The paper's test images as far as known: centre squares of the first DIV2K validation images."""

import functools
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from adir.data.base import Corpus
from adir.errors import InputError
from adir.files import sha256_of_bytes, walk
from adir.images import decode, from_uint8
from adir.weights.registry import located

LICENCE = "academic research only; the images belong to their owners"
NAME = re.compile(r"0[89]\d\d\.png", re.IGNORECASE)
SOURCE = "https://data.vision.ee.ethz.ch/cvl/DIV2K"


class Div2kSquares(Corpus):
    """Centre squares of the first DIV2K validation images (Agustsson and Timofte, 2017) that are
    large enough.

    The largest centre square is reduced to size x size by Pillow's bicubic filter (antialiased, a =
    -0.5). An id names the size (0801-512), so that results of two sizes are never mixed.

    Args:
        folder: of the unpacked PNGs, or the zip file itself; None is the file that `adir weights
            get div2k` fetched.
        size: pixels per side; images with a shorter side are skipped.
        count: number of images.

    Raises:
        InputError: nothing there, a damaged file, or fewer images than `count`.
    """

    def __init__(self, folder: str | Path | None = None, size: int = 512, count: int = 50) -> None:
        for what, value in (("size", size), ("count", count)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"data=div2k: {what}={value!r}; a whole number of at least 1 is needed"
                )
        self._place = Path(folder) if folder is not None else located("div2k")
        self._size = size
        self._files: dict[str, Path | zipfile.Path] = {}
        manifest, too_small = {}, []
        for file in images_of(self._place):
            try:
                content = file.read_bytes()
                with Image.open(io.BytesIO(content)) as image:
                    side = min(image.size)
            except (OSError, zipfile.BadZipFile, zlib.error) as error:
                raise InputError(
                    f"data=div2k: {self._place}: {file.name} is damaged ({error}); fetch it again"
                ) from error
            if side < size:
                too_small.append(file.stem)
                continue
            self._files[f"{file.stem}-{size}"] = file
            manifest[f"{file.stem}-{size}"] = sha256_of_bytes(
                f"{sha256_of_bytes(content)} centre {size}".encode()
            )
            if len(manifest) == count:
                break
        if len(manifest) < count:
            small = f"; too small for {size} pixels: {', '.join(too_small)}" if too_small else ""
            raise InputError(
                f"{self._place}: {len(manifest)} images of DIV2K (0801.png and so on), {count} "
                f"asked{small}; "
                "data.count=... takes fewer"
            )
        super().__init__(f"div2k-{size}", manifest, {})
        self.image = functools.lru_cache(maxsize=count)(self._image)  # type: ignore[method-assign]  # decoding takes 0.2 s

    def attribution(self, image_id: str) -> dict[str, str]:
        return {"licence": LICENCE, "source": SOURCE}

    def _image(self, image_id: str) -> Tensor:
        """(3, size, size) in [-1, 1]."""
        pixels = decode(self._files[image_id].read_bytes(), image_id)
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side])
        return from_uint8(
            np.array(square.resize((self._size, self._size), Image.Resampling.BICUBIC))
        )


def images_of(place: Path) -> Sequence[Path | zipfile.Path]:
    """Return DIV2K's validation images in a folder or zip file, in order.

    Raises InputError if it is missing or damaged.
    """
    files: Iterable[Path | zipfile.Path]
    if place.is_dir():
        files = walk(place, (".png",))
    else:
        try:
            archive = zipfile.ZipFile(place)
        except FileNotFoundError as error:
            raise InputError(f"data=div2k: {place}: no such file or folder") from error
        except zipfile.BadZipFile as error:
            raise InputError(
                f"data=div2k: {place}: damaged zip file ({error}); fetch it again"
            ) from error
        files = (zipfile.Path(archive, name) for name in archive.namelist())
    return sorted((file for file in files if NAME.fullmatch(file.name)), key=lambda file: file.name)
