"""Compare the paper's published numbers with ours (`adir table`).

Each file in results/published holds one table of the paper. The verdict on a published number is
`inside` or `outside` (the 95 % interval of our mean), or `not comparable`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from adir.configuration import PACKAGE, config_dir
from adir.errors import InputError, count_of
from adir.harness.records.comparable import flatten
from adir.harness.tables.board import Board, Row, label
from adir.harness.tables.formats import ARROWS, booktabs, tex, tidy
from adir.harness.tables.statistics import mean_interval
from adir.harness.tables.terminal import Column

INSIDE = (
    "inside, outside: whether the paper's number lies in the 95 % interval of our mean. The "
    "paper's number was measured with other noise, and its own interval is not published."
)


@dataclass(frozen=True)
class Comparison:
    """Comparison of one number of a published table with our number."""

    method: str
    metric: dict[str, Any]
    paper: float | None
    confidence: str
    source: str
    """The source of the paper's number: its own source, or else that of the table."""
    ours: float | None
    interval: tuple[float, float] | None
    n: int
    verdict: str
    """`inside`, `outside` or `not comparable`.

    The first two say whether the paper's number lies in the 95 % interval of our mean.
    """
    reasons: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's number; None if either is missing."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


def published_dir(package: Path = PACKAGE) -> Path:
    """Return the folder of the published tables.

    An installed package contains the folder. In a checkout it is results/published.

    Raises:
        InputError: if neither folder has tables.
    """
    candidates = (package / "published", package.parent / "results" / "published")
    if (
        found := next((folder for folder in candidates if any(folder.glob("*.yaml"))), None)
    ) is not None:
        return found
    raise InputError(f"no published tables in {' or '.join(map(str, candidates))}; reinstall adir")


def published_names() -> list[str]:
    """Return the names of all published tables; those of version 2 (v2) of the paper come first."""
    return sorted(
        (path.stem for path in published_dir().glob("*.yaml")),
        key=lambda name: (name[:2] != "v2", name),
    )


@functools.cache
def published(name: str) -> dict[str, Any]:
    """Return a published table as a dict, read from its YAML file.

    Each of its metrics gets a further entry, `decimals`: the number of decimals to print.

    Raises:
        InputError: if no table has this name.
    """
    if name not in published_names():
        raise InputError(
            f"no published table {name!r}; choose one of {', '.join(published_names())}"
        )
    loaded: dict[str, Any] = yaml.safe_load((published_dir() / f"{name}.yaml").read_text())
    for metric in loaded["metrics"]:
        values = [row["cells"][metric["name"]]["value"] for row in loaded["rows"]]
        # The most decimals of the column, so that 0.43 is printed as 0.430 beside 0.434.
        metric["decimals"] = max(len(str(value).partition(".")[2]) for value in values)
    return loaded


