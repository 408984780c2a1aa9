"""Tune ADIR on the embedded prior: noise (eta), guidance (s) and number of steps, on tuning images.

    python benchmarks/quality/adir_settings.py run FOLDER task=sr4 sampler.eta=0,0.5,1 sampler.guidance_scale=100,1000
    python benchmarks/quality/adir_settings.py run FOLDER task=sr4 sampler=ddrm,bicubic sampler.n_steps=20
    python benchmarks/quality/adir_settings.py table FOLDER --shown ddrm@20 "adir s=100@50" --png rows.png

`run` restores the tuning images with every combination of the comma-separated values. It also takes
modes of adaptation, such as adaptation=knn k=20. It appends a line per image to FOLDER/scores.jsonl
and skips images that have a line. `table` prints the table and draws the named rows.
results/embedded/adir_settings.md was made with this script.

The tuning images are crops of the embedded corpus, one from each of six photographs, drawn with a
seed. No published table uses them. Modes with neighbours use the corpus without the crops that
share a pixel with a tuning image.
"""

import argparse
import dataclasses
import itertools
import json
import random
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from adir.commands.restore import awaited_adapter
from adir.data import domains
from adir.data.embedded import EmbeddedCorpus, corpus_fields
from adir.data.fields import Field, cut, overlap
from adir.data.selection import Part
from adir.harness.cells.cell import Cell, NotApplicable, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.cells.paths import quoted
from adir.harness.running.neighbours import find_neighbours
from adir.harness.running.pipeline import in_place
from adir.images import from_uint8, generator, read_png, to_uint8, write_png
from adir.scoring.deep import DeepLite0
from adir.scoring.metrics import data_consistency_residual, psnr

N_IMAGES = 6
SEED = 12  # for drawing the tuning images
SHOWN = ("psnr", "deep_lite0", "residual")


@cache
def tuning_fields() -> tuple[Field, ...]:
    """Return one corpus crop of each of N_IMAGES photographs, in the order of the draw.

    SEED decides the photographs and the crops. Crops that overlap a test image of data=domains are
    left out.
    """
    draw = random.Random(SEED)
    photographs = draw.sample(sorted({field.photograph for field in corpus_fields()}), N_IMAGES)
    drawn = [
        draw.choice([f for f in corpus_fields() if f.photograph == name]) for name in photographs
    ]
    return tuple(
        field for field in drawn if not any(overlap(field, test) for test in domains.test_fields())
    )


def tuning_corpus() -> Part:
    """Return the embedded corpus without the crops that share a pixel with a tuning image."""
    kept = [
        f.id for f in corpus_fields() if not any(overlap(f, tuning) for tuning in tuning_fields())
    ]
    return Part(EmbeddedCorpus(), kept)


def combinations(overrides: list[str]) -> list[list[str]]:
    """Return all combinations of the values in KEY=VALUE,VALUE words; the last key varies fastest."""
    keys, values = zip(*(word.split("=", 1) for word in overrides), strict=True)
    return [
        [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)]
        for chosen in itertools.product(*(value.split(",") for value in values))
    ]


