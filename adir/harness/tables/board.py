"""Records to rows: one per backbone, sampler, task, mode, adapter, K and setting; means over
clusters of images.

Seeds are averaged within an image, images within a cluster. Computed once here, for every form of
the table. Missing stays
missing: a row that lacks a record that another row of its backbone, sampler and task has, or that
    the grid's plan names,
shows no mean, and says how many it has. Its difference to its reference (`none`, or another mode)
is over the images that both have, and says which it left out.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, TypeVar

from adir.errors import InputError
from adir.harness.records.comparable import (
    base_of,
    base_part,
    flatten,
    grouped,
    require_same,
    settings_apart,
    what_differs,
    without_seed,
)
from adir.harness.records.record import Record
from adir.harness.tables.comparisons import best_of, with_holm
from adir.harness.tables.priors import prior_of, seen_note
from adir.harness.tables.statistics import (
    FEWEST_TO_TELL_APART,
    Estimate,
    PairedDifference,
    cluster_means,
    mean_over_images,
    paired_difference,
)
from adir.harness.tables.verdicts import Finding, Verdict, margins, sentence, span, verdict_on

T = TypeVar("T")
Note = tuple[str, str]
"""What is to be known, and of which row or task."""
ORDER = {"none": 0, "self": 1, "knn": 2, "pixel": 3, "random": 4}
AXES = ("backbone", "sampler", "task", "adaptation", "adapter", "k")
GROUP = ("task", "data", "backbone", "sampler")
"""Rows that agree in these expect the same images and seeds."""
Ranking = Literal["best", "tied"]


@dataclass
class Row:
    """One line of the table."""

    axes: dict[str, Any]
    """backbone, sampler, task, adaptation, adapter, k, variant, setting, data. variant: eight
    digits of its setting where a reader could not tell it from another row otherwise, else empty.
    setting: what that is, `rank=4 alpha=2`, where few numbers or words tell it; else the digits
    stand for it.
    """
    records: list[Record]
    """All of them: done, failed, or missing, which a plan names and nothing was found of."""
    setting_hash: str
    """Equal for its seeds alone."""
    base: str
    """Equal for rows that differ in adaptation alone."""
    expected: int = 0
    """Records (image, seed) that some row of the group or the plan has."""
    sigma_y: float | None = None
    """Noise of y in grey levels, beside which the residual is read; None where no record tells."""
    evaluations: tuple[float | None, float | None] = (None, None)
    """Mean calls of the network per image by the sampler: without a gradient, and with one.

    None where a record lacks them.
    """
    trained_on: str | None = None
    """The training set of its prior, as the records have it; None where none tells, or no network
    was used.
    """
    images: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """{metric: {image: mean over its seeds, None where one is missing}}"""
    clusters: dict[str, str] = field(default_factory=dict)
    """{image: its cluster}"""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    to_reference: dict[str, PairedDifference] = field(default_factory=dict)
    """{metric: paired difference to the reference}: the row of equal base whose mode is the board's
    `against`. No key without such a row, or where they share no image.
    """
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """{metric: what the difference to the reference shows}, of metrics that have a margin."""
    ranking: dict[str, Ranking] = field(default_factory=dict)
    """{metric: best, the only one; or tied with the best}; no key for what is worse, missing, or
    cannot be told.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """That of one of its records: they differ in the seed alone."""
        return self.records[0].identity

    @property
    def have(self) -> int:
        """How many of the expected records are done."""
        return len(self.done)

    @property
    def done(self) -> list[Record]:
        """The records that were restored."""
        return [record for record in self.records if record.status == "done"]

    def means(self, metric: str) -> dict[str, float | None]:
        """{cluster: mean over its images} in one metric."""
        return cluster_means(self.images[metric], self.clusters)


@dataclass
class Board:
    """A table with what a reader must know beside it."""

    rows: list[Row]
    metrics: dict[str, str]
    """name: direction, in the order of the records."""
    versions: dict[str, str]
    """name: version with its back end; of the metrics that have a value."""
    against: str = "none"
    """The mode whose rows the others are compared with."""
    shown: Sequence[str] = ()
    """Which of data, backbone and sampler there are several of, so that a row's name takes them in.
    """
    summary: str = ""
    """One sentence on the verdicts; empty where there are none."""
    notes: list[str] = field(default_factory=list)
    damaged: int = 0
    """Files that could not be read, which the first notes name: what shows this table has not done
    all it was asked.
    """


