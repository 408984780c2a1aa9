"""Turn records into the rows of a leaderboard.

A record holds the scores of one restored image, and its identity lists everything that changes a
pixel. A row combines the records with the same backbone, sampler, task, data set, adaptation mode,
adapter, K (number of neighbours) and setting. The setting is the rest of the identity, without the
seed. Seeds are averaged within an image, and images within a cluster (such as the fields of one
photograph). This module computes the numbers once for all formats of the table.

A missing value stays missing. A row needs a record of every image and seed that the grid's plan
names, or that another row with the same backbone, sampler, task and data set has. If one of these
records is missing, the row shows no mean, and a note says how many records the row has.

The difference of a row to its reference row (mode `none` or another mode) uses the images that both
rows have. A note names the images that are left out.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, TypeVar

from adir.errors import InputError, count_of
from adir.harness.records.comparable import (
    base_of,
    base_part,
    distinguishing_settings,
    flatten,
    grouped,
    require_same,
    what_differs,
    without_seed,
)
from adir.harness.records.record import Record
from adir.harness.tables.comparisons import best_of, with_holm
from adir.harness.tables.priors import leakage_warning, prior_of
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
"""A remark, and the row or task that the remark is about."""
ORDER = {"none": 0, "self": 1, "knn": 2, "pixel": 3, "random": 4}
AXES = ("backbone", "sampler", "task", "adaptation", "adapter", "k")
GROUP = ("task", "data", "backbone", "sampler")
"""Rows that agree in these axes need the same images and seeds."""
Ranking = Literal["best", "tied"]


@dataclass
class Row:
    """Row of the leaderboard."""

    axes: dict[str, Any]
    """The values of backbone, sampler, task, adaptation, adapter, k, variant, setting and data.

    variant: `setting_hash` if the other values do not identify the row; else empty. setting: the
    settings in which the row differs from similar rows, such as `rank=4 alpha=2`. It is empty if
    the row has no variant, or if a few numbers or words cannot tell the rows apart.
    """
    records: list[Record]
    """All records of the row: done, failed, or missing (planned, but not found)."""
    setting_hash: str
    """The first eight hex digits of the hash of the row's identity without the seed."""
    base: str
    """The hash of the row's identity without seed, adaptation and retrieval."""
    expected: int = 0
    """The number of pairs (image, seed) for which any row of the group or the plan has a record."""
    sigma_y: float | None = None
    """The noise of y in grey levels, for comparison with the residual; None if unknown."""
    evaluations: tuple[float | None, float | None] = (None, None)
    """The sampler's mean network calls per image: (without a gradient, with a gradient).

    Both are None if a record misses them.
    """
    trained_on: str | None = None
    """The training set of the prior; None if no record names it or no network was used."""
    images: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """{metric: {image: mean over its seeds, None if a seed is missing}}."""
    clusters: dict[str, str] = field(default_factory=dict)
    """{image: its cluster}."""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    to_reference: dict[str, PairedDifference] = field(default_factory=dict)
    """{metric: paired difference to the reference row}.

    The reference row has the same base, and its mode is the board's `against`. A metric has no
    entry if there is no reference row, or if the two rows share no image.
    """
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """{metric: verdict on the difference to the reference row}, for metrics with a margin."""
    ranking: dict[str, Ranking] = field(default_factory=dict)
    """{metric: "best" for the only best row of a task, or "tied" for a row tied with the best}.

    A metric has no entry if the row is worse, if its value is missing, or if the rows cannot be
    compared.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the first record: everything that changes a pixel.

        The other records of the row differ only in the seed.
        """
        return self.records[0].identity

    @property
    def have(self) -> int:
        """The number of expected records that are done."""
        return len(self.done)

    @property
    def done(self) -> list[Record]:
        """The records with status `done`."""
        return [record for record in self.records if record.status == "done"]

    def means(self, metric: str) -> dict[str, float | None]:
        """Return {cluster: mean over its images} in one metric."""
        return cluster_means(self.images[metric], self.clusters)


@dataclass
class Board:
    """Leaderboard: its rows, its metrics, and the notes shown with them."""

    rows: list[Row]
    metrics: dict[str, str]
    """{metric: direction}, in the order of the records."""
    versions: dict[str, str]
    """{metric: version, which names the back end}, for metrics that have a value."""
    against: str = "none"
    """The mode of the reference rows."""
    shown: Sequence[str] = ()
    """The axes among data, backbone and sampler in which rows differ; row labels include them."""
    summary: str = ""
    """One sentence on the verdicts; empty if there are none."""
    notes: list[str] = field(default_factory=list)
    damaged: int = 0
    """The number of files that could not be read; the first notes name them.

    If it is above 0, the commands that show the board exit with status 1.
    """


