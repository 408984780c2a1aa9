"""Exact nearest-neighbour search: float32 products find candidates, float64 distances rank them.

The stored vectors are called rows. The key of a row a for a query q is |a|^2 / 2 - a.q; a smaller
key means a smaller distance. Keys are computed by float32 matrix products, whose last bits depend
on block shape, thread count and processor. Therefore the keys only select candidates. A row is a
candidate if its key is at most the k-th smallest key plus twice the bound on the rounding error.
The distances of the candidates are computed in float64, row by row, in a fixed order of summation.
The result is the same for every block size and machine. Equal distances are ordered by id.

The rows may be stored in several tensors, called parts. Row numbers continue from one part to the
next.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adir.errors import InputError

BLOCK = 2048
"""Rows per matrix product: 4 MB of float32 at 512 dimensions, which fit in the processor's cache.
"""


class Part(NamedTuple):
    """Vectors, and half the squared norm of each vector.

    Attributes:
        vectors: (N, D) float16 or float32; may be mapped from disk.
        half_squares: (N,) float32 values |a|^2 / 2.
    """

    vectors: Tensor
    half_squares: Tensor


def part_of(vectors: Tensor) -> Part:
    """Return a `Part` with these vectors; the squared norms are computed in float64."""
    halves = [(block.double() ** 2).sum(1) / 2 for block in vectors.split(BLOCK)]
    return Part(vectors, torch.cat(halves).float() if halves else torch.empty(0))


def key_error(queries: Tensor, longest: float) -> Tensor:
    """Return, for each query, a bound on the rounding error of its float32 keys |a|^2 / 2 - a.q.

    The result has shape (Q, 1). By Higham (2002), eq. 3.5, the rounding error of a sum of n
    products, in any order, is at most n u / (1 - n u) times the sum of their absolute values, where
    u = 2^-24. For a.q, the sum of absolute values is at most |a| |q| by Cauchy-Schwarz. The bound
    uses n = D + 4: D products, the rounding of |a|^2 / 2, the rounding of its sum with a.q, and a
    reserve.

    Args:
        queries: (Q, D).
        longest: upper bound on the norms |a| of all rows.
    """
    terms = (queries.shape[1] + 4) * 2.0**-24
    lengths = queries.double().norm(dim=1, keepdim=True)
    return terms / (1 - terms) * (longest * lengths + longest**2 / 2)


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in full float32 precision within the context.

    Training code may have allowed products in bfloat16, whose rounding error is 65,000 times
    larger.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keys_of(parts: Sequence[Part], queries: Tensor, block: int) -> Iterator[tuple[int, Tensor]]:
    """Yield, for each block of n rows, the number of its first row and its (Q, n) float32 keys.

    The keys |a|^2 / 2 - a.q have the same order as the distances, because
    |a - q|^2 = 2 key + |q|^2. The tensor of keys is overwritten by the next block.

    Args:
        parts: the vectors.
        queries: (Q, D) float32.
        block: maximum number of rows per block.
    """
    first = 0
    buffer, out = torch.empty(block, queries.shape[1]), torch.empty(len(queries) * block)
    for part in parts:
        for start in range(0, len(part.vectors), block):
            rows = part.vectors[start : start + block]
            wide = buffer[: len(rows)]
            wide.copy_(rows)
            keys = out[: len(queries) * len(rows)].view(len(queries), len(rows))
            torch.addmm(
                part.half_squares[None, start : start + block], queries, wide.T, alpha=-1, out=keys
            )
            yield first + start, keys
        first += len(part.vectors)


@full_float32()
def nearest_candidates(
    parts: Sequence[Part], queries: Tensor, k: int, block: int = BLOCK
) -> list[np.ndarray]:
    """Return, for each query, the indices of all rows that may be among its k nearest.

    These can be more than k rows, because matrix products in float32 leave close distances open.

    Args:
        parts: the vectors; row numbers continue from one part to the next.
        queries: (Q, D) float32.
        k: number of neighbours.
        block: rows per matrix product.
    """
    total = sum(len(part.vectors) for part in parts)
    margin = 2 * key_error(queries, longest_of(parts))
    n_kept = min(total, 2 * k + 64)
    while True:
        keys, rows = smallest_keys(parts, queries, n_kept, block)
        near = keys <= keys[:, k - 1 : k].double() + margin
        # Rows outside the n_kept smallest are no nearer than the last of these, which must
        # therefore lie beyond the margin.
        if n_kept == total or not near[:, -1].any():
            return [row[mask].numpy() for row, mask in zip(rows, near, strict=True)]
        n_kept = min(total, 4 * n_kept)


def smallest_keys(
    parts: Sequence[Part], queries: Tensor, n: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return the n smallest keys of each query in ascending order, and their row numbers.

    Both tensors have shape (Q, n), or (Q, N) if there are only N < n vectors. The key of a vector a
    for a query q is |a|^2 / 2 - a.q.

    Args:
        parts: the vectors.
        queries: (Q, D) float32.
        n: number of keys per query.
        block: rows per matrix product.
    """
    smallest = torch.empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long)
    for first, keys in keys_of(parts, queries, block):
        if smallest.shape[1] == n and not (keys < smallest[:, -1:]).any():
            continue
        here = torch.arange(first, first + keys.shape[1]).expand(len(queries), -1)
        both = torch.cat([smallest, keys], 1)
        smallest, chosen = both.topk(min(n, both.shape[1]), largest=False)
        rows = torch.cat([rows, here], 1).gather(1, chosen)
    return smallest, rows


