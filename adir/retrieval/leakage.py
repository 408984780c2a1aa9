"""Near-duplicates that are crops: a corpus picture that a test picture was cut from, or that was cut from it.

A perceptual hash does not survive a crop, and no threshold on an embedding tells a crop from another picture of the same
thing: with the embedded encoder, crops to 90 % of the sides lie 0.26 to 0.7 rad from their original, and the nearest other
picture may be 0.14 rad away. So embedding distance proposes, and laying one picture over the other decides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adir.data.base import Corpus, NeighbourIndex
from adir.data.fingerprints import DIFFERENCE, HAMMING
from adir.retrieval.encoders.base import Encoder

PROPOSED = 32
"""How many nearest pictures of x, and of its mirror image, are looked at."""
CORRELATION = 0.96
"""Of grey levels, from which on a picture may be a window of another,"""
DETAIL = 0.7
"""and of detail, from which on it is."""
LEFT_OUT = {
    "hamming": HAMMING,
    "difference": DIFFERENCE,
    "proposed": PROPOSED,
    "correlation": CORRELATION,
    "detail": DETAIL,
}
"""The rule by which copies and crops of a test picture are no neighbours of it, for the identity of what follows from it."""
SIDE = 16  # pixels of the window's side when it is compared
SCALES = tuple(0.96**step for step in range(13))  # sides of the window relative to the whole: 1 to 0.61


def crops(x: Tensor, corpus: Corpus, index: NeighbourIndex, encoder: Encoder) -> set[str]:
    """Ids of corpus pictures of which (3, H, W) picture x in [-1, 1], or its mirror image, is a crop, or that are crops of it.

    Found among the PROPOSED nearest by embedding. Of 31 pictures each of Caltech-101 and of the embedded corpus, mirrored, cut
    and saved as JPEG of quality 75, all were found that keep 80 % of the sides or more; of those that keep 70 %, 31 and 25
    (the rest are nearly flat), of those that keep 60 %, 27 and 25.  Crops of fine
    texture alone (grass, a field of stars) are missed.  Beside them, 7 pairs of Caltech-101 were found, which are
    copies, and 16 in the embedded corpus, which holds overlapping fields.
    """
    views = torch.stack([x, x.flip(-1)])
    found, _ = index.search(encoder.image(views), min(PROPOSED, len(index)))
    names = sorted({name for ids in found for name in ids})
    others = [corpus.image(name) for name in names]
    correlation = torch.stack([window_correlations(view, others) for view in views]).amax(0)
    return {name for name, value in zip(names, correlation.tolist(), strict=True) if value >= DETAIL}


def window_correlations(x: Tensor, others: Sequence[Tensor]) -> Tensor:
    """(N,) how well x fits as a window into each other picture, or that into x, over all places and SCALES: the largest
    correlation coefficient of the detail at 16x16 where that of the grey levels is at least CORRELATION; -1 where it never is.
    """
    x, several = at_64(x), torch.cat([at_64(other) for other in others])
    best = torch.full((len(others),), -1.0)
    for scale in SCALES:
        side = round(SIDE / scale)
        here = matches(shrunk(several, side), shrunk(x, SIDE))[:, 0]  # x as a window of the others
        there = matches(shrunk(x, side), shrunk(several, SIDE))[0]  # the others as windows of x
        best = torch.maximum(best, torch.maximum(here, there))
    return best


def matches(wholes: Tensor, windows: Tensor) -> Tensor:
    """(B, A) correlation of detail of each of (A, 3, s, s) windows with its best place in each of (B, 3, n, n) wholes."""
    alike = correlations(wholes, windows) >= CORRELATION
    detail = correlations(detail_of(wholes), detail_of(windows))
    return detail.where(alike, -1).amax((2, 3))


def detail_of(batch: Tensor) -> Tensor:
    """Less its 5x5 surroundings: two skies or two walls have the same shading, but not the same detail."""
    around = functional.avg_pool2d(functional.pad(batch, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return batch - around


def at_64(x: Tensor) -> Tensor:
    """(1, 3, 64, 64) of (3, H, W), antialiased: from here on, sizes do not matter."""
    return functional.interpolate(x[None], (64, 64), mode="bilinear", antialias=True)


def shrunk(batch: Tensor, side: int) -> Tensor:
    """(B, 3, side, side), antialiased."""
    return functional.interpolate(batch, (side, side), mode="bilinear", antialias=True)


def correlations(wholes: Tensor, windows: Tensor) -> Tensor:
    """(B, A, m, m) correlation coefficients of (A, 3, s, s) windows with all m = n - s + 1 places of (B, 3, n, n) wholes, in
    [-1, 1]. Flat ones correlate with nothing."""
    size = windows[0].numel()
    windows = windows - windows.mean((1, 2, 3), keepdim=True)
    ones = torch.ones_like(windows[:1])
    mean = functional.conv2d(wholes, ones) / size
    variance = functional.conv2d(wholes**2, ones) - size * mean**2
    length = windows.flatten(1).norm(dim=1)[None, :, None, None]
    # 1 grey level of 255 as the least spread: rounding noise in a flat window would correlate by chance
    least = size**0.5 / 127.5
    products = functional.conv2d(wholes, windows)
    return products / (length.clamp_min(least) * variance.clamp_min(least**2).sqrt())
