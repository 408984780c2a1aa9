"""Test sets and corpora from an image source, such as a folder, a Parquet file or tar files.

The sources are in adir/data/sources/.
"""

from pathlib import Path

from torch import Tensor

from adir.data.base import Corpus
from adir.data.sources.base import Source, SourceDown, each_id_once
from adir.data.sources.folder import FolderSource
from adir.data.sources.tables import ParquetSource
from adir.errors import InputError
from adir.files import sha256_of_bytes, storable
from adir.images import decode, from_uint8

UNSEEN = Path(__file__).parents[1] / "embedded" / "unseen" / "unseen.parquet"
"""Images of 16 categories that the embedded prior never saw (adir/embedded/unseen/README.md)."""


class SourceCorpus(Corpus):
    """Test set or corpus with all images of a source.

    The constructor decodes each image once, so a damaged image is rejected early and does not stop
    a run later.

    Args:
        source: lists and reads the images.
        least_side: pixels; images with a shorter side are rejected.
    """

    def __init__(self, source: Source, least_side: int = 0) -> None:
        self.source = source
        self._attributions: dict[str, dict[str, str]] = {}
        manifest, rejects, categories = {}, {}, {}
        for item in each_id_once(source.items([key for key, _ in source.listing()])):
            try:
                content, _ = item.decoded(least_side)
            except SourceDown:
                raise
            except InputError as error:
                rejects[storable(item.id)] = str(error)
                continue
            manifest[item.id] = sha256_of_bytes(content)
            self._attributions[item.id] = dict(item.attribution)
            if item.category is not None:
                categories[item.id] = item.category
        super().__init__(source.name, manifest, rejects, categories)

    def attribution(self, image_id: str) -> dict[str, str]:
        return self._attributions[image_id]

    def image(self, image_id: str) -> Tensor:
        return read_again(self.source, image_id, self.manifest[image_id], "run the command again")


def read_again(source: Source, image_id: str, sha256: str, remedy: str) -> Tensor:
    """Read an image and check that its file is unchanged.

    Args:
        source: source of the image.
        image_id: id of the image in the source.
        sha256: the expected SHA-256 of the file's bytes.
        remedy: end of the error message; tells the user what to do.

    Returns:
        (3, H, W) in [-1, 1].

    Raises:
        InputError: if the file is missing or has another SHA-256.
    """
    content = source.read(image_id)
    if sha256_of_bytes(content) != sha256:
        raise InputError(
            f"{image_id}: the file has changed since {source.name} was listed; {remedy}"
        )
    return from_uint8(decode(content, image_id))


def folder_corpus(path: str | Path, least_side: int = 0) -> SourceCorpus:
    """Return the image set of all images in a folder and its subfolders; see `FolderSource`."""
    return SourceCorpus(FolderSource(path), least_side)


def parquet_corpus(
    path: str | Path | None, column: str = "split", value: str | int = "corpus", least_side: int = 0
) -> SourceCorpus:
    """Return the image set of the table rows whose `column` equals `value`; see `ParquetSource`.

    Raises InputError if `path` is None.
    """
    if path is None:
        raise InputError("a Parquet file is needed: set parquet=FILE")
    return SourceCorpus(ParquetSource(path, column=column, value=value), least_side)


def unseen_corpus(split: str) -> SourceCorpus:
    """Return the 128x128 Caltech-101 images of 16 categories that the embedded prior never saw.

    The embedded prior is the small diffusion model in this package.

    Args:
        split: `test` (46 images, up to three per category) or `corpus` (1,023 images).
    """
    return parquet_corpus(UNSEEN, "split", split)
