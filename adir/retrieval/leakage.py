"""The rule that keeps copies of a test image x out of its neighbours: adapted to x itself, a
denoiser would look good for the wrong reason.

A corpus image z is a copy of x if, after one of the 8 symmetries of the square (flips and quarter
turns), one of the two lies in the other as a window of at least 80 % of its width and of its
height. The whole image is such a window. Both are compared as luma with correlation coefficients,
so colour, brightness and contrast do not matter.

Every image of the corpus is compared, in three steps, each on what the one before leaves:

1. Fingerprints at 8x8, windows at steps of 1/16 of the side. Left are those that correlate by
    COARSE, and the MOST_COARSE best.
2. Fingerprints at 16x16, windows at steps of 1/32. Left are those that correlate by FINE, and the
   MOST_FINE best, each with its best window.
3. The images themselves, the window at 32x32 with its edges moved to the best 1/128. Those whose
   detail (less its 5x5 surroundings) correlates by DETAIL are copies: two skies or two walls have
   the same shading, but not the same detail.

No encoder has a say, so all modes of adaptation leave out the same images.
results/quality/leakage.md has the measurements behind the thresholds. One core takes 60 ms for a
test image and a corpus of 1,000, and 5 s a million more.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adir.data.base import Corpus
from adir.data.fingerprints import SIDE, fingerprint, grey
from adir.retrieval.index.search import rows_of

WINDOW = 0.8
"""Least width and height of a window, relative to the whole."""
COARSE, MOST_COARSE = 0.85, 128
"""Correlation of fingerprints at 8x8 from which on all are looked at again, and how many are in any
case: fine textures correlate less, as a window seldom meets their cells,
"""
FINE, MOST_FINE = 0.87, 16
"""the same at 16x16,"""
DETAIL = 0.9
"""and the correlation of detail at 32x32 from which on an image is a copy."""
LEFT_OUT = {
    "version": 2,
    "window": WINDOW,
    "coarse": [COARSE, MOST_COARSE],
    "fine": [FINE, MOST_FINE],
    "detail": DETAIL,
}
"""The rule, for the identity of what follows from it.

