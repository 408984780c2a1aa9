"""Records to table: one row per backbone, task, mode, K, adapter and sampler; means over pictures, seeds averaged within.

Computed once here, for terminal, CSV and Markdown alike. Missing stays missing: a row that lacks a record that another row
of its task has shows no mean and no difference, and says how many it has.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.identity import hash_of
from adir.harness.ledger import DamagedFile, all_records
from adir.harness.statistics import FEWEST_PICTURES, Estimate, PairedDifference, mean_over_pictures, paired_difference

ROW = ("backbone", "sampler", "task", "adaptation", "adapter", "k", "variant")
ORDER = {"none": 0, "self": 1, "knn": 2, "pixel": 3, "random": 4}
ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    axes: dict[str, Any]
    estimates: dict[str, Estimate]
    to_none: dict[str, PairedDifference | None]
    """Paired difference to the `none` row of equal `base`; None where either mean is missing, no key without such a row."""
    have: int
    expected: int
    """Records (picture, seed) that are done, and that some row of the task has."""
    sigma_y: float | None
    """Noise of y in grey levels, beside which the residual is read; None where no record tells."""


@dataclass
class Board:
    """A table with what a reader must know beside it."""

    rows: list[Row]
    metrics: dict[str, str]
    """name: direction, in the order of the records."""
    versions: dict[str, str]
    """name: version with its back end; of the metrics that have a value."""
    notes: list[str] = field(default_factory=list)


def load_board(results: Path) -> Board:
    """The board of a results folder. Raises InputError when it holds no records."""
    if not results.is_dir():
        raise InputError(f"{results}: no such folder")
    records, notes = [], []
    for item in all_records(results):
        if isinstance(item, DamagedFile):
            notes.append(str(item))
        else:
            records.append(item)
    if not records:
        raise InputError(f"{results}: no records below it; `adir run ... results={results}` makes them")
    board = make_board(records)
    board.notes = notes + board.notes
    return board


def make_board(records: Iterable[dict[str, Any]]) -> Board:
    """The board of some records. Raises InputError when rows of one task differ in y, task version or metric version."""
    records = list(records)
    metrics: dict[str, str] = {}
    for record in records:
        for name, score in record["scores"].items():
            metrics.setdefault(name, score["direction"])
    versions = require_same(records)
    table = to_frame(records, list(metrics))
    rows: list[Row] = []
    notes: list[str] = []
    for (backbone, sampler, task), of_task in table.groupby(["backbone", "sampler", "task"], sort=False):
        expected = sorted(set(zip(of_task["image"], of_task["seed"], strict=True)))
        by_row = dict(list(of_task.groupby(["adaptation", "adapter", "k", "variant"], dropna=False, sort=False)))
        nones: dict[str, dict[str, dict[str, float | None]]] = {}
        for key in sorted(by_row, key=row_order):  # none first
            part = by_row[key]
            done = part[part["status"] == "done"]
            have = len(set(zip(done["image"], done["seed"], strict=True)))
            axes: dict[str, Any] = dict(zip(ROW, (backbone, sampler, task, *key), strict=True))
            axes = {name: None if pd.isna(value) else value for name, value in axes.items()}
            if axes["k"] is not None:
                axes["k"] = int(axes["k"])
            means = {metric: picture_means(done, metric, expected) for metric in metrics}
            base = part["base"].iloc[0]
            to_none = {}
            if key[0] == "none":
                nones[base] = means
            elif base in nones:
                compared = [metric for metric, direction in metrics.items() if direction != "none"]
                to_none = {metric: difference(means[metric], nones[base][metric]) for metric in compared}
            estimates = {metric: mean_over_pictures(list(values.values())) for metric, values in means.items()}
            noise = done["sigma_y"].dropna()
            sigma_y = float(noise.iloc[0]) if len(noise) else None
            rows.append(Row(axes, estimates, to_none, have, len(expected), sigma_y))
            failed = part[part["status"] == "failed"]
            for _, bad in failed.iterrows():
                notes.append(f"failed: {task} {label(axes)} seed={bad['seed']} {bad['image']}: {bad['error']}")
            if have < len(expected):
                notes.append(f"{task} {label(axes)}: {have} of {len(expected)} records, so its means stay missing")
    unavailable = {f"{name}: {why}" for record in records for name, why in (record.get("unavailable") or {}).items()}
    named = ", ".join(f"{name} {versions[name]}" for name in metrics if name in versions)
    return Board(rows, metrics, versions, [f"versions: {named}"] * bool(named) + notes + sorted(unavailable))


def require_same(records: list[dict[str, Any]]) -> dict[str, str]:
    """{metric: its version}. Raises InputError, naming two records, where one thing was not the same for all.

    A task has one version; one picture of a task has one y; a metric has one version.
    """
    tasks: dict[str, tuple[Any, str]] = {}
    ys: dict[tuple[str, str], tuple[str, str]] = {}
    versions: dict[str, tuple[str, str]] = {}
    for record in records:
        if record["status"] != "done":
            continue
        path = record.get("path", record["cell"])
        task, image = record["axes"]["task"], record["image"]["id"]
        task_version = record["identity"]["task"]["version"]
        version, first = tasks.setdefault(task, (task_version, path))
        if version != task_version:
            raise InputError(
                f"task {task}: version {version} in {first}, {task_version} in {path}; "
                "put them into different results folders"
            )
        sha256, first = ys.setdefault((task, image), (record["y"]["sha256"], path))
        if sha256 != record["y"]["sha256"]:
            raise InputError(
                f"task {task}, picture {image}: {first} and {path} were restored from different y "
                f"(hashes {sha256[:10]} and {record['y']['sha256'][:10]}); put them into different results folders"
            )
        for name, score in record["scores"].items():
            if score["value"] is None:
                continue
            version, first = versions.setdefault(name, (score["version"], path))
            if version != score["version"]:
                raise InputError(
                    f"metric {name}: version {version!r} in {first}, {score['version']!r} in {path}: adir score mends it"
                )
    return {name: version for name, (version, _) in versions.items()}


def to_frame(records: list[dict[str, Any]], metrics: list[str]) -> pd.DataFrame:
    """One line per record.

    `variant` tells apart cells whose axes read the same but whose configurations differ. `base` is equal for the rows that
    differ in seed and adaptation alone: what a row shares with the `none` it is compared with.
    """
    lines = []
    hashes: dict[str, tuple[str, str]] = {}  # by cell, which is the hash of the identity: its pictures share it
    for record in records:
        axes, cell = record["axes"], record["cell"]
        if cell not in hashes:
            hashes[cell] = (without_seed(record), hash_without(record, "seed", "adaptation", "retrieval"))
        scores = {name: record["scores"].get(name, {}).get("value") for name in metrics}
        lines.append(
            {name: axes[name] for name in ("backbone", "sampler", "task", "adaptation", "adapter", "k", "seed")}
            | {"image": record["image"]["id"], "status": record["status"], "error": record.get("error")}
            | {"setting": hashes[cell][0], "base": hashes[cell][1]}
            | {"sigma_y": record["scores"].get("residual", {}).get("sigma_y")}
            | scores
        )
    frame = pd.DataFrame(lines)
    frame["k"] = frame["k"].astype("Int64")
    same_axes = frame.groupby(["backbone", "sampler", "task", "adaptation", "adapter", "k"], dropna=False)["setting"]
    frame["variant"] = frame["setting"].where(same_axes.transform("nunique") > 1, "")
    return frame


def without_seed(record: dict[str, Any]) -> str:
    """Eight hex digits of a record's identity less its seed: equal for the seeds of one row."""
    return hash_without(record, "seed")[:8]


