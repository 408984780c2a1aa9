"""Means and paired differences, with their intervals and tests.

All statistics are over clusters of images, such as the fields of one photograph. Seeds are averaged
within an image first, then images within a cluster. Most images are their own cluster.

docs/statistics.md explains the choice of methods. benchmarks/quality/coverage.py measures the
coverage of the intervals. Only scipy.special is imported, because scipy.stats would add 0.6 s to
every `adir leaderboard`. The tests compare these functions with scipy.stats.
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
"""The significance level: two rows differ if their adjusted p is below this value."""
TAIL = 0.05
"""The probability that the true difference lies beyond one given end of its interval.

The interval is therefore a 90 % interval. The verdicts `better` and `not worse` depend on its lower
end alone.
"""
POWER = 0.8
FEWEST_IMAGES = 3
"""The number of clusters below which a mean gets no interval.

For two clusters, the 95 % interval by Student's t is 25 standard errors wide.
"""
FEWEST_TO_TELL_APART = 6
"""The number of clusters below which no two-sided signed rank test can give p < 0.05.

The lowest possible p is 2 / 2^n, which is 0.063 for n = 5.
"""
STUDENT_BELOW = 5
SYMMETRIC_FROM = 10
N_RESAMPLES = 9999
EXACT_UP_TO = 100
"""The largest number of nonzero differences with an exact signed rank distribution.

For larger numbers, the normal approximation is within 1e-3.
"""


@dataclass(frozen=True)
class Estimate:
    """Mean over clusters, with its standard error.

    Both are None if any cluster has no value. The mean of the other clusters is never given
    instead.
    """

    value: float | None
    standard_error: float | None
    """The standard deviation (n - 1) over the square root of n; None for a single cluster."""
    n: int
    """The number of clusters that have a value."""


def cluster_means(
    values: Mapping[str, float | None], clusters: Mapping[str, str]
) -> dict[str, float | None]:
    """Return {cluster: mean over its images}.

    The mean of a cluster is None if any of its images has no value.

    Args:
        values: {image: value}.
        clusters: {image: cluster}; an image without an entry is its own cluster.
    """
    of_cluster: dict[str, list[float | None]] = {}
    for image in sorted(values):
        of_cluster.setdefault(clusters.get(image, image), []).append(values[image])
    return {
        name: found[0] if len(found) == 1 else mean_over_images(found).value
        for name, found in of_cluster.items()
    }


def mean_over_images(values: list[float | None]) -> Estimate:
    """Return the mean of values, one per cluster (or image, or seed), and its standard error.

    The mean is missing if any value is missing (None).
    """
    present = [value for value in values if value is not None]
    n = len(present)
    if n == 0 or n < len(values):
        return Estimate(None, None, n)
    error = float(np.std(present, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(np.mean(present)), error, n)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over clusters, with its 90 % interval and its test.

    a and b are the scores of a row and of its reference row. Only images with a value in both
    count.
    """

    mean: float
    low: float | None
    high: float | None
    """The upper end of `difference_interval`; low and high are None without an interval."""
    n: int
    """The number of clusters."""
    standard_error: float = math.nan
    reference: float = math.nan
    """The mean of b over the same clusters."""
    p: float = math.nan
    """The two-sided p of Wilcoxon's signed rank test."""
    p_holm: float | None = None
    """The p after Holm's correction over all differences to the reference in the table.

    `with_holm` sets it.
    """
    dropped: tuple[str, ...] = ()
    """The images without a value in a or in b; they do not count in either."""

    @property
    def significant(self) -> bool:
        """True if the corrected p is below ALPHA."""
        return self.p_holm is not None and self.p_holm < ALPHA


def paired_difference(
    a: Mapping[str, float | None], b: Mapping[str, float | None], clusters: Mapping[str, str]
) -> PairedDifference | None:
    """Return the mean of a - b over clusters; None if no image has a value in both.

    Args:
        a: {image: value}.
        b: {image: value} of the reference.
        clusters: {image: cluster}; an image without an entry is its own cluster.
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
    assert reference.value is not None  # because all shared images have a value
    n = len(differences)
    low, high = difference_interval(differences) or (None, None)
    error = float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    p = signed_rank_p(differences)
    return PairedDifference(
        float(differences.mean()), low, high, n, error, reference.value, p, None, dropped
    )


def difference_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """Return the 90 % interval of the population mean of paired differences (n,).

    Each side leaves out 5 %. For n < 5, the interval is Student's t. For larger n, it is the
    bootstrap-t with equal tails (Efron, 1981).

    Simulations led to the bootstrap-t with equal tails (results/quality/coverage.md). If the
    population is skewed, one end of an interval errs more often than the other. With equal tails,
    this worse end errs less often than with Student's t or with symmetric tails. If most
    differences are 0 and the others are losses, only equal tails keep the error of the lower end at
    about 5 %.

    An end is infinite if 5 % of the resamples have no spread. If all values are equal, both ends
    equal that value.

    Return None for n < FEWEST_IMAGES, if both ends are infinite, or if all values are equal and n
    is below FEWEST_TO_TELL_APART.
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
    """Return the true gain whose interval would lie above 0 with probability POWER.

    Samples are assumed to have n clusters and the same spread as the measured sample. For Student's
    interval of normal differences, the formula makes one approximation: a t quantile replaces the
    noncentral one (an error under 2 % from n = 6). results/quality/coverage.md checks the gain by
    simulation.

    Args:
        reach: distance from the mean down to the lower end of the interval.
        standard_error: standard error of the mean.
        n: number of clusters.
    """
    return reach + float(stdtrit(n - 1, POWER)) * standard_error


