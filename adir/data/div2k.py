"""Centre squares of DIV2K's validation images: the test images of the paper, as far as known."""

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
    """Test set of centre squares of DIV2K's validation images (Agustsson and Timofte, 2017).

    It holds the first `count` images that are large enough. The largest centre square of an image
    is downsampled to size x size by Pillow's bicubic filter (antialiased, a = -0.5). An id contains
    the size (0801-512), so results of two sizes are never mixed.

    Args:
        folder: the folder of unpacked PNG files, or the zip file. None uses the zip file that `adir
            weights get div2k` downloaded.
        size: pixels per side; images with a shorter side are skipped.
        count: number of images.

    Raises:
        InputError: if `folder` is missing, a file is damaged, fewer than `count` images are large
            enough, or `size` or `count` is not a whole number of at least 1.
    """

    def __init__(self, folder: str | Path | None = None, size: int = 512, count: int = 50) -> None:
        for what, value in (("size", size), ("count", count)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"data=div2k: {what}={value!r} must be a whole number of at least 1"
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
                    f"data=div2k: {file.name} in {self._place} is damaged ({error}); download "
                    "DIV2K again"
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
            small = f" (too small for {size} pixels: {', '.join(too_small)})" if too_small else ""
            raise InputError(
                f"{self._place} has {len(manifest)} usable DIV2K images (0801.png and so on), but "
                f"data.count is {count}{small}; lower data.count"
            )
        super().__init__(f"div2k-{size}", manifest, {})
        # Decoding takes 0.2 s per image.
        self.image = functools.lru_cache(maxsize=count)(self._image)  # type: ignore[method-assign]

    def attribution(self, image_id: str) -> dict[str, str]:
        return {"licence": LICENCE, "source": SOURCE}

    def _image(self, image_id: str) -> Tensor:
        """Return the centre crop of an image, resized to (3, size, size), in [-1, 1]."""
        pixels = decode(self._files[image_id].read_bytes(), image_id)
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side])
        return from_uint8(
            np.array(square.resize((self._size, self._size), Image.Resampling.BICUBIC))
        )


def images_of(place: Path) -> Sequence[Path | zipfile.Path]:
    """Return the files of DIV2K's validation images in a folder or zip file, sorted by name.

    Raises InputError if the folder or file is missing or damaged.
    """
    files: Iterable[Path | zipfile.Path]
    if place.is_dir():
        files = walk(place, (".png",))
    else:
        try:
            archive = zipfile.ZipFile(place)
        except FileNotFoundError as error:
            raise InputError(f"data=div2k: no file or folder {place}") from error
        except zipfile.BadZipFile as error:
            raise InputError(
                f"data=div2k: {place} is a damaged zip file ({error}); download the file again"
            ) from error
        files = (zipfile.Path(archive, name) for name in archive.namelist())
    return sorted((file for file in files if NAME.fullmatch(file.name)), key=lambda file: file.name)
