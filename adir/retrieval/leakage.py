"""Find the copies of a test image x in the corpus, which are excluded as neighbours of x.

A denoiser that is adapted to x itself would score well for the wrong reason.

A corpus image z is a copy of x if one of the two equals a window of the other. The window must have
at least 80 % of the other's width and height; the whole image counts as a window. One of the 8
symmetries of the square (flips and quarter turns) may be applied first. Images are compared by the
correlation coefficient of their luma, so colour, brightness and contrast do not matter.

All images of the corpus pass through three stages. Each stage keeps candidates for the next one:

1. Compare fingerprints at 8x8, with windows in steps of 1/16 of the side. Keep the images with a
   correlation of at least COARSE, and at least the MOST_COARSE best.
2. Compare fingerprints at 16x16, with windows in steps of 1/32. Keep the images with a correlation
   of at least FINE, and at least the MOST_FINE best. Each keeps its best window.
3. Compare the images themselves, with the window at 32x32 and its edges refined in steps of 1/64
   and 1/128. Images whose detail has a correlation of at least DETAIL are copies. Detail is luma
   minus the mean of its 5x5 neighbourhood. Two skies or two walls have the same shading, but not
   the same detail.

The encoder is not used, so all adaptation modes exclude the same images. results/quality/leakage.md
has the measurements behind the thresholds. On one core, a test image takes 60 ms with a corpus of
1,000 images, and 5 s per million further images.

In this file, a placement is the reverse of a window: it puts one whole image into a window of
another. A view is an image after one of the 8 symmetries.
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
"""Least width and height of a window, relative to the whole image."""
COARSE, MOST_COARSE = 0.85, 128
"""Stage 1: least correlation at 8x8, and number of images that are kept in any case.

Copies with a fine texture can have a lower correlation, because the edges of a window seldom
coincide with cells of the fingerprint.
"""
FINE, MOST_FINE = 0.87, 16
"""Stage 2: least correlation at 16x16, and number of images that are kept in any case."""
DETAIL = 0.9
"""Stage 3: least correlation of detail at 32x32 at which an image counts as a copy."""
COPY_RULE = {
    "version": 2,
    "window": WINDOW,
    "coarse": [COARSE, MOST_COARSE],
    "fine": [FINE, MOST_FINE],
    "detail": DETAIL,
}
"""The rule as part of cache keys.

Raise the version if a code change excludes other images with the same thresholds.
"""
WHOLE = 64  # side in pixels of an image from which windows are cut
COMPARED = 32  # side in pixels of a window when detail is compared
BLOCK = 512  # fingerprints per matrix product; a product with 1,600 patterns then takes 3 MB
VIEWS = 8
# start and end of a window in one direction, in cells of a 16x16 fingerprint
Interval = tuple[float, float]
Place = tuple[bool, int, Interval, Interval]
"""Position of a match: (other_is_whole, view, rows, columns).

If other_is_whole, x equals a window of the corpus image; else the corpus image equals a window of
x. The view is the symmetry of the corpus image. Rows and columns are those of the window.
"""


def copies(x: Tensor, corpus: Corpus) -> set[str]:
    """Return the ids of all corpus images that are copies of x.

    If x is flat, so that its fingerprint is zero, only images with equal pixels are copies.

    Args:
        x: (3, H, W) in [-1, 1].
        corpus: the images to search.
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
    """Return the indices of correlations that are at least `least` or among the `most` largest."""
    values = correlations.numpy()
    kth = np.partition(values, -most)[-most] if len(values) > most else -1.0
    return np.flatnonzero(values >= min(least, kth))


def as_floats(fingerprints: np.ndarray) -> Tensor:
    """Return int8 fingerprints as a float32 tensor."""
    return torch.from_numpy(fingerprints.astype(np.float32))


class Coarse:
    """Patterns of stage 1: all windows and placements of one image at 8x8, in all 8 views.

    There are 1,600 patterns.
    """

    def __init__(self, whole: Tensor) -> None:
        """Compute the patterns of an image, given as (64, 64) luma."""
        windows = standardized(halved(separable(cuts(1.0), whole)))
        masks, self.masks, self.which = coarse_masks()
        placed = standardized_within(halved(separable(placements(1.0)[0], whole)), masks)
        self.windows, self.placed = (
            symmetries(patterns).flatten(0, 1).flatten(1) for patterns in (windows, placed)
        )

    def correlations(self, fingerprints: Tensor) -> Tensor:
        """Return (n,): the largest correlation of each (16, 16) fingerprint with any pattern."""
        others = standardized(halved(fingerprints)).flatten(1).T
        as_windows = (self.windows @ others).amax(0)
        as_wholes = ((self.placed @ others) * inverse_lengths(others, self.masks)[self.which]).amax(
            0
        )
        return torch.maximum(as_windows, as_wholes)


