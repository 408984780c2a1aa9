"""Image sources for Google Open Images V7: a folder, tar shards, or its public bucket.

https://storage.googleapis.com/openimages/web/download_v7.html links to the image lists, which are
CSV files. The lists of the images with annotated boxes are

    train-images-boxable-with-rotation.csv   1,743,042 images
    validation-images-with-rotation.csv         41,620 images
    test-images-with-rotation.csv              125,436 images

The list of all 9 million training images is oidv6-train-images-with-labels-with-rotation.csv.
"""

import csv
import functools
import http.client
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from adir.data.sources.base import Item, Source, SourceDown, attribution_of
from adir.data.sources.tars import TarImage, TarSource
from adir.errors import InputError

BUCKET = "https://open-images-dataset.s3.amazonaws.com"
NEEDED = ("ImageID", "Subset", "License", "Author", "OriginalLandingURL")
IMAGE_ID = re.compile(r"[0-9a-f]{16}")
SUBSETS = ("train", "validation", "test")
ATTEMPTS = 4
PART = 2**16


class OpenImagesSource(Source):
    """Source of Open Images from a folder or from the public bucket.

    An id is SUBSET/ID, as in `train/000002b66c9c498e`. Licence, author and landing page come from
    the lists. The lists' column Rotation is not applied. For tar shards see `OpenImagesTars`.

    Args:
        lists: CSV image lists (see the top of this file).
        images: a folder with ID.jpg or SUBSET/ID.jpg. None downloads each image from the bucket:
            about 0.3 MB per image, or 0.5 TB for all training images with boxes.
        bucket: address of the bucket or of a mirror.
    """

    kind = "open_images"

    def __init__(
        self, lists: Sequence[str | Path], images: str | Path | None = None, bucket: str = BUCKET
    ) -> None:
        self.lists = checked_lists(lists)
        self.folder = None if images is None else Path(images)
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(
                f"Open Images: no folder {images}; leave images= unset to download the images from "
                "the bucket"
            )
        self.bucket = bucket.rstrip("/")
        self.name = "open-images-" + "-".join(path.stem.partition("-")[0] for path in self.lists)
        self.arguments = {
            "lists": [str(path.resolve()) for path in self.lists],
            "images": None if self.folder is None else str(self.folder.resolve()),
            "bucket": self.bucket,
        }

    def listing(self) -> Iterator[tuple[str, int | None]]:
        for path in self.lists:
            for start, rows in sections_of(path):
                yield f"{path.name}#{start}", rows

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        by_name = {path.name: path for path in self.lists}
        for key in keys:
            name, _, start = key.rpartition("#")
            for fields in section_rows(by_name[name], int(start)):
                image_id = f"{fields['Subset']}/{fields['ImageID']}"
                yield Item(image_id, functools.partial(self.read, image_id), attribution_of(fields))

    def read(self, image_id: str) -> bytes:
        subset, _, name = image_id.partition("/")
        if subset not in SUBSETS or not IMAGE_ID.fullmatch(name):
            raise InputError(
                f"{image_id!r} is not an id of Open Images; ids are SUBSET/ID, and SUBSET is one "
                f"of {', '.join(SUBSETS)}"
            )
        if self.folder is None:
            return fetch(f"{self.bucket}/{subset}/{name}.jpg")
        for path in (self.folder / subset / f"{name}.jpg", self.folder / f"{name}.jpg"):
            if path.is_file():
                return path.read_bytes()
        raise InputError(f"{image_id}: neither {subset}/{name}.jpg nor {name}.jpg in {self.folder}")


