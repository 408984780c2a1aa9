"""The images of a source (a folder, a Parquet file, or another of adir/data/sources/) as a test set
or corpus.
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
"""Images of 16 categories that the embedded prior never saw; adir/embedded/unseen/README.md."""


class SourceCorpus(Corpus):
    """The images of a source.

    Each is decoded once here, so that a damaged one is rejected now and does not stop a run.

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
    """Return (3, H, W) in [-1, 1] of an image.

    Raises InputError with the remedy if its file no longer has this SHA-256.
    """
    content = source.read(image_id)
    if sha256_of_bytes(content) != sha256:
        raise InputError(f"{image_id}: has changed since {source.name} was listed; {remedy}")
    return from_uint8(decode(content, image_id))


def folder_corpus(path: str | Path, least_side: int = 0) -> SourceCorpus:
    """Return all images below a folder; see `FolderSource`."""
    return SourceCorpus(FolderSource(path), least_side)


def parquet_corpus(
    path: str | Path | None, column: str = "split", value: str | int = "corpus", least_side: int = 0
) -> SourceCorpus:
    """The rows of Parquet files whose `column` has this value; see `ParquetSource`."""
    if path is None:
        raise InputError("a Parquet file is needed: say parquet=FILE")
    return SourceCorpus(ParquetSource(path, column=column, value=value), least_side)


def unseen_corpus(split: str) -> SourceCorpus:
    """Return the Caltech-101 images of 16 categories that the embedded prior never saw, 128x128.

    split: `test` (46 images, up to three of each category) or `corpus` (1,023 images).
    """
    return parquet_corpus(UNSEEN, "split", split)