def mean_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """Return the 95 % interval of the population mean of `values` (n,).

    For n < 5, the interval is Student's t. For n < 10, it is the bootstrap-t with equal tails
    (Efron, 1981), and for larger n the bootstrap-t with symmetric tails (Hall, 1988). The
    resamples are fixed, so the same values always give the same interval.

    The table shows the coverage in % (±0.5) over 2,000 simulated samples, first of this interval,
    then of BCa, the usual bootstrap interval (results/quality/coverage.md).

          population            n = 3, 4    n = 5 to 50     BCa, n = 5    BCa, n = 10
          normal                94 to 95    93.8 to 96.4    85            90
          gamma of shape 2      92 to 93    93.0 to 95.0    82            89
          t, 3 deg. of freedom  96          92.8 to 97.5    83            87

    Return None for n < FEWEST_IMAGES, if all values are equal, or if too many resamples have no
    spread.
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
    """Return the bootstrap-t interval of the mean of values (n,); an end may be infinite.

    The probability beyond each end is `tail`.
    """
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))
    place = round((N_RESAMPLES + 1) * tail) - 1
    t = np.partition(studentised(x - mean), (place, N_RESAMPLES - 1 - place))
    return mean - float(t[N_RESAMPLES - 1 - place]) * error, mean - float(t[place]) * error


def studentised(centred: Floats) -> Floats:
    """Return the t statistics (N_RESAMPLES,) of bootstrap resamples of values (n,) with mean 0.

    A resample without spread gives ±inf, or 0 if its mean is 0.
    """
    n = len(centred)
    weights = resamples(n)
    # einsum, not @: the order of its sums does not depend on the BLAS or its threads
    means = np.einsum("rn,n->r", weights, centred)
    variances = (np.einsum("rn,n->r", weights, centred**2) - means**2) / (n - 1)
    flat = variances <= 1e-12 * float(np.max(centred**2))
    t = means / np.sqrt(np.where(flat, 1.0, variances))
    return np.where(flat & (means != 0), np.copysign(np.inf, means), t)


@functools.lru_cache(maxsize=8)
def resamples(n: int) -> Floats:
    """Return the weights (N_RESAMPLES, n) of bootstrap resamples of n images.

    A weight is the number of times that an image is drawn, divided by n. The random generator is
    seeded with n, so the weights depend on n alone.
    """
    return np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n


def signed_rank_p(differences: Sequence[float] | Floats) -> float:
    """Return the two-sided p of Wilcoxon's signed rank test (1945) for differences (n,).

    The null hypothesis is that the differences are distributed symmetrically about 0. Zero
    differences are dropped, as Wilcoxon did, and ties share the mean of their ranks. Up to
    EXACT_UP_TO nonzero differences, p is exact, even with ties: it covers all 2^n assignments of
    signs to the ranks. p is 1 if all differences are zero.
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
    """Return twice the rank of each value (n,); the smallest value has rank 1.

    Equal values share their mean rank, so twice the rank is always an integer.
    """
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (2 * last - count + 1)[place]


@functools.lru_cache(maxsize=1024)
def sign_distribution(ranks: tuple[int, ...]) -> Floats:
    """Return the distribution function of the sum of positive ranks if signs are random.

    The array has shape (sum of ranks + 1,). Entry s is the probability that the sum of positive
    ranks is at most s.
    """
    chances = np.zeros(sum(ranks) + 1)
    chances[0] = 1
    for rank in ranks:
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[:-rank]
        chances = (chances + shifted) / 2
    return np.cumsum(chances)


def holm(p: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm's method (1979), in the given order.

    The probability that any true null hypothesis gets an adjusted p below ALPHA is at most ALPHA.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for done, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - done) * p[place]))
        adjusted[place] = highest
    return adjusted