def longest_of(parts: Sequence[Part]) -> float:
    """Return an upper bound on the norms of all vectors: the largest norm, rounded up."""
    return max(
        (2 * float(p.half_squares.max())) ** 0.5 * (1 + 1e-6) for p in parts if len(p.vectors)
    )


def squared_distances(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return (n,) float64 distances |a - q|^2 of (n, D) vectors to a (D,) query.

    The order of summation within a row does not depend on the other rows.
    """
    blocks = range(0, len(vectors), BLOCK)
    difference = (
        vectors[start : start + BLOCK].astype(np.float64) - query.astype(np.float64)
        for start in blocks
    )
    return np.concatenate(
        [np.empty(0), *((np.ascontiguousarray(part) ** 2).sum(1) for part in difference)]
    )


def rows_of(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return the rows with the given row numbers, in the given order, as one array."""
    ends = np.cumsum([len(part) for part in parts])
    found = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    where = np.searchsorted(ends, rows, side="right")
    for number in np.unique(where):
        here, part = where == number, parts[number]
        found[here] = part[rows[here] - (ends[number] - len(part))]
    return found


def chord_to_angle(chord: Tensor) -> Tensor:
    """Return the angle in radians between unit vectors a and b, 2 arcsin(|a - b| / 2).

    ADIR (Abu-Hussein et al., 2022) uses this angle as the distance. It is not computed as
    arccos(a.b), which cannot distinguish angles below 3e-4 in float32.

    Args:
        chord: |a - b|. Values above 2, which rounding can cause, count as 2.
    """
    return 2 * torch.arcsin((chord / 2).clamp(max=1))


class VectorIndex:
    """Base class of exact nearest-neighbour indexes of vectors with ids.

    A subclass sets `parts` and `metric` and implements `ids_of`.

    Attributes:
        parts: the vectors. Row numbers continue from one part to the next.
        metric: "angular" for unit vectors, or "euclidean".
        approximate: whether a search may miss neighbours.
    """

    parts: list[Part]
    metric: str
    approximate = False
    remedy = "lower K or enlarge the corpus"
    """Advice in the error message if fewer than K neighbours are left."""

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the ids of the vectors with these row numbers."""
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(len(part.vectors) for part in self.parts)

    @property
    def dimensions(self) -> int:
        """The dimension D of the vectors."""
        return self.parts[0].vectors.shape[1]

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, D) vectors with these row numbers, in their stored data type."""
        return rows_of([part.vectors.numpy() for part in self.parts], rows)

    def search(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
        block: int = BLOCK,
    ) -> tuple[list[list[str]], Tensor]:
        """Return the k nearest neighbours of each query.

        Args:
            queries: (Q, D).
            k: number of neighbours.
            exclude: for each query, ids that must not be returned; unknown ids are ignored.
            block: rows per matrix product.

        Returns:
            Q lists of k ids, and (Q, k) float32 distances. The nearest neighbour comes first; equal
            distances are ordered by id. Distances are angles in radians if `metric` is "angular",
            else Euclidean. They do not depend on `block` or on the number of threads.

        Raises:
            InputError: if k is below 1 or larger than the corpus, fewer than k neighbours are left
                after exclusion, or a query holds NaN or Inf.
            ValueError: if the shape of the queries is not (Q, D), `exclude` does not have one entry
                per query, or the metric is angular and a query is not a unit vector.
        """
        if k < 1:
            raise InputError(f"K={k} neighbours requested; set K to at least 1")
        if k > len(self):
            raise InputError(
                f"K={k} neighbours requested, but the corpus has {len(self)} images: lower K or "
                "enlarge the corpus"
            )
        queries = self._checked(queries)
        hidden = (
            [set(names) for names in exclude]
            if exclude is not None
            else [set[str]() for _ in queries]
        )
        if len(hidden) != len(queries):
            raise ValueError(f"{len(hidden)} exclusion sets for {len(queries)} queries")
        asked = min(len(self), k + max(map(len, hidden), default=0))
        ids: list[list[str]] = []
        distances = torch.empty(len(queries), k)
        for number, rows in enumerate(self.candidates(queries, asked, block)):
            squares = squared_distances(self.rows(rows), queries[number].numpy()).tolist()
            pairs = zip(squares, self.ids_of(rows), strict=True)
            found = sorted(pair for pair in pairs if pair[1] not in hidden[number])
            if len(found) < k:
                raise InputError(
                    f"K={k} neighbours requested, but only {len(found)} of {len(rows)} candidate "
                    "images remain after excluding images such as copies of the test image; "
                    f"{self.remedy}"
                )
            ids.append([name for _, name in found[:k]])
            chords = torch.tensor([square for square, _ in found[:k]], dtype=torch.float64).sqrt()
            distances[number] = chord_to_angle(chords) if self.metric == "angular" else chords
        return ids, distances

    def candidates(self, queries: Tensor, n: int, block: int) -> list[np.ndarray]:
        """Return, for each query, the numbers of the rows whose distances must be computed exactly.

        They include the n nearest neighbours of the query.
        """
        return nearest_candidates(self.parts, queries, n, block)

    def _checked(self, queries: Tensor) -> Tensor:
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            raise ValueError(
                f"queries have shape {tuple(queries.shape)}; (Q, {self.dimensions}) is needed"
            )
        queries = queries.detach().float().cpu().contiguous()
        if not torch.isfinite(queries).all():
            raise InputError(
                "a query embedding holds NaN or Inf: check the query image and the encoder"
            )
        if self.metric == "angular" and not ((queries.norm(dim=1) - 1).abs() < 1e-3).all():
            raise ValueError("angular distance needs unit vectors; normalise the queries")
        return queries
