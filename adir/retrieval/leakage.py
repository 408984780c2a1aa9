"""Find the copies of a test image x in the corpus, which are excluded as neighbours of x.

A denoiser that was adapted to a copy of x would score well only because it has seen x.

A corpus image z is a copy of x if x matches a window of z, or z matches a window of x. A window is
a rectangle with at least 80 % of the width and of the height of its image; the whole image counts
as a window. z may be rotated by quarter turns and mirrored; the 8 results are called its views.
Images are compared by the correlation coefficient of their luma, so colour, brightness and contrast
do not matter.

The search has three stages. Stage 1 compares x with all images of the corpus. Each later stage
compares x with the images that the stage before has kept:

1. Compare fingerprints, downsampled to 8x8. The edges of windows lie on a grid of 1/16 of the side.
   The correlation of an image is the largest one over all windows and views. Keep an image if its
   correlation is at least COARSE or among the MOST_COARSE largest.
2. Compare fingerprints at their full size of 16x16. The edges of windows lie on a grid of 1/32 of
   the side. Keep an image if its correlation is at least FINE or among the MOST_FINE largest. The
   window and view with the largest correlation are passed to stage 3.
3. Compare the detail of images at 32x32. Detail is the luma minus the mean luma of the 5x5 pixels
   around each pixel. Two images of skies or of walls have the same shading, but different detail.
   First move the edges of the window of stage 2 by at most 1/64 and then by at most 1/128 of the
   side, to where x and the image agree best. An image is a copy if the correlation of detail is at
   least DETAIL, either at this window or between x and the whole image in one of its views.

No encoder is used, so the same images are excluded in all adaptation modes. The measurements behind
the thresholds are in results/quality/leakage.md. On one core, the search for the copies of one test
image takes 60 ms with a corpus of 1,000 images, and 5 s more for each further million images.

In the docstrings below, a placement of the test image is the whole test image, resized into a
window of a corpus image.
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
"""Stage 1: least correlation at 8x8, and number of best images that are kept even below it.

Copies with a fine texture can have a correlation below COARSE, because the edges of a window seldom
coincide with the edges of a fingerprint's cells.
"""
FINE, MOST_FINE = 0.87, 16
"""Stage 2: least correlation at 16x16, and number of best images that are kept even below it."""
DETAIL = 0.9
"""Stage 3: least correlation of detail at 32x32 at which an image counts as a copy."""
COPY_RULE = {
    "version": 2,
    "window": WINDOW,
    "coarse": [COARSE, MOST_COARSE],
    "fine": [FINE, MOST_FINE],
    "detail": DETAIL,
}
"""The definition of a copy, as part of cache keys.

Increase the version if a code change alters which images are copies at the same thresholds.
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
    kept = as_floats(rows_of(corpus.fingerprints, rows))
    correlations, places = best_places(whole, kept)
    left = promising(correlations, FINE, MOST_FINE)
    others = zip(corpus.ids_of(rows[left]), left.tolist(), strict=True)
    return {
        name
        for name, number in others
        if is_copy(whole, grey(corpus.image(name), WHOLE), places[number])
    }


def promising(correlations: Tensor, least: float, most: int) -> np.ndarray:
    """Return the indices of all correlations that are >= `least` or among the `most` largest."""
    values = correlations.numpy()
    kth = np.partition(values, -most)[-most] if len(values) > most else -1.0
    return np.flatnonzero(values >= min(least, kth))


def as_floats(fingerprints: np.ndarray) -> Tensor:
    """Return int8 fingerprints as a float32 tensor."""
    return torch.from_numpy(fingerprints.astype(np.float32))


class Coarse:
    """The test image's windows and placements at 8x8, which stage 1 compares with corpus images.

    A placement is the whole test image, resized into a window. All 100 windows and 100 placements
    are computed in all 8 views. The 1,600 results are called patterns.
    """

    def __init__(self, whole: Tensor) -> None:
        """Compute the patterns of the test image, whose (64, 64) luma is `whole`."""
        windows = standardized(halved(separable(cuts(1.0), whole)))
        masks, self.masks, self.which = coarse_masks()
        placed = standardized_within(halved(separable(placements(1.0)[0], whole)), masks)
        self.windows, self.placed = (
            symmetries(patterns).flatten(0, 1).flatten(1) for patterns in (windows, placed)
        )

    def correlations(self, fingerprints: Tensor) -> Tensor:
        """Return the (n,) largest correlations of (n, 16, 16) fingerprints with any pattern."""
        others = standardized(halved(fingerprints)).flatten(1).T
        as_windows = (self.windows @ others).amax(0)
        as_wholes = ((self.placed @ others) * inverse_lengths(others, self.masks)[self.which]).amax(
            0
        )
        return torch.maximum(as_windows, as_wholes)


