"""Records and board, sorted into what the report shows: rows, and pictures with what each row made of them."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adir.errors import InputError
from adir.harness.records.comparable import without_seed
from adir.harness.records.record import Record
from adir.harness.records.sources import read_sources, uncollected
from adir.harness.report.looks import Look, looks
from adir.harness.tables.board import Board, Row, label, make_board
from adir.harness.tables.formats import extra_axes

AXES = ("backbone", "sampler", "task", "adaptation", "adapter", "k")
FIDELITY = ("psnr", "lpips", "ssim")
PERCEIVED = ("musiq", "deep-lite0", "piqe")
"""Metrics a chart starts with, by how their names start: the first that there is."""


@dataclass
class Scene:
    """One test picture under one task: everything that was made of one y."""

    task: str
    data: str
    """The data set; empty where no record names one."""
    image_id: str
    cells: dict[int, dict[int, Record]] = field(default_factory=dict)
    """{row of the board: {seed: record, done or failed}}"""
    done: list[Record] = field(default_factory=list)
    """Those that were restored."""

    @property
    def seeds(self) -> list[int]:
        """Every seed that some row has."""
        return sorted({seed for seeds in self.cells.values() for seed in seeds})


@dataclass(frozen=True)
class Gathered:
    """What a results folder holds."""

    folder: Path
    board: Board
    labels: list[str]
    """Of the board's rows, as short as tells them apart within a task."""
    looks: list[Look]
    """Of the board's rows, in every drawing."""
    scenes: list[Scene]
    failed: list[tuple[int, Record]]
    """(row of the board, record)"""
    made_with: list[dict[str, Any]]
    """Each distinct {commit, versions, threads}, with `count`, the records that share it."""
    examples: dict[int, Record]
    """{row of the board: a record of it}; not of a row that is planned and has none yet."""
    first_seed: int
    """The lowest seed that every place has, or else the lowest of all: the one that is shown first."""
    n_records: int

    def scenes_of(self, row: Row) -> list[Scene]:
        """The test pictures that a row of the board is about."""
        place = (row.axes["task"], row.axes.get("data") or "")
        return [scene for scene in self.scenes if (scene.task, scene.data) == place]

    def done_of(self, number: int) -> list[Record]:
        """The records of a row of the board that were restored."""
        scenes = self.scenes_of(self.board.rows[number])
        records = [record for scene in scenes for record in scene.cells.get(number, {}).values()]
        return [record for record in records if record.status == "done"]


def gather(folder: Path) -> Gathered:
    """The records of a results folder, read once, by the rows of their board. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such results folder")
    with uncollected():
        found = read_sources([folder])
        if not found.records:
            raise InputError(f"{folder}: no records below it; `adir run ... results={folder}` makes them")
        records, planned, notes = found.counted()
        board = make_board(records, planned)
    board.notes, board.damaged = notes + board.notes, len(found.notes)
    row_number = row_finder(board)
    scenes: dict[tuple[str, str, str], Scene] = {}
    failed: list[tuple[int, Record]] = []
    examples: dict[int, Record] = {}
    made_with: dict[str, dict[str, Any]] = {}
    for record in [*records, *planned]:
        place = (record.axes.task, record.image.data or "", record.image.id)
        scene = scenes.setdefault(place, Scene(*place))
        if record.status == "missing":
            continue
        number = row_number(record)
        examples.setdefault(number, record)
        scene.cells.setdefault(number, {})[record.seed] = record
        if record.status == "done":
            scene.done.append(record)
        else:
            failed.append((number, record))
        made_of = {"commit": record.commit, "versions": record.versions, "threads": record.threads}
        made_with.setdefault(json.dumps(made_of, sort_keys=True), made_of | {"count": 0})["count"] += 1
    tasks = {task: place for place, task in enumerate(dict.fromkeys(row.axes["task"] for row in board.rows))}
    return Gathered(
        folder=folder,
        board=board,
        labels=row_labels(board),
        looks=looks(board),
        scenes=sorted(scenes.values(), key=lambda scene: (tasks[scene.task], scene.data, scene.image_id)),
        failed=sorted(failed, key=lambda pair: (pair[0], pair[1].image.id, pair[1].seed)),
        made_with=list(made_with.values()),
        examples=examples,
        first_seed=first_seed(list(scenes.values())),
        n_records=len(records),
    )


def row_finder(board: Board) -> Any:
    """A function that gives the number of the board's row that a record is part of."""
    names = (*AXES, "data", "variant")  # what tells a row from all others
    numbers = {tuple(row.axes[name] for name in names): number for number, row in enumerate(board.rows)}
    settings: dict[tuple[str, str | None], str] = {}  # by cell: to hash 10,000 identities would take seconds

    def row_number(record: Record) -> int:
        data = record.image.data or None
        place = (*(getattr(record.axes, name) for name in AXES), data)
        number = numbers.get((*place, ""))
        if number is not None:
            return number
        of_cell = (record.cell, data)
        if of_cell not in settings:
            settings[of_cell] = without_seed(record)
        return numbers[*place, settings[of_cell]]

    return row_number


def first_seed(scenes: list[Scene]) -> int:
    """The lowest seed that is in every row of every picture; where none is, the lowest there is."""
    places = [set(seeds) for scene in scenes for seeds in scene.cells.values()]
    return min(set.intersection(*places) or set.union(*places))


def row_labels(board: Board) -> list[str]:
    """`knn k=20 full` of each row, after data set, backbone and sampler where the board has several of them; of these alone
    where every row has one mode."""
    several = extra_axes(board)
    modes = [label(row.axes) for row in board.rows]
    shown = not several or len(set(modes)) > 1
    return [
        " ".join([*(row.axes[name] or "–" for name in several), *([mode] if shown else [])])
        for row, mode in zip(board.rows, modes, strict=True)
    ]


def pick_metric(board: Board, starts: tuple[str, ...]) -> str | None:
    """The first metric with a value whose name starts so, in the order of `starts`; None when there is none."""
    there = [name for name in board.metrics if any(row.estimates[name].value is not None for row in board.rows)]
    return next((name for start in starts for name in there if name.startswith(start)), None)


def cost(records: list[Record]) -> tuple[float | None, float | None]:
    """(mean network evaluations, mean seconds) of restoring a picture, over the records; None where any lacks it.

    Seconds are retrieval, training of the adapter (counted also where it was found in its store) and sampling; scoring and
    the making of y are not part of restoring.
    """
    evaluations = [None if record.sampler is None else record.sampler.network_evaluations for record in records]
    seconds = [restoring_seconds(record) for record in records]
    return mean_or_none(evaluations), mean_or_none(seconds)


def restoring_seconds(record: Record) -> float | None:
    """Retrieval, training of the adapter and sampling of one picture."""
    if "sample" not in record.seconds:
        return None
    training = 0.0 if record.adapter is None else record.adapter.training_seconds
    return record.seconds["sample"] + record.seconds.get("retrieve", 0.0) + training


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean, missing where one is missing or there is none."""
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present and len(present) == len(values) else None
