"""Records to rows: one per backbone, sampler, task, mode, adapter, K and setting; means over clusters of images.

Seeds are averaged within an image, images within a cluster. Computed once here, for every form of the table. Missing stays
missing: a row that lacks a record that another row of its backbone, sampler and task has, or that the grid's plan names,
shows no mean, and says how many it has. Its difference to its reference (`none`, or another mode) is over the images that
both have, and says which it left out. No pandas: importing it costs 0.6 s, a fifth of
what a table of 10,000 records may take; the CSV is for it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adir.errors import InputError
from adir.harness.records.comparable import (
    base_of,
    base_part,
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
    mean_over_pictures,
    paired_difference,
)
from adir.harness.tables.verdicts import Finding, Verdict, margins, sentence, verdict_on

Note = tuple[str, str]
"""What is to be known, and of which row or task."""
ORDER = {"none": 0, "self": 1, "knn": 2, "pixel": 3, "random": 4}
Standing = Literal["best", "tied"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    axes: dict[str, Any]
    """backbone, sampler, task, adaptation, adapter, k, variant, setting, data. variant: eight digits of its setting where a
    reader could not tell it from another row otherwise, else empty.  setting: what that is, `rank=4 alpha=2`, where few
    numbers or words tell it; else the digits stand for it."""
    estimates: dict[str, Estimate]
    to_reference: dict[str, PairedDifference | None]
    """Paired difference to the reference: the row of equal base whose mode is the board's `against`. None where they share no
    picture, no key without such a row."""
    have: int
    expected: int
    """Records (picture, seed) that are done, and that some row of the group or the plan has."""
    sigma_y: float | None
    """Noise of y in grey levels, beside which the residual is read; None where no record tells."""
    evaluations: tuple[float | None, float | None] = (None, None)
    """Mean calls of the network per image by the sampler: without a gradient, and with one. None where a record lacks them."""
    standing: dict[str, Standing] = field(default_factory=dict)
    """{metric: best, the only one; or tied with the best}; no key for what is worse, missing, or cannot be told."""
    pictures: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """{metric: {picture: mean over its seeds, None where one is missing}}"""
    clusters: dict[str, str] = field(default_factory=dict)
    """{picture: its cluster}"""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """{metric: what the difference to the reference shows}, of metrics that have a margin."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Of one of its records; empty where it has none."""
    trained_on: str | None = None
    """The training set of its prior, as the records have it; None where none tells, or no network was used."""

    def means(self, metric: str) -> dict[str, float | None]:
        """{cluster: mean over its images} in one metric."""
        return cluster_means(self.pictures[metric], self.clusters)


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
    summary: str = ""
    """One sentence on the verdicts; empty where there are none."""
    notes: list[str] = field(default_factory=list)
    damaged: int = 0
    """Files that could not be read, which the notes name: what shows this table has not done all it was asked."""


@dataclass(frozen=True)
class Group:
    """Records that expect the same pictures and seeds: one task, data set, backbone and sampler."""

    axes: dict[str, Any]
    rows: dict[tuple[Any, ...], list[Record]]
    """{(adaptation, adapter, k, setting): its records}"""
    clusters: dict[str, str]
    """{picture: its cluster}"""

    @property
    def expected(self) -> list[tuple[str, int]]:
        """(picture, seed) that some row has."""
        return sorted({(r.image.id, r.seed) for records in self.rows.values() for r in records})


def make_board(records: Iterable[Record], planned: Iterable[Record] = (), against: str = "none") -> Board:
    """The board of some records.

    planned: of status `missing`, what the plan of the grid names and nothing was found of.
    against: the mode whose rows the others are compared with.

    Raises InputError when records of one task differ in y or task version, or in the version of a metric, and where no
    record is of the mode `against`, unless that is none.
    """
    records = sorted(records, key=lambda r: (r.axes.task, r.axes.backbone, r.cell, r.image.id))
    metrics: dict[str, str] = {}
    for record in records:
        for name, score in record.scores.items():
            metrics.setdefault(name, score.direction)
    versions = require_same(records)
    rows: list[Row] = []
    told: list[Note] = []
    groups = groups_of([*records, *planned])
    modes = sorted({key[0] for group in groups for key in group.rows}, key=lambda mode: (ORDER.get(mode, 9), mode))
    if against != "none" and against not in modes:
        raise InputError(f"--against {against}: no row has this mode; choose one of {', '.join(modes)}")
    shown = several(group.axes for group in groups)
    for group in groups:
        found, more = rows_of(group, metrics, shown, against)
        rows += found
        told += more
    compared = {name: direction for name, direction in metrics.items() if direction != "none"}
    rows = with_differences_adjusted(rows)
    rows, unmarked = with_standings(rows, compared, shown)
    notes = gathered(told + unmarked)
    reasons = {f"{name}: {why}" for record in records for name, why in record.unavailable.items()}
    made_by = ", ".join(f"{name} {versions[name]}" for name in metrics if name in versions)
    rows = [replace(row, verdicts=verdicts_of(row, metrics)) for row in rows]
    notes += gathered(power_notes(rows, shown))
    notes = [f"versions: {made_by}"] * bool(made_by) + notes + sorted(reasons)
    return Board(rows, metrics, versions, against, sentence_of(rows, shown, against), notes)