def make_board(
    records: Iterable[Record], planned: Iterable[Record] = (), against: str = "none"
) -> Board:
    """The board of some records.

    planned: of status `missing`, what the plan of the grid names and nothing was found of.
    against: the mode whose rows the others are compared with.

    Raises InputError when records of one task differ in y or task version, or in the version of a
    metric, and where no record is of the mode `against`, unless that is none.
    """
    records = sorted(records, key=lambda r: (r.axes.task, r.axes.backbone, r.cell, r.image.id))
    versions = require_same(records)
    metrics: dict[str, str] = {
        name: score.direction for record in records for name, score in record.scores.items()
    }
    clusters = {
        (r.image.data or None, r.image.id): r.image.cluster
        for r in records
        if r.image.cluster is not None
    }
    rows = rows_of([*records, *planned])
    modes = sorted(
        {row.axes["adaptation"] for row in rows}, key=lambda mode: (ORDER.get(mode, 9), mode)
    )
    if against != "none" and against not in modes:
        raise InputError(
            f"--against {against}: no row has this mode; choose one of {', '.join(modes)}"
        )
    shown = [
        axis
        for axis in ("data", "backbone", "sampler")
        if len({row.axes[axis] for row in rows}) > 1
    ]
    board = Board([], metrics, versions, against, shown)
    notes: list[Note] = []
    for _, group in groupby(rows, key=lambda row: [row.axes[axis] for axis in GROUP]):
        alike, unclear = told_apart(list(group), shown)
        board.rows += alike
        notes += [*measure(alike, board, clusters), *unclear]

    compared = {name: direction for name, direction in metrics.items() if direction != "none"}
    adjusted = iter(
        with_holm([difference for row in board.rows for difference in row.to_reference.values()])
    )
    for row in board.rows:
        row.to_reference = {metric: next(adjusted) for metric in row.to_reference}
        row.verdicts = {
            metric: verdict_on(difference, metrics[metric], margins()[metric])
            for metric, difference in row.to_reference.items()
            if metric in margins()
        }
    notes += mark_best(board.rows, compared, shown)
    made_by = ", ".join(f"{name} {versions[name]}" for name in metrics if name in versions)
    reasons = {f"{name}: {why}" for record in records for name, why in record.unavailable.items()}
    board.notes = [f"versions: {made_by}"] * bool(made_by) + gathered(notes)
    board.notes += gathered(power_notes(board.rows, shown)) + sorted(reasons)
    board.summary = sentence_of(board.rows, shown, against)
    return board


def rows_of(records: list[Record]) -> list[Row]:
    """The rows without their numbers, in order of task, data set, backbone, sampler and
    `row_order`.
    """
    settings: dict[str, str] = {}  # a cell's records share it, and hashing takes long
    found: dict[tuple[Any, ...], Row] = {}
    for record in records:
        setting = settings.get(record.cell) or settings.setdefault(
            record.cell, without_seed(record)
        )
        data, values = record.image.data or None, [getattr(record.axes, axis) for axis in AXES]
        place = (*values, data, setting)
        if place not in found:
            axes = dict(zip(AXES, values, strict=True)) | {
                "variant": "",
                "setting": "",
                "data": data,
            }
            found[place] = Row(axes, [], setting, base_of(record))
        found[place].records.append(record)

    def sort_key(row: Row) -> tuple[Any, ...]:
        return [row.axes[axis] or "" for axis in GROUP], row_order(row.axes), row.setting_hash

    return sorted(found.values(), key=sort_key)