class OpenImagesTars(TarSource):
    """Source of Open Images from the user's own tar shards.

    The name of an image file, up to its first dot, must be the ImageID; otherwise licence, author
    and source are unknown. They come from the image lists, which are kept in memory. This takes
    about 1 GB for the 1.74 million training images with boxes.

    Args:
        path: a tar file, or a folder with tar files (see `TarSource`).
        lists: CSV image lists (see the top of this file).
    """

    kind = "open_images_tars"

    def __init__(self, path: str | Path, lists: Sequence[str | Path]) -> None:
        super().__init__(path)
        self.lists = checked_lists(lists)
        self.name = "open-images-" + self.name
        self.arguments |= {"lists": [str(file.resolve()) for file in self.lists]}

    @functools.cached_property
    def _origins(self) -> dict[str, dict[str, str]]:
        """Licence, author and source of each image, by ImageID."""
        found: dict[str, dict[str, str]] = {}
        for path in self.lists:
            with open(path, newline="", encoding="utf-8-sig") as file:
                found |= {
                    fields["ImageID"]: attribution_of(fields) for fields in csv.DictReader(file)
                }
        return found

    def _attribution(self, key: str, packed: TarImage) -> dict[str, str]:
        return self._origins.get(packed.image.key.rpartition("/")[2], {})


def checked_lists(lists: Sequence[str | Path]) -> list[Path]:
    """Return the paths of the image lists.

    Raises InputError if there is no list, two lists have the same file name, or a file is missing
    or not an image list of Open Images.
    """
    paths = [Path(path) for path in ([lists] if isinstance(lists, str | Path) else lists)]
    if not paths:
        raise InputError(
            "Open Images: no image list; set corpus.lists=[train-images-boxable-with-rotation.csv]"
        )
    if len({path.name for path in paths}) < len(paths):
        raise InputError("Open Images: two lists have the same file name; rename one of them")
    for path in paths:
        if not path.is_file():
            raise InputError(f"Open Images list {path}: no such file")
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            header = next(csv.reader(file), [])
        missing = [name for name in NEEDED if name not in header]
        if missing:
            raise InputError(
                f"Open Images list {path}: no column {', '.join(missing)}; it has "
                f"{', '.join(header[:12])}"
            )
    return paths


def sections_of(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (offset in bytes, number of lines) of each section of a CSV image list.

    A section has up to PART bytes, extended to the end of its last line. It can have more lines
    than images, because the title of an image may contain a line break.
    """
    with open(path, "rb") as file:
        file.readline()
        start = file.tell()
        while block := file.read(PART):
            block += file.readline()
            rows = block.count(b"\n") + (not block.endswith(b"\n"))
            yield start, rows
            start = file.tell()


def section_rows(path: Path, start: int) -> Iterator[dict[str, str]]:
    """Yield one dict {column: value} per image in the section that starts at byte `start`.

    `sections_of` defines the sections. A section can start within the row of an image whose title
    contains a line break. That image belongs to the section before, so the remaining lines of its
    row are skipped.
    """
    with open(path, "rb") as file:
        header = next(csv.reader([file.readline().decode("utf-8-sig")]))
        file.seek(start)
        block = file.read(PART) + file.readline()
    for fields in csv.DictReader(
        block.decode("utf-8", errors="replace").split("\n"), fieldnames=header
    ):
        if IMAGE_ID.fullmatch(fields["ImageID"]) and fields["Subset"] in SUBSETS:
            yield fields


def fetch(url: str, wait: float = 1.0) -> bytes:
    """Return the content of a URL, with up to ATTEMPTS attempts after temporary faults.

    Args:
        url: address of the file.
        wait: seconds before the second attempt; doubled for each further attempt.

    Raises:
        InputError: if the server refuses the file.
        SourceDown: if all attempts fail.
    """
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise InputError(
                    f"{url}: the server answered {error.code} {error.reason}"
                ) from error
            problem = f"{error.code} {error.reason}"
        # HTTPException: an incomplete download
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error))
        if attempt < ATTEMPTS - 1:
            print(
                f"download of {url} failed ({problem}); trying again, attempt {attempt + 2} of "
                f"{ATTEMPTS}",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait * 2**attempt)
    raise SourceDown(
        f"{url}: the download failed {ATTEMPTS} times ({problem}); run the command again "
        "when the network is back"
    )