def hash_without(record: dict[str, Any], *left_out: str) -> str:
    """SHA-256 of a record's identity less some of its parts."""
    return hash_of({key: value for key, value in record["identity"].items() if key not in left_out})


def picture_means(done: pd.DataFrame, metric: str, expected: list[tuple[str, int]]) -> dict[str, float | None]:
    """{picture: mean over its seeds}, None where any expected (picture, seed) has no value."""
    values = done.set_index(["image", "seed"])[metric].astype(float).to_dict()
    per_picture: dict[str, list[float]] = {}
    for image, seed in expected:
        per_picture.setdefault(image, []).append(values.get((image, seed), math.nan))
    means = {image: sum(seeds) / len(seeds) for image, seeds in per_picture.items()}
    return {image: None if math.isnan(mean) else mean for image, mean in means.items()}


def difference(row: dict[str, float | None], none: dict[str, float | None]) -> PairedDifference | None:
    """Row minus none over the pictures, each with the same seeds in both; None where either lacks anything."""
    a = {image: mean for image, mean in row.items() if mean is not None}
    b = {image: mean for image, mean in none.items() if mean is not None}
    return paired_difference(a, b) if len(a) == len(row) and len(b) == len(none) else None


def row_order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """none, self, knn, pixel, random; then K, then adapter."""
    adaptation, adapter, k, variant = key
    return (ORDER.get(adaptation, 9), str(adapter), 0 if pd.isna(k) else int(k), str(variant))


