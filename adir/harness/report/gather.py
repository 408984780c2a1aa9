"""Read a results folder for a report: its leaderboard, and the records of each test image."""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adir.errors import InputError
from adir.harness.records.record import Record
from adir.harness.report.styles import RowStyle, row_styles
from adir.harness.tables.board import Board, label
from adir.harness.tables.leaderboard import load_board
from adir.harness.tables.statistics import mean_over_images

FIDELITY = ("psnr", "lpips", "ssim")
PERCEIVED = ("musiq", "deep-lite0", "piqe")
"""Prefixes of metric names, from which `pick_metric` chooses the metrics that charts first show."""


@dataclass
class Scene:
    """Records of one test image under one task, from all rows of the leaderboard.

    Each record describes one restoration. All restorations have the same y.
    """

    task: str
    data: str
    """The name of the data set; empty if no record gives one."""
    image_id: str
    cells: dict[int, dict[int, Record]] = field(default_factory=dict)
    """{number of the leaderboard row: {seed: record}} of finished and failed restorations."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of all records, sorted."""
        return sorted({seed for seeds in self.cells.values() for seed in seeds})

    @cached_property
    def restored(self) -> dict[int, dict[int, Record]]:
        """Finished records, as {number of the leaderboard row: {seed: record}}.

        A row without finished records is omitted.
        """
        done = {
            n: {s: r for s, r in seeds.items() if r.status == "done"}
            for n, seeds in self.cells.items()
        }
        return {number: seeds for number, seeds in done.items() if seeds}

    @property
    def done(self) -> list[Record]:
        """The finished records of all rows and seeds, as a list."""
        return [record for seeds in self.restored.values() for record in seeds.values()]

    @property
    def sha256(self) -> str | None:
        """The `hash_of_image` of the ground truth, or None if no record is finished."""
        return next((record.image.sha256 for record in self.done), None)


@dataclass(frozen=True)
class Gathered:
    """Contents of a results folder, grouped for a report.

    The number of a leaderboard row is its index in `board.rows`.
    """

    folder: Path
    board: Board
    labels: list[str]
    """One label per leaderboard row, from `row_labels`."""
    styles: list[RowStyle]
    """One style per leaderboard row, used in all charts and figures."""
    scenes: list[Scene]
    records: list[tuple[int, Record]]
    """(number of the leaderboard row, record) of each finished or failed record.

    They are sorted by row, image id and seed.
    """

    @cached_property
    def first_seed(self) -> int:
        """The seed that the report shows first.

        It is the lowest seed with which every row has a record of each of its images. If there is
        no such seed, it is the lowest of all seeds.
        """
        places = [set(seeds) for scene in self.scenes for seeds in scene.cells.values()]
        return min(set.intersection(*places) or set.union(*places))

    @cached_property
    def made_with(self) -> list[dict[str, Any]]:
        """The software that made the records: one dictionary per combination of versions.

        A dictionary has the keys `commit`, `versions`, `threads`, and `count`, which is the number
        of records made with this combination.
        """
        made_of = (
            {"commit": r.commit, "versions": r.versions, "threads": r.threads}
            for _, r in self.records
        )
        counts = Counter(json.dumps(made, sort_keys=True) for made in made_of)
        return [json.loads(made) | {"count": count} for made, count in counts.items()]


def gather(folder: Path) -> Gathered:
    """Read all records of a results folder once, and group them by leaderboard row and image.

    Raises:
        InputError: if the folder does not exist or contains no records.
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
    """Return a label for each row of a leaderboard, such as `knn k=20 full`.

    A label has up to four parts: data set, backbone, sampler, and the mode with its settings. Parts
    that are the same in all rows are omitted. If all four are the same, the label is the mode with
    its settings.
    """
    modes = [label(row.axes) for row in board.rows]
    shown = not board.shown or len(set(modes)) > 1
    return [
        " ".join([*(row.axes[name] or "–" for name in board.shown), *([mode] if shown else [])])
        for row, mode in zip(board.rows, modes, strict=True)
    ]


def pick_metric(board: Board, starts: tuple[str, ...]) -> str | None:
    """Return the name of a metric that has a value and starts with one of the prefixes `starts`.

    If several metrics match, the one of the earliest prefix is returned. Returns None if no metric
    matches.
    """
    there = [
        name
        for name in board.metrics
        if any(row.estimates[name].value is not None for row in board.rows)
    ]
    return next((name for start in starts for name in there if name.startswith(start)), None)


def cost(records: list[Record]) -> tuple[float | None, float | None]:
    """Return (mean number of network evaluations, mean seconds) per restored image.

    A mean is None if any record lacks the value. The seconds are those of retrieval, training of
    the adapter and sampling; scoring and making y are excluded. For an adapter from the cache, the
    seconds of its original training are counted.
    """
    evaluations: list[float | None] = [
        None if record.sampler is None else record.sampler.network_evaluations for record in records
    ]
    seconds = [restoring_seconds(record) for record in records]
    return mean_over_images(evaluations).value, mean_over_images(seconds).value


def restoring_seconds(record: Record) -> float | None:
    """Return the seconds that one image took for retrieval, adapter training and sampling.

    Returns None if the record lacks the seconds of sampling.
    """
    training = 0.0 if record.adapter is None else record.adapter.training_seconds
    sampling = record.seconds.get("sample")
    return None if sampling is None else sampling + record.seconds.get("retrieve", 0.0) + training
