"""Means, standard errors and paired differences over pictures. Pictures are the unit: seeds are averaged within one first."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_PICTURES = 10
"""Pictures below which a difference gets no interval: see `paired_difference`."""


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures. value and standard_error are None where something is missing, never the mean of the rest."""

    value: float | None
    standard_error: float | None
    """Standard deviation (n - 1) over the square root of n; None for a single picture."""
    n: int
    """Pictures that have a value."""


def mean_over_pictures(values: list[float | None]) -> Estimate:
    """The mean of one value per picture; missing if any picture's is."""
    present = [value for value in values if value is not None]
    n = len(present)
    if n == 0 or n < len(values):
        return Estimate(None, None, n)
    error = float(np.std(present, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(np.mean(present)), error, n)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over the pictures that have both, with its 95 % interval."""

    mean: float
    low: float | None
    high: float | None
    n: int


def paired_difference(a: dict[str, float], b: dict[str, float], seed: int = 0) -> PairedDifference | None:
    """a - b over the pictures they share ({picture: value}); None when there are none.

    The interval is the bias-corrected accelerated bootstrap (Efron, 1987; scipy, 9,999 resamples from `seed`) of the mean
    over pictures. It is None when all differences are equal, where a bootstrap says nothing, and below FEWEST_PICTURES,
    where it is far from a 95 % one: 2,000 simulated samples of a normal population were covered to 73 % with 3 pictures,
    83 % with 5, 89 % with 10, 91 % with 12, 92 % with 16 and 94 % with 30 (skewed, gamma of shape 2: 71, 83, 89, 90, 90
    and 93 %).
    """
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    differences = np.array([a[picture] - b[picture] for picture in shared])
    mean = float(differences.mean())
    if len(shared) < FEWEST_PICTURES or np.ptp(differences) == 0:
        return PairedDifference(mean, None, None, len(shared))
    interval = stats.bootstrap(
        (differences,), np.mean, confidence_level=0.95, n_resamples=9999, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return PairedDifference(mean, float(interval.low), float(interval.high), len(shared))
