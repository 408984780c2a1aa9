"""A results folder sorted for the report: the board's rows, and each image's records by row."""

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
"""Prefixes of the metrics that a chart starts with. The first prefix with a metric is used."""


@dataclass
class Scene:
    """Records of one test image under one task: all rows restored the same y."""

    task: str
    data: str
    """The name of the data set; empty if no record gives one."""
    image_id: str
    cells: dict[int, dict[int, Record]] = field(default_factory=dict)
    """{row of the board: {seed: record, done or failed}}."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of all rows, sorted."""
        return sorted({seed for seeds in self.cells.values() for seed in seeds})

    @cached_property
    def restored(self) -> dict[int, dict[int, Record]]:
        """`cells` with the finished records only; a row without one is left out."""
        done = {
            n: {s: r for s, r in seeds.items() if r.status == "done"}
            for n, seeds in self.cells.items()
        }
        return {number: seeds for number, seeds in done.items() if seeds}

    @property
    def done(self) -> list[Record]:
        """The records of finished restorations."""
        return [record for seeds in self.restored.values() for record in seeds.values()]

    @property
    def sha256(self) -> str | None:
        """The hash of the ground truth; None if no record is finished."""
        return next((record.image.sha256 for record in self.done), None)


@dataclass(frozen=True)
class Gathered:
    """Contents of a results folder, sorted for the report."""

    folder: Path
    board: Board
    labels: list[str]
    """One label per row of the board, as short as tells rows of a task apart."""
    styles: list[RowStyle]
    """One style per row of the board, the same in every drawing."""
    scenes: list[Scene]
    records: list[tuple[int, Record]]
    """(row of the board, record) of every finished or failed record, by row, image id and seed."""

    @cached_property
    def first_seed(self) -> int:
        """The seed that is shown first: the lowest that every row has for every image.

        If there is no common seed, the lowest of all seeds.
        """
        places = [set(seeds) for scene in self.scenes for seeds in scene.cells.values()]
        return min(set.intersection(*places) or set.union(*places))

    @cached_property
    def made_with(self) -> list[dict[str, Any]]:
        """Each distinct {commit, versions, threads} with `count`, the number of its records."""
        made_of = (
            {"commit": r.commit, "versions": r.versions, "threads": r.threads}
            for _, r in self.records
        )
        counts = Counter(json.dumps(made, sort_keys=True) for made in made_of)
        return [json.loads(made) | {"count": count} for made, count in counts.items()]

    def scenes_of(self, row: Row) -> list[Scene]:
        """Return the test images of the row's task and data set."""
        place = (row.axes["task"], row.axes["data"] or "")
        return [scene for scene in self.scenes if (scene.task, scene.data) == place]


def gather(folder: Path) -> Gathered:
    """Read the records of a results folder once and sort them by the rows of their board.

    Raises:
        InputError: if the folder does not exist or holds no records.
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
    """Return the label of each row, such as `knn k=20 full`.

    Data set, backbone and sampler come before the mode if the board has several of them. If every
    row has the same mode, the mode is left out.
    """
    modes = [label(row.axes) for row in board.rows]
    shown = not board.shown or len(set(modes)) > 1
    return [
        " ".join([*(row.axes[name] or "–" for name in board.shown), *([mode] if shown else [])])
        for row, mode in zip(board.rows, modes, strict=True)
    ]


def pick_metric(board: Board, starts: tuple[str, ...]) -> str | None:
    """Return the first metric that has a value and starts with one of the prefixes in `starts`.

    Earlier prefixes win; None if no metric matches.
    """
    there = [
        name
        for name in board.metrics
        if any(row.estimates[name].value is not None for row in board.rows)
    ]
    return next((name for start in starts for name in there if name.startswith(start)), None)


def cost(records: list[Record]) -> tuple[float | None, float | None]:
    """Return (mean network evaluations, mean seconds) of restoring an image, over the records.

    Each is None if any record misses it. Seconds are retrieval, training of the adapter and
    sampling. An adapter from the cache counts with the seconds of its training. Scoring and making
    y do not count.
    """
    evaluations: list[float | None] = [
        None if record.sampler is None else record.sampler.network_evaluations for record in records
    ]
    seconds = [restoring_seconds(record) for record in records]
    return mean_over_images(evaluations).value, mean_over_images(seconds).value


def restoring_seconds(record: Record) -> float | None:
    """Return the seconds of retrieval, adapter training and sampling of one image."""
    training = 0.0 if record.adapter is None else record.adapter.training_seconds
    sampling = record.seconds.get("sample")
    return None if sampling is None else sampling + record.seconds.get("retrieve", 0.0) + training