def groups_of(records: list[Record]) -> list[Group]:
    """The groups in order of task, data set, backbone and sampler."""
    settings: dict[tuple[str, str | None], str] = {}  # a cell's records share it, and hashing takes long
    found: dict[tuple[str, ...], dict[tuple[Any, ...], list[Record]]] = {}
    clusters: dict[str, dict[str, str]] = {}
    for record in records:
        axes, data = record.axes, record.image.data
        of_cell = (record.cell, data)
        if of_cell not in settings:
            settings[of_cell] = without_seed(record)
        place = (axes.task, data or "", axes.backbone, axes.sampler)
        key = (axes.adaptation, axes.adapter, axes.k, settings[of_cell])
        found.setdefault(place, {}).setdefault(key, []).append(record)
        if record.image.cluster is not None:  # one that was planned, and not begun, tells none
            clusters.setdefault(data or "", {})[record.image.id] = record.image.cluster
    names = ("task", "data", "backbone", "sampler")
    return [
        Group(
            axes=dict(zip(names, place, strict=True)),
            rows=dict(sorted(rows.items(), key=lambda item: row_order(item[0]))),
            clusters={r.image.id: r.image.id for records in rows.values() for r in records}
            | clusters.get(place[1], {}),
        )
        for place, rows in sorted(found.items())
    ]


def several(axes: Iterable[dict[str, Any]]) -> list[str]:
    """Which of data, backbone and sampler a board has several of, so that a row's name takes them in."""
    axes = list(axes)
    return [name for name in ("data", "backbone", "sampler") if len({of_one.get(name) for of_one in axes}) > 1]


def rows_of(group: Group, metrics: dict[str, str], shown: Sequence[str], against: str) -> tuple[list[Row], list[Note]]:
    """The rows of a group, `none` first, and the notes on them. shown: see `named`.  against: see `make_board`."""
    expected = group.expected
    clusters = {image: group.clusters[image] for image, _ in expected}
    bases = {key: base_of(records[0]) for key, records in group.rows.items()}
    compared = [metric for metric, direction in metrics.items() if direction != "none"]
    noise = noise_of(record for records in group.rows.values() for record in records)
    settings = settings_of(group, bases)
    rows: dict[tuple[Any, ...], Row] = {}
    notes: list[Note] = []
    for key in sorted(group.rows, key=lambda key: (row_order((*key[:3], "")), setting_order(settings.get(key, {})))):
        records = group.rows[key]
        adaptation, adapter, k, setting = key
        alike = sum(other[:3] == key[:3] for other in group.rows) > 1 or len(set(bases.values())) > 1
        mode = {"adaptation": adaptation, "adapter": adapter, "k": k, "variant": setting if alike else ""}
        mode["setting"] = " ".join(f"{name}={setting_text(value)}" for name, value in settings.get(key, {}).items())
        axes = (
            {name: group.axes[name] for name in ("backbone", "sampler", "task")}
            | mode
            | {"data": group.axes["data"] or None}
        )
        done = {(r.image.id, r.seed): r for r in records if r.status == "done"}
        pictures = {metric: picture_means(done, metric, expected) for metric in metrics}
        row = Row(
            axes=axes,
            estimates={
                metric: mean_over_pictures(list(cluster_means(values, clusters).values()))
                for metric, values in pictures.items()
            },
            to_reference={},
            have=len(done),
            expected=len(expected),
            sigma_y=first_known(noise_of(done.values()), planned_noise(records[0]), noise),
            evaluations=evaluations_of(list(done.values())),
            pictures=pictures,
            clusters=clusters,
            identity=records[0].identity,
            trained_on=next((told for r in done.values() if (told := prior_of(r)) is not None), None),
        )
        rows[key] = row
        name = named(axes, shown)
        if (warning := next((seen_note(r) for r in done.values()), None)) is not None:
            notes.append((warning, name))
        for record in records:
            if record.status == "failed":
                where = f"seed={record.seed} {record.image.id}"
                notes.append((f"failed: {record.error}", f"{name} {where}"))
        if row.have < row.expected:
            notes.append((f"{row.have} of {row.expected} records, so the means stay missing", name))
    for key, row in rows.items():
        alike_in = references_of(key, group, bases, against)
        name = named(row.axes, shown)
        if len(alike_in) > 1:
            notes.append((f"{len(alike_in)} rows of the mode {against} go with it, so it is not compared", name))
        elif alike_in and alike_in[0] != key:
            other = rows[alike_in[0]].pictures
            differences = {m: paired_difference(row.pictures[m], other[m], clusters) for m in compared}
            rows[key] = replace(row, to_reference=differences)
            notes += [(what, name) for what in dropped_notes(rows[key], against)]
    sizes = Counter(clusters.values())
    if len(sizes) < len(clusters):
        example = min(name for name, size in sizes.items() if size > 1)
        what = f"{len(clusters)} images in {len(sizes)} clusters, such as {example}, each of which counts once"
        notes.append((what, place_of(group.axes, shown)))
    notes += setting_notes(group, bases, shown, settings)
    return list(rows.values()), notes


