"""Approximate search for more than ten million images: faiss IVF-PQ, with its recall.

Never chosen automatically. faiss proposes candidates, which are measured exactly. So distances and
their order are right, but a neighbour that faiss does not propose is missed; `recall` measures how
often.
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
"""Images. Below, the exact search takes seconds."""


class ApproximateIndex(VectorIndex):
    """A VectorIndex whose candidates faiss proposes. faiss is trained at the first search, on 64
    vectors per list.

    Args:
        exact: the index that it approximates.
        n_lists: cells of the inverted file.
        n_bytes: bytes per compressed vector.
        n_probe: cells searched per query.
        n_proposed: candidates per query that are measured exactly.
        least: fewest images.
        stored: file of the trained faiss index, read if it exists and else written. Its name should
            identify the exact index and these numbers.

    Raises:
        InputError: fewer than `least` images, n_bytes does not divide the dimensions, or faiss is
            not installed.
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
                f"approximate search of {len(exact)} images: below {least}, use the exact one, "
                "which is fast enough"
            )
        if exact.dimensions % n_bytes:
            raise InputError(f"n_bytes={n_bytes}: must divide the {exact.dimensions} dimensions")
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
        """The faiss index, read or trained."""
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
        """Return for each query the rows that faiss proposes: n_proposed, or fewer if n_probe lists
        hold fewer.
        """
        _, proposed = self.faiss.search(queries.numpy(), min(self.n_proposed, len(self)))
        return [rows[rows >= 0] for rows in proposed]


def recall(exact: VectorIndex, approximate: VectorIndex, k: int, n_queries: int) -> float:
    """Return recall@K: the share of the exact K nearest that the approximate index of the same
    images finds; 1 is best.

    Queries are the vectors of n_queries images, evenly spaced. Each is excluded from its own
    search: it would always be found.
    """
    rows = np.linspace(0, len(exact) - 1, n_queries).astype(np.int64)
    queries, itself = torch.from_numpy(exact.rows(rows)), [{name} for name in exact.ids_of(rows)]
    true, found = exact.search(queries, k, itself)[0], approximate.search(queries, k, itself)[0]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(true, found, strict=True)]))
