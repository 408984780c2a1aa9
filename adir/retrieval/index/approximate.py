"""Approximate search for collections of more than ten million pictures: faiss IVF-PQ, with its recall measured beside it.

Never chosen by itself. faiss proposes; the proposed are measured again exactly, so distances and their order are right, and
what can be wrong is only that a neighbour was not proposed. How often that is, `recall` measures.
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
"""Below, the exact search takes seconds, and nobody needs another."""


class ApproximateIndex(VectorIndex):
    """A VectorIndex whose candidates faiss proposes.

    exact: the index that it stands for.  n_lists, n_bytes: cells of the inverted file, and bytes kept of a vector.
    n_probe: cells looked into; n_proposed: candidates of a query that are measured exactly.  Training takes 64 vectors a
    list, drawn evenly.  stored: a file with faiss's part, of this very index and these numbers (its name should say so): read
    when it is there, else trained and written, at the first search; the vectors stay where they are.

    Raises InputError, before any training, for fewer than `least` pictures, bytes that do not divide the dimensions, or where
    faiss is not installed.
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
            import faiss  # slow to import, and hardly anybody needs it # noqa: F401
        except ImportError as error:
            raise InputError("approximate search needs faiss: pip install faiss-cpu") from error
        if len(exact) < least:
            raise InputError(
                f"approximate search asked for {len(exact)} pictures: below {least} use the exact one, which is fast enough"
            )
        if exact.dimensions % n_bytes:
            raise InputError(f"n_bytes={n_bytes}: must divide the {exact.dimensions} dimensions")
        self.exact, self.parts, self.metric = exact, exact.parts, exact.metric
        self.n_lists, self.n_bytes, self.n_probe, self.n_proposed = n_lists, n_bytes, n_probe, n_proposed
        self.stored = stored

    @cached_property
    def faiss(self) -> Any:
        """faiss's index, read or trained."""
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

        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(self.dimensions), self.dimensions, self.n_lists, self.n_bytes, 8)
        rows = np.linspace(0, len(self) - 1, min(len(self), 64 * self.n_lists)).astype(np.int64)
        index.train(self.rows(rows).astype(np.float32))
        for part in self.parts:
            for block in part.vectors.split(16 * BLOCK):
                index.add(block.float().numpy())
        return index

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return self.exact.ids_of(rows)

    def candidates(self, queries: Tensor, n: int, block: int) -> list[np.ndarray]:
        """For each query, the rows that faiss proposes: n_proposed, or fewer where it looked into too few lists."""
        _, proposed = self.faiss.search(queries.numpy(), min(self.n_proposed, len(self)))
        return [rows[rows >= 0] for rows in proposed]


def recall(exact: VectorIndex, approximate: VectorIndex, k: int, n_queries: int) -> float:
    """recall@K: the share of the exact K nearest that the other index of the same pictures finds; 1 is best.

    Asked are the vectors of n_queries pictures, drawn evenly, each left out of what may be found for it: a picture is its own
    nearest neighbour, and would always be found.
    """
    rows = np.linspace(0, len(exact) - 1, n_queries).astype(np.int64)
    queries, itself = torch.from_numpy(exact.rows(rows)), [{name} for name in exact.ids_of(rows)]
    true, found = exact.search(queries, k, itself)[0], approximate.search(queries, k, itself)[0]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(true, found, strict=True)]))