def make_board(
    records: Iterable[Record], planned: Iterable[Record] = (), against: str = "none"
) -> Board:
    """Return the leaderboard of some records.

    Args:
        records: records that were found.
        planned: records of status `missing`, one per planned image and cell without a record.
        against: mode of the reference rows.

    Raises:
        InputError: if records of one task differ in the y of an image, in the task's version, or in
            a metric's version; or if `against` is not `none` and no row has this mode.
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
    # Compute the numbers of each group of rows that need the same images and seeds.
    for _, group in groupby(rows, key=lambda row: [row.axes[axis] for axis in GROUP]):
        alike, unclear = with_settings(list(group), shown)
        board.rows += alike
        notes += [*measure(alike, board, clusters), *unclear]

    # Correct the p values over the whole table, then judge each difference and mark the best rows.
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

    # Collect the notes and the summary.
    made_by = ", ".join(f"{name} {versions[name]}" for name in metrics if name in versions)
    reasons = {f"{name}: {why}" for record in records for name, why in record.unavailable.items()}
    board.notes = [f"versions: {made_by}"] * bool(made_by) + gathered(notes)
    board.notes += gathered(power_notes(board.rows, shown)) + sorted(reasons)
    board.summary = sentence_of(board.rows, shown, against)
    return board


def rows_of(records: list[Record]) -> list[Row]:
    """Group records into rows, and return the rows before their numbers are computed.

    The rows are sorted by task, data set, backbone and sampler, then by `row_order` and by the hash
    of the setting.
    """
    examples = {record.cell: record for record in records}  # one per cell, as hashing is slow
    settings = {cell: without_seed(record) for cell, record in examples.items()}
    places = grouped(
        ((settings[r.cell], r.image.data or None, *(getattr(r.axes, axis) for axis in AXES)), r)
        for r in records
    )
    rows = [
        Row(
            dict(zip(AXES, values, strict=True)) | {"variant": "", "setting": "", "data": data},
            of_row,
            setting,
            base_of(of_row[0]),
        )
        for (setting, data, *values), of_row in places.items()
    ]

    def sort_key(row: Row) -> tuple[Any, ...]:
        return [row.axes[axis] or "" for axis in GROUP], row_order(row.axes), row.setting_hash

    return sorted(rows, key=sort_key)


def with_settings(rows: list[Row], shown: Sequence[str]) -> tuple[list[Row], list[Note]]:
    """Add to the rows of a group the settings that tell them apart; return (sorted rows, notes).

    The rows of a group have the same task, data set, backbone and sampler. Rows with the same label
    (mode, adapter and K) get the settings in which they differ, and are sorted by these settings. A
    row with a unique label gets settings only if rows of the group differ in settings outside seed,
    adaptation and retrieval (`Row.base`). In that case it gets these settings.

    The notes name settings that cannot be shown. Rows with different settings are never averaged
    together.
    """
    several_bases = len({row.base for row in rows}) > 1
    of_bases = (
        distinguishing_settings({row.setting_hash: base_part(row.identity) for row in rows})
        if several_bases
        else {}
    )
    ordered: list[Row] = []
    notes: list[Note] = []
    # Rows with the same label follow one another: they share mode, adapter and K.
    for _, same in groupby(rows, key=lambda row: row_order(row.axes)):
        alike = {row.setting_hash: row for row in same}
        identities = {setting: row.identity for setting, row in alike.items()}
        told = distinguishing_settings(identities) if len(alike) > 1 else of_bases
        if len(alike) > 1 and not told:
            name = named(next(iter(alike.values())).axes, shown)
            notes.append((f"{len(alike)} rows differ in {what_differs(identities)}", name))
        if len(alike) > 1 or several_bases:
            for setting, row in alike.items():
                row.axes |= {
                    "variant": setting,
                    "setting": " ".join(
                        f"{name}={v:g}" if isinstance(v, float) else f"{name}={v}"
                        for name, v in told.get(setting, {}).items()
                    ),
                }
        numbers = {setting: setting_order(told.get(setting, {})) for setting in alike}
        ordered += [alike[setting] for setting in sorted(alike, key=numbers.__getitem__)]
    if several_bases and not notes and not all(row.axes["setting"] for row in rows):
        parts = {
            same[0].setting_hash: base_part(same[0].identity)
            for same in grouped((row.base, row) for row in rows).values()
        }
        notes.append(
            (
                f"the rows have {len(parts)} configurations, which differ in {what_differs(parts)}",
                place_of(rows[0].axes, shown),
            )
        )
    return ordered, notes


def setting_order(setting: dict[str, float | str]) -> list[tuple[bool, float, str]]:
    """Return a sort key for the settings of a row, given as {name: value}.

    Numbers come first, in order of value, and words follow.
    """
    return [
        (isinstance(v, str), 0.0 if isinstance(v, str) else v, str(v)) for v in setting.values()
    ]


def measure(rows: list[Row], board: Board, known: dict[tuple[str | None, str], str]) -> list[Note]:
    """Compute the numbers of the rows of a group, store them in the rows, and return notes.

    Args:
        rows: rows that need the same images and seeds.
        board: the board, for its metrics and reference mode.
        known: {(data set, image): cluster} for images that belong to a cluster with other images.
    """
    expected = sorted({(record.image.id, record.seed) for row in rows for record in row.records})
    clusters = {image: known.get((rows[0].axes["data"], image), image) for image, _ in expected}
    told = first_known(*(record.sigma_y for row in rows for record in row.records))
    notes: list[Note] = []
    # Means, noise, network calls and prior of each row.
    for row in rows:
        done = {(record.image.id, record.seed): record for record in row.done}
        row.expected, row.clusters = len(expected), clusters
        row.images = {metric: image_means(done, metric, expected) for metric in board.metrics}
        row.estimates = {
            metric: mean_over_images(list(row.means(metric).values())) for metric in board.metrics
        }
        # The identity has sigma_y even if no record is done; an editing task has none.
        planned = flatten(row.identity).get("task.sigma_y")
        noise = float(planned) if isinstance(planned, int | float) else told
        row.sigma_y = first_known(*(record.sigma_y for record in row.done), noise)
        row.evaluations = evaluations_of(row.done)
        row.trained_on = first_known(*map(prior_of, row.done))
        name = named(row.axes, board.shown)
        if (warning := first_known(*map(leakage_warning, row.done))) is not None:
            notes.append((warning, name))
        notes += [
            (f"failed: {record.error}", f"{name} seed={record.seed} {record.image.id}")
            for record in row.records
            if record.status == "failed"
        ]
        if row.have < row.expected:
            notes.append(
                (f"{row.have} of {row.expected} records are done, so means are missing", name)
            )
    # Paired differences of each row to its reference row.
    compared = [metric for metric, direction in board.metrics.items() if direction != "none"]
    for row in rows:
        name = named(row.axes, board.shown)
        references = references_of(row, rows, board.against)
        if len(references) > 1:
            notes.append(
                (
                    f"{len(references)} rows of the mode {board.against} could be the reference, "
                    "so no difference is shown",
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
            f"{len(clusters)} images form {count_of(len(sizes), 'cluster')}, such as {example}; "
            "each cluster counts once"
        )
        notes.append((what, place_of(rows[0].axes, board.shown)))
    return notes


def references_of(row: Row, rows: list[Row], against: str) -> list[Row]:
    """Return the rows of the mode `against` that a row can be compared with.

    They agree with the row in everything except seed, adaptation and retrieval (`Row.base`). If
    there are several, those with the row's K, adapter, fine-tuning and corpus are preferred. A row
    of the mode `against` is its own reference.
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
    """Return the adaptation settings of a row's identity, except the mode.

    They are K, adapter, fine-tuning, corpus, and the rule by which the corpus withholds images from
    a test image.
    """
    parts, unlike = (
        ("adaptation.", "retrieval.corpus", "retrieval.withholds"),
        ("adaptation.name", "adaptation.version"),
    )
    return {k: v for k, v in flatten(identity).items() if k.startswith(parts) and k not in unlike}


