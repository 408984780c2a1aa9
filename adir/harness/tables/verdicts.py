"""Verdicts on a row against its reference, and one sentence that summarises a table.

A gain is a paired difference, with its sign changed if lower is better, so that a positive gain is
an improvement. L and U are the ends of its 90 % interval over clusters. m is the metric's margin,
the largest loss that counts as no loss. The verdict is the first of these that applies:

      undecided    no interval, or fewer than FEWEST_TO_TELL_APART clusters
      better       L > 0
      worse        U < 0 and L <= -m
      not worse    L > -m
      undecided    all other cases

The interval leaves out 5 % on each side, so L > 0 and L > -m are one-sided tests at 5 %.

Verdicts are not corrected for the number of rows. benchmarks/quality/coverage.py simulates how
often at least one of several verdicts is false. The signed rank tests in the same table are
corrected.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

from adir.configuration import config_dir
from adir.errors import InputError
from adir.harness.records.comparable import grouped
from adir.harness.tables.statistics import FEWEST_TO_TELL_APART, PairedDifference, least_difference

Word = Literal["better", "worse", "not worse", "undecided"]
WORDS: tuple[Word, ...] = ("better", "not worse", "worse", "undecided")
SPELLED_OUT = 8
"""The largest number of verdicts that the sentence names one by one.

If there are more, the sentence gives their counts.
"""


@dataclass(frozen=True)
class Margin:
    """Largest loss in one metric that still counts as no loss.

    The margin is either absolute (`margin`) or a percentage of the reference's mean (`percent`).
    """

    title: str
    unit: str = ""
    margin: float | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.margin, self.percent) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise InputError(
                f"conf/margins.yaml: {self.title} needs either a `margin` or a `percent`, above 0"
            )

    def of(self, reference: float) -> float:
        """Return the margin in the unit of the metric.

        `reference` is the mean of the reference row, to which a margin in percent is relative.
        """
        return (
            self.margin if self.margin is not None else abs(reference) * (self.percent or 0.0) / 100
        )

    @property
    def text(self) -> str:
        """The margin as text: `0.1 dB` or `1 % of the reference`."""
        return (
            f"{self.margin:g} {self.unit}".strip()
            if self.margin is not None
            else f"{self.percent:g} % of the reference"
        )


@dataclass(frozen=True)
class Verdict:
    """Verdict on a paired difference."""

    word: Word
    least: float | None
    """The true gain that would be shown to be better with 80 % power.

    It assumes the same number of clusters and the same spread. None without an interval, or with
    too few clusters for a verdict.
    """


@functools.cache
def margins() -> dict[str, Margin]:
    """Return {metric: its margin} from conf/margins.yaml."""
    found = yaml.safe_load((config_dir() / "margins.yaml").read_text())
    return {name: Margin(**entry) for name, entry in found.items()}


def word_of(low: float, high: float, margin: float) -> Word:
    """Return the verdict on a gain with interval [low, high].

    `margin`, above 0, is the largest loss that counts as no loss.
    """
    if low > 0:
        return "better"
    if high < 0 and low <= -margin:
        return "worse"
    return "not worse" if low > -margin else "undecided"


def verdict_on(difference: PairedDifference, direction: str, margin: Margin) -> Verdict:
    """Return the verdict on a paired difference.

    Args:
        difference: the paired difference to the reference row.
        direction: `higher` or `lower`, which is better.
        margin: the margin of the metric.
    """
    low, high = difference.low, difference.high
    if low is None or high is None or difference.n < FEWEST_TO_TELL_APART:
        return Verdict("undecided", None)
    mean, low, high = (
        (difference.mean, low, high) if direction == "higher" else (-difference.mean, -high, -low)
    )
    least = least_difference(mean - low, difference.standard_error, difference.n)
    return Verdict(word_of(low, high, margin.of(difference.reference)), least)


@dataclass(frozen=True)
class Finding:
    """Verdict of one row in one metric, with the names that the summary uses."""

    row: str
    """The row's label without its task."""
    metric: str
    task: str
    difference: PairedDifference
    word: Word


def sentence(findings: Sequence[Finding], against: str, clustered: bool) -> str:
    """Return the summary of a table's verdicts as one sentence; empty if there are no verdicts.

    An example is `Against none, over 12 images: knn is better in PSNR on sr4 (+0.8 dB) and not
    worse on deblur (-0.02 dB).`

    If there are more than SPELLED_OUT verdicts, the sentence counts the verdicts of each row. If
    there are also more than SPELLED_OUT rows, it counts the verdicts of all rows together.

    Args:
        findings: the verdicts of the table.
        against: mode of the reference rows.
        clustered: whether any cluster has several images.
    """
    if not findings:
        return ""
    unit = "clusters" if clustered else "images"
    start = f"Against {against}, over {span([finding.difference.n for finding in findings])} {unit}"
    rows = grouped((finding.row, finding) for finding in findings)
    metrics = dict.fromkeys(finding.metric for finding in findings)
    tasks = dict.fromkeys(finding.task for finding in findings)
    if len(findings) <= SPELLED_OUT:
        said = [
            f"{row} is {', '.join(spelled_out(of_row, len(tasks) > 1))}"
            for row, of_row in rows.items()
        ]
        return f"{start}: {'; '.join(said)}."
    start += (
        f", in {listed([margins()[metric].title for metric in metrics])} on {listed(list(tasks))}"
    )
    if len(rows) > SPELLED_OUT:
        return f"{start}: the {len(rows)} rows are {counted(findings)}."
    return f"{start}: {'; '.join(f'{row} is {counted(of_row)}' for row, of_row in rows.items())}."


def spelled_out(findings: Iterable[Finding], name_tasks: bool) -> list[str]:
    """Return one text per metric that names every verdict.

    Example: `better in PSNR on sr4 (+0.8 dB) and not worse on deblur (-0.02 dB)`.
    """
    said = []
    for metric, of_metric in grouped((finding.metric, finding) for finding in findings).items():
        margin = margins()[metric]
        unit = f" {margin.unit}" if margin.unit else ""
        told = grouped(
            (one.word, f"{one.task} " * name_tasks + f"({one.difference.mean:+.2g}{unit})")
            for one in of_metric
        )
        words = [word for word in WORDS if word in told]
        said.append(
            listed(
                [
                    f"{word}{f' in {margin.title}' if word == words[0] else ''} "
                    f"{'on ' * name_tasks}{listed(told[word])}"
                    for word in words
                ]
            )
        )
    return said


def counted(findings: Sequence[Finding]) -> str:
    """Return the counts of the verdicts: `better in 4 of 6 comparisons and not worse in 2`."""
    counts = Counter(finding.word for finding in findings)
    first, *others = [f"{word} in {counts[word]}" for word in WORDS if counts[word]]
    return listed([f"{first} of {len(findings)} comparisons", *others])


def listed(texts: Sequence[str]) -> str:
    """Return the texts as a list in prose: `a`, `a and b`, `a, b and c`."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def span(values: Sequence[float], form: str = "") -> str:
    """Return the range of the values as a text: `6 to 8`, or `8` if all values are equal."""
    return " to ".join(dict.fromkeys(f"{end:{form}}" for end in (min(values), max(values))))
