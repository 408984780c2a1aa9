"""Base class of all image sets: test sets, and the corpus of neighbours (D_IA in the paper)."""

import functools
import hashlib
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from adir.data.fingerprints import fingerprint
from adir.errors import InputError
from adir.images import hash_of_image


def manifest_sha256(manifest: dict[str, str]) -> str:
    """Return the SHA-256 of a text with one line "SHA256_OF_IMAGE ID" per image, sorted by id.

    This hash identifies a corpus independently of the folder or file that holds the corpus.

    Args:
        manifest: SHA-256 of each image, by id.
    """
    digest = hashlib.sha256()
    for image_id in sorted(manifest):
        digest.update(f"{manifest[image_id]} {image_id}\n".encode())
    return digest.hexdigest()


class EncoderIdentity(Protocol):
    """Protocol of objects with the name and the hash of an encoder.

    The encoders in adir.retrieval.encoders implement it.
    """

    name: str
    weights_sha256: str


class NeighbourIndex(Protocol):
    """Protocol of nearest-neighbour indexes of the embeddings of a corpus.

    adir.retrieval.index.search.VectorIndex implements it.

    Attributes:
        approximate: whether a search may miss neighbours.
    """

    approximate: bool

    def __len__(self) -> int: ...

    def search(
        self, queries: Tensor, k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> tuple[list[list[str]], Tensor]:
        """Return the ids and the distances of the k nearest images of each query.

        There are Q lists of k ids and a (Q, k) tensor of distances. The nearest image comes first.

        Args:
            queries: (Q, D) embeddings.
            k: number of neighbours per query.
            exclude: for each query, ids that must not be returned.
        """


class Corpus:
    """Set of images that are read by id.

    A subclass passes a manifest to the constructor and implements `image`.

    Attributes:
        name: label for tables and messages.
        manifest: SHA-256 of each image, by id.
        rejects: reason for each rejected image, by id. Rejected images are not part of the corpus.
        categories: category of each image, by id; images without a category are omitted.
        ids: sorted ids.
        sha256: hash of the manifest. It changes if and only if an image or an id changes.
    """

    withholds: str | None = None
    """Name of the images that `withheld` excludes; part of a cell's identity.

    None if `withheld` excludes no image.
    """

    def __init__(
        self,
        name: str,
        manifest: dict[str, str],
        rejects: dict[str, str],
        categories: dict[str, str] | None = None,
    ) -> None:
        """Store the manifest. Raises InputError if the manifest is empty."""
        if not manifest:
            if not rejects:
                raise InputError(f"corpus {name} contains no image")
            raise InputError(
                f"corpus {name} contains no usable image: {len(rejects)} rejected, the first "
                f"because: {next(iter(rejects.values()))}"
            )
        self.name, self.manifest, self.rejects = name, manifest, rejects
        self.categories = {} if categories is None else categories
        self.ids = sorted(manifest)
        self.sha256 = manifest_sha256(manifest)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, image_id: str) -> Tensor:
        """Return one image, (3, H, W) in [-1, 1], in its original size.

        Raises KeyError if the id is not in `ids`.
        """
        raise NotImplementedError

    def attribution(self, image_id: str) -> dict[str, str]:
        """Return licence, author and source of an image; the dict omits what is unknown."""
        return {}

    def cluster(self, image_id: str) -> str:
        """Return the name of the image's cluster, such as the photograph from which it was cut.

        Results are averaged within each cluster first, and then over the clusters.
        """
        return image_id

    def withheld(self, cluster: str) -> frozenset[str]:
        """Return the ids that are excluded as neighbours of every test image in a cluster.

        `cluster` returns the cluster of a test image. Copies of a test image are excluded
        separately (adir/retrieval/leakage.py).
        """
        return frozenset()

    def mask(self, image_id: str) -> Tensor | None:
        """Return the (H, W) bool mask, true where to repaint; None if the images have no masks."""
        return None

    def prompt(self, image_id: str) -> str | None:
        """Return the prompt for the masked region; None if the images have no prompts."""
        return None

    @functools.cached_property
    def fingerprints(self) -> Sequence[np.ndarray]:
        """The fingerprints of all images, in one or more int8 arrays of shape (n, 16, 16).

        A fingerprint is a small grey version of an image (adir.data.fingerprints). There is one row
        per image. Row numbers continue from one array to the next; `ids_of` maps them to ids.
        """
        return [np.stack([fingerprint(self.image(image_id)) for image_id in self.ids])]

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the ids of the images whose fingerprints have these row numbers."""
        return [self.ids[row] for row in rows.tolist()]

    @functools.cached_property
    def repeats(self) -> frozenset[str]:
        """The ids of duplicates: images with the same pixels as an image with a smaller id.

        Duplicates are excluded as neighbours, so no image occurs twice among the K neighbours. Only
        images with equal fingerprints are read and compared.
        """
        hashes = np.array([hash(one.tobytes()) for part in self.fingerprints for one in part])
        _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        rows = np.flatnonzero(counts[which] > 1)
        ids = sorted(self.ids_of(rows))
        pixels = [hash_of_image(self.image(image_id)) for image_id in ids]
        _, first = np.unique(pixels, return_index=True)  # the first of equal images
        return frozenset(ids).difference(ids[row] for row in first)

    def own_index(self, encoder: EncoderIdentity) -> NeighbourIndex | None:
        """Return the index on disk that defines this corpus; None if the corpus has no such index.

        Raises InputError if the index was built with another encoder.
        """
        return None

    def recall(self, k: int) -> float | None:
        """Return recall@K of an approximate neighbour search; None if the search is exact."""
        return None
