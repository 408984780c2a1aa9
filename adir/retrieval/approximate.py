"""Approximate search for collections of more than ten million pictures: faiss IVF-PQ, with its recall measured beside it.

Never chosen by itself. faiss proposes; the proposed are measured again exactly, so distances and their order are right, and
what can be wrong is only that a neighbour was not proposed. How often that is, `recall` measures on queries of one's own.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adir.errors import InputError
from adir.files import write_bytes
from adir.retrieval.search import BLOCK, VectorIndex

LEAST = 10_000_000
"""Below, the exact search takes seconds, and nobody needs another."""


class ApproximateIndex(VectorIndex):
    """A VectorIndex whose candidates faiss proposes.

    exact: the index that it stands for.  n_lists, n_bytes: cells of the inverted file, and bytes kept of a vector.
    n_probe: cells looked into; n_proposed: candidates of a query that are measured exactly.  Training takes 64 vectors a
    list, drawn evenly.  stored: a file with faiss's part, of this very index and these numbers (its name should say so): read
    when it is there, else trained and written; the vectors stay where they are.

    Raises InputError for fewer than `least` pictures, or bytes that do not divide the dimensions.
    """

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
        import faiss  # slow to import, and hardly anybody needs it

        if len(exact) < least:
            raise InputError(
                f"approximate search asked for {len(exact)} pictures: below {least} use the exact one, which is fast enough"
            )
        if exact.dimensions % n_bytes:
            raise InputError(f"n_bytes={n_bytes}: must divide the {exact.dimensions} dimensions")
        self.exact, self.parts, self.metric = exact, exact.parts, exact.metric
        self.n_proposed = n_proposed
        self.faiss: Any
        if stored is not None and stored.exists():
            self.faiss = faiss.read_index(str(stored))
        else:
            self.faiss = self._trained(n_lists, n_bytes)
            if stored is not None:
                write_bytes(stored, faiss.serialize_index(self.faiss).tobytes())
        self.faiss.nprobe = n_probe

    def _trained(self, n_lists: int, n_bytes: int) -> Any:
        import faiss

        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(self.dimensions), self.dimensions, n_lists, n_bytes, 8)
        rows = np.linspace(0, len(self) - 1, min(len(self), 64 * n_lists)).astype(np.int64)
        index.train(self.rows(rows).astype(np.float32))
        for part in self.parts:
            for block in part.vectors.split(16 * BLOCK):
                index.add(block.float().numpy())
        return index

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return self.exact.ids_of(rows)

    def search(
        self, queries: Tensor, k: int, exclude: Sequence[Collection[str]] | None = None, block: int = BLOCK
    ) -> tuple[list[list[str]], Tensor]:
        """As VectorIndex.search, among what faiss proposes."""
        queries = self._checked(queries)
        _, proposed = self.faiss.search(queries.numpy(), min(self.n_proposed, len(self)))
        ids, distances = [], torch.empty(len(queries), k)
        for number, rows in enumerate(proposed):
            hidden = set(exclude[number]) if exclude is not None else set()
            found = [pair for pair in self._measured(rows[rows >= 0], queries[number]) if pair[1] not in hidden]
            if len(found) < k:
                raise InputError(f"K={k} neighbours asked, faiss proposed {len(found)}: raise n_proposed or n_probe")
            ids.append([name for _, name in found[:k]])
            distances[number] = self._distances([square for square, _ in found[:k]])
        return ids, distances


def recall(exact: VectorIndex, approximate: VectorIndex, queries: Tensor, k: int) -> float:
    """recall@K: the share of the exact K nearest that the other index finds, over all queries; 1 is best."""
    true, found = exact.search(queries, k)[0], approximate.search(queries, k)[0]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(true, found, strict=True)]))