def best_places(whole: Tensor, fingerprints: Tensor) -> tuple[Tensor, list[Place]]:
    """Return the best correlations of corpus images with the test image, and their `Place`s.

    The best correlation of a fingerprint is the largest one with any window or placement of the
    test image at 16x16, in any view of the fingerprint.

    Args:
        whole: (64, 64) luma of the test image.
        fingerprints: (n, 16, 16) fingerprints of the corpus images.

    Returns:
        (n,) correlations, and n places.
    """
    windows = standardized(separable(cuts(0.5), whole)).flatten(1)
    matrices, inside = placements(0.5)
    placed = standardized_within(separable(matrices, whole), inside).flatten(1)
    masks, which = fine_masks()
    others = symmetries(standardized(fingerprints)).flatten(0, 1).flatten(1).T
    as_windows = windows @ others
    as_wholes = (placed @ others) * inverse_lengths(others, masks)[which]
    several = torch.stack([as_windows, as_wholes]).unflatten(2, (VIEWS, len(fingerprints)))
    best, where = several.flatten(0, 2).max(0)
    edges = intervals(0.5)
    found = np.unravel_index(where.numpy(), (2, len(edges), len(edges), VIEWS))
    return best, [
        (bool(other_is_whole), int(view), edges[row], edges[column])
        for other_is_whole, row, column, view in zip(*found, strict=True)
    ]


def is_copy(x: Tensor, other: Tensor, place: Place) -> bool:
    """Return whether the detail of two images has a correlation of at least DETAIL.

    The images are compared twice: at windows near `place`, and as whole images in all views. One of
    the two correlations must reach DETAIL. The second comparison is needed for smooth images: many
    of their windows have the same shading, so `place` may be wrong.

    Args:
        x: (64, 64) luma of the test image.
        other: (64, 64) luma of the corpus image.
        place: the best match of stage 2.
    """
    mine, others = (
        standardized(detail_of(downsampled(batch))) for batch in (x[None], symmetries(other))
    )
    return (mine * others).sum((1, 2)).amax().item() >= DETAIL or detail_correlation(
        x, other, place
    ) >= DETAIL


def downsampled(batch: Tensor) -> Tensor:
    """Return (B, 64, 64) images, downsampled to (B, 32, 32) with antialiasing."""
    return functional.interpolate(
        batch[:, None], (COMPARED, COMPARED), mode="bilinear", antialias=True
    )[:, 0]


def detail_correlation(x: Tensor, other: Tensor, place: Place) -> float:
    """Return the correlation of detail between two (64, 64) images at the best window near a place.

    Each edge of the window is first moved by -1/64, 0 or 1/64 of the side, and then by -1/128, 0 or
    1/128. The best window is the one for which the sum of the correlations of luma and of detail is
    largest.
    """
    other_is_whole, view, rows, columns = place
    other = symmetries(other)[view]
    whole, window = (other, x) if other_is_whole else (x, other)
    target = downsampled(window[None])
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
    """Return 9 intervals: each of the two edges is moved by -step, 0 or +step.

    All numbers are in cells of a 16x16 fingerprint. Edges are clipped to the image.
    """
    moves = (-step, 0.0, step)
    return [
        (max(0.0, edges[0] + a), min(float(SIDE), edges[1] + b)) for a, b in product(moves, moves)
    ]


@cache
def intervals(step: float) -> list[Interval]:
    """Return (start, end) of all windows along one axis, in cells of a 16x16 fingerprint.

    Start and end lie on a grid of `step` cells. The whole side comes first. The length of the
    shortest windows is WINDOW times the side, rounded to the grid.
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
    """Return matrices that crop an interval from 64 pixels and resize it to 16 pixels.

    The shape is (W, 16, 64): one matrix for each of the W intervals of `intervals(step)`.
    """
    return cutting(intervals(step), SIDE)


@cache
def placements(step: float) -> tuple[Tensor, Tensor]:
    """Return matrices that resize 64 pixels into an interval of 16 cells, and masks of intervals.

    The cells are the pixels of a fingerprint. The W intervals are those of `intervals(step)`.

    Returns:
        (W, 16, 64) matrices, one per interval. A row is zero if its cell is not completely inside
            the interval.
        (W * W, 16, 16) masks, one per pair of an interval of rows and an interval of columns. They
            are 1 in cells that are completely inside both intervals, else 0.
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
    """Return the 8x8 masks of the P placements, the distinct masks in all 8 views, and an index.

    Returns:
        (P, 8, 8) masks in the first view: 1 in cells that are completely inside the placement,
            else 0.
        (M, 64) distinct masks among the 8 * P masks in all views.
        (8 * P,) number of the distinct mask of each view and placement; views vary slowest.
    """
    masks = (halved(placements(1.0)[1]) == 1).float()
    return masks, *symmetries(masks).flatten(0, 1).flatten(1).unique(dim=0, return_inverse=True)


