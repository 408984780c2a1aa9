"""Who leads a table, by hand-made rows."""

import pytest
from scipy import stats

from adir.harness.tables.comparisons import best_of, with_holm
from adir.harness.tables.statistics import signed_rank_p

NAMES = "abcdefghijklmnop"


def row(values: list[float]) -> dict[str, float | None]:
    return dict(zip(NAMES, values, strict=False))


def test_a_row_is_worse_only_after_the_correction_over_all_contests() -> None:
    # Six images, all in favour: p = 2 / 2^6 = 0.031, which stands alone and not beside a second
    # contest (0.062).
    contest = [row([1, 2, 3, 4, 5, 6]), row([2, 4, 6, 8, 10, 12])]
    assert signed_rank_p([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    assert best_of([contest], ["higher"]) == [[1]]
    assert best_of([contest, contest], ["higher", "higher"]) == [[0, 1], [0, 1]]
    assert best_of([contest], ["lower"]) == [[0]]


def test_a_row_that_is_better_on_most_images_is_not_called_worse_for_its_mean() -> None:
    # The leader in the mean owes it to one image; on the other 15 it is behind, which the test
    # finds significant.
    leader, other = [0.0] * 15 + [100.0], [0.1 * n + 0.1 for n in range(15)] + [0.0]
    gains = [a - b for a, b in zip(leader, other, strict=True)]
    assert sum(gains) > 0 and stats.wilcoxon(gains).pvalue < 0.05
    assert best_of([[row(leader), row(other)]], ["higher"]) == [[0, 1]]


def test_no_contest_and_no_difference_are_no_error() -> None:
    assert best_of([], []) == [] and with_holm([]) == []
