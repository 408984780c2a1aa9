"""Tune one or two settings of every sampler by one rule, on images that no published table uses.

    python benchmarks/quality/tune_samplers.py run FOLDER --parquet caltech101_128.parquet
    python benchmarks/quality/tune_samplers.py table FOLDER --out results/embedded/tuning.md

`run` appends a line to FOLDER/scores.jsonl for each restored image and skips images that have a
line. results/embedded/tuning.md has the rule and its choices, which are stored in
conf/sampler/tuned/. The whole run takes about 8,000 evaluations at 128x128, a sixth of them with a
gradient.
"""

import argparse
import contextlib
import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from adir.data.base import Corpus
from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.running.provenance import commit
from benchmarks.common import publish
from benchmarks.quality.adir_settings import read_scores, restore
from benchmarks.quality.fine_tuning import left_out

SEED, N_IMAGES, N_CHECKED = 14, 4, 2
TASKS = ("sr4", "deblur")
MARGIN = 0.1
"""A value replaces the default if PSNR - deep-lite0 improves by more than this (1 dB = 1 point)."""
SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 1.0)

Value = float


@dataclass(frozen=True)
class Setting:
    """Setting of a sampler to be tuned.

    Attributes:
        sampler: name in conf/sampler/.
        key: name of the setting in the sampler's file.
        values: candidates, ascending; None: the default times powers of sqrt(10).
        per_task: tune one value per task. This is done if the sampler's authors do so, or if the
            setting depends on the noise of y.
        tasks: the tasks on which the setting has an effect.
        n_steps: evaluations of each run.
    """

    sampler: str
    key: str
    values: tuple[Value, ...] | None = None
    per_task: bool = False
    tasks: tuple[str, ...] = TASKS
    n_steps: int = 20

    def ladder(self, default: Value) -> list[Value]:
        """Return the candidates, the default among them."""
        if self.values is not None:
            return sorted({*self.values, default})
        return [
            default if k == 0 else float(f"{default * 10 ** (k / 2):.3g}") for k in range(-6, 7)
        ]


SETTINGS = (
    Setting("diffpir", "lambda_", per_task=True),
    Setting("ddnm", "eta", SHARES),
    Setting("ddrm", "eta", SHARES),
    Setting("dds", "gamma", per_task=True),
    Setting("daps", "tau", per_task=True),
    Setting("ddpg", "zeta", SHARES, tasks=("sr4",)),
    Setting("pnp_dm", "rho_min", per_task=True),
    Setting("ddpg", "zeta_noisy", SHARES, tasks=("deblur",)),
    Setting("adir_clean", "temperature", SHARES),
    Setting("ald", "weight"),
    Setting("score_sde", "weight"),
    Setting("ilvr", "weight", tasks=("sr4",)),
    Setting("dps", "weight", per_task=True),
    Setting("pigdm", "eta", SHARES),
    Setting("red_diff", "learning_rate"),
    Setting("diffpir", "zeta", SHARES, per_task=True),
    Setting("ddrm", "etab", SHARES),
    Setting("dds", "eta", SHARES, per_task=True),
    Setting("daps", "eta_0", per_task=True),
    Setting("adir_clean", "guidance_scale", per_task=True),
    Setting("red_diff", "lambda_"),
    Setting("pnp_dm", "n_prior_steps", (1, 2, 4, 10)),
    Setting("dmsp", "sigma_net", n_steps=100),
)
"""Settings in the order of tuning.

The second setting of a sampler is tuned with the value found for the first.
"""
SAMPLERS = tuple(dict.fromkeys(setting.sampler for setting in SETTINGS))


HEAD = """# Settings of the samplers, tuned by one rule

Tuned: one or two settings of each sampler that its authors leave open. `adir` keeps the paper's settings.
Start: conf/sampler/, whose settings are the authors' or deepinv's, except zeta of `diffpir` (the authors' is 0.1)
and the settings of `adir_clean`, found before on other images that no table uses (adir_settings.md).

Images: {n} that no table uses, test images of unseen categories that data=unseen leaves out, drawn with a seed; their
middle {size} pixels. Tasks: `sr4` and `deblur`; {steps} evaluations of the unadapted embedded prior, 100 for `dmsp`; one seed.

The rule: the highest mean of PSNR minus deep-lite0 (1 dB counts as 1 point) over images and tasks. A setting has one value per
task if its authors do so too, or if it depends on the noise of y; its mean is over images. A setting between 0 and 1 takes every
value of {shares}. Of others, the default and the values a factor of sqrt(10) beside it are tried. While the best
is at an end of the tried ones and gains more than {margin} over its neighbour, the next value beyond that end is tried. The default stays unless another
value gains more than {margin}. A sampler's second setting is tuned with the value found for its first.

    python benchmarks/quality/tune_samplers.py run FOLDER --size {pixels} --images {n} --parquet caltech101_128.parquet
    python benchmarks/quality/tune_samplers.py table FOLDER --images {n} --out results/embedded/tuning.md

{date}, commit {commit}, {count} restorations, torch {torch}, one thread. Images: {images}.

In each column of values PSNR in dB, deep-lite0 (lower is better); **bold**: chosen.

| sampler | setting | task | values | default | gain |
|---|---|---|---|---|---|
"""
CHECK = """
## With 100 evaluations

The first {n} images with the defaults and with the settings above, which were tuned with 20.

| sampler | task | defaults | tuned | gain |
|---|---|---|---|---|
"""


