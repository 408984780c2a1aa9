"""Simulate the leaderboard's statistics: coverage of its intervals, false verdicts, and power.

A study has few images (3 to 50), and their values are neither normal nor symmetric. This simulation
was used to choose the 95 % interval of a mean (adir.harness.tables.statistics.mean_interval) and
the 90 % interval of a difference, whose ends decide the verdicts. The alternatives are vectorised
over the samples. BCa is checked against scipy's on one sample before it is used.

Run: python benchmarks/quality/coverage.py [--samples 2000] [--out results/quality/coverage.md];
    about five minutes on one core.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adir.harness.tables.statistics import (
    ALPHA,
    N_RESAMPLES,
    TAIL,
    difference_interval,
    holm,
    least_difference,
    mean_interval,
    resamples,
    signed_rank_p,
    studentised,
)
from adir.harness.tables.verdicts import WORDS, word_of
from benchmarks.common import command, made_on, parser_of, publish

Floats = NDArray[np.float64]
SIZES = (3, 4, 5, 6, 8, 10, 12, 16, 30, 50)
POPULATIONS: dict[str, tuple[float, Callable[[np.random.Generator, tuple[int, int]], Floats]]] = {
    "normal": (0.0, lambda rng, shape: rng.normal(size=shape)),
    "gamma, shape 2": (2.0, lambda rng, shape: rng.gamma(2.0, size=shape)),
    "t, 3 degrees": (0.0, lambda rng, shape: rng.standard_t(3, size=shape)),
    "difference of two gammas": (
        0.0,
        lambda rng, shape: rng.gamma(2.0, size=shape) - rng.gamma(2.0, size=shape),
    ),
}
"""{name: (true mean, function that draws samples of a shape (n_samples, n))}."""


GAINS: dict[str, tuple[float, Callable[[np.random.Generator, tuple[int, ...]], Floats]]] = {
    "normal": (0.0, lambda rng, shape: rng.normal(size=shape)),
    "t, 3 degrees": (0.0, lambda rng, shape: rng.standard_t(3, size=shape)),
    "gamma, shape 2: a few large gains": (2.0, lambda rng, shape: rng.gamma(2.0, size=shape)),
    "minus gamma: a few large losses": (-2.0, lambda rng, shape: -rng.gamma(2.0, size=shape)),
    "60 % zeros, else normal about 0.5": (
        0.2,
        lambda rng, shape: (rng.random(shape) < 0.4) * rng.normal(0.5, 1, size=shape),
    ),
    "60 % zeros, else exponential losses": (
        -0.4,
        lambda rng, shape: -1.0 * (rng.random(shape) < 0.4) * rng.exponential(size=shape),
    ),
}
"""{name: (true mean, function that draws samples of a shape)} of the gains of clusters.

Zeros stand for images whose adaptation was not accepted.
"""
GAIN_SIZES = (6, 8, 12, 16, 46)
ROWS = (1, 4, 10)


def each(interval: Callable[[Floats], tuple[float, float] | None], x: Floats) -> Floats:
    """Return the intervals (2, n_samples) that the leaderboard gives for samples (n_samples, n).

    An interval is infinite if the leaderboard gives none.
    """
    return np.array([interval(row) or (-math.inf, math.inf) for row in x]).T


def student(tail: float, x: Floats) -> Floats:
    """Return Student's intervals (2, n_samples) of samples (n_samples, n).

    tail: probability beyond each end.
    """
    n = x.shape[1]
    reach = stats.t.ppf(1 - tail, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    return np.array([x.mean(1) - reach, x.mean(1) + reach])


differences_90 = partial(each, difference_interval)
student_90 = partial(student, TAIL)


def symmetric_90(x: Floats) -> Floats:
    """Return 90 % intervals (2, n_samples) by bootstrap-t with symmetric tails (Hall, 1988)."""
    reach = []
    for row in x:
        t = np.abs(studentised(row - row.mean()))
        error = row.std(ddof=1) / math.sqrt(len(row))
        reach.append(error * np.quantile(t, 1 - 2 * TAIL, method="inverted_cdf") if error else 0.0)
    return np.array([x.mean(1) - reach, x.mean(1) + reach])


METHODS_90: dict[str, Callable[[Floats], Floats]] = {
    "ours": differences_90,
    "Student": student_90,
    "bootstrap-t, symmetric tails": symmetric_90,
}


def bca(x: Floats) -> Floats:
    """Return 95 % intervals (2, n_samples) by the BCa bootstrap (Efron, 1987).

    BCa is bias-corrected and accelerated. All samples use the same resamples.
    """
    n = x.shape[1]
    means = np.sort(x @ resamples(n).T, axis=1)
    observed = x.mean(1, keepdims=True)
    below = ((means < observed).mean(1) + (means <= observed).mean(1)) / 2
    shift = stats.norm.ppf(below)
    centred = (x - observed) / (n - 1)  # deviations of the leave-one-out means, with opposite sign
    acceleration = (centred**3).sum(1) / (6 * (centred**2).sum(1) ** 1.5)
    ends = []
    for z in stats.norm.ppf((0.025, 0.975)):
        level = stats.norm.cdf(shift + (shift + z) / (1 - acceleration * (shift + z)))
        place = np.clip(level * N_RESAMPLES, 0, N_RESAMPLES - 1).astype(int)
        ends.append(means[np.arange(len(x)), place])
    return np.array(ends)


def bootstrap_t(x: Floats) -> Floats:
    """Return 95 % intervals (2, n_samples) by bootstrap-t with equal tails at every n."""
    ends = []
    for row in x:
        error = row.std(ddof=1) / math.sqrt(len(row))
        t = np.quantile(studentised(row - row.mean()), (0.975, 0.025), method="inverted_cdf")
        ends.append(row.mean() - t * error)
    return np.array(ends).T


METHODS: dict[str, Callable[[Floats], Floats]] = {
    "ours": partial(each, mean_interval),
    "Student": partial(student, 0.025),
    "bootstrap-t, equal tails": bootstrap_t,
    "BCa": bca,
}


def require_scipys_bca() -> None:
    """Raise AssertionError unless `bca` agrees with scipy's BCa up to the resampling error."""
    x = np.random.default_rng(0).gamma(2.0, size=16)
    peer = stats.bootstrap(
        (x,), np.mean, n_resamples=50_000, method="BCa", rng=np.random.default_rng(1)
    )
    low, high = bca(x[None])[:, 0]
    width = peer.confidence_interval.high - peer.confidence_interval.low
    assert abs(low - peer.confidence_interval.low) < 0.03 * width, (low, peer.confidence_interval)
    assert abs(high - peer.confidence_interval.high) < 0.03 * width, (
        high,
        peer.confidence_interval,
    )