def references_of(
    key: tuple[Any, ...], group: Group, bases: dict[tuple[Any, ...], str], against: str
) -> list[tuple[Any, ...]]:
    """The rows of the mode `against` that a row can be compared with: those of its base, and of several those of its K,
    adapter, fine-tuning and corpus."""
    found = [other for other in group.rows if other[0] == against and bases[other] == bases[key]]
    if key in found:
        return [key]
    tuned = {other: tuning_of(group.rows[other][0].identity) for other in [key, *found]}
    return [other for other in found if len(found) == 1 or tuned[other] == tuned[key]] or found


def tuning_of(identity: dict[str, Any]) -> dict[str, Any]:
    """What an adaptation has besides its mode: K, adapter, fine-tuning, and the images that may be neighbours."""
    told = {part: identity[part] for part in ("adaptation", "retrieval") if isinstance(identity.get(part), dict)}
    tuning = {k: v for k, v in told.get("adaptation", {}).items() if k not in ("name", "version")}
    return tuning | {k: v for k, v in told.get("retrieval", {}).items() if k in ("corpus", "withholds")}


def settings_of(group: Group, bases: dict[tuple[Any, ...], str]) -> dict[tuple[Any, ...], dict[str, float | str]]:
    """{row: {rank: 4}} of rows that a reader could not tell apart otherwise; without those that few words cannot tell.

    Rows of one name are told apart among themselves; one that is alone in its name, but has not every other's `none`,
    by what all rows have in common with theirs.
    """
    found: dict[tuple[Any, ...], dict[str, float | str]] = {}
    bare = {key[3]: base_part(records[0].identity) for key, records in group.rows.items()}
    of_bases = settings_apart(bare) if len(set(bases.values())) > 1 else {}
    for key in group.rows:
        alike = {other[3]: group.rows[other][0].identity for other in group.rows if other[:3] == key[:3]}
        apart = settings_apart(alike) if len(alike) > 1 else of_bases
        if key[3] in apart:
            found[key] = apart[key[3]]
    return found


def setting_order(setting: dict[str, float | str]) -> list[tuple[bool, float, str]]:
    """By numbers as such, then by words."""
    return [(isinstance(v, str), 0.0 if isinstance(v, str) else v, str(v)) for v in setting.values()]


def setting_text(value: float | str) -> str:
    """`2`, `0.0001`, `3e-05`."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def gathered(notes: Iterable[Note]) -> list[str]:
    """`what: one row, another row`: what is said of several rows is said once."""
    whose: dict[str, list[str]] = {}
    for what, name in notes:
        whose.setdefault(what, []).append(name)
    return [f"{what}: {', '.join(dict.fromkeys(names))}" for what, names in whose.items()]


def noise_of(records: Iterable[Record]) -> float | None:
    """sigma_y of the first record that tells it."""
    return first_known(*(record.sigma_y for record in records))


def planned_noise(record: Record) -> float | None:
    """sigma_y of the task as its identity has it, also where nothing was done yet; an edit's has none."""
    task = record.identity.get("task")
    noise = task.get("sigma_y") if isinstance(task, dict) else None
    return noise if isinstance(noise, int | float) else None


def evaluations_of(records: list[Record]) -> tuple[float | None, float | None]:
    """Mean network evaluations per image without and with a gradient; None where a record lacks them, or there is none."""
    known = [record.sampler for record in records if record.sampler is not None]
    if not known or len(known) < len(records):
        return None, None
    gradients = statistics.fmean(one.gradient_evaluations for one in known)
    return statistics.fmean(one.network_evaluations for one in known) - gradients, gradients


