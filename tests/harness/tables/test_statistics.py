"""Means that stay missing, intervals that hold what they promise, tests against scipy and
statsmodels.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from adir.harness.tables.statistics import (
    EXACT_UP_TO,
    FEWEST_TO_TELL_APART,
    N_RESAMPLES,
    holm,
    mean_interval,
    mean_over_images,
    paired_difference,
    signed_rank_p,
)


def test_mean_and_standard_error_by_hand() -> None:
    # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, over n - 1 = 2, over n = 3.
    found = mean_over_images([1.0, 2.0, 6.0])
    assert (found.value, found.n) == (3.0, 3)
    assert found.standard_error == pytest.approx(math.sqrt(14 / 2 / 3))


def test_a_mean_of_which_anything_is_missing_is_missing() -> None:
    assert mean_over_images([1.0, None, 3.0]) == mean_over_images([1.0, 3.0, None])
    found = mean_over_images([1.0, None, 3.0])
    assert (found.value, found.standard_error, found.n) == (None, None, 2)
    assert mean_over_images([]).value is None


def test_one_image_has_a_mean_and_no_standard_error_and_zero_is_a_value() -> None:
    assert (mean_over_images([0.0]).value, mean_over_images([0.0]).standard_error) == (0.0, None)


def test_the_paired_difference_is_over_the_shared_images_whatever_their_order_and_names_the_rest() -> (
    None
):
    a: dict[str, float | None] = {"b": 3.0, "a": 1.0, "only a": 9.0, "none in b": 4.0}
    found = paired_difference(a, {"none in b": None, "a": 0.5, "b": 1.0, "only b": 9.0}, {})
    assert found is not None and (found.mean, found.n) == (pytest.approx((0.5 + 2.0) / 2), 2)
    assert found.low is None and found.high is None
    assert found.dropped == ("none in b", "only a", "only b")
    assert paired_difference({"a": 1.0}, {"b": 1.0}, {}) is None
    forwards = paired_difference({"a": 1.0, "b": 5.0, "c": 2.0}, dict.fromkeys("abc", 0.0), {})
    assert forwards == paired_difference(
        {"c": 2.0, "b": 5.0, "a": 1.0}, dict.fromkeys("cab", 0.0), {}
    )


def test_equal_differences_and_two_images_have_no_interval() -> None:
    assert mean_interval([1.0] * 12) is None
    assert mean_interval([1.0, 2.0]) is None and mean_interval([1.0, 2.0, 4.0]) is not None
    # Of six, five equal: a third of the resamples have no spread at all, so no t bounds the mean on
    # that side.
    assert mean_interval([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]) is None


@pytest.mark.parametrize("n", [3, 4])
def test_few_images_have_students_interval(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    low, high = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert mean_interval(x) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("n", [5, 9, 10, 24])
def test_the_interval_is_a_bootstrap_t_by_scipys_resampling(n: int) -> None:
    """The t statistics of resamples that scipy draws, as in Efron and Tibshirani (1993), eq. 12.22;
    other random numbers.
    """
    x = np.random.default_rng(3).gamma(2.0, size=n)
    mean, error = x.mean(), x.std(ddof=1) / math.sqrt(n)

    def t_of(sample: np.ndarray, axis: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (sample.mean(axis) - mean) / (sample.std(axis, ddof=1) / math.sqrt(n))

    with np.errstate(
        invalid="ignore"
    ):  # scipy takes a standard deviation of them, the infinite ones too
        resampled = stats.bootstrap(
            (x,), t_of, n_resamples=40_000, method="percentile", rng=np.random.default_rng(9)
        )
    t = resampled.bootstrap_distribution
    left, right = (
        (np.quantile(t, (0.025, 0.975)))
        if n < 10
        else (np.quantile(np.abs(t), 0.95) * np.array([-1, 1]))
    )
    found = mean_interval(x)
    assert found is not None
    width = found[1] - found[0]
    assert found[0] == pytest.approx(mean - right * error, abs=0.04 * width)
    assert found[1] == pytest.approx(mean - left * error, abs=0.04 * width)


def test_the_interval_moves_and_scales_with_the_values() -> None:
    x = np.random.default_rng(4).gamma(2.0, size=7)
    low, high = mean_interval(x) or (math.nan, math.nan)
    assert mean_interval(3 * x + 5) == (pytest.approx(3 * low + 5), pytest.approx(3 * high + 5))
    assert mean_interval(-x) == (
        pytest.approx(-high, rel=0.15),
        pytest.approx(-low, rel=0.15),
    )  # other tails of one draw


@pytest.mark.parametrize("n", [3, 6, 10, 30])
@pytest.mark.parametrize("population", ["normal", "skewed", "heavy tails"])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(population: str, n: int) -> None:
    # 1,000 samples: a proportion of 0.95 then has a standard error of 0.007; three of them around
    # 93 to 97 %. Student's t of 3 skewed values is known to cover 92 % (docs/statistics.md).
    rng = np.random.default_rng(n)
    draw = {
        "normal": lambda: rng.normal(size=n),
        "skewed": lambda: rng.gamma(2.0, size=n) - 2,
        "heavy tails": lambda: rng.standard_t(3, size=n),
    }[population]
    covered = 0
    for _ in range(1000):
        low, high = mean_interval(draw()) or (math.nan, math.nan)
        covered += low <= 0 <= high
    lowest = 0.92 if (population, n) == ("skewed", 3) else 0.93
    assert lowest - 0.02 <= covered / 1000 <= 0.97 + 0.02


@pytest.mark.parametrize("n", [1, 5, 6, 12, 40])
def test_the_signed_rank_p_is_scipys_exact_one(n: int) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, size=n)
    assert signed_rank_p(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)


@pytest.mark.parametrize(
    "d", [[1, 1, 2, -1, 3], [0, 0, 1, -2, 2, 3, 5], [-1, -1, -1, -1, -1, -1], [1, -1]]
)
def test_with_ties_and_zeros_the_p_is_that_of_all_assignments_of_signs(d: list[float]) -> None:
    x = np.array([value for value in d if value != 0], dtype=float)
    ranks = stats.rankdata(np.abs(x))
    # By hand: all 2^n sign patterns are equally likely; as far or farther from the middle than what
    # was found.
    middle = ranks.sum() / 2
    sums = [float((ranks * np.array(s)).sum()) for s in itertools.product((0, 1), repeat=len(x))]
    far = abs(ranks[x > 0].sum() - middle)
    assert signed_rank_p(d) == pytest.approx(np.mean([abs(s - middle) >= far - 1e-9 for s in sums]))


def test_many_images_have_scipys_normal_p_and_the_exact_one_runs_into_it() -> None:
    d = np.random.default_rng(1).normal(0.1, 1, size=EXACT_UP_TO + 20).round(1)  # ties
    d = d[d != 0]
    assert len(d) > EXACT_UP_TO
    assert signed_rank_p(d) == pytest.approx(
        stats.wilcoxon(d, method="asymptotic", correction=False).pvalue
    )
    d = d[:EXACT_UP_TO]
    assert signed_rank_p(d) == pytest.approx(
        stats.wilcoxon(d, method="asymptotic", correction=True).pvalue, abs=2e-3
    )


def test_all_zero_differences_are_no_evidence_and_below_six_images_nothing_is() -> None:
    assert signed_rank_p([0.0, 0.0]) == 1.0
    lowest = [
        signed_rank_p(list(range(1, n + 1))) for n in range(1, 8)
    ]  # all positive: the most there can be
    assert lowest == [pytest.approx(2 / 2**n) for n in range(1, 8)]
    assert [p < 0.05 for p in lowest].index(True) + 1 == FEWEST_TO_TELL_APART


@pytest.mark.parametrize(
    "p", [[], [0.3], [0.01, 0.04, 0.03, 0.005], [0.5, 0.6, 0.9, 1.0], [0.01] * 5]
)
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]) if p else [])


def test_a_tenth_of_a_percent_of_the_resamples_is_whole() -> None:
    # The places of the 2.5 and 97.5 % points are whole numbers: (9999 + 1) * 0.025 = 250.
    assert (N_RESAMPLES + 1) * 0.025 == 250
