"""Approximate search with faiss IVF-PQ, for more than ten million images.

It is used only on request. faiss proposes candidates, and the distances of the candidates are then
computed exactly. Therefore the candidates' distances and order are correct, but a neighbour that
faiss does not propose is missed; `recall` measures how often this happens.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adir.errors import InputError
from adir.files import write_bytes
from adir.retrieval.index.search import BLOCK, VectorIndex

LEAST = 10_000_000
"""Minimum number of images for approximate search. For fewer, exact search takes only seconds."""


class ApproximateIndex(VectorIndex):
    """Nearest-neighbour index that computes exact distances only for candidates proposed by faiss.

    The faiss index divides the vectors into lists and compresses them. It is trained at the first
    search on 64 * n_lists vectors, or on all vectors if there are fewer.

    Args:
        exact: the exact index of the same vectors.
        n_lists: number of lists of the inverted file (IVF).
        n_bytes: bytes per compressed vector (product quantisation, PQ).
        n_probe: number of lists that are searched per query.
        n_proposed: number of candidates per query.
        least: fewest images for which approximate search is allowed.
        stored: file that caches the trained faiss index. It is read if it exists, else written.
            Different exact indexes, n_lists or n_bytes need files of different names. None disables
            the cache.

    Raises:
        InputError: if there are fewer than `least` images, n_bytes does not divide the dimension
            of the vectors, or faiss is not installed.
    """

    approximate = True
    remedy = "raise n_proposed or n_probe"

    def __init__(
        self,
        exact: VectorIndex,
        n_lists: int = 16384,
        n_bytes: int = 64,
        n_probe: int = 64,
        n_proposed: int = 1000,
        least: int = LEAST,
        stored: Path | None = None,
    ) -> None:
        try:
            import faiss  # slow to import, rarely needed # noqa: F401
        except ImportError as error:
            raise InputError("approximate search needs faiss: pip install faiss-cpu") from error
        if len(exact) < least:
            raise InputError(
                f"approximate search is for at least {least} images, and this corpus has "
                f"{len(exact)}: use the exact search, which is fast enough"
            )
        if exact.dimensions % n_bytes:
            raise InputError(
                f"n_bytes={n_bytes} must divide the embedding dimension, {exact.dimensions}"
            )
        self.exact, self.parts, self.metric = exact, exact.parts, exact.metric
        self.n_lists, self.n_bytes, self.n_probe, self.n_proposed = (
            n_lists,
            n_bytes,
            n_probe,
            n_proposed,
        )
        self.stored = stored

    @cached_property
    def faiss(self) -> Any:
        """The faiss index, read from `stored` if that file exists, else trained."""
        import faiss

        index: Any
        if self.stored is not None and self.stored.exists():
            index = faiss.read_index(str(self.stored))
        else:
            index = self._trained()
            if self.stored is not None:
                write_bytes(self.stored, faiss.serialize_index(index).tobytes())
        index.nprobe = self.n_probe
        return index

    def _trained(self) -> Any:
        import faiss

        index = faiss.IndexIVFPQ(
            faiss.IndexFlatL2(self.dimensions), self.dimensions, self.n_lists, self.n_bytes, 8
        )
        rows = np.linspace(0, len(self) - 1, min(len(self), 64 * self.n_lists)).astype(np.int64)
        index.train(self.rows(rows).astype(np.float32))
        for part in self.parts:
            for block in part.vectors.split(16 * BLOCK):
                index.add(block.float().numpy())
        return index

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return self.exact.ids_of(rows)

    def candidates(self, queries: Tensor, n: int, block: int) -> list[np.ndarray]:
        """Return, for each query, the numbers of the rows that faiss proposes.

        These are n_proposed rows, or fewer if the searched lists hold fewer. `n` and `block` are
        ignored.
        """
        _, proposed = self.faiss.search(queries.numpy(), min(self.n_proposed, len(self)))
        return [rows[rows >= 0] for rows in proposed]


def recall(exact: VectorIndex, approximate: VectorIndex, k: int, n_queries: int) -> float:
    """Return recall@K: the share of the exact K nearest that approximate search finds; 1 is best.

    The queries are the vectors of n_queries images at evenly spaced rows. An image is excluded from
    its own search, because it would always be found.

    Args:
        exact: the exact index.
        approximate: the approximate index of the same images.
        k: number of neighbours.
        n_queries: number of queries.
    """
    rows = np.linspace(0, len(exact) - 1, n_queries).astype(np.int64)
    queries, itself = torch.from_numpy(exact.rows(rows)), [{name} for name in exact.ids_of(rows)]
    true, found = exact.search(queries, k, itself)[0], approximate.search(queries, k, itself)[0]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(true, found, strict=True)]))