class Fine:
    """Patterns of stage 2: all windows and placements of one image at 16x16, in one view.

    The symmetries are applied to the corpus images instead.
    """

    def __init__(self, whole: Tensor) -> None:
        """Compute the patterns of an image, given as (64, 64) luma."""
        self.windows = standardized(separable(cuts(0.5), whole)).flatten(1)
        placed, masks = placements(0.5)
        self.masks, self.which = fine_masks()
        self.placed = standardized_within(separable(placed, whole), masks).flatten(1)

    def places(self, fingerprints: Tensor) -> tuple[Tensor, list[Place]]:
        """Return the (n,) largest correlations of (n, 16, 16) fingerprints, and their places."""
        others = symmetries(standardized(fingerprints)).flatten(0, 1).flatten(1).T
        as_windows = self.windows @ others
        as_wholes = (self.placed @ others) * inverse_lengths(others, self.masks)[self.which]
        several = torch.stack([as_windows, as_wholes]).unflatten(2, (VIEWS, len(fingerprints)))
        best, where = several.flatten(0, 2).max(0)
        return best, [place_of(number) for number in where.tolist()]


def place_of(number: int) -> Place:
    """Return the place of a flat index into (other_is_whole, rows, columns, view)."""
    edges = intervals(0.5)
    number, view = divmod(number, VIEWS)
    number, column = divmod(number, len(edges))
    other_is_whole, row = divmod(number, len(edges))
    return bool(other_is_whole), view, edges[row], edges[column]


def is_copy(x: Tensor, other: Tensor, place: Place) -> bool:
    """Check whether the detail of two images has a correlation of at least DETAIL.

    The images are compared near a place, and as a whole in all views. The whole is compared too
    because many windows of a smooth image have the same shading, so the place may be wrong.

    Args:
        x: (64, 64) luma of the test image.
        other: (64, 64) luma of the corpus image.
        place: the best match of stage 2.
    """
    mine, others = (standardized(detail_of(shown(batch))) for batch in (x[None], symmetries(other)))
    return (mine * others).sum((1, 2)).amax().item() >= DETAIL or detail_correlation(
        x, other, place
    ) >= DETAIL


def shown(batch: Tensor) -> Tensor:
    """Return (B, 64, 64) images downsampled to (B, 32, 32) with antialiasing."""
    return functional.interpolate(
        batch[:, None], (COMPARED, COMPARED), mode="bilinear", antialias=True
    )[:, 0]


def detail_correlation(x: Tensor, other: Tensor, place: Place) -> float:
    """Return the correlation of detail between two (64, 64) images at the best window near a place.

    The window's edges are moved by at most 1/4 and then 1/8 of a cell (1/64 and 1/128 of the side).
    The best window is the one with the largest sum of the correlations of luma and of detail.
    """
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
    """Return 9 intervals, whose edges are moved by -step, 0 or +step and clipped to the image."""
    moves = (-step, 0.0, step)
    return [
        (max(0.0, edges[0] + a), min(float(SIDE), edges[1] + b)) for a, b in product(moves, moves)
    ]


@cache
def intervals(step: float) -> list[Interval]:
    """Return all windows in one direction, of at least WINDOW of the side; the whole is first.

    Their edges lie on a grid of `step` cells.
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
    """Return (W, 16, 64) matrices that crop each interval from 64 pixels, resized to 16 cells."""
    return cutting(intervals(step), SIDE)


@cache
def placements(step: float) -> tuple[Tensor, Tensor]:
    """Return matrices that resize 64 pixels into each interval of 16 cells, and masks of the cells.

    Returns:
        Matrices (W, 16, 64): zero in cells that are not completely inside the interval.
        Masks (W * W, 16, 16): 1 in cells that are completely inside, for each pair of an interval
            of rows and an interval of columns.
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
    """Return the masks of placements at 8x8, and the distinct masks among all their views.

    Returns:
        (P, 8, 8) masks of the P placements, in one view.
        (M, 64) distinct masks of the placements in all 8 views.
        (8 * P,) index into the distinct masks, for each view and placement.
    """
    masks = (halved(placements(1.0)[1]) == 1).float()
    return masks, *symmetries(masks).flatten(0, 1).flatten(1).unique(dim=0, return_inverse=True)