Raise the version where the same thresholds leave out others.
"""
WHOLE = 64  # pixels of the side of an image that windows are cut from
COMPARED = 32  # pixels of the side of a window when its detail is compared
BLOCK = 512  # a product with 1,600 patterns then takes 3 MB
VIEWS = 8
Interval = tuple[
    float, float
]  # first and last edge of a window in one direction, in cells of a fingerprint
Place = tuple[bool, int, Interval, Interval]
"""(whether the other image is the whole, its view, rows and columns of the window)."""


def copies(x: Tensor, corpus: Corpus) -> set[str]:
    """Return the ids of the images of a corpus that are copies of (3, H, W) image x in [-1, 1].

    Of a flat x, whose fingerprint is zero, only equal images are copies.
    """
    if not fingerprint(x).any():
        flat = [~part.any((1, 2)) for part in corpus.fingerprints]
        names = corpus.ids_of(np.flatnonzero(np.concatenate(flat)))
        return {name for name in names if torch.equal(corpus.image(name), x)}
    whole = grey(x, WHOLE)
    coarse = Coarse(whole)
    blocks = (
        part[start : start + BLOCK]
        for part in corpus.fingerprints
        for start in range(0, len(part), BLOCK)
    )
    rows = promising(
        torch.cat([coarse.correlations(as_floats(block)) for block in blocks]), COARSE, MOST_COARSE
    )
    correlations, places = Fine(whole).places(as_floats(rows_of(corpus.fingerprints, rows)))
    left = promising(correlations, FINE, MOST_FINE)
    others = zip(corpus.ids_of(rows[left]), left.tolist(), strict=True)
    return {
        name
        for name, number in others
        if is_copy(whole, grey(corpus.image(name), WHOLE), places[number])
    }


def promising(correlations: Tensor, least: float, most: int) -> np.ndarray:
    """Return the rows of all correlations from `least` on, and of the `most` largest in any case."""
    values = correlations.numpy()
    kth = np.partition(values, -most)[-most] if len(values) > most else -1.0
    return np.flatnonzero(values >= min(least, kth))


def as_floats(fingerprints: np.ndarray) -> Tensor:
    """Return them as float32."""
    return torch.from_numpy(fingerprints.astype(np.float32))


class Coarse:
    """All windows and placements of one image at 8x8, in all views: 1,600 patterns."""

    def __init__(self, whole: Tensor) -> None:
        """whole: (64, 64) luma."""
        windows = standardized(halved(separable(cuts(1.0), whole)))
        masks, self.masks, self.which = coarse_masks()
        placed = standardized_within(halved(separable(placements(1.0)[0], whole)), masks)
        self.windows, self.placed = (
            symmetries(patterns).flatten(0, 1).flatten(1) for patterns in (windows, placed)
        )

    def correlations(self, fingerprints: Tensor) -> Tensor:
        """Return the (n,) largest correlation of each of (n, 16, 16) fingerprints with any pattern."""
        others = standardized(halved(fingerprints)).flatten(1).T
        as_windows = (self.windows @ others).amax(0)
        as_wholes = ((self.placed @ others) * inverse_lengths(others, self.masks)[self.which]).amax(
            0
        )
        return torch.maximum(as_windows, as_wholes)


class Fine:
    """All windows and placements of one image at 16x16, in one view: the others are turned instead."""

    def __init__(self, whole: Tensor) -> None:
        """whole: (64, 64) luma."""
        self.windows = standardized(separable(cuts(0.5), whole)).flatten(1)
        placed, masks = placements(0.5)
        self.masks, self.which = fine_masks()
        self.placed = standardized_within(separable(placed, whole), masks).flatten(1)

    def places(self, fingerprints: Tensor) -> tuple[Tensor, list[Place]]:
        """Return the (n,) largest correlations of (n, 16, 16) fingerprints, and where each is
        found.
        """
        others = symmetries(standardized(fingerprints)).flatten(0, 1).flatten(1).T
        as_windows = self.windows @ others
        as_wholes = (self.placed @ others) * inverse_lengths(others, self.masks)[self.which]
        several = torch.stack([as_windows, as_wholes]).unflatten(2, (VIEWS, len(fingerprints)))
        best, where = several.flatten(0, 2).max(0)
        return best, [place_of(number) for number in where.tolist()]


def place_of(number: int) -> Place:
    """Return the place that has a number among (direction, window's rows, its columns, view)."""
    edges = intervals(0.5)
    number, view = divmod(number, VIEWS)
    number, column = divmod(number, len(edges))
    other_is_whole, row = divmod(number, len(edges))
    return bool(other_is_whole), view, edges[row], edges[column]


def is_copy(x: Tensor, other: Tensor, place: Place) -> bool:
    """Return whether the detail of two (64, 64) images correlates by DETAIL near a place, or as a
    whole in any view.

    As a whole, because of a smooth image many windows have the same shading.
    """
    mine, others = (standardized(detail_of(shown(batch))) for batch in (x[None], symmetries(other)))
    return (mine * others).sum((1, 2)).amax().item() >= DETAIL or detail_correlation(
        x, other, place
    ) >= DETAIL


def shown(batch: Tensor) -> Tensor:
    """Return (B, 32, 32) of (B, 64, 64), antialiased."""
    return functional.interpolate(
        batch[:, None], (COMPARED, COMPARED), mode="bilinear", antialias=True
    )[:, 0]


def detail_correlation(x: Tensor, other: Tensor, place: Place) -> float:
    """Return the largest correlation of detail between two (64, 64) images near a place."""
    other_is_whole, view, rows, columns = place
    other = symmetries(other)[view]
    whole, window = (other, x) if other_is_whole else (x, other)
    target = shown(window[None])
    shading, detail = standardized(target), standardized(detail_of(target))
    correlation = -1.0
    for step in (0.25, 0.125):
        vertical, horizontal = near(rows, step), near(columns, step)
        cut = separable(cutting(vertical, COMPARED), whole, cutting(horizontal, COMPARED))
        details = (standardized(detail_of(cut)) * detail).sum((1, 2))
        best = int((details + (standardized(cut) * shading).sum((1, 2))).argmax())
        rows, columns = vertical[best // len(horizontal)], horizontal[best % len(horizontal)]
        correlation = details[best].item()
    return correlation


def near(edges: Interval, step: float) -> list[Interval]:
    """Return the interval with either edge moved by a step outwards, inwards or not at all, within
    the image.
    """
    moves = (-step, 0.0, step)
    return [
        (max(0.0, edges[0] + a), min(float(SIDE), edges[1] + b)) for a, b in product(moves, moves)
    ]


@cache
def intervals(step: float) -> list[Interval]:
    """Return the windows of one direction: all of at least WINDOW of the side, at steps in cells;
    the whole is first.
    """
    sizes = [
        SIDE - number * step
        for number in range(SIDE)
        if SIDE - number * step >= WINDOW * SIDE - step / 2
    ]
    return [
        (k * step, k * step + size)
        for size in sizes
        for k in range(round((SIDE - size) / step) + 1)
    ]


@cache
def cuts(step: float) -> Tensor:
    """Return (W, 16, 64) matrices that cut each interval out of 64 pixels and show it in 16 cells."""
    return cutting(intervals(step), SIDE)


@cache
def placements(step: float) -> tuple[Tensor, Tensor]:
    """Return (W, 16, 64) matrices that show 64 pixels in each interval of 16 cells, zero in cells
    that are not all inside; and (W * W, 16, 16) masks of the cells that are, for each interval of
    rows with each of columns.
    """
    cells = torch.arange(SIDE)
    matrices, inside = [], []
    for a, b in intervals(step):
        within = (cells >= a) & (cells + 1 <= b)
        centres = (cells.double() + 0.5 - a) / (b - a) * WHOLE
        matrices.append(triangles(centres, WHOLE / (b - a), 0, WHOLE) * within[:, None])
        inside.append(within.float())
    rows = torch.stack(inside)
    return torch.stack(matrices), torch.einsum("ai,bj->abij", rows, rows).flatten(0, 1)


@cache
def coarse_masks() -> tuple[Tensor, Tensor, Tensor]:
    """Return the masks of placements at 8x8; the different ones of their 8 views, (M, 64); which of
    these each view has.
    """
    masks = (halved(placements(1.0)[1]) == 1).float()
    return masks, *symmetries(masks).flatten(0, 1).flatten(1).unique(dim=0, return_inverse=True)


@cache
def fine_masks() -> tuple[Tensor, Tensor]:
    """Return the different masks of placements at 16x16, (M, 256), and which of these each has."""
    different, which = placements(0.5)[1].flatten(1).unique(dim=0, return_inverse=True)
    return different, which


def cutting(edges: Sequence[Interval], n: int) -> Tensor:
    """Return (W, n, 64) matrices that cut intervals, in cells of a fingerprint, out of 64 pixels
    and show them at n.
    """
    low, high = (torch.tensor(edges, dtype=torch.float64) * WHOLE / SIDE).T[..., None]
    width = (high - low) / n
    return triangles(
        low + (torch.arange(n) + 0.5) * width,
        width.clamp_min(1.0)[..., None],
        low[..., None],
        high[..., None],
    )


def triangles(
    centres: Tensor, half: Tensor | float, low: Tensor | float, high: Tensor | float
) -> Tensor:
    """Return (..., n, 64) weights of pixels around (..., n) centres, falling linearly to 0 at
    distance `half`; none beyond low and high.
    """
    at = torch.arange(WHOLE, dtype=torch.float64) + 0.5
    weights = (1 - (at - centres[..., None]).abs() / half).clamp_min(0) * (
        (at >= low) & (at <= high)
    )
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)).float()