@cache
def fine_masks() -> tuple[Tensor, Tensor]:
    """Return the distinct 16x16 masks of the P placements, and the number of each placement's mask.

    The shapes are (M, 256) for the M distinct masks and (P,) for the numbers.
    """
    different, which = placements(0.5)[1].flatten(1).unique(dim=0, return_inverse=True)
    return different, which


def cutting(edges: Sequence[Interval], n: int) -> Tensor:
    """Return (W, n, 64) matrices that crop an interval from 64 pixels and resize it to n pixels.

    Args:
        edges: start and end of the W intervals, in cells of a 16x16 fingerprint.
        n: number of pixels after resizing.
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
    """Return (..., n, 64) weights that resample 64 pixels at n positions by a triangle filter.

    The weights for each position have sum 1. Positions and distances are in widths of one pixel,
    and pixel j has its centre at j + 0.5.

    Args:
        centres: (..., n) positions of the resampled pixels.
        half: distance from the centre at which the weights reach 0.
        low: pixels before this position have weight 0.
        high: pixels after this position have weight 0.
    """
    at = torch.arange(WHOLE, dtype=torch.float64) + 0.5
    weights = (1 - (at - centres[..., None]).abs() / half).clamp_min(0) * (
        (at >= low) & (at <= high)
    )
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)).float()


def separable(rows: Tensor, x: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return an image, resampled by each pair of a row matrix and a column matrix.

    The result has shape (V * W, n, n); the pairs of the first row matrix come first.

    Args:
        rows: (V, n, S) matrices that resample the rows.
        x: (S, S) image.
        columns: (W, n, S) matrices that resample the columns; None uses `rows`.
    """
    columns = rows if columns is None else columns
    both = (rows.flatten(0, 1) @ x) @ columns.flatten(0, 1).T
    n = rows.shape[1]
    return both.unflatten(1, (-1, n)).unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)


def symmetries(batch: Tensor) -> Tensor:
    """Return the 8 views of (..., n, n) images, as a tensor of shape (8, ..., n, n).

    The images rotated by 0 to 3 quarter turns come first, then the mirrored images rotated alike.
    """
    return torch.stack(
        [
            torch.rot90(view, turns, (-2, -1))
            for view in (batch, batch.flip(-1))
            for turns in range(4)
        ]
    )


def halved(batch: Tensor) -> Tensor:
    """Return (B, n, n) images, downsampled to (B, n/2, n/2) by the means of 2x2 pixels."""
    return functional.avg_pool2d(batch, 2)


@cache
def surroundings() -> Tensor:
    """Return the (32, 32) matrix that replaces each of 32 pixels by the mean of 5 neighbours.

    The 5 neighbours include the pixel itself. Beyond the border, the last pixel is repeated.
    """
    at = torch.arange(COMPARED)
    within = (at[:, None] + torch.arange(-2, 3)).clamp(0, COMPARED - 1)
    return functional.one_hot(within, COMPARED).sum(1) / 5


def detail_of(batch: Tensor) -> Tensor:
    """Return (B, 32, 32) images, each pixel minus the mean of the 5x5 pixels around it."""
    return batch - surroundings() @ batch @ surroundings().T


def standardized(batch: Tensor) -> Tensor:
    """Return (..., n, n) images, standardised to mean 0 and Euclidean norm 1; flat images become 0.

    The correlation coefficient of two images is then the sum of the products of their pixels.
    """
    batch = batch - batch.mean((-2, -1), keepdim=True)
    length = batch.flatten(-2).norm(dim=-1)[..., None, None]
    return batch / length.clamp_min(1e-6)


def standardized_within(batch: Tensor, masks: Tensor) -> Tensor:
    """Return (B, n, n) images, standardised to mean 0 and norm 1 inside their (B, n, n) masks.

    Pixels outside the masks become 0.
    """
    batch = batch * masks
    batch = (batch - batch.sum((1, 2), keepdim=True) / masks.sum((1, 2), keepdim=True)) * masks
    return batch / batch.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-6)


def inverse_lengths(vectors: Tensor, masks: Tensor) -> Tensor:
    """Return 1 / norm of each vector within each mask, as an (M, N) tensor.

    The mean of the vector within the mask is subtracted before the norm is computed. The squared
    norm is clamped to at least 1e-4, so the correlation of a vector that is flat within a mask is
    near 0.

    Args:
        vectors: (D, N), whose N columns have norm 1.
        masks: (M, D) of 0 and 1.
    """
    squares = masks @ vectors**2 - (masks @ vectors) ** 2 / masks.sum(1, keepdim=True)
    return squares.clamp_min(1e-4).rsqrt()