def gathered(notes: Iterable[Note]) -> list[str]:
    """Return one line per remark, which lists all rows or tasks that the remark is about.

    The format is `remark: one row, another row`.
    """
    return [f"{what}: {', '.join(dict.fromkeys(names))}" for what, names in grouped(notes).items()]


def evaluations_of(records: list[Record]) -> tuple[float | None, float | None]:
    """Return the mean network calls per image: (without a gradient, with a gradient).

    Both are None if any record lacks these numbers, or if there is no record.
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
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


def image_means(
    done: dict[tuple[str, int], Record], metric: str, expected: list[tuple[str, int]]
) -> dict[str, float | None]:
    """Return {image: mean of a metric over the image's seeds}.

    The mean is None if a seed that `expected` lists for the image has no value.

    Args:
        done: {(image, seed): finished record}.
        metric: name of the metric.
        expected: the pairs (image, seed) that the row needs.
    """
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
    """Return notes on images that the differences to the reference row leave out.

    Such an image has no value in the row or in the reference row. Metrics that leave out the same
    images share a note.
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
            f"the difference to {against}{which} uses the {both} images that both rows have, so "
            f"{shown} {'are' if len(dropped) > 1 else 'is'} left out"
        )
    return notes


def power_notes(rows: list[Row], shown: Sequence[str]) -> list[Note]:
    """Return one note per task: the smallest gains that its rows can detect with 80 % power.

    A note gives one gain per metric, or a range if the gains of the rows differ (`Verdict.least`).
    """
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
                f"smallest gain detected with 80 % power at n = {n} is, depending on the row, "
                f"{', '.join(parts)}",
                where,
            )
        )
    return notes


