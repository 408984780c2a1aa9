"""Means that stay missing, and intervals that hold what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from adir.harness.statistics import mean_over_pictures, paired_difference


def test_mean_and_standard_error_by_hand() -> None:
    # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, over n - 1 = 2, over n = 3.
    found = mean_over_pictures([1.0, 2.0, 6.0])
    assert (found.value, found.n) == (3.0, 3)
    assert found.standard_error == pytest.approx(math.sqrt(14 / 2 / 3))


def test_a_mean_of_which_anything_is_missing_is_missing() -> None:
    assert mean_over_pictures([1.0, None, 3.0]) == mean_over_pictures([1.0, 3.0, None])
    found = mean_over_pictures([1.0, None, 3.0])
    assert (found.value, found.standard_error, found.n) == (None, None, 2)
    assert mean_over_pictures([]).value is None


def test_one_picture_has_a_mean_and_no_standard_error_and_zero_is_a_value() -> None:
    assert (mean_over_pictures([0.0]).value, mean_over_pictures([0.0]).standard_error) == (0.0, None)


def test_the_paired_difference_is_over_the_shared_pictures_whatever_their_order() -> None:
    found = paired_difference({"b": 3.0, "a": 1.0, "only a": 9.0}, {"a": 0.5, "b": 1.0, "only b": 9.0})
    assert found is not None and (found.mean, found.n) == (pytest.approx((0.5 + 2.0) / 2), 2)
    assert found.low is None and found.high is None
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_equal_differences_have_no_interval() -> None:
    found = paired_difference(dict.fromkeys("abcdefghijkl", 2.0), dict.fromkeys("abcdefghijkl", 1.0))
    assert found is not None and (found.mean, found.low) == (1.0, None)


def test_fewer_than_ten_pictures_have_a_difference_and_no_interval() -> None:
    for n, given in ((3, False), (9, False), (10, True), (12, True)):
        found = paired_difference({str(i): float(i * i) for i in range(n)}, {str(i): 0.0 for i in range(n)})
        assert found is not None and found.mean == pytest.approx(np.mean(np.arange(n) ** 2))
        assert ((found.low is not None), (found.high is not None)) == (given, given)


def test_the_interval_is_scipys_bca_of_the_differences() -> None:
    rng = np.random.default_rng(3)
    names = [f"{n:02}" for n in range(12)]
    a, b = rng.gamma(2.0, size=12), rng.normal(size=12)
    found = paired_difference(dict(zip(names, a, strict=True)), dict(zip(names[::-1], b[::-1], strict=True)))
    # Another seed and four times the resamples: they agree to the resampling error.
    peer = stats.bootstrap((a - b,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(9))
    width = peer.confidence_interval.high - peer.confidence_interval.low
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == pytest.approx((a - b).mean())
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.03 * width)
    backwards = dict(zip(names[::-1], a[::-1], strict=True)), dict(zip(names, b, strict=True))
    assert paired_difference(*backwards) == paired_difference(dict(sorted(backwards[0].items())), backwards[1])


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    # 30 pictures, skewed differences of mean 2: of 150 intervals, 95 % minus the known shortfall of the bootstrap.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        difference = rng.gamma(2.0, size=30)
        found = paired_difference({str(i): d for i, d in enumerate(difference)}, {str(i): 0.0 for i in range(30)})
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert 0.87 <= covered / 150 <= 0.99
