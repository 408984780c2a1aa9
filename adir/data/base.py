"""What every set of images is, test set or corpus (D_IA in the paper): images with stable ids."""

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
    """SHA-256 of sorted (SHA-256 of the image, id) lines: what a corpus is, wherever it lies."""
    digest = hashlib.sha256()
    for image_id in sorted(manifest):
        digest.update(f"{manifest[image_id]} {image_id}\n".encode())
    return digest.hexdigest()


class EncoderIdentity(Protocol):
    """Which encoder it is (adir.retrieval.encoders)."""

    name: str
    weights_sha256: str


class NeighbourIndex(Protocol):
    """An index of a corpus under an encoder (adir.retrieval.index.search.VectorIndex).

    approximate: whether a search may miss neighbours.
    """

    approximate: bool

    def __len__(self) -> int: ...

    def search(
        self, queries: Tensor, k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> tuple[list[list[str]], Tensor]:
        """The k nearest of each of (Q, D) queries: ids [Q][k] and distances (Q, k), nearest first."""


class Corpus:
    """Images by id.

    A subclass fills `manifest` (id: SHA-256 of the image) and `rejects`, and reads in `image`.

    name: for people.  ids: sorted.  sha256: of the manifest, so it changes with any image, and with
        nothing else.
    rejects: id: reason, for the images that could not be read; they are no part of the corpus.
    categories: id: category, where the source names one.
    """

    withholds: str | None = None
    """Which images `withheld` keeps from a test image, for the identity of a cell; None: none."""

    def __init__(
        self,
        name: str,
        manifest: dict[str, str],
        rejects: dict[str, str],
        categories: dict[str, str] | None = None,
    ) -> None:
        """Raises InputError when no image could be read."""
        if not manifest:
            first = (
                f"; the first of {len(rejects)} rejects: {next(iter(rejects.values()))}"
                if rejects
                else ""
            )
            raise InputError(f"corpus {name}: no image found{first}")
        self.name, self.manifest, self.rejects = name, manifest, rejects
        self.categories = {} if categories is None else categories
        self.ids = sorted(manifest)
        self.sha256 = manifest_sha256(manifest)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, image_id: str) -> Tensor:
        """(3, H, W) in [-1, 1] of one image, at its own size.

        Raises KeyError on an id that is not in `ids`.
        """
        raise NotImplementedError

    def attribution(self, image_id: str) -> dict[str, str]:
        """Licence, author and source of an image, as far as its source names them."""
        return {}

    def cluster(self, image_id: str) -> str:
        return image_id

    def withheld(self, cluster: str) -> frozenset[str]:
        """Return the ids of the images that are never neighbours of a test image of this cluster,
        copies of it aside.
        """
        return frozenset()

    def mask(self, image_id: str) -> Tensor | None:
        """(H, W) bool, true where the image is to be repainted; None in a set that is not one of
        edits.
        """
        return None

    def prompt(self, image_id: str) -> str | None:
        """What is to be seen there; None in a set that is not one of edits."""
        return None

    @functools.cached_property
    def fingerprints(self) -> Sequence[np.ndarray]:
        """(n, 16, 16) int8 fingerprints (adir.data.fingerprints) of all images, in arrays whose
        rows `ids_of` names.
        """
        return [np.stack([fingerprint(self.image(image_id)) for image_id in self.ids])]

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the ids of rows of the fingerprints, counted over all arrays."""
        return [self.ids[row] for row in rows.tolist()]

    @functools.cached_property
    def repeats(self) -> frozenset[str]:
        """Ids of the images with the pixels of another that has a smaller id: among neighbours they
        do not count again.

        Images with equal fingerprints are read and compared.
        """
        hashes = np.array([hash(one.tobytes()) for part in self.fingerprints for one in part])
        _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        rows = np.flatnonzero(counts[which] > 1)
        known: set[str] = set()
        repeats = []
        for image_id in sorted(self.ids_of(rows)):
            pixels = hash_of_image(self.image(image_id))
            if pixels in known:
                repeats.append(image_id)
            known.add(pixels)
        return frozenset(repeats)

    def own_index(self, encoder: EncoderIdentity) -> NeighbourIndex | None:
        """The index that the corpus was opened with; None where it has none.

        Raises InputError where another encoder made it.
        """
        return None

    def recall(self, k: int) -> float | None:
        """recall@K of the search for neighbours, where that is approximate; None where it is exact."""
        return None
