"""Means, paired differences, their intervals and tests.

Clusters of images, such as fields of one photograph, are the unit: seeds are averaged within an
image first, then images within a cluster. Most images are clusters of their own.

docs/statistics.md says why these and not others; benchmarks/quality/coverage.py measures what the
intervals cover. Only scipy.special is imported: scipy.stats costs 0.6 s at every `adir
leaderboard`; the tests hold its answers against these.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Below this adjusted p two rows are said to differ."""
TAIL = 0.05
"""Chance of the true difference on either side of its interval, which so is one of 90 %: verdicts
look at one end each.
"""
POWER = 0.8
FEWEST_IMAGES = 3
"""Clusters below which a mean gets no interval: Student's t for two is 18 standard errors wide."""
FEWEST_TO_TELL_APART = 6
"""Clusters below which no two-sided signed rank test can give p < 0.05: its lowest p is 2 / 2^n,
0.063 for n = 5.
"""
STUDENT_BELOW = 5
SYMMETRIC_FROM = 10
N_RESAMPLES = 9999
EXACT_UP_TO = 100
"""Nonzero differences up to which the signed rank distribution is enumerated; above, the normal one
is within 1e-3.
"""


@dataclass(frozen=True)
class Estimate:
    """A mean over clusters. value and standard_error are None where something is missing, never the
    mean of the rest.
    """

    value: float | None
    standard_error: float | None
    """Standard deviation (n - 1) over the square root of n; None for a single cluster."""
    n: int
    """Clusters that have a value."""


def cluster_means(
    values: Mapping[str, float | None], clusters: Mapping[str, str]
) -> dict[str, float | None]:
    """{cluster: mean over its images} of {image: value}; None where an image of it has none.

    clusters: {image: cluster}; an image that is not in it is a cluster of its own.
    """
    of_cluster: dict[str, list[float | None]] = {}
    for image in sorted(values):
        of_cluster.setdefault(clusters.get(image, image), []).append(values[image])
    return {name: mean_over_images(found).value for name, found in of_cluster.items()}


def mean_over_images(values: list[float | None]) -> Estimate:
    """The mean of one value per cluster (or image, or seed); missing if any is."""
    present = [value for value in values if value is not None]
    n = len(present)
    if n == 0 or n < len(values):
        return Estimate(None, None, n)
    error = float(np.std(present, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(np.mean(present)), error, n)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over the clusters of the images that have both, with its 90 % interval and its
    test.
    """

    mean: float
    low: float | None
    high: float | None
    """Ends of `difference_interval`; both None where there is none."""
    n: int
    """Clusters."""
    standard_error: float = math.nan
    reference: float = math.nan
    """Mean of b over the same clusters."""
    p: float | None = None
    """Wilcoxon signed rank, two-sided."""
    p_holm: float | None = None
    """The same after Holm's correction over all differences to none of the table; set by the table.
    """
    dropped: tuple[str, ...] = ()
    """Images that one of the two lacks: they count in neither."""

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below ALPHA."""
        return self.p_holm is not None and self.p_holm < ALPHA


def paired_difference(
    a: Mapping[str, float | None], b: Mapping[str, float | None], clusters: Mapping[str, str]
) -> PairedDifference | None:
    """a - b over the images that have a value in both ({image: value}), averaged within clusters;
    None when there are none.
    """
    shared = [
        image
        for image in sorted(a.keys() & b.keys())
        if a[image] is not None and b[image] is not None
    ]
    if not shared:
        return None
    dropped = tuple(sorted((a.keys() | b.keys()) - set(shared)))
    by_image = {image: a[image] - b[image] for image in shared}  # type: ignore[operator]
    differences = np.array(list(cluster_means(by_image, clusters).values()), dtype=np.float64)
    reference = mean_over_images(
        list(cluster_means({image: b[image] for image in shared}, clusters).values())
    )
    assert reference.value is not None  # of the shared ones
    n = len(differences)
    low, high = difference_interval(differences) or (None, None)
    error = float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    p = signed_rank_p(differences)
    return PairedDifference(
        float(differences.mean()), low, high, n, error, reference.value, p, None, dropped
    )


def difference_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """90 % interval of the mean of the population that paired differences (n,) were drawn from, 5 %
    on either side.

    n < 5: Student's t. Else bootstrap-t with equal tails (Efron, 1981): of the usual intervals the
    one whose worse side errs least on skewed populations, and the only one that holds where most
    differences are 0 (results/quality/coverage.md). An end is infinite where that many resamples
    have no spread; where all values are equal, both ends are that value.

    None below FEWEST_IMAGES, where both ends are infinite, and where fewer than
    FEWEST_TO_TELL_APART are all equal.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < FEWEST_IMAGES:
        return None
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(n))
    if np.ptp(x) == 0:
        return (float(x[0]), float(x[0])) if n >= FEWEST_TO_TELL_APART else None
    if n < STUDENT_BELOW:
        reach = float(stdtrit(n - 1, 1 - TAIL)) * error
        return mean - reach, mean + reach
    low, high = equal_tails(x, TAIL)
    return None if math.isinf(low) and math.isinf(high) else (low, high)


def least_difference(reach: float, standard_error: float, n: int) -> float:
    """The true gain whose interval would lie above 0 with chance POWER, in samples of n with this
    spread.

    reach: from the mean down to the lower end of the interval.  Exact for Student's interval of
        normal differences, up to
    the t quantile that stands in for the noncentral one (under 2 % from n = 6); simulated in
    results/quality/coverage.md.
    """
    return reach + float(stdtrit(n - 1, POWER)) * standard_error


def mean_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """95 % interval of the mean of the population that `values` (n,) were drawn from.

    n < 5: Student's t. n < 10: bootstrap-t with equal tails (Efron, 1981). Else: bootstrap-t with
    symmetric tails (Hall, 1988). Of 2,000 simulated samples each, with 5 to 50 values, these cover
    93.8 to 96.4 % (normal), 93.0 to 95.0 % (gamma of shape 2) and 92.8 to 97.5 % (t with 3 degrees
    of freedom), all ±0.5; with 3 and 4, 94 to 95, 92 to 93 and 96 %. BCa, which is usual, covers
    85, 82 and 83 % at 5 and 90, 89 and 87 % at 10 (results/quality/coverage.md). Fixed resamples,
    so the same values have the same interval everywhere.

    None below FEWEST_IMAGES; None where all values are equal, or so many that a tail of the
    resamples has no spread.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < FEWEST_IMAGES or np.ptp(x) == 0:
        return None
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(n))
    if n < STUDENT_BELOW:
        reach = float(stdtrit(n - 1, 1 - ALPHA / 2)) * error
        return mean - reach, mean + reach
    if n < SYMMETRIC_FROM:
        low, high = equal_tails(x, ALPHA / 2)
    else:
        place = round((N_RESAMPLES + 1) * (1 - ALPHA)) - 1
        reach = float(np.partition(np.abs(studentised(x - mean)), place)[place]) * error
        low, high = mean - reach, mean + reach
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def equal_tails(x: Floats, tail: float) -> tuple[float, float]:
    """Bootstrap-t interval of the mean of values (n,), with the chance `tail` on either side; an
    end may be infinite.
    """
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))
    place = round((N_RESAMPLES + 1) * tail) - 1
    t = np.partition(studentised(x - mean), (place, N_RESAMPLES - 1 - place))
    return mean - float(t[N_RESAMPLES - 1 - place]) * error, mean - float(t[place]) * error


