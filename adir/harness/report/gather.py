"""A board and its records, sorted into what the report shows: rows, and images with what each row
made of them.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adir.errors import InputError
from adir.harness.records.record import Record
from adir.harness.report.styles import RowStyle, row_styles
from adir.harness.tables.board import Board, Row, label
from adir.harness.tables.leaderboard import load_board
from adir.harness.tables.statistics import mean_over_images

FIDELITY = ("psnr", "lpips", "ssim")
PERCEIVED = ("musiq", "deep-lite0", "piqe")
"""Metrics a chart starts with, by how their names start: the first that there is."""


@dataclass
class Scene:
    """One test image under one task: everything that was made of one y."""

    task: str
    data: str
    """The data set; empty where no record names one."""
    image_id: str
    cells: dict[int, dict[int, Record]] = field(default_factory=dict)
    """{row of the board: {seed: record, done or failed}}"""

    @property
    def seeds(self) -> list[int]:
        """Every seed that some row has."""
        return sorted({seed for seeds in self.cells.values() for seed in seeds})

    @cached_property
    def restored(self) -> dict[int, dict[int, Record]]:
        """`cells` without what failed, and without rows of which everything did."""
        done = {
            n: {s: r for s, r in seeds.items() if r.status == "done"}
            for n, seeds in self.cells.items()
        }
        return {number: seeds for number, seeds in done.items() if seeds}

    @property
    def done(self) -> list[Record]:
        """The records of what was restored."""
        return [record for seeds in self.restored.values() for record in seeds.values()]

    @property
    def sha256(self) -> str | None:
        """Hash of the ground truth; None where nothing was restored."""
        return next((record.image.sha256 for record in self.done), None)


@dataclass(frozen=True)
class Gathered:
    """What a results folder holds."""

    folder: Path
    board: Board
    labels: list[str]
    """Of the board's rows, as short as tells them apart within a task."""
    styles: list[RowStyle]
    """Of the board's rows, in every drawing."""
    scenes: list[Scene]
    records: list[tuple[int, Record]]
    """(row of the board, record) of all that are done or failed, in order of rows, images and
    seeds.
    """

    @cached_property
    def first_seed(self) -> int:
        """The lowest seed that is in every row of every image, or else the lowest of all: the one
        that is shown first.
        """
        places = [set(seeds) for scene in self.scenes for seeds in scene.cells.values()]
        return min(set.intersection(*places) or set.union(*places))

    @cached_property
    def made_with(self) -> list[dict[str, Any]]:
        """Each distinct {commit, versions, threads}, with `count`, the records that share it."""
        made_of = (
            {"commit": r.commit, "versions": r.versions, "threads": r.threads}
            for _, r in self.records
        )
        counts = Counter(json.dumps(made, sort_keys=True) for made in made_of)
        return [json.loads(made) | {"count": count} for made, count in counts.items()]

    def scenes_of(self, row: Row) -> list[Scene]:
        """The test images that a row of the board is about."""
        place = (row.axes["task"], row.axes["data"] or "")
        return [scene for scene in self.scenes if (scene.task, scene.data) == place]


def gather(folder: Path) -> Gathered:
    """The records of a results folder, read once, by the rows of their board.

    Raises InputError where there are none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such results folder")
    board = load_board(folder)
    scenes: dict[tuple[str, str, str], Scene] = {}
    records: list[tuple[int, Record]] = []
    for number, row in enumerate(board.rows):
        for record in sorted(row.records, key=lambda record: (record.image.id, record.seed)):
            place = (record.axes.task, record.image.data or "", record.image.id)
            scene = scenes.setdefault(place, Scene(*place))
            if record.status != "missing":
                scene.cells.setdefault(number, {})[record.seed] = record
                records.append((number, record))
    ordered = [scenes[place] for place in sorted(scenes)]
    return Gathered(folder, board, row_labels(board), row_styles(board), ordered, records)


def row_labels(board: Board) -> list[str]:
    """`knn k=20 full` of each row, after data set, backbone and sampler where the board has several
    of them; of these alone where every row has one mode.
    """
    modes = [label(row.axes) for row in board.rows]
    shown = not board.shown or len(set(modes)) > 1
    return [
        " ".join([*(row.axes[name] or "–" for name in board.shown), *([mode] if shown else [])])
        for row, mode in zip(board.rows, modes, strict=True)
    ]


def pick_metric(board: Board, starts: tuple[str, ...]) -> str | None:
    """The first metric with a value whose name starts so, in the order of `starts`; None when there
    is none.
    """
    there = [
        name
        for name in board.metrics
        if any(row.estimates[name].value is not None for row in board.rows)
    ]
    return next((name for start in starts for name in there if name.startswith(start)), None)


def cost(records: list[Record]) -> tuple[float | None, float | None]:
    """(mean network evaluations, mean seconds) of restoring an image, over the records; None where
    any lacks it.

    Seconds are retrieval, training of the adapter (counted also where it was found in its store)
    and sampling; scoring and the making of y are not part of restoring.
    """
    evaluations: list[float | None] = [
        None if record.sampler is None else record.sampler.network_evaluations for record in records
    ]
    seconds = [restoring_seconds(record) for record in records]
    return mean_over_images(evaluations).value, mean_over_images(seconds).value


def restoring_seconds(record: Record) -> float | None:
    """Retrieval, training of the adapter and sampling of one image."""
    training = 0.0 if record.adapter is None else record.adapter.training_seconds
    sampling = record.seconds.get("sample")
    return None if sampling is None else sampling + record.seconds.get("retrieve", 0.0) + training