def first_known(*values: float | None) -> float | None:
    """The first that is not None."""
    return next((float(value) for value in values if value is not None), None)


def picture_means(
    done: dict[tuple[str, int], Record], metric: str, expected: list[tuple[str, int]]
) -> dict[str, float | None]:
    """{picture: mean over its seeds}, None where any expected (picture, seed) has no value."""
    per_picture: dict[str, list[float | None]] = {}
    for place in expected:
        record = done.get(place)
        value = record.value(metric) if record is not None else None
        per_picture.setdefault(place[0], []).append(value)
    return {i: None if None in values else math.fsum(values) / len(values) for i, values in per_picture.items()}  # type: ignore[arg-type]


def dropped_notes(row: Row, against: str) -> list[str]:
    """Which pictures its differences leave out, as the row or its reference lacks them; metrics that agree in one note."""
    by_pictures: dict[tuple[str, ...], list[str]] = {}
    for metric, difference in row.to_reference.items():
        if difference is not None and difference.dropped:
            by_pictures.setdefault(difference.dropped, []).append(metric)
    notes = []
    for dropped, metrics in by_pictures.items():
        shown = ", ".join(dropped[:5]) + (f" and {len(dropped) - 5} more" if len(dropped) > 5 else "")
        which = "" if len(metrics) == len(row.to_reference) else f" in {', '.join(metrics)}"
        both = len(row.pictures[metrics[0]]) - len(dropped)
        notes.append(
            f"the difference to {against}{which} is over the {both} pictures that both have, so {shown} "
            f"{'count' if len(dropped) > 1 else 'counts'} in neither"
        )
    return notes


def setting_notes(
    group: Group,
    bases: dict[tuple[Any, ...], str],
    shown: Sequence[str],
    settings: dict[tuple[Any, ...], dict[str, float | str]],
) -> list[Note]:
    """What tells apart rows of one name, and rows that have no common `none`, where their `settings` do not say so in the
    table: they are never averaged together."""
    notes: list[Note] = []
    if settings.keys() == group.rows.keys():
        return notes
    by_name: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for key, records in group.rows.items():
        if key not in settings:
            by_name.setdefault(key[:3], {})[key[3]] = records[0].identity
    for (adaptation, adapter, k), identities in by_name.items():
        if len(identities) > 1:
            axes = group.axes | {"adaptation": adaptation, "adapter": adapter, "k": k, "variant": ""}
            notes.append((f"{len(identities)} settings, {what_differs(identities)}", named(axes, shown)))
    if not notes and len(set(bases.values())) > 1:
        firsts = {base: key for key, base in reversed(bases.items())}
        parts = {
            key[3]: {n: v for n, v in group.rows[key][0].identity.items() if n not in ("adaptation", "retrieval")}
            for key in reversed(firsts.values())
        }
        notes.append((f"rows of {len(parts)} settings, {what_differs(parts)}", place_of(group.axes, shown)))
    return notes


def with_differences_adjusted(rows: list[Row]) -> list[Row]:
    """The rows with p values adjusted over every difference of the table to a reference."""
    adjusted = iter(with_holm([d for row in rows for d in row.to_reference.values() if d is not None]))
    return [
        replace(row, to_reference={m: None if d is None else next(adjusted) for m, d in row.to_reference.items()})
        for row in rows
    ]


def verdicts_of(row: Row, metrics: dict[str, str]) -> dict[str, Verdict]:
    """What its differences show, in the metrics that have a margin."""
    return {
        metric: verdict_on(difference, metrics[metric], margins()[metric])
        for metric, difference in row.to_reference.items()
        if difference is not None and metric in margins()
    }


def power_notes(rows: list[Row], shown: Sequence[str]) -> list[Note]:
    """The least differences that the rows of a task could show, by metric."""
    found: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for row in rows:
        for metric, verdict in row.verdicts.items():
            difference = row.to_reference[metric]
            if verdict.least is not None and math.isfinite(verdict.least) and difference is not None:
                place = found.setdefault(place_of(row.axes, shown), {})
                place.setdefault(metric, []).append((verdict.least, difference.n))
    notes: list[Note] = []
    for where, by_metric in found.items():
        counts = sorted({n for values in by_metric.values() for _, n in values})
        told = []
        for metric, values in by_metric.items():
            ends = dict.fromkeys(f"{end(least for least, _ in values):.2g}" for end in (min, max))
            told.append(f"{metric} {' to '.join(ends)} {margins()[metric].unit}".strip())
        n = " to ".join(str(end) for end in dict.fromkeys((counts[0], counts[-1])))
        notes.append((f"least gain that n = {n} would show with 80 % power, by row: {', '.join(told)}", where))
    return notes