def sentence_of(rows: list[Row], shown: Sequence[str], against: str) -> str:
    """Return one sentence on the verdicts of the rows.

    The sentence calls a row by its adaptation mode. Where rows of one mode have different labels,
    it calls them by their labels.
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
    """Mark the best row of each task and the rows tied with it; return notes on unmarked rows.

    All rows with the same task and data set compete, whatever their backbone and sampler. A row
    competes only if it has a score for every image of the task and data set that any row scored.
    Otherwise a row with a few easy images could pass for the best of the task.
    """
    contests: list[tuple[str, list[Row]]] = []
    notes: dict[Note, None] = {}
    few = (
        "no row is marked, because no two-sided signed rank test of fewer than "
        f"{FEWEST_TO_TELL_APART} can reach p < 0.05"
    )
    # A contest is one metric of one task and data set.
    for metric in metrics:
        for field_of in grouped(
            ((row.axes["task"], row.axes["data"]), row)
            for row in rows
            if row.estimates[metric].value is not None
        ).values():
            where = place_of(field_of[0].axes, [name for name in shown if name == "data"])
            images = {
                image: row.clusters[image] for row in field_of for image in row.images[metric]
            }
            n = len(set(images.values()))
            whole = [row for row in field_of if len(row.images[metric]) == len(images)]
            if len(whole) < len(field_of):
                partial = (
                    f"rows that do not cover all {len(images)} images are not marked "
                    f"({count_of(len(field_of) - len(whole), 'row')})"
                )
                notes[partial, where] = None
            if len(whole) > 1 and n >= FEWEST_TO_TELL_APART:
                contests.append((metric, whole))
            elif len(whole) > 1:
                clustered = "" if n == len(images) else f" in {count_of(n, 'cluster')}"
                notes[f"with {count_of(len(images), 'image')}{clustered}, {few}", where] = None
    # All contests are decided together, because the Holm correction covers all of them.
    values = [[row.means(metric) for row in whole] for metric, whole in contests]
    outcomes = best_of(values, [metrics[metric] for metric, _ in contests])
    for (metric, whole), leaders in zip(contests, outcomes, strict=True):
        for place in leaders:
            whole[place].ranking[metric] = "best" if len(leaders) == 1 else "tied"
    return list(notes)


def row_order(axes: dict[str, Any]) -> tuple[Any, ...]:
    """Return a sort key for rows: first by mode, then by adapter, then by K.

    The order of modes is none, self, knn, pixel, random, and all other modes by name.
    """
    mode, k = axes["adaptation"], axes["k"]
    return (ORDER.get(mode, 9), str(mode), str(axes["adapter"]), -math.inf if k is None else k)


def place_of(axes: dict[str, Any], shown: Sequence[str]) -> str:
    """Return a row's task and its values of the axes in `shown`, such as `deblur dps`.

    `shown` is `Board.shown`: the axes among data, backbone and sampler in which rows differ.
    """
    return " ".join([axes["task"], *(axes[name] or "–" for name in shown)])


def named(axes: dict[str, Any], shown: Sequence[str]) -> str:
    """Return the full label of a row, which no other row of the board has.

    An example is `deblur dps knn k=20 full`. `shown` is `Board.shown`, as in `place_of`.
    """
    return f"{place_of(axes, shown)} {label(axes)}"


def label(axes: dict[str, Any]) -> str:
    """Return the label of a row within its task, such as `knn k=20 full`.

    The label includes the setting if the row has one: `knn k=20 lora rank=4`.
    """
    k = f"k={axes['k']}" if axes["k"] is not None else ""
    return " ".join(
        filter(
            None, [axes["adaptation"], k, axes["adapter"], axes.get("setting") or axes["variant"]]
        )
    )