def measure(n_samples: int) -> dict[tuple[str, int, str], tuple[float, float]]:
    """Return {(population, n, method): (coverage, relative width)}.

    The coverage is the share of intervals that contain the true mean. The relative width is the
    median width over that of Student's intervals.
    """
    found = {}
    for number, (name, (truth, draw)) in enumerate(POPULATIONS.items()):
        for n in SIZES:
            x = draw(np.random.default_rng([number, n]), (n_samples, n))
            widths = {}
            for method, interval in METHODS.items():
                if method.startswith("bootstrap-t") and n < 4:
                    continue  # 1 of 9 resamples of three values has no spread: no 2.5 % quantile
                low, high = interval(x)
                widths[method] = float(np.median(high - low))
                found[name, n, method] = (
                    float(np.mean((low <= truth) & (truth <= high))),
                    widths[method],
                )
            for method, width in widths.items():
                found[name, n, method] = (found[name, n, method][0], width / widths["Student"])
    return found


def percent(share: float) -> str:
    """Return a share in percent, such as `4.9`."""
    return f"{100 * share:.1f}"


def table(headings: list[str], lines: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["", "| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"] + [
        "| " + " | ".join(line) + " |" for line in lines
    ]


def one_sided(n_samples: int) -> list[str]:
    """Return a section on how often each end of the 90 % intervals is on the wrong side."""
    lines = [
        "",
        "# The ends of the 90 % interval, by which verdicts are given",
        "",
        "Share (%) of samples whose lower end L lies above the true mean, and of samples whose "
        "upper end U lies below it. The",
        "nominal value of each is 5, with a standard error of "
        f"{100 * math.sqrt(0.05 * 0.95 / n_samples):.1f}.",
    ]
    for number, (name, (truth, draw)) in enumerate(GAINS.items()):
        rows = []
        for n in GAIN_SIZES:
            x = draw(np.random.default_rng([1, number, n]), (n_samples, n))
            ends = [interval(x) for interval in METHODS_90.values()]
            rows.append(
                [
                    str(n),
                    *(
                        f"{percent(np.mean(low > truth))}, {percent(np.mean(high < truth))}"
                        for low, high in ends
                    ),
                ]
            )
        lines += ["", f"## {name}", *table(["n", *METHODS_90], rows)]
    return lines


def clustered(n_samples: int) -> list[str]:
    """Return a section on the interval when images of one cluster are treated as independent."""
    lines = [
        "",
        "# Clusters",
        "",
        "Share (%) of samples whose 90 % interval contains the true mean. There are n clusters of "
        "1 to 4 images (mean 3). The",
        "cluster effects come from the population. Effects within a cluster are normal, with half "
        "the population's standard",
        "deviation.",
    ]
    rows = []
    for number, name in enumerate(("normal", "t, 3 degrees", "minus gamma: a few large losses")):
        truth, draw = GAINS[name]
        for n in GAIN_SIZES:
            rng = np.random.default_rng([2, number, n])
            sizes = rng.choice([1, 3, 4], p=[1 / 6, 1 / 2, 1 / 3], size=n)
            of_clusters = draw(rng, (n_samples, n))
            spread = float(np.std(draw(rng, (100_000,)))) / 2
            images = np.repeat(of_clusters, sizes, axis=1) + rng.normal(
                0, spread, (n_samples, int(sizes.sum()))
            )
            starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            means = np.add.reduceat(images, starts, axis=1) / sizes
            shares = [np.mean((low <= truth) & (truth <= high)) for low, high in (
                student_90(images), student_90(means), differences_90(means)
            )]  # fmt: skip
            rows.append([name, str(n), *map(percent, shares)])
    return lines + table(
        ["clusters", "n", "Student over images", "Student over clusters", "ours over clusters"],
        rows,
    )


def verdict_errors(n_samples: int) -> list[str]:
    """Return a section on verdicts: false ones without an effect, and the power with one.

    The power is that at the least detectable gain which the notes of a table give.
    """
    lines = [
        "",
        "# Verdicts",
        "",
        "Share (%) of samples with true gain 0 by verdict, with a margin of half a standard "
        "deviation. `better` and `worse` are",
        "then false. By translation, a loss of exactly the margin is overlooked as often as "
        "`better` is given. Power: share of",
        "samples called better if the true gain is the median of the least gains that a table "
        "gives (nominal: 80).",
    ]
    rows = []
    for number, (name, (truth, draw)) in enumerate(list(GAINS.items())[:4]):
        for n in GAIN_SIZES:
            x = draw(np.random.default_rng([3, number, n]), (n_samples, n)) - truth
            margin = float(np.std(draw(np.random.default_rng(0), (100_000,)))) / 2
            low, high = differences_90(x)
            errors = x.std(1, ddof=1) / math.sqrt(n)
            least = [
                least_difference(m - a, e, n)
                for m, a, e in zip(x.mean(1), low, errors, strict=True)
            ]
            words = np.array([word_of(a, b, margin) for a, b in zip(low, high, strict=True)])
            shares = [float(np.mean(words == word)) for word in WORDS]
            rows.append(
                [
                    name,
                    str(n),
                    *map(percent, shares),
                    percent(float(np.mean(low + np.median(least) > 0))),
                ]
            )
    return lines + table(["population", "n", *WORDS, "power"], rows)


def families(n_samples: int) -> list[str]:
    """Return a section on false verdicts in tables of several rows, with and without correction."""
    lines = [
        "",
        "# Several rows",
        "",
        "First columns: share (%) of tables of n rows without effect in which any row is called "
        "better, or has † (signed rank,",
        "Holm) with a positive gain. All rows are compared with one `none`, so their gains have a "
        "correlation of 0.5. Last columns:",
        "share of single rows, in a table of n, with a true gain of one standard deviation that each finds.",
    ]
    rows = []
    for n in (12, 46):
        rng = np.random.default_rng([4, n])
        for n_rows in ROWS:
            none = rng.normal(0, math.sqrt(0.5), (n_samples, 1, n))
            x = rng.normal(0, math.sqrt(0.5), (n_samples, n_rows, n)) - none
            found = []
            for gain in (0.0, 1.0):
                moved = x.copy()
                moved[:, 0] += gain  # one row has the gain
                wanted = slice(0, 1) if gain else slice(None)
                better = [
                    np.array([difference_interval(row)[0] > 0 for row in one[wanted]])
                    for one in moved
                ]
                p = [np.array(holm([signed_rank_p(row) for row in one])) for one in moved]
                daggers = [
                    (a[wanted] < ALPHA) & (one[wanted].mean(1) > 0)
                    for a, one in zip(p, moved, strict=True)
                ]
                found += [np.mean([b.any() for b in better]), np.mean([d.any() for d in daggers])]
            rows.append([str(n), str(n_rows), *map(percent, found)])
    return lines + table(
        ["n", "rows", "any better", "any †", "true gain: better", "true gain: †"], rows
    )


def report(n_samples: int) -> str:
    """Return the study as Markdown."""
    found = measure(n_samples)
    error = 100 * math.sqrt(0.95 * 0.05 / n_samples)
    lines = [
        "# What the intervals cover",
        "",
        f"Share (%) of {n_samples} samples of n values whose nominal 95 % interval contains the "
        "true mean, and in brackets the",
        "median width over that of Student's t. The standard error of a share of 95 % is "
        f"{error:.1f}. Goal: 93 to 97.",
    ]
    for name in POPULATIONS:
        values = [[found.get((name, n, method)) for method in METHODS] for n in SIZES]
        rows = [
            [str(n), *("–" if one is None else f"{percent(one[0])} ({one[1]:.2f})" for one in row)]
            for n, row in zip(SIZES, values, strict=True)
        ]
        lines += ["", f"## {name}", *table(["n", *METHODS], rows)]
    for part in (one_sided, clustered, verdict_errors, families):
        lines += part(n_samples)
    lines += [
        "",
        f"`{command(__file__)}`, {made_on('numpy', 'scipy')}. docs/statistics.md draws the "
        "conclusions.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the study, or write it to a file."""
    parser = parser_of(__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    given = parser.parse_args()
    require_scipys_bca()
    publish(report(given.samples), given.out)


if __name__ == "__main__":
    main()