def run(folder: Path, overrides: list[str], images: list[int]) -> None:
    """Restore and score tuning images with each combination, image by image.

    Args:
        folder: the folder for images and scores.
        overrides: KEY=VALUE,VALUE words.
        images: indices of the tuning images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = folder / "scores.jsonl"
    done = {(line["cell"], line["image"]) for line in read_scores(folder)}
    for number, words in itertools.product(images, combinations(overrides)):
        field = tuning_fields()[number]
        try:
            cell = resolve_cell(compose([*words, f"results={quoted(str(folder / 'stages'))}"]))
        except NotApplicable as error:
            print(f"{' '.join(words)}: {error}", flush=True)
            continue
        if cell.corpus is not None:
            cell = dataclasses.replace(cell, corpus=tuning_corpus(), data=EmbeddedCorpus())
        torch.set_num_threads(cell.configuration["threads"])
        if (cell.identity.sha256, field.id) in done:
            continue
        line = restore(cell, field.id, from_uint8(cut(field)), folder)
        with scores.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{' '.join(words)} {field.id}: {line['psnr']:.2f} dB, deep-lite0 "
            f"{line['deep_lite0']:.2f}, "
            f"residual {line['residual']:.2f}, {line['seconds']:.0f} s",
            flush=True,
        )


def restore(cell: Cell, image_id: str, x: Tensor, folder: Path) -> dict[str, Any]:
    """Restore the tuning image x (3, H, W), write it and return its line of scores."""
    operator = cell.task.operator(tuple(x.shape))
    y = cell.task.degrade(x, generator(cell.noise_seed, image_id, "y"))
    neighbours = find_neighbours(cell, image_id, x, y)[0] if cell.corpus is not None else []
    adapter = awaited_adapter(cell, image_id, y, [n.id for n in neighbours], progress=False)
    started = time.perf_counter()
    with in_place(cell, adapter):
        result = cell.sampler.restore(
            cell.backbone, operator, y[None], [generator(cell.seed, image_id, "sampler")]
        )
    seconds = time.perf_counter() - started
    file = Path("images") / f"{image_id}-{cell.identity.sha256[:16]}.png".replace("/", "_")
    line: dict[str, Any] = {
        "cell": cell.identity.sha256,
        "image": image_id,
        "task": cell.task.name,
        "adaptation": cell.configuration["adaptation"]["name"],
        "k": cell.k,
        "sampler": cell.identity.configuration["sampler"],
        "evaluations": result.network_evaluations,
        "seconds": round(seconds, 1),
        "error": result.errors[0],
    }
    if result.errors[0] is not None:
        return line | dict.fromkeys(SHOWN, float("nan"))
    (folder / "images").mkdir(exist_ok=True)
    write_png(folder / file, result.x_hat[0])
    x_hat = read_png(folder / file)
    return line | {
        "file": str(file),
        "psnr": psnr((x_hat[None] + 1) / 2, (x[None] + 1) / 2).item(),
        "deep_lite0": float(metric().score((x_hat[None] + 1) / 2, (x[None] + 1) / 2)),
        "residual": data_consistency_residual(operator, result.x_hat.clamp(-1, 1), y[None]).item(),
    }


@cache
def metric() -> DeepLite0:
    """Return deep-lite0, loaded once."""
    return DeepLite0()


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Return the lines that `run` wrote; none without the file."""
    path = folder / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


SETTINGS = {"eta": 1.0, "temperature": 1.0, "clip_x0": True, "back_projection": False}
"""The paper's settings of ADIR; a label names only settings that differ from them."""


def label(line: dict[str, Any]) -> str:
    """Return a label that identifies the row, such as `adir s=1000 temperature=0.5`."""
    sampler = line["sampler"]
    words = [sampler["name"]]
    if "guidance_scale" in sampler:
        words.append(f"s={sampler['guidance_scale']:g}")
    # Settings of other samplers, such as DDRM's eta, mean something else.
    if sampler["name"].startswith("adir"):
        changed = [key for key, usual in SETTINGS.items() if sampler.get(key, usual) != usual]
        words += [f"{key}={str(sampler[key]).lower()}" for key in changed]
    return " ".join(
        words + ([f"{line['adaptation']} k={line['k']}"] if line["adaptation"] != "none" else [])
    )


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one row per setting and one column per tuning image.

    Each entry has PSNR, deep-lite0 and residual.
    """
    order = [field.id for field in tuning_fields()]
    images = sorted({line["image"] for line in lines}, key=order.index)
    rows: dict[tuple[str, int, str], dict[str, dict[str, Any]]] = {}
    for line in sorted(
        lines, key=lambda one: (one["task"], label(one).split()[0], one["evaluations"], label(one))
    ):
        rows.setdefault((line["task"], line["evaluations"], label(line)), {})[line["image"]] = line
    text = [
        f"| task | sampler | evaluations | {' | '.join(images)} | mean |",
        "|---|---|---|" + "---|" * (len(images) + 1),
    ]
    for (task, evaluations, name), found in rows.items():
        cells = [scores(found[image]) if image in found else "" for image in images]
        means = {key: sum(line[key] for line in found.values()) / len(found) for key in SHOWN}
        last = scores(means) if len(found) == len(images) else ""
        text.append(f"| {task} | {name} | {evaluations} | {' | '.join(cells)} | {last} |")
    return "\n".join(text)


def scores(line: dict[str, Any]) -> str:
    """Return PSNR, deep-lite0 and residual, such as `24.57, 2.48, 1.6`."""
    return f"{line['psnr']:.2f}, {line['deep_lite0']:.2f}, {line['residual']:.1f}"


def draw(folder: Path, lines: list[dict[str, Any]], shown: list[str], path: Path) -> None:
    """Draw one row per task and tuning image: the ground truth, then a restoration per label.

    A row is drawn if at least three of the labels have a restoration of the image.

    Args:
        folder: the folder that `run` wrote.
        lines: the lines of `run`.
        shown: labels, each followed by @ and its number of evaluations, as in `ddrm@20`.
        path: the PNG file to write.
    """
    found = Counter(
        (line["task"], line["image"])
        for line in lines
        if f"{label(line)}@{line['evaluations']}" in shown
    )
    pairs = sorted(pair for pair, count in found.items() if count > 2)
    figure, grid = plt.subplots(
        len(pairs),
        len(shown) + 1,
        figsize=(2.6 * (len(shown) + 1), 3 * len(pairs)),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.axis("off")
    fields = {field.id: field for field in tuning_fields()}
    for row, (task, image) in zip(grid, pairs, strict=True):
        row[0].imshow(cut(fields[image]), interpolation="nearest")
        row[0].set_title(f"{task}, {image}\nground truth", fontsize=8)
        for line in lines:
            name = f"{label(line)}@{line['evaluations']}"
            if (line["task"], line["image"]) == (task, image) and name in shown:
                axes = row[shown.index(name) + 1]
                axes.imshow(to_uint8(read_png(folder / line["file"])), interpolation="nearest")
                axes.set_title(f"{name}\n{scores(line)}", fontsize=8)
    figure.savefig(path, dpi=72)
    plt.close(figure)


class Listening:
    """Backbone that measures the noise of x_t at each call, over the noise level it is given.

    Noise is measured in the null space of A, because the measurement does not act there.
    """

    def __init__(self, backbone: Any, operator: Any, x: Tensor):
        self.backbone, self.operator, self.x = backbone, operator, x
        self.schedule = backbone.schedule
        self.heard: list[tuple[int, float]] = []

    def predict(self, x_t: Tensor, t: Tensor) -> Any:
        """Record t and the relative noise; return the backbone's prediction."""
        alpha_bar = self.schedule.alpha_bar[t[0]]
        noise = (x_t - alpha_bar.sqrt() * self.x) / (1 - alpha_bar).sqrt()
        blind = noise - self.operator.A_dagger(self.operator.A(noise.float()))
        blind_share = 1 - torch.Size(self.operator.y_shape).numel() / noise[0].numel()
        self.heard.append((int(t[0]), blind.std().item() / blind_share**0.5))
        return self.backbone.predict(x_t, t)