def told_apart(rows: list[Row], shown: Sequence[str]) -> tuple[list[Row], list[Note]]:
    """(the rows of a group in order of their settings, notes on those that few words cannot tell
    apart).

    Rows of one name are told apart among themselves; one that is alone in its name, but has not
    every other's `none`, by what all rows have in common with theirs. They are never averaged
    together.
    """
    several_bases = len({row.base for row in rows}) > 1
    of_bases = (
        settings_apart({row.setting_hash: base_part(row.identity) for row in rows})
        if several_bases
        else {}
    )
    ordered: list[Row] = []
    notes: list[Note] = []
    for _, same in groupby(rows, key=lambda row: row_order(row.axes)):
        alike = {row.setting_hash: row for row in same}
        identities = {setting: row.identity for setting, row in alike.items()}
        told = settings_apart(identities) if len(alike) > 1 else of_bases
        if len(alike) > 1 and not told:
            name = named(next(iter(alike.values())).axes, shown)
            notes.append((f"{len(alike)} settings, {what_differs(identities)}", name))
        if len(alike) > 1 or several_bases:
            for setting, row in alike.items():
                words = {
                    name: f"{v:g}" if isinstance(v, float) else v
                    for name, v in told.get(setting, {}).items()
                }
                row.axes |= {
                    "variant": setting,
                    "setting": " ".join(f"{name}={word}" for name, word in words.items()),
                }
        numbers = {setting: setting_order(told.get(setting, {})) for setting in alike}
        ordered += [alike[setting] for setting in sorted(alike, key=numbers.__getitem__)]
    if several_bases and not notes and not all(row.axes["setting"] for row in rows):
        firsts = [same[0] for same in grouped((row.base, row) for row in rows).values()]
        parts = {row.setting_hash: base_part(row.identity) for row in firsts}
        notes.append(
            (f"rows of {len(parts)} settings, {what_differs(parts)}", place_of(rows[0].axes, shown))
        )
    return ordered, notes


def setting_order(setting: dict[str, float | str]) -> list[tuple[bool, float, str]]:
    """By numbers as such, then by words."""
    return [
        (isinstance(v, str), 0.0 if isinstance(v, str) else v, str(v)) for v in setting.values()
    ]


def measure(rows: list[Row], board: Board, known: dict[tuple[str | None, str], str]) -> list[Note]:
    """Give the rows of a group, which expect the same images and seeds, their numbers; return the
    notes on them.

    known: {(data set, image): cluster} of images that are no cluster of their own.
    """
    expected = sorted({(record.image.id, record.seed) for row in rows for record in row.records})
    clusters = {image: known.get((rows[0].axes["data"], image), image) for image, _ in expected}
    told = first_known(*(record.sigma_y for row in rows for record in row.records))
    notes: list[Note] = []
    for row in rows:
        done = {(record.image.id, record.seed): record for record in row.done}
        row.expected, row.clusters = len(expected), clusters
        row.images = {metric: image_means(done, metric, expected) for metric in board.metrics}
        row.estimates = {
            metric: mean_over_images(list(row.means(metric).values())) for metric in board.metrics
        }
        planned = flatten(row.identity).get(
            "task.sigma_y"
        )  # also where nothing was done yet; an edit's has none
        noise = float(planned) if isinstance(planned, int | float) else told
        row.sigma_y = first_known(*(record.sigma_y for record in row.done), noise)
        row.evaluations = evaluations_of(row.done)
        row.trained_on = first_known(*map(prior_of, row.done))
        name = named(row.axes, board.shown)
        if (warning := first_known(*map(seen_note, row.done))) is not None:
            notes.append((warning, name))
        failed = [record for record in row.records if record.status == "failed"]
        notes += [
            (f"failed: {record.error}", f"{name} seed={record.seed} {record.image.id}")
            for record in failed
        ]
        if row.have < row.expected:
            notes.append((f"{row.have} of {row.expected} records, so the means stay missing", name))
    compared = [metric for metric, direction in board.metrics.items() if direction != "none"]
    for row in rows:
        name = named(row.axes, board.shown)
        references = references_of(row, rows, board.against)
        if len(references) > 1:
            notes.append(
                (
                    f"{len(references)} rows of the mode {board.against} go with it, so it is "
                    "not compared",
                    name,
                )
            )
        elif references and references[0] is not row:
            other = references[0].images
            found = {
                metric: paired_difference(row.images[metric], other[metric], clusters)
                for metric in compared
            }
            row.to_reference = {metric: one for metric, one in found.items() if one is not None}
            notes += [(what, name) for what in dropped_notes(row, board.against)]
    sizes = Counter(clusters.values())
    if len(sizes) < len(clusters):
        example = min(name for name, size in sizes.items() if size > 1)
        what = (
            f"{len(clusters)} images in {len(sizes)} clusters, such as {example}, each of "
            "which counts once"
        )
        notes.append((what, place_of(rows[0].axes, board.shown)))
    return notes


