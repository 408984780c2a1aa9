"""Test the differences of a whole table for significance, in two families of tests.

All tests are Wilcoxon's signed rank tests, and each family has a Holm correction of its own. One
family consists of all differences to the reference rows (mode `none` or another mode). The other
family compares every row with the best row of its task, in every metric. Not all pairs of rows are
tested, because no difference would remain significant after the correction: 20 rows have 190 pairs
per metric, and the lowest p that 12 images can give is 0.0005.
"""

from dataclasses import replace

import numpy as np

from adir.harness.tables.statistics import ALPHA, PairedDifference, holm, signed_rank_p


def with_holm(differences: list[PairedDifference]) -> list[PairedDifference]:
    """Return the differences with their p corrected over all of them, `p_holm`."""
    adjusted = holm([difference.p for difference in differences])
    return [
        replace(difference, p_holm=p) for difference, p in zip(differences, adjusted, strict=True)
    ]


def best_of(
    contests: list[list[dict[str, float | None]]], directions: list[str]
) -> list[list[int]]:
    """Return the leaders of each contest: the row with the best mean and the rows tied with it.

    A contest compares rows in one metric. Its leaders are given as indices of its rows.

    A row loses to the best row if two conditions hold. First, its p of the signed rank test against
    the best row, corrected over all rows of all contests, is below ALPHA. Second, the median
    difference favours the best row, as the means do. All other rows are tied with the best row.

    Args:
        contests: the rows of each contest, at least one, as {cluster: value}. The rows of a contest
            have the same clusters and no missing value.
        directions: `higher` or `lower` (which is better), one per contest.
    """
    leaders: list[int] = []
    # (contest, row, p, whether the median difference favours the leader)
    tests: list[tuple[int, int, float, bool]] = []
    for number, (rows, direction) in enumerate(zip(contests, directions, strict=True)):
        sign = -1.0 if direction == "lower" else 1.0
        values = sign * np.array(
            [[row[name] for name in sorted(row)] for row in rows], dtype=np.float64
        )
        leaders.append(int(values.mean(1).argmax()))
        for place, d in enumerate(values[leaders[-1]] - values):
            if place != leaders[-1]:
                tests.append((number, place, signed_rank_p(d), float(np.median(d)) > 0))
    tied: list[list[int]] = [[leader] for leader in leaders]
    for (number, place, _, leans), p in zip(tests, holm([p for _, _, p, _ in tests]), strict=True):
        if p >= ALPHA or not leans:
            tied[number].append(place)
    return [sorted(places) for places in tied]