def label(axes: dict[str, Any]) -> str:
    """`knn k=20 full`, for notes."""
    parts = [
        axes["adaptation"],
        f"k={axes['k']}" if axes["k"] is not None else "",
        axes["adapter"] or "",
        axes["variant"] or "",
    ]
    return " ".join(part for part in parts if part)


def cell_text(estimate: Estimate, difference: PairedDifference | None, newline: str) -> str:
    """`23.14 ± 0.80`, and on a line of its own `+0.31 [+0.12, +0.55]`: the paired difference to none and its interval."""
    if estimate.value is None:
        return f"– (n={estimate.n})" if estimate.n else "–"
    text = f"{estimate.value:#.4g}"  # 25.30, not 25.3
    if estimate.standard_error is not None:
        text += f" ± {estimate.standard_error:.2g}"
    if difference is not None:
        text += f"{newline}{difference.mean:+.2g}"
        text += f" [{difference.low:+.2g}, {difference.high:+.2g}]" if difference.low is not None else ""
    return text


def headings(board: Board) -> list[str]:
    """Column titles, shared by every form of the table."""
    return ["task", "mode", "K", "adapter", "n", *(name + ARROWS[way] for name, way in board.metrics.items())]


def cells(board: Board, row: Row, newline: str = "\n") -> list[str]:
    """One row as text; `newline` parts a mean from the difference under it."""
    axes = row.axes
    mode = axes["adaptation"] + (f" #{axes['variant']}" if axes["variant"] else "")
    n = max((e.n for e in row.estimates.values()), default=0)
    count = str(n) if row.have == row.expected else f"{row.have}/{row.expected}"
    task = axes["task"] + (f" (σ {row.sigma_y:g})" if row.sigma_y is not None else "")
    lead = [task, mode, "–" if axes["k"] is None else str(axes["k"]), axes["adapter"] or "–", count]
    return lead + [cell_text(row.estimates[name], row.to_none.get(name), newline) for name in board.metrics]


EXPLANATION = (
    "mean ± standard error over n pictures (seeds averaged within a picture); under it the paired difference to none on the "
    "same settings and its 95 % interval (BCa bootstrap over pictures; in simulations it covers 89 % with 10 pictures, 92 % "
    f"with 16, 94 % with 30, and below {FEWEST_PICTURES} none is given). residual: rms(A x̂ − y) in grey levels, to be read "
    "beside σ, the noise of y."
)


def to_markdown(board: Board) -> str:
    """The table for a README."""
    lines = ["| " + " | ".join(headings(board)) + " |", "|" + " --- |" * len(headings(board))]
    lines += ["| " + " | ".join(cells(board, row, "<br>")) + " |" for row in board.rows]
    return "\n".join([*lines, "", EXPLANATION, *(f"- {note}" for note in board.notes)]) + "\n"


def to_csv(board: Board) -> str:
    """Full precision, one line per row, empty where missing."""
    lines = []
    for row in board.rows:
        line: dict[str, Any] = dict(row.axes) | {"sigma_y": row.sigma_y, "records": row.have, "expected": row.expected}
        for name in board.metrics:
            mean, difference = row.estimates[name], row.to_none.get(name)
            line |= {name: mean.value, f"{name}_se": mean.standard_error, f"{name}_n": mean.n}
            line[f"{name}_version"] = board.versions.get(name)
            line |= {
                f"{name}_minus_none": difference.mean if difference else None,
                f"{name}_minus_none_low": difference.low if difference else None,
                f"{name}_minus_none_high": difference.high if difference else None,
            }
        lines.append(line)
    buffer = io.StringIO()
    pd.DataFrame(lines).to_csv(buffer, index=False)
    return buffer.getvalue()


def show_leaderboard(results: Path, write: bool) -> int:
    """Print the table; with `write`, also put leaderboard.csv and leaderboard.md beside the records."""
    board = load_board(results)
    table = Table(title=f"{results}", title_justify="left", header_style="bold")
    for number, heading in enumerate(headings(board)):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    previous = None
    for row in board.rows:
        if previous is not None and row.axes["task"] != previous:
            table.add_section()
        previous = row.axes["task"]
        table.add_row(*map(Text, cells(board, row)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))  # a log has no edge to wrap at
    console.print(table)
    for line in [EXPLANATION, *board.notes]:
        console.print(line, style="dim", highlight=False, markup=False)
    if write:
        write_bytes(results / "leaderboard.csv", to_csv(board).encode())
        write_bytes(results / "leaderboard.md", to_markdown(board).encode())
        console.print(
            f"written: {results / 'leaderboard.csv'}, {results / 'leaderboard.md'}", markup=False, highlight=False
        )
    return 0