class Scores(NamedTuple):
    """Means over images and tasks."""

    gain: float
    """PSNR minus deep-lite0; minus infinity if a restoration failed."""
    psnr: float
    deep_lite0: float

    def __str__(self) -> str:
        return f"{self.psnr:.2f}, {self.deep_lite0:.2f}" if self.gain > -math.inf else "failed"


def scores_of(lines: list[dict[str, Any]]) -> Scores:
    """Return the means over the lines, of which there must be at least one."""
    if any(line["error"] is not None for line in lines):
        return Scores(-math.inf, math.nan, math.nan)
    psnr, deep_lite0 = (
        sum(line[key] for line in lines) / len(lines) for key in ("psnr", "deep_lite0")
    )
    return Scores(psnr - deep_lite0, psnr, deep_lite0)


class Missing(Exception):
    """Error for a restoration that was not run yet."""


class Runs:
    """Restorations of the tuning images, each made once and then read from a folder.

    Args:
        folder: the folder of scores.jsonl and the images.
        images: {id: x}; None: only read, and raise Missing for a missing restoration.
    """

    def __init__(self, folder: Path, images: dict[str, Tensor] | None) -> None:
        self.folder, self.images = folder, images
        self.lines = {(line["cell"], line["image"]): line for line in read_scores(folder)}
        self.ids = list(images or dict.fromkeys(image_id for _, image_id in self.lines))
        self.n_images = len(self.ids)

    def scores(self, setting: Setting, before: dict[str, dict[str, Value]], value: Value) -> Scores:
        """Return the scores of one value of a setting.

        Args:
            setting: the setting to tune.
            before: {task: {key: value}} of the sampler's settings found before.
            value: the value to try.
        """
        settings = {task: found | {setting.key: value} for task, found in before.items()}
        lines = [
            self.lines_of(setting.sampler, task, setting.n_steps, own, self.n_images)
            for task, own in settings.items()
        ]
        return scores_of([line for one in lines for line in one])

    def lines_of(
        self, sampler: str, task: str, n_steps: int, settings: dict[str, Value], n_images: int
    ) -> list[dict[str, Any]]:
        """Return the lines of the first n_images images; missing ones are restored."""
        cfg = composed(sampler, task).copy()
        cfg.results = str(self.folder / "stages")
        cfg.sampler.update({"n_steps": n_steps} | settings)
        cell = resolve_cell(cfg)
        found = []
        for image_id in self.ids[:n_images]:
            key = (cell.identity.sha256, image_id)
            if key not in self.lines:
                if self.images is None:
                    raise Missing(f"{sampler} {task} {n_steps} {settings} {image_id}")
                line = restore(cell, image_id, self.images[image_id], self.folder)
                with (self.folder / "scores.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                self.lines[key] = line
                what = f"{sampler} {task} {n_steps} {settings} {image_id}"
                print(f"{what}: {scores_of([line])}, {line['seconds']:.0f} s", flush=True)
            found.append(self.lines[key])
        return found


def climb(
    values: list[Value],
    default: Value,
    score: Callable[[Value], Scores],
    try_all: bool = False,
) -> tuple[Value, dict[Value, Scores]]:
    """Return (chosen value, {value: scores} of all tried values).

    With `try_all`, every value is tried. Otherwise the default and its two neighbours are tried
    first. While the best value is at an end of the tried ones and gains more than MARGIN over its
    neighbour, the next value beyond that end is tried. The default is chosen unless the best gains
    more than MARGIN over it.

    Args:
        values: candidates, ascending.
        default: one of the candidates.
        score: computes the scores of a value.
        try_all: try every value.
    """
    start = values.index(default)
    first = range(len(values)) if try_all else (start - 1, start, start + 1)
    tried = {i: score(values[i]) for i in first if 0 <= i < len(values)}
    while True:
        best = max(tried, key=lambda i: tried[i].gain)
        step = -1 if best == min(tried) else 1
        further = best + step
        if (
            further in tried
            or not 0 <= further < len(values)
            or tried[best].gain <= tried[best - step].gain + MARGIN
        ):
            break
        tried[further] = score(values[further])
    chosen = best if tried[best].gain > tried[start].gain + MARGIN else start
    return values[chosen], {values[i]: tried[i] for i in sorted(tried)}


@dataclass(frozen=True)
class Tuned:
    """Result of tuning a setting for some tasks."""

    setting: Setting
    tasks: tuple[str, ...]
    default: Value
    chosen: Value
    tried: dict[Value, Scores]


def tune(runs: Runs) -> Iterator[Tuned]:
    """Tune SETTINGS in their order and yield each result."""
    found: dict[tuple[str, str], dict[str, Value]] = defaultdict(dict)  # {(sampler, task): values}
    for setting in SETTINGS:
        for tasks in [(task,) for task in setting.tasks] if setting.per_task else [setting.tasks]:
            default = composed(setting.sampler, tasks[0]).sampler[setting.key]
            before = {task: dict(found[setting.sampler, task]) for task in tasks}
            chosen, tried = climb(
                setting.ladder(default),
                default,
                partial(runs.scores, setting, before),
                try_all=setting.values is not None,
            )
            for task in tasks:
                found[setting.sampler, task][setting.key] = chosen
            yield Tuned(setting, tasks, default, chosen, tried)


@cache
def composed(sampler: str, task: str) -> DictConfig:
    """Return the configuration with the sampler's default settings."""
    return compose([f"sampler={sampler}", f"task={task}"])


def check(runs: Runs, rows: list[Tuned]) -> list[tuple[str, str, Scores, Scores]]:
    """Return (sampler, task, scores of the defaults, scores of the tuned settings).

    The first `N_CHECKED` images are restored with 100 evaluations. Pairs whose tuned settings are
    the defaults are left out.
    """
    found = []
    for sampler, task in itertools.product(SAMPLERS, TASKS):
        own = [row for row in rows if row.setting.sampler == sampler and task in row.tasks]
        if any(row.chosen != row.default for row in own):
            chosen = {row.setting.key: row.chosen for row in own}
            with contextlib.suppress(Missing):
                default, tuned = (
                    scores_of(runs.lines_of(sampler, task, 100, one, N_CHECKED))
                    for one in ({}, chosen)
                )
                found.append((sampler, task, default, tuned))
    return found


def page(runs: Runs) -> str:
    """Return the page of the chosen values."""
    rows = []
    with contextlib.suppress(Missing):  # the page shows the settings tuned so far
        rows.extend(tune(runs))
    size = runs.ids[0].rpartition(" ")[2]
    text = HEAD.format(
        n=runs.n_images,
        size="x".join([size.removesuffix("px")] * 2),
        pixels=size.removesuffix("px"),
        steps=SETTINGS[0].n_steps,
        shares=", ".join(f"{share:g}" for share in SHARES),
        margin=MARGIN,
        date=date.today(),
        commit=commit(),
        count=len(runs.lines),
        torch=torch.__version__,
        images=", ".join(image_id.rpartition(" ")[0] for image_id in runs.ids[: runs.n_images]),
    )
    for row in rows:
        values = [f"{value:g}: {scores}" for value, scores in row.tried.items()]
        values[list(row.tried).index(row.chosen)] = f"**{row.chosen:g}**: {row.tried[row.chosen]}"
        task = "both" if len(row.tasks) > 1 else row.tasks[0]
        gain = row.tried[row.chosen].gain - row.tried[row.default].gain
        what = f"{row.setting.sampler} | {row.setting.key} | {task}"
        text += f"| {what} | {'; '.join(values)} | {row.default:g} | {gain:+.2f} |\n"
    left = [
        f"{one.key} of `{one.sampler}`"
        for one in SETTINGS
        if one not in [row.setting for row in rows]
    ]
    if left:
        text += f"\nNot tuned yet: {', '.join(left)}.\n"
    text += CHECK.format(n=N_CHECKED)
    for sampler, task, default, tuned in check(runs, rows):
        text += f"| {sampler} | {task} | {default} | {tuned} | {tuned.gain - default.gain:+.2f} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    running = actions.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--parquet", type=Path, required=True)
    running.add_argument("--size", type=int, default=128, help="pixels: the middle of each image")
    for_images = "number of images; with several numbers, earlier ones give results sooner"
    running.add_argument("--images", type=int, nargs="+", default=[N_IMAGES], help=for_images)
    tables = actions.add_parser("table")
    tables.add_argument("folder", type=Path)
    tables.add_argument("--images", type=int, default=N_IMAGES)
    tables.add_argument("--out", type=Path, help="file for the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.action == "table":
        runs = Runs(arguments.folder, None)
        runs.n_images = arguments.images
        publish(page(runs), arguments.out)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(arguments.folder, images(left_out(arguments.parquet, size=None), arguments.size))
    for runs.n_images in arguments.images:
        check(runs, list(tune(runs)))


def images(corpus: Corpus, size: int) -> dict[str, Tensor]:
    """Return {id: x}, the middle size x size pixels of N_IMAGES images drawn with SEED."""
    found = {}
    for image_id in random.Random(SEED).sample(corpus.ids, N_IMAGES):
        x = corpus.image(image_id)
        top, left = ((side - size) // 2 for side in x.shape[-2:])
        found[f"{image_id} {size}px"] = x[:, top : top + size, left : left + size].clone()
    return found


if __name__ == "__main__":
    main()