def separable(rows: Tensor, x: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return (V * W, n, n):

    (S, S) x, its rows resampled by each of (V, n, S), its columns by each of (W, n, S) matrices.
    """
    columns = rows if columns is None else columns
    both = (rows.flatten(0, 1) @ x) @ columns.flatten(0, 1).T
    n = rows.shape[1]
    return both.unflatten(1, (-1, n)).unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)


def symmetries(batch: Tensor) -> Tensor:
    """Return (8, ..., n, n): the four quarter turns of (..., n, n), and those of its mirror image."""
    return torch.stack(
        [
            torch.rot90(view, turns, (-2, -1))
            for view in (batch, batch.flip(-1))
            for turns in range(4)
        ]
    )


def halved(batch: Tensor) -> Tensor:
    """Return (B, n/2, n/2): means of 2x2."""
    return functional.avg_pool2d(batch, 2)


@cache
def surroundings() -> Tensor:
    """Return the (32, 32) matrix that takes means over 5 cells, the border repeated."""
    at = torch.arange(COMPARED)
    within = (at[:, None] + torch.arange(-2, 3)).clamp(0, COMPARED - 1)
    return functional.one_hot(within, COMPARED).sum(1) / 5


def detail_of(batch: Tensor) -> Tensor:
    """Return (B, 32, 32) less their 5x5 surroundings."""
    return batch - surroundings() @ batch @ surroundings().T


def standardized(batch: Tensor) -> Tensor:
    """Return (B, n, n) less their means, of length 1: then sums of products are correlation
    coefficients. Flat ones are 0.
    """
    batch = batch - batch.mean((-2, -1), keepdim=True)
    length = batch.flatten(-2).norm(dim=-1)[..., None, None]
    return batch / length.clamp_min(1e-6)


def standardized_within(batch: Tensor, masks: Tensor) -> Tensor:
    """Return (B, n, n), zero outside of their masks, of mean 0 and length 1 inside."""
    batch = batch * masks
    batch = (batch - batch.sum((1, 2), keepdim=True) / masks.sum((1, 2), keepdim=True)) * masks
    return batch / batch.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-6)


def inverse_lengths(vectors: Tensor, masks: Tensor) -> Tensor:
    """Return (M, N): 1 / length of each of (D, N) vectors within each of (M, D) masks, less its
    mean there.

    1e-4 is the least squared length, of vectors whose own is 1: what is flat within a mask
    correlates with nothing.
    """
    squares = masks @ vectors**2 - (masks @ vectors) ** 2 / masks.sum(1, keepdim=True)
    return squares.clamp_min(1e-4).rsqrt()
