"""Exact search among many vectors: fast float32 products propose candidates, float64 distances
decide.

Float32 matrix products differ in their last bits with block shape, thread count and processor. So
they only propose
candidates: all rows whose float32 key lies within twice its proven rounding error of the k-th best.
    Candidates are measured
again in float64, one row at a time, in a fixed order of summation. The answer is the same for every
block size and machine; equal distances are ordered by id.
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
    """(N, D) vectors, float16 or float32, perhaps on disk, and (N,) float32 halves of their squared
    lengths.
    """

    vectors: Tensor
    half_squares: Tensor


def part_of(vectors: Tensor) -> Part:
    """Return the vectors with their half squares, computed in float64 in blocks."""
    halves = [(block.double() ** 2).sum(1) / 2 for block in vectors.split(BLOCK)]
    return Part(vectors, torch.cat(halves).float() if halves else torch.empty(0))


def key_error(queries: Tensor, longest: float) -> Tensor:
    """(Q, 1) bound on |float32 key - key| where key = |a|^2 / 2 - a.q, for rows no longer than
    `longest`.

    Higham (2002), eq. 3.5: a sum of n products, in any order, is off by at most gamma_n = n u / (1
    - n u) times the sum of their sizes, here at most |a| |q| by Cauchy-Schwarz; u = 2^-24. Four
    more roundings: |a|^2 / 2, its addition, spare.
    """
    terms = (queries.shape[1] + 4) * 2.0**-24
    lengths = queries.double().norm(dim=1, keepdim=True)
    return terms / (1 - terms) * (longest * lengths + longest**2 / 2)


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32: a trainer may have allowed bfloat16, whose error is
    65,000 times larger.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keys_of(parts: Sequence[Part], queries: Tensor, block: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, (Q, n) keys |a|^2 / 2 - a.q) of one block of rows after the other; the tensor is
    overwritten by the next.

    The key orders as the distance does: |a - q|^2 = 2 key + |q|^2.
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
    """Return for each of (Q, D) float32 queries the rows, counted over all parts, that can be among
    its k nearest.
    """
    total = sum(len(part.vectors) for part in parts)
    margin = 2 * key_error(queries, longest_of(parts))
    n_kept = min(total, 2 * k + 64)
    while True:
        keys, rows = smallest_keys(parts, queries, n_kept, block)
        near = keys <= keys[:, k - 1 : k].double() + margin
        if (
            n_kept == total or not near[:, -1].any()
        ):  # rows not kept are no nearer than the last kept
            return [row[mask].numpy() for row, mask in zip(rows, near, strict=True)]
        n_kept = min(total, 4 * n_kept)


def smallest_keys(
    parts: Sequence[Part], queries: Tensor, n: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return the (Q, n) smallest keys of each query, in rising order, and their (Q, n) rows."""
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
    """Return the length of the longest vector, rounded up."""
    return max(
        (2 * float(p.half_squares.max())) ** 0.5 * (1 + 1e-6) for p in parts if len(p.vectors)
    )


def squared_distances(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return (n,) float64 |a - q|^2 of (n, D) vectors; a row's order of summation does not depend
    on other rows.
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
    """Return the given rows, counted over all parts, in the given order."""
    ends = np.cumsum([len(part) for part in parts])
    found = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    where = np.searchsorted(ends, rows, side="right")
    for number in np.unique(where):
        here, part = where == number, parts[number]
        found[here] = part[rows[here] - (ends[number] - len(part))]
    return found


def chord_to_angle(chord: Tensor) -> Tensor:
    """Return the angle between unit vectors, 2 arcsin(|a - b| / 2):

    ADIR (Abu-Hussein et al., 2022), in radians.

    Not arccos(a.b), which in float32 cannot tell angles below 3e-4 apart.

    chord: |a - b|; rounding beyond 2 counts as 2.
    """
    return 2 * torch.arcsin((chord / 2).clamp(max=1))


class VectorIndex:
    """Exact nearest neighbours among vectors with ids.

    A subclass fills `parts` and `metric`, and says what id a row has.
    """

    parts: list[Part]
    metric: str
    approximate = False
    remedy = "lower K or enlarge the corpus"
    """What a user can do if fewer than K neighbours are left."""

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Return the ids of rows, counted over all parts."""
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(len(part.vectors) for part in self.parts)

    @property
    def dimensions(self) -> int:
        """D."""
        return self.parts[0].vectors.shape[1]

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, D) vectors of rows, in the type in which they are stored."""
        return rows_of([part.vectors.numpy() for part in self.parts], rows)

    def search(
        self,
        queries: Tensor,
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
        block: int = BLOCK,
    ) -> tuple[list[list[str]], Tensor]:
        """Return the k nearest of each query: ids [Q][k] and distances (Q, k) float32, nearest
        first, equal ones by id.

        Distances are angles in radians or Euclidean lengths, by `metric`, and do not depend on
        `block` or threads.

        Args:
            queries: (Q, D).
            k: number of neighbours.
            exclude: for each query, ids to leave out; unknown ids are ignored.
            block: rows per matrix product.

        Raises:
            InputError: k is below 1 or larger than the corpus, fewer than k are left after
                exclusion, or a query holds NaN or Inf.
        """
        if k < 1:
            raise InputError(f"K={k} neighbours asked; K must be at least 1")
        if k > len(self):
            raise InputError(
                f"K={k} neighbours asked of a corpus of {len(self)}: lower K or enlarge the corpus"
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
            found = [
                pair
                for pair in self._measured(rows, queries[number])
                if pair[1] not in hidden[number]
            ]
            if len(found) < k:
                raise InputError(
                    f"K={k} neighbours asked, but of {len(rows)} images "
                    f"{len(rows) - len(found)} are left out as copies "
                    f"of the test image or of one another: {self.remedy}"
                )
            ids.append([name for _, name in found[:k]])
            chords = torch.tensor([square for square, _ in found[:k]], dtype=torch.float64).sqrt()
            distances[number] = chord_to_angle(chords) if self.metric == "angular" else chords
        return ids, distances

    def candidates(self, queries: Tensor, n: int, block: int) -> list[np.ndarray]:
        """Return for each query the rows to measure; its n nearest are among them."""
        return nearest_candidates(self.parts, queries, n, block)

    def _measured(self, rows: np.ndarray, query: Tensor) -> list[tuple[float, str]]:
        """Return (squared distance, id) of rows, nearest first, equal ones by id."""
        squares = squared_distances(self.rows(rows), query.numpy())
        return sorted(zip(squares.tolist(), self.ids_of(rows), strict=True))

    def _checked(self, queries: Tensor) -> Tensor:
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            raise ValueError(
                f"queries of shape {tuple(queries.shape)}; (Q, {self.dimensions}) needed"
            )
        queries = queries.detach().float().cpu().contiguous()
        if not torch.isfinite(queries).all():
            raise InputError("a query embedding holds NaN or Inf: its image is not valid")
        if self.metric == "angular" and not ((queries.norm(dim=1) - 1).abs() < 1e-3).all():
            raise ValueError("angular distance needs unit vectors")
        return queries