def sentence_of(rows: list[Row], shown: Sequence[str], against: str) -> str:
    """The verdicts of the rows in one sentence. A row is called by its mode where that says which it is."""
    judged = [row for row in rows if row.verdicts]
    labels: dict[str, set[str]] = {}
    for row in judged:
        labels.setdefault(row.axes["adaptation"], set()).add(label(row.axes))
    findings = []
    for row in judged:
        mode = row.axes["adaptation"]
        name = mode if len(labels[mode]) == 1 else label(row.axes)
        name = " ".join([*(row.axes[axis] or "–" for axis in shown), name])
        for metric, verdict in row.verdicts.items():
            difference = row.to_reference[metric]
            assert difference is not None  # it has a verdict
            findings.append(Finding(name, metric, row.axes["task"], difference, verdict.word))
    return sentence(findings, against, any(len(set(row.clusters.values())) < len(row.clusters) for row in judged))


def with_standings(rows: list[Row], metrics: dict[str, str], shown: Sequence[str]) -> tuple[list[Row], list[Note]]:
    """The rows with who is best and who is tied with it, and notes on who cannot be compared, and why.

    Rows compete, whatever their backbone and sampler, where task and data set are the same, no value is missing, and the
    pictures are all that any of them has: the best of those that did a part would pass for the best of the task.
    """
    contests: list[tuple[str, list[int]]] = []
    notes: dict[Note, None] = {}
    few = f"fewer than {FEWEST_TO_TELL_APART}, with which no two-sided signed rank test reaches p < 0.05, so no row is marked"
    for metric in metrics:
        fields: dict[tuple[str, str | None], list[int]] = {}
        for number, row in enumerate(rows):
            if row.estimates[metric].value is not None:
                fields.setdefault((row.axes["task"], row.axes["data"]), []).append(number)
        for numbers in fields.values():
            where = place_of(rows[numbers[0]].axes, [name for name in shown if name == "data"])
            pictures = set().union(*(rows[number].pictures[metric] for number in numbers))
            n = len({rows[number].clusters[picture] for number in numbers for picture in rows[number].pictures[metric]})
            whole = [number for number in numbers if len(rows[number].pictures[metric]) == len(pictures)]
            if len(whole) < len(numbers):
                partial = f"{len(numbers) - len(whole)} rows are not over all {len(pictures)} pictures, so not marked"
                notes[partial, where] = None
            if len(whole) > 1 and n >= FEWEST_TO_TELL_APART:
                contests.append((metric, whole))
            elif len(whole) > 1:
                clustered = "" if n == len(pictures) else f" in {n} clusters"
                notes[f"{len(pictures)} pictures{clustered}, {few}", where] = None
    values = [[rows[number].means(metric) for number in numbers] for metric, numbers in contests]
    outcomes = best_of(values, [metrics[metric] for metric, _ in contests])
    standings: list[dict[str, Standing]] = [{} for _ in rows]
    for (metric, numbers), leaders in zip(contests, outcomes, strict=True):
        for place in leaders:
            standings[numbers[place]][metric] = "best" if len(leaders) == 1 else "tied"
    return [replace(row, standing=s) for row, s in zip(rows, standings, strict=True)], list(notes)


def row_order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """none, self, knn, pixel, random; then adapter, K, variant."""
    adaptation, adapter, k, variant = key
    return (ORDER.get(adaptation, 9), str(adaptation), str(adapter), -math.inf if k is None else k, str(variant))


def place_of(axes: dict[str, Any], shown: Sequence[str]) -> str:
    """`deblur dps`: the task, and of data, backbone and sampler those that are `shown`."""
    return " ".join([axes["task"], *(axes[name] or "–" for name in shown)])


def named(axes: dict[str, Any], shown: Sequence[str]) -> str:
    """`deblur dps knn k=20 full`, which no other row of the board is called. shown: what it has `several` of."""
    return f"{place_of(axes, shown)} {label(axes)}"


def label(axes: dict[str, Any]) -> str:
    """`knn k=20 full`, for notes; `knn k=20 lora rank=4` where a setting tells it from others."""
    parts = [
        axes["adaptation"],
        f"k={axes['k']}" if axes["k"] is not None else "",
        axes["adapter"] or "",
        axes.get("setting") or axes["variant"] or "",
    ]
    return " ".join(part for part in parts if part)
