"""A results folder as `adir run` leaves it, with names and errors that try to break out of the page."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from adir.harness.records.ledger import Ledger
from adir.images import from_uint8, hash_of_picture, write_png

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"&'><b>"
ENDING = "</script><img src=x onerror=alert(1)>"
IMAGES = (SCRIPT, QUOTES, "plain")
ROWS = (("none", None), ("knn", 1), ("knn", 4))
SIDE = 32

Make = Callable[..., Path]


def picture(*key: object) -> np.ndarray:
    """(32, 32, 3) grey levels that follow from the key: a smooth pattern with noise."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little"))
    ramp = np.linspace(0, 200, SIDE)[:, None, None] * rng.uniform(0.2, 1, 3)
    return (ramp + rng.integers(0, 50, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def keep(folder: Path, pixels: np.ndarray, ending: str = "") -> str:
    """Write a picture as results/pictures/HASH.png; returns HASH."""
    sha256 = hash_of_picture(from_uint8(pixels))
    write_png(folder / "pictures" / f"{sha256}{ending}.png", from_uint8(pixels))
    return sha256


def make_record(folder: Path, task: str, image: str, mode: str, k: int | None, seed: int, truth: str | None) -> None:
    """A finished record with its pictures and its adapter."""
    axes: dict[str, Any] = {
        "backbone": "tiny",
        "task": task,
        "adaptation": mode,
        "k": k,
        "sampler": "adir",
        "seed": seed,
    }
    axes["adapter"] = None if mode == "none" else "full"
    cell = hashlib.sha256(repr((task, mode, k, seed)).encode()).hexdigest()
    ledger = Ledger(folder / "cells" / "tiny" / task / f"{mode}-{k}-s{seed}")
    identity = {"task": {"name": task, "version": 1}, "adaptation": {"name": mode, "k": k}, "seed": seed}
    base: dict[str, Any] = {
        "cell": cell,
        "axes": axes,
        "identity": identity | ({"retrieval": {"corpus": "c"}} if k else {}),
        "configuration": {"scoring": {"metrics": ["psnr", "piqe"]}},
        "seed": seed,
        "versions": {"adir": "0.1", "torch": "2"},
        "commit": "0123456789abcdef",
        "threads": 1,
    }
    if (task, image, mode, k, seed) == ("deblur", "plain", "knn", 4, 1):
        failed = {"status": "failed", "image": {"id": image, "data": "made"}, "y": None, "scores": {}}
        ledger.write(image, base | failed | {"error": f"FloatingPointError: {ENDING}"})
        return
    if (task, image, mode, k, seed) == ("deblur", QUOTES, "knn", 4, 1):
        return  # missing
    y_file = f"measurements/{task}/{hashlib.sha256(image.encode()).hexdigest()[:8]}.png"
    write_png(folder / y_file, from_uint8(picture("y", task, image)))
    restored = ledger.picture_path(image)
    write_png(restored, from_uint8(picture(image)) * 0.9 + 0.01 * (k or 0) + 0.01 * seed)
    rng = np.random.default_rng([seed, k or 0, IMAGES.index(image), len(task)])
    scores = {"psnr": ("higher", 25 + rng.normal()), "piqe": ("lower", 30 + rng.normal())}
    near = []
    for place in range(k or 0):
        sha256 = keep(folder, picture("corpus", place, image), "-thumbnail")
        near.append({"id": f"{QUOTES}{place}", "distance": 0.5 + place / 7, "picture": sha256})
    adapter = None
    if mode != "none":
        losses = (1 / np.arange(1, 13) + rng.uniform(0, 0.01, 12)).tolist()
        adapter = {"key": hashlib.sha256(f"{cell}{image}".encode()).hexdigest(), "training_seconds": 5.0}
        file = folder / "adapters" / f"{adapter['key']}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(save({"w": np.zeros(2, np.float32)}, {"facts": json.dumps({"losses": losses})}))
    done = {
        "status": "done",
        "image": {"id": image, "data": "made"} | ({"sha256": truth} if truth else {}),
        "y": {"sha256": hashlib.sha256(f"{task} {image}".encode()).hexdigest(), "file": y_file},
        "picture": str(restored.relative_to(folder)),
        "scores": {name: {"value": float(v), "direction": way, "version": "1"} for name, (way, v) in scores.items()}
        | {"residual": {"value": 10.0, "direction": "none", "version": "1", "sigma_y": 10.0}},
        "sampler": {"n_steps": 5, "network_evaluations": 5},
        "neighbours": near,
        "excluded": [SCRIPT] if near else [],
        "adapter": adapter,
        "seconds": {"sample": 2.0 + (k or 0), "retrieve": 0.5},
    }
    ledger.write(image, base | done)


def add_rows(folder: Path, cells: str, **axes: Any) -> None:
    """The records of the cells that fit a pattern once more, with other axes: another sampler, another adapter."""
    for path in sorted(folder.glob(f"cells/tiny/{cells}/records/*.json")):
        record = json.loads(path.read_text())
        record["axes"] |= axes
        (record["identity"]["adaptation"] if "adapter" in axes else record["identity"]).update(axes)
        record["cell"] = hashlib.sha256(f"{record['cell']} {axes}".encode()).hexdigest()
        name = "-".join([path.parent.parent.name, *map(str, axes.values())])
        Ledger(path.parent.parent.with_name(name)).write(record["image"]["id"], record)


def add_plan(folder: Path, task: str) -> None:
    """A plan of a task that nothing was run of."""
    axes = {
        "backbone": "tiny",
        "task": task,
        "adaptation": "none",
        "k": None,
        "adapter": None,
        "sampler": "adir",
        "seed": 0,
    }
    cell = {"cell": task, "axes": axes, "data": "made", "images": list(IMAGES)}
    cell["identity"] = {"task": {"name": task, "version": 1}, "adaptation": {"name": "none"}, "seed": 0}
    (folder / "grids").mkdir()
    (folder / "grids" / "0.json").write_text(json.dumps({"cells": [cell]}))


@pytest.fixture(scope="session")
def make_results(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function that makes a folder: 2 tasks, 3 rows, 3 pictures, 2 seeds; one record failed and one missing."""

    def make(
        with_truth: bool = True, tasks: tuple[str, ...] = ("deblur", "sr4"), seeds: tuple[int, ...] = (0, 1)
    ) -> Path:
        folder = tmp_path_factory.mktemp("results")
        for image in IMAGES:
            truth = keep(folder, picture(image)) if with_truth else None
            for task in tasks:
                for mode, k in ROWS:
                    for seed in seeds:
                        make_record(folder, task, image, mode, k, seed, truth)
        return folder

    return make


@pytest.fixture(scope="session")
def results(make_results: Make) -> Path:
    """One such folder, not to be changed."""
    return make_results()


@pytest.fixture(scope="session")
def several_samplers(make_results: Make) -> Path:
    """A task with four samplers, full and lora, whose adapters hold no losses, and one that was planned and never run."""
    folder = make_results(tasks=("sr4",), seeds=(0,))
    for sampler in ("ddrm", "diffpir", "pseudo_inverse"):
        add_rows(folder, "sr4/none-None-s0", sampler=sampler)
    for k in (1, 4):
        add_rows(folder, f"sr4/knn-{k}-s0", adapter="lora")
    for path in folder.glob("adapters/*.safetensors"):
        path.write_bytes(save({"w": np.zeros(2, np.float32)}, {"facts": "{}"}))
    add_plan(folder, "deblur")
    return folder