def noise(overrides: list[str], number: int) -> list[tuple[int, float]]:
    """Return (t, noise of x_t over the noise level given to the network) at each step.

    One tuning image is restored. Noise is measured in the null space of A, which is 15 of 16
    dimensions for sr4. 1 is right. At the last steps the value also contains the restoration error.
    """
    cell = resolve_cell(compose(overrides))
    field = tuning_fields()[number]
    x = from_uint8(cut(field))
    operator = cell.task.operator(tuple(x.shape))
    y = cell.task.degrade(x, generator(cell.noise_seed, field.id, "y"))
    listening = Listening(cell.backbone, operator, x)
    cell.sampler.restore(listening, operator, y[None], [generator(cell.seed, field.id, "sampler")])
    return listening.heard


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    runs = actions.add_parser("run")
    runs.add_argument("folder", type=Path)
    runs.add_argument("overrides", nargs="+", metavar="KEY=VALUE,VALUE")
    every = list(range(len(tuning_fields())))
    runs.add_argument(
        "--images", type=int, nargs="+", default=every, help="indices of the tuning images"
    )
    tables = actions.add_parser("table", help="print the table, and draw the named rows")
    tables.add_argument("folder", type=Path)
    tables.add_argument(
        "--shown", nargs="+", default=[], metavar="ROW@EVALUATIONS", help="such as ddrm@20"
    )
    tables.add_argument("--png", type=Path, help="PNG file for the drawn rows")
    noises = actions.add_parser(
        "noise", help="print the noise of x_t over the level given to the network, at each step"
    )
    noises.add_argument("overrides", nargs="+", metavar="KEY=VALUE")
    noises.add_argument("--image", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.action == "noise":
        print(
            " ".join(f"{t}:{level:.2f}" for t, level in noise(arguments.overrides, arguments.image))
        )
        return
    if arguments.action == "run":
        run(arguments.folder, arguments.overrides, arguments.images)
        return
    known = {field.id for field in tuning_fields()}
    lines = [line for line in read_scores(arguments.folder) if line["image"] in known]
    print(table(lines))
    if arguments.png is not None:
        draw(arguments.folder, lines, arguments.shown, arguments.png)


if __name__ == "__main__":
    main()
