"""Comparisons over a whole table: two families of tests, each with Holm's correction over all of
its own.

One family is every difference to the reference (`none`, or another mode); the other, every row
against the best of its task in every metric. All pairs of rows would be a third, and useless: 20
rows have 190 pairs a metric, and 12 images give no p below 0.0005.
"""

from dataclasses import replace

import numpy as np

from adir.harness.tables.statistics import ALPHA, PairedDifference, holm, signed_rank_p


def with_holm(differences: list[PairedDifference]) -> list[PairedDifference]:
    """The differences with `p_holm`, over all of them that have a p."""
    places = [place for place, difference in enumerate(differences) if difference.p is not None]
    adjusted = dict(
        zip(places, holm([differences[place].p or 0.0 for place in places]), strict=True)
    )
    return [
        replace(difference, p_holm=adjusted.get(place))
        for place, difference in enumerate(differences)
    ]


def best_of(
    contests: list[list[dict[str, float | None]]], directions: list[str]
) -> list[list[int]]:
    """For each contest the places of the leaders: the one with the best mean, and those not shown
    to be worse.

    contests: rows {cluster: value}, at least one, over the same clusters, nothing missing.
        directions: higher or lower.
    A row is worse where the signed rank test against the best, corrected over all rows of all
    contests, is below ALPHA and leans the same way as the means.
    """
    leaders: list[int] = []
    tests: list[tuple[int, int, float, bool]] = []  # contest, place, p, leans to the leader
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