def studentised(centred: Floats) -> Floats:
    """(N_RESAMPLES,) t statistics of bootstrap resamples of values (n,) whose mean is 0; ±inf where
    one has no spread.
    """
    n = len(centred)
    weights = resamples(n)
    # einsum and not @: the sums then have one order, whatever the BLAS and its threads
    means = np.einsum("rn,n->r", weights, centred)
    variances = (np.einsum("rn,n->r", weights, centred**2) - means**2) / (n - 1)
    flat = variances <= 1e-12 * float(np.max(centred**2))
    t = means / np.sqrt(np.where(flat, 1.0, variances))
    return np.where(flat & (means != 0), np.copysign(np.inf, means), t)


@functools.lru_cache(maxsize=8)
def resamples(n: int) -> Floats:
    """(N_RESAMPLES, n): how often each of n images is drawn in a bootstrap resample, over n."""
    return np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n


def signed_rank_p(differences: Sequence[float] | Floats) -> float:
    """Two-sided p of Wilcoxon's signed rank test (1945) that differences (n,) lie symmetrically
    about 0.

    Zero differences are dropped, as Wilcoxon did; ties share the mean of their ranks. Exact, ties
    included, up to EXACT_UP_TO nonzero differences: over all 2^n assignments of signs to these
    ranks. 1 where all differences are zero.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    ranks = doubled_ranks(np.abs(d))
    total = int(ranks.sum())
    positive = int(ranks[d > 0].sum())
    smaller = min(positive, total - positive)
    if len(d) <= EXACT_UP_TO:
        return min(1.0, 2 * float(sign_distribution(tuple(np.sort(ranks).tolist()))[smaller]))
    return min(
        1.0,
        2
        * float(
            ndtr((smaller - total / 2) / (math.sqrt(float((ranks.astype(float) ** 2).sum())) / 2))
        ),
    )


def doubled_ranks(x: Floats) -> NDArray[np.int64]:
    """Twice the rank of each value (n,), 1 the smallest; equal values share the mean rank, so twice
    it is whole.
    """
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (2 * last - count + 1)[place]


@functools.lru_cache(maxsize=1024)
def sign_distribution(ranks: tuple[int, ...]) -> Floats:
    """(sum of ranks + 1,): the probability that ranks with random signs give a positive sum of at
    most 0, 1, 2, ...
    """
    chances = np.zeros(sum(ranks) + 1)
    chances[0] = 1
    for rank in ranks:
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[:-rank]
        chances = (chances + shifted) / 2
    return np.cumsum(chances)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm, 1979), in the given order: below ALPHA holds for any false one with
    chance at most ALPHA.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for done, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - done) * p[place]))
        adjusted[place] = highest
    return adjusted