def command_of(experiment: str) -> str:
    """Return the `adir run` command of an experiment, read from the comments in its file.

    The command names the inputs that the user must supply, such as an index or images.
    """
    lines = (config_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    line = next(line for line in lines if line.startswith("# adir run"))
    return line.removeprefix("# ").split("  (")[0]  # a remark follows in brackets


def compare(table: dict[str, Any], board: Board | None) -> list[Comparison]:
    """Return one comparison per number of a published table, with our closest row.

    The closest row is the one that departs least from the published conditions. If `board` is None,
    there is no row to compare with.
    """
    rows = board.rows if board is not None else []
    judged = [(row, *closest(table["conditions"], row, rows)) for row in table["rows"]]
    return [
        comparison(
            row["name"],
            metric,
            {"source": table["source"]} | row["cells"][metric["name"]],
            ours,
            departures,
        )
        for row, ours, departures in judged
        for metric in table["metrics"]
    ]


def closest(
    conditions: dict[str, Any], wanted: dict[str, Any], rows: list[Row]
) -> tuple[Row | None, list[str]]:
    """Return (our row that departs least from the published conditions, its departures).

    Only rows with the task and mode of `wanted`, a row of the published table, are considered. Of
    equally close rows, the first is returned. If there is no such row, return (None, []).
    """
    judged = [
        (row, departures_of(conditions, wanted["adaptation"], row))
        for row in rows
        if all(row.axes[axis] == wanted[axis] for axis in ("task", "adaptation"))
    ]
    return min(judged, key=lambda pair: len(pair[1]), default=(None, []))


def departures_of(conditions: dict[str, Any], mode: str, row: Row) -> list[str]:
    """Return the ways in which our row differs from the published conditions, as texts."""
    wanted = (
        conditions["axes"]
        | conditions["identity"]
        | (conditions["adapted"] if mode != "none" else {})
    )
    ours = {
        entry: value
        for entry, value in (row.axes | flatten(row.identity)).items()
        if value is not None
    }
    found = [
        f"{entry.split('.')[-1]} is {ours.get(entry, 'none')}, not {value}"
        for entry, value in wanted.items()
        if ours.get(entry) != value
    ]
    if row.have < row.expected:
        found.append(f"{row.have} of {row.expected} records")
    n = len(next(iter(row.images.values()), {}))
    if n < conditions["n_images"]:
        found.append(f"only {count_of(n, 'image')}, not about {conditions['n_images']}")
    return found


def comparison(
    method: str,
    metric: dict[str, Any],
    cell: dict[str, Any],
    row: Row | None,
    departures: Sequence[str],
) -> Comparison:
    """Return the comparison of one published number with our number, and its verdict.

    The comparison lists every reason why the two numbers cannot be compared.

    Args:
        method: name of the method in the paper.
        metric: the metric's entry in the published table.
        cell: the published number, with its source and a word on how certain it is.
        row: our closest row; None if there is none.
        departures: differences of our row from the published conditions.
    """
    paper, ours = cell["value"], metric["ours"]
    estimate = row.estimates.get(ours) if row is not None else None
    value = estimate.value if estimate is not None else None
    values = row.means(ours).values() if row is not None and value is not None else ()
    interval = mean_interval([one for one in values if one is not None])
    reasons = ["the paper's number is unknown"] if paper is None else []
    if row is None:
        reasons.append("not run")
    elif value is None:
        reasons.append(f"{ours} is missing in {label(row.axes)}")
    elif interval is None:
        reasons.append(f"no interval from {count_of(len(values), 'image')}")
    reasons += departures
    if row is not None and "not_comparable" in metric:
        reasons.append(metric["not_comparable"])
    verdict = "not comparable"
    if interval is not None and not reasons:
        beyond = max(interval[0] - paper, paper - interval[1])
        tolerated = metric.get("back_end_difference", 0.0)  # None: of unknown size
        verdict = "inside" if beyond <= 0 else "outside"
        if beyond > 0 and (tolerated is None or beyond <= tolerated):
            verdict, reasons = (
                "not comparable",
                [f"outside by {beyond:.2g}, and {metric['back_end']}"],
            )
    return Comparison(
        method,
        metric,
        paper,
        cell["confidence"],
        cell["source"],
        value,
        interval,
        len(values),
        verdict,
        tuple(reasons),
    )


def columns_of(
    comparisons: list[Comparison], source: str
) -> tuple[list[Column], list[Column], list[str]]:
    """Return (columns that name a line, all other columns, notes) of a comparison table.

    A line shows one comparison, and refers to its notes by numbers in square brackets. Some notes
    are reasons why two numbers cannot be compared. The other notes name the source of a paper's
    number, if it differs from `source`, the source of the whole table.
    """
    notes: dict[str, int] = {}

    def refer(texts: Sequence[str]) -> str:
        numbers = sorted(notes.setdefault(text, len(notes) + 1) for text in texts)
        return f" {numbers}" if numbers else ""

    lines = []
    for c in comparisons:
        paper = (
            "unknown" if c.paper is None else f"{c.paper:.{c.metric['decimals']}f} ({c.confidence})"
        )
        paper += refer([f"paper's number: {c.source}"] if c.source != source else [])
        interval = "–" if c.interval is None else f"[{c.interval[0]:#.4g}, {c.interval[1]:#.4g}]"
        lines.append(
            {
                "method": c.method,
                "metric": c.metric["title"] + ARROWS[c.metric["direction"]],
                "paper": paper,
                "ours": "–" if c.ours is None else f"{c.ours:#.4g}",
                "ours − paper": "–" if c.difference is None else f"{c.difference:+.3g}",
                "95 % interval": interval,
                "n": str(c.n) if c.n else "–",
                "verdict": c.verdict + refer(c.reasons),
            }
        )
    columns = [
        Column(
            heading,
            [Text(tidy(line[heading])) for line in lines],
            number=heading not in ("method", "metric", "verdict"),
        )
        for heading in lines[0]
    ]
    return columns[:2], columns[2:], list(notes)


def to_latex(table: dict[str, Any], comparisons: list[Comparison]) -> str:
    """Return the comparison as a LaTeX table (booktabs) in the paper's layout.

    Each line is a method and each column a metric. The paper's number comes first. Our number
    follows in brackets, with * if it is not comparable.
    """
    metrics = table["metrics"]
    titles = [tex(metric["title"] + ARROWS[metric["direction"]]) for metric in metrics]
    rows, said = [], []
    for method, of_method in groupby(comparisons, key=lambda c: c.method):
        rows.append([tex(method)])
        for c in of_method:
            paper = "?" if c.paper is None else f"{c.paper:.{c.metric['decimals']}f}"
            star = "$^*$" if c.verdict == "not comparable" else ""
            rows[-1].append(
                paper + (f" ({tex(f'{c.ours:#.4g}')}{star})" if c.ours is not None else "")
            )
            if why := [f"from {c.source}"] * (c.source != table["source"]) + list(c.reasons):
                said.append(f"%   {tidy(c.method)}, {c.metric['title']}: {tidy('; '.join(why))}")
    about = (
        f"% {tidy(table['title'])}. Published ({tidy(table['source'])}); in brackets ours; "
        "?: unknown; *: not comparable, for these reasons:"
    )
    return (
        "\n".join([*booktabs("l" + "c" * len(metrics), ["Method", *titles], [rows]), about, *said])
        + "\n"
    )