def references_of(row: Row, rows: list[Row], against: str) -> list[Row]:
    """The rows of the mode `against` that a row can be compared with: those of its base, and of
    several those of its K, adapter, fine-tuning and corpus.
    """
    found = [
        other for other in rows if other.axes["adaptation"] == against and other.base == row.base
    ]
    if row in found:
        return [row]
    tuning = tuning_of(row.identity)
    return [
        other for other in found if len(found) == 1 or tuning_of(other.identity) == tuning
    ] or found


def tuning_of(identity: dict[str, Any]) -> dict[str, Any]:
    """What an adaptation has besides its mode:

    K, adapter, fine-tuning, and the images that may be neighbours.
    """
    parts, unlike = (
        ("adaptation.", "retrieval.corpus", "retrieval.withholds"),
        ("adaptation.name", "adaptation.version"),
    )
    return {k: v for k, v in flatten(identity).items() if k.startswith(parts) and k not in unlike}


def gathered(notes: Iterable[Note]) -> list[str]:
    """`what: one row, another row`: what is said of several rows is said once."""
    return [f"{what}: {', '.join(dict.fromkeys(names))}" for what, names in grouped(notes).items()]


def evaluations_of(records: list[Record]) -> tuple[float | None, float | None]:
    """Mean network evaluations per image without and with a gradient; None where a record lacks
    them, or there is none.
    """
    known = [
        (r.sampler.network_evaluations, r.sampler.gradient_evaluations)
        for r in records
        if r.sampler is not None
    ]
    if not known or len(known) < len(records):
        return None, None
    calls, gradients = map(statistics.fmean, zip(*known, strict=True))
    return calls - gradients, gradients


def first_known(*values: T | None) -> T | None:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def image_means(
    done: dict[tuple[str, int], Record], metric: str, expected: list[tuple[str, int]]
) -> dict[str, float | None]:
    """{image: mean over its seeds}, None where any expected (image, seed) has no value."""
    places = grouped(
        (image, done[image, seed].value(metric) if (image, seed) in done else None)
        for image, seed in expected
    )
    complete = {image: [s for s in seeds if s is not None] for image, seeds in places.items()}
    return {
        image: statistics.fmean(complete[image]) if len(complete[image]) == len(seeds) else None
        for image, seeds in places.items()
    }


def dropped_notes(row: Row, against: str) -> list[str]:
    """Which images its differences leave out, as the row or its reference lacks them; metrics that
    agree in one note.
    """
    notes = []
    lacking = grouped(
        (one.dropped, metric) for metric, one in row.to_reference.items() if one.dropped
    )
    for dropped, metrics in lacking.items():
        shown = ", ".join(dropped[:5]) + (
            f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        )
        which = "" if len(metrics) == len(row.to_reference) else f" in {', '.join(metrics)}"
        both = len(row.images[metrics[0]]) - len(dropped)
        notes.append(
            f"the difference to {against}{which} is over the {both} images that both have, so "
            f"{shown} "
            f"{'count' if len(dropped) > 1 else 'counts'} in neither"
        )
    return notes


def power_notes(rows: list[Row], shown: Sequence[str]) -> list[Note]:
    """The least differences that the rows of a task could show, by metric."""
    told = grouped(
        (place_of(row.axes, shown), (metric, verdict.least, row.to_reference[metric].n))
        for row in rows
        for metric, verdict in row.verdicts.items()
        if verdict.least is not None and math.isfinite(verdict.least)
    )
    notes: list[Note] = []
    for where, found in told.items():
        least = grouped((metric, value) for metric, value, _ in found)
        parts = [
            f"{metric} {span(values, '.2g')} {margins()[metric].unit}".strip()
            for metric, values in least.items()
        ]
        n = span([n for _, _, n in found])
        notes.append(
            (
                f"least gain that n = {n} would show with 80 % power, by row: {', '.join(parts)}",
                where,
            )
        )
    return notes


