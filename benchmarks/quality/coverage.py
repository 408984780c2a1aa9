"""How often nominal 95 % intervals of a mean hold the true mean: ours beside Student's t and the BCa bootstrap.

Differences between two modes are few (3 to 50 pictures) and neither normal nor symmetric, so the interval of the leaderboard
(adir.harness.tables.statistics.mean_interval) was chosen by this. The rivals are vectorised over the samples; BCa is compared
with scipy's on one sample before it is used.

Run: python benchmarks/quality/coverage.py [--samples 2000] [--out results/quality/coverage.md]; under a minute on one core.
"""

import argparse
import math
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import stats

from adir.files import write_bytes
from adir.harness.tables.statistics import N_RESAMPLES, mean_interval, resamples, studentised

Floats = NDArray[np.float64]
SIZES = (3, 4, 5, 6, 8, 10, 12, 16, 30, 50)
POPULATIONS: dict[str, tuple[float, Callable[[np.random.Generator, tuple[int, int]], Floats]]] = {
    "normal": (0.0, lambda rng, shape: rng.normal(size=shape)),
    "gamma, shape 2": (2.0, lambda rng, shape: rng.gamma(2.0, size=shape)),
    "t, 3 degrees": (0.0, lambda rng, shape: rng.standard_t(3, size=shape)),
    "difference of two gammas": (0.0, lambda rng, shape: rng.gamma(2.0, size=shape) - rng.gamma(2.0, size=shape)),
}
"""name: (true mean, samples of a shape (n_samples, n))."""


def ours(x: Floats) -> Floats:
    """(2, n_samples): the leaderboard's intervals of samples (n_samples, n); infinite where it gives none."""
    return np.array([mean_interval(row) or (-math.inf, math.inf) for row in x]).T


def student(x: Floats) -> Floats:
    """(2, n_samples): Student's t."""
    n = x.shape[1]
    reach = stats.t.ppf(0.975, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    return np.array([x.mean(1) - reach, x.mean(1) + reach])


def bca(x: Floats) -> Floats:
    """(2, n_samples): bias-corrected accelerated bootstrap (Efron, 1987), the same resamples for every sample."""
    n = x.shape[1]
    means = np.sort(x @ resamples(n).T, axis=1)
    observed = x.mean(1, keepdims=True)
    below = ((means < observed).mean(1) + (means <= observed).mean(1)) / 2
    shift = stats.norm.ppf(below)
    centred = (x - observed) / (n - 1)  # of the leave-one-out means, up to sign
    acceleration = (centred**3).sum(1) / (6 * (centred**2).sum(1) ** 1.5)
    ends = []
    for z in stats.norm.ppf((0.025, 0.975)):
        level = stats.norm.cdf(shift + (shift + z) / (1 - acceleration * (shift + z)))
        place = np.clip(level * N_RESAMPLES, 0, N_RESAMPLES - 1).astype(int)
        ends.append(means[np.arange(len(x)), place])
    return np.array(ends)


def bootstrap_t(x: Floats) -> Floats:
    """(2, n_samples): bootstrap-t with equal tails at every n."""
    ends = []
    for row in x:
        error = row.std(ddof=1) / math.sqrt(len(row))
        t = np.quantile(studentised(row - row.mean()), (0.975, 0.025), method="inverted_cdf")
        ends.append(row.mean() - t * error)
    return np.array(ends).T


METHODS: dict[str, Callable[[Floats], Floats]] = {
    "ours": ours,
    "Student": student,
    "bootstrap-t, equal tails": bootstrap_t,
    "BCa": bca,
}


def require_scipys_bca() -> None:
    """Raise AssertionError unless `bca` is scipy's BCa, up to the resampling error."""
    x = np.random.default_rng(0).gamma(2.0, size=16)
    peer = stats.bootstrap((x,), np.mean, n_resamples=50_000, method="BCa", rng=np.random.default_rng(1))
    low, high = bca(x[None])[:, 0]
    width = peer.confidence_interval.high - peer.confidence_interval.low
    assert abs(low - peer.confidence_interval.low) < 0.03 * width, (low, peer.confidence_interval)
    assert abs(high - peer.confidence_interval.high) < 0.03 * width, (high, peer.confidence_interval)


def measure(n_samples: int) -> dict[tuple[str, int, str], tuple[float, float]]:
    """(population, n, method): (share of the intervals that hold the true mean, their median width over Student's)."""
    found = {}
    for number, (name, (truth, draw)) in enumerate(POPULATIONS.items()):
        for n in SIZES:
            x = draw(np.random.default_rng([number, n]), (n_samples, n))
            widths = {}
            for method, interval in METHODS.items():
                if method.startswith("bootstrap-t") and n < 4:
                    continue  # 1 of 9 resamples of three has no spread: there is no 2.5 % point
                low, high = interval(x)
                widths[method] = float(np.median(high - low))
                found[name, n, method] = (float(np.mean((low <= truth) & (truth <= high))), widths[method])
            for method, width in widths.items():
                found[name, n, method] = (found[name, n, method][0], width / widths["Student"])
    return found


def report(n_samples: int) -> str:
    """The study as Markdown."""
    found = measure(n_samples)
    error = 100 * math.sqrt(0.95 * 0.05 / n_samples)
    lines = [
        "# What the intervals cover",
        "",
        f"Share (%) of {n_samples} samples of n values whose nominal 95 % interval holds the true mean, and in brackets the",
        f"median width over that of Student's t. A true 95 % reads with a standard error of {error:.1f}. Wanted: 93 to 97.",
    ]
    for name in POPULATIONS:
        lines += ["", f"## {name}", "", "| n | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
        for n in SIZES:
            texts = []
            for method in METHODS:
                value = found.get((name, n, method))
                texts.append("–" if value is None else f"{100 * value[0]:.1f} ({value[1]:.2f})")
            lines.append(f"| {n} | " + " | ".join(texts) + " |")
    lines += [
        "",
        f"`python benchmarks/quality/coverage.py --samples {n_samples}`, {date.today().isoformat()}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, Python {platform.python_version()}. docs/statistics.md says what follows from it.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the study, or write it to a file."""
    arguments = argparse.ArgumentParser(description="Coverage of the leaderboard's intervals and of others.")
    arguments.add_argument("--samples", type=int, default=2000)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    require_scipys_bca()
    text = report(given.samples)
    if given.out is not None:
        write_bytes(given.out, text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
