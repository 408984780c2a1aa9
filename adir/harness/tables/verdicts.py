"""Verdicts on a row against its reference: better, worse, not worse, undecided; and one sentence
that sums a table up.

A gain is a paired difference with its sign turned so that positive is better; L and U are the ends
of its 90 % interval over clusters, so each of `L > 0` and `L > -m` is a one-sided test at 5 %.
Verdicts are not corrected for the number of rows (benchmarks/quality/coverage.py simulates how
often one of several is false); the signed rank tests beside them are.
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
"""Verdicts of a table up to which its sentence names each; beyond, it counts them."""


@dataclass(frozen=True)
class Margin:
    """The largest loss in one metric that still counts as none; either absolute, or in percent of
    the reference's mean.
    """

    title: str
    unit: str = ""
    margin: float | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.margin, self.percent) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise InputError(
                f"conf/margins.yaml: {self.title} needs a `margin` or a `percent` above 0"
            )

    def of(self, reference: float) -> float:
        """The margin in the unit of the metric. reference: the mean of the row that is compared
        with.
        """
        return (
            self.margin if self.margin is not None else abs(reference) * (self.percent or 0.0) / 100
        )

    @property
    def text(self) -> str:
        """`0.1 dB`, `1 % of the reference`."""
        return (
            f"{self.margin:g} {self.unit}".strip()
            if self.margin is not None
            else f"{self.percent:g} % of the reference"
        )


@dataclass(frozen=True)
class Verdict:
    """What a paired difference shows."""

    word: Word
    least: float | None
    """The true gain that so many clusters of such a spread would show to be better with 80 % power;
    None without interval.
    """


@functools.cache
def margins() -> dict[str, Margin]:
    """{metric: its margin} of conf/margins.yaml."""
    found = yaml.safe_load((config_dir() / "margins.yaml").read_text())
    return {name: Margin(**entry) for name, entry in found.items()}


def word_of(low: float, high: float, margin: float) -> Word:
    """The verdict on a gain in [low, high]; margin: above 0, the largest loss that counts as none."""
    if low > 0:
        return "better"
    if high < 0 and low <= -margin:
        return "worse"
    return "not worse" if low > -margin else "undecided"


def verdict_on(difference: PairedDifference, direction: str, margin: Margin) -> Verdict:
    """The verdict on a difference. direction: higher or lower, which is better."""
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
    """One verdict with what the sentence says of it."""

    row: str
    """The row's name, less its task."""
    metric: str
    task: str
    difference: PairedDifference
    word: Word


def sentence(findings: Sequence[Finding], against: str, clustered: bool) -> str:
    """`Against none, over 12 images: knn is better in PSNR on sr4 (+0.8 dB) and not worse on deblur
    (-0.02 dB).`

    Empty without findings. Counts the verdicts of each row where there are more than SPELLED_OUT,
    and those of all rows together where there are more rows than that. clustered: whether any
    cluster has several images.
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
    """`better in PSNR on sr4 (+0.8 dB) and not worse on deblur (-0.02 dB)`, one text for each
    metric.
    """
    said = []
    for metric, of_metric in grouped((finding.metric, finding) for finding in findings).items():
        margin = margins()[metric]
        parts: list[str] = []
        for word in WORDS:
            told = []
            for finding in of_metric:
                if finding.word == word:
                    size = f"({finding.difference.mean:+.2g} {margin.unit}".strip() + ")"
                    told.append(f"{finding.task} {size}" if name_tasks else size)
            if told:
                parts.append(
                    f"{word}{'' if parts else f' in {margin.title}'} "
                    f"{'on ' * name_tasks}{listed(told)}"
                )
        said.append(listed(parts))
    return said


def counted(findings: Sequence[Finding]) -> str:
    """`better in 4 of 6 comparisons and not worse in 2`."""
    counts = Counter(finding.word for finding in findings)
    first, *others = [f"{word} in {counts[word]}" for word in WORDS if counts[word]]
    return listed([f"{first} of {len(findings)} comparisons", *others])


def listed(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def span(values: Sequence[float], form: str = "") -> str:
    """`8`, or `6 to 8`: the lowest and the highest, in this format."""
    return " to ".join(dict.fromkeys(f"{end:{form}}" for end in (min(values), max(values))))