def sentence_of(rows: list[Row], shown: Sequence[str], against: str) -> str:
    """The verdicts of the rows in one sentence.

    A row is called by its mode where that says which it is.
    """
    judged = [row for row in rows if row.verdicts]
    labels = grouped((row.axes["adaptation"], label(row.axes)) for row in judged)
    findings: list[Finding] = []
    for row in judged:
        mode, task = row.axes["adaptation"], row.axes["task"]
        name = mode if len(set(labels[mode])) == 1 else label(row.axes)
        name = " ".join([*(row.axes[axis] or "–" for axis in shown), name])
        findings += [
            Finding(name, m, task, row.to_reference[m], verdict.word)
            for m, verdict in row.verdicts.items()
        ]
    return sentence(
        findings,
        against,
        any(len(set(row.clusters.values())) < len(row.clusters) for row in judged),
    )


def mark_best(rows: list[Row], metrics: dict[str, str], shown: Sequence[str]) -> list[Note]:
    """Give the rows who is best and who is tied with it; return the notes on who cannot be
    compared, and why.

    Rows compete, whatever their backbone and sampler, where task and data set are the same, no
    value is missing, and the images are all that any of them has: the best of those that did a part
    would pass for the best of the task.
    """
    contests: list[tuple[str, list[Row]]] = []
    notes: dict[Note, None] = {}
    few = (
        f"fewer than {FEWEST_TO_TELL_APART}, with which no two-sided signed rank test reaches "
        "p < 0.05, so no row is marked"
    )
    for metric in metrics:
        known = [row for row in rows if row.estimates[metric].value is not None]
        for field_of in grouped(
            ((row.axes["task"], row.axes["data"]), row) for row in known
        ).values():
            where = place_of(field_of[0].axes, [name for name in shown if name == "data"])
            images = {
                image: row.clusters[image] for row in field_of for image in row.images[metric]
            }
            n = len(set(images.values()))
            whole = [row for row in field_of if len(row.images[metric]) == len(images)]
            if len(whole) < len(field_of):
                partial = (
                    f"{len(field_of) - len(whole)} rows are not over all {len(images)} "
                    "images, so not marked"
                )
                notes[partial, where] = None
            if len(whole) > 1 and n >= FEWEST_TO_TELL_APART:
                contests.append((metric, whole))
            elif len(whole) > 1:
                clustered = "" if n == len(images) else f" in {n} clusters"
                notes[f"{len(images)} images{clustered}, {few}", where] = None
    values = [[row.means(metric) for row in whole] for metric, whole in contests]
    outcomes = best_of(values, [metrics[metric] for metric, _ in contests])
    for (metric, whole), leaders in zip(contests, outcomes, strict=True):
        for place in leaders:
            whole[place].ranking[metric] = "best" if len(leaders) == 1 else "tied"
    return list(notes)


def row_order(axes: dict[str, Any]) -> tuple[Any, ...]:
    """none, self, knn, pixel, random; then adapter and K."""
    mode, k = axes["adaptation"], axes["k"]
    return (ORDER.get(mode, 9), str(mode), str(axes["adapter"]), -math.inf if k is None else k)


def place_of(axes: dict[str, Any], shown: Sequence[str]) -> str:
    """`deblur dps`: the task, and of data, backbone and sampler those that are `shown`."""
    return " ".join([axes["task"], *(axes[name] or "–" for name in shown)])


def named(axes: dict[str, Any], shown: Sequence[str]) -> str:
    """`deblur dps knn k=20 full`, which no other row of the board is called. shown: that of the
    board.
    """
    return f"{place_of(axes, shown)} {label(axes)}"


def label(axes: dict[str, Any]) -> str:
    """`knn k=20 full`, for notes; `knn k=20 lora rank=4` where a setting tells it from others."""
    k = f"k={axes['k']}" if axes["k"] is not None else ""
    return " ".join(
        filter(
            None, [axes["adaptation"], k, axes["adapter"], axes.get("setting") or axes["variant"]]
        )
    )