@cache
def fine_masks() -> tuple[Tensor, Tensor]:
    """Return the (M, 256) distinct masks of placements at 16x16, and each placement's index."""
    different, which = placements(0.5)[1].flatten(1).unique(dim=0, return_inverse=True)
    return different, which


def cutting(edges: Sequence[Interval], n: int) -> Tensor:
    """Return (W, n, 64) matrices that crop intervals from 64 pixels and resize them to n pixels.

    Args:
        edges: the W intervals, in cells of a 16x16 fingerprint.
        n: pixels of the result.
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
    """Return (..., n, 64) resampling weights of a triangle filter, with sum 1 for each centre.

    Args:
        centres: (..., n) positions of the resampled pixels, in pixels.
        half: distance at which the weights reach 0, in pixels.
        low: pixels before this position have weight 0.
        high: pixels after this position have weight 0.
    """
    at = torch.arange(WHOLE, dtype=torch.float64) + 0.5
    weights = (1 - (at - centres[..., None]).abs() / half).clamp_min(0) * (
        (at >= low) & (at <= high)
    )
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)).float()


def separable(rows: Tensor, x: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return (V * W, n, n): an image, resampled by each pair of a row and a column matrix.

    Args:
        rows: (V, n, S) matrices for the rows.
        x: (S, S) image.
        columns: (W, n, S) matrices for the columns; None uses `rows`.
    """
    columns = rows if columns is None else columns
    both = (rows.flatten(0, 1) @ x) @ columns.flatten(0, 1).T
    n = rows.shape[1]
    return both.unflatten(1, (-1, n)).unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)


def symmetries(batch: Tensor) -> Tensor:
    """Return the 8 views (8, ..., n, n) of (..., n, n) images: 4 quarter turns, then 4 mirrored."""
    return torch.stack(
        [
            torch.rot90(view, turns, (-2, -1))
            for view in (batch, batch.flip(-1))
            for turns in range(4)
        ]
    )


def halved(batch: Tensor) -> Tensor:
    """Return (B, n, n) images downsampled to (B, n/2, n/2) by 2x2 means."""
    return functional.avg_pool2d(batch, 2)


@cache
def surroundings() -> Tensor:
    """Return the (32, 32) matrix that averages 5 neighbouring pixels, with the border repeated."""
    at = torch.arange(COMPARED)
    within = (at[:, None] + torch.arange(-2, 3)).clamp(0, COMPARED - 1)
    return functional.one_hot(within, COMPARED).sum(1) / 5


def detail_of(batch: Tensor) -> Tensor:
    """Return (B, 32, 32) images minus the means of their 5x5 neighbourhoods."""
    return batch - surroundings() @ batch @ surroundings().T


def standardized(batch: Tensor) -> Tensor:
    """Return (B, n, n) images with mean 0 and Euclidean norm 1; flat images become 0.

    The sum of the products of two such images is their correlation coefficient.
    """
    batch = batch - batch.mean((-2, -1), keepdim=True)
    length = batch.flatten(-2).norm(dim=-1)[..., None, None]
    return batch / length.clamp_min(1e-6)


def standardized_within(batch: Tensor, masks: Tensor) -> Tensor:
    """Return (B, n, n) images with mean 0 and norm 1 inside their (B, n, n) masks, 0 outside."""
    batch = batch * masks
    batch = (batch - batch.sum((1, 2), keepdim=True) / masks.sum((1, 2), keepdim=True)) * masks
    return batch / batch.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-6)


def inverse_lengths(vectors: Tensor, masks: Tensor) -> Tensor:
    """Return (M, N): 1 / norm of each vector within each mask, after its mean there is subtracted.

    The squared norm is clamped to at least 1e-4, so a vector that is flat within a mask correlates
    with nothing.

    Args:
        vectors: (D, N) of norm 1.
        masks: (M, D) of 0 and 1.
    """
    squares = masks @ vectors**2 - (masks @ vectors) ** 2 / masks.sum(1, keepdim=True)
    return squares.clamp_min(1e-4).rsqrt()
