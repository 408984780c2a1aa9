"""A results folder as `adir run` leaves it, with names and errors that try to break out of the
page.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import changed, ledger_of, made_held_out, made_record, put, put_plan, sha256_of
from safetensors.numpy import save

from adir.harness.records.layout import Layout
from adir.harness.records.ledger import read_record
from adir.images import from_uint8, hash_of_image, write_png

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"&'><b>"
ENDING = "</script><img src=x onerror=alert(1)>"
IMAGES = (SCRIPT, QUOTES, "plain")
ROWS = (("none", None), ("knn", 1), ("knn", 4))
SIDE = 32

Make = Callable[..., Path]


def image(*key: object) -> np.ndarray:
    """(32, 32, 3) grey levels that follow from the key: a smooth pattern with noise."""
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
    )
    ramp = np.linspace(0, 200, SIDE)[:, None, None] * rng.uniform(0.2, 1, 3)
    return (ramp + rng.integers(0, 50, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def keep(folder: Path, pixels: np.ndarray, ending: str = "") -> str:
    """Write an image as results/images/HASH.png; returns HASH."""
    sha256 = hash_of_image(from_uint8(pixels))
    write_png(folder / "images" / f"{sha256}{ending}.png", from_uint8(pixels))
    return sha256


def make_record(
    folder: Path, task: str, name: str, mode: str, k: int | None, seed: int, with_truth: bool
) -> None:
    """A record with its images and its adapter; of two places, one that failed and none."""
    rng = np.random.default_rng([seed, k or 0, IMAGES.index(name), len(task)])
    scores = {"psnr": 25 + rng.normal(), "piqe": 30 + rng.normal(), "residual": 10.0}
    cell: dict[str, Any] = {"task": task, "mode": mode, "k": k, "seed": seed, "backbone": "tiny"}
    record = made_record(name, **cell, scores=scores)
    common = {
        "configuration": {"scoring": {"metrics": ["psnr", "piqe"]}},
        "commit": "0123456789abcdef",
        "threads": 1,
    }
    common["versions"] = {"adir": "0.1", "torch": "2"}
    if (task, name, mode, k, seed) == ("deblur", "plain", "knn", 4, 1):
        failed = made_record(name, **cell, status="failed")
        put(folder, [changed(failed, common | {"error": f"FloatingPointError: {ENDING}"})])
        return
    if (task, name, mode, k, seed) == ("deblur", QUOTES, "knn", 4, 1):
        return  # missing
    y_file = f"measurements/{task}/{sha256_of(name)[:8]}.png"
    write_png(folder / y_file, from_uint8(image("y", task, name)))
    restored = ledger_of(folder, record).image_path(name)
    write_png(restored, from_uint8(image(name)) * 0.9 + 0.01 * (k or 0) + 0.01 * seed)
    near = []
    for place in range(k or 0):
        sha256 = keep(folder, image("corpus", place, name), "-thumbnail")
        near.append({"id": f"{QUOTES}{place}", "distance": 0.5 + place / 7, "image": sha256})
    if record.adapter is not None:
        losses = (1 / np.arange(1, 13) + rng.uniform(0, 0.01, 12)).tolist()
        file = Layout(folder).adapter(record.adapter.key)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(
            save({"w": np.zeros(2, np.float32)}, {"facts": json.dumps({"losses": losses})})
        )
    done = {
        "y.file": y_file,
        "restored": restored.relative_to(folder).as_posix(),
        "sampler.n_steps": 5,
        "sampler.network_evaluations": 5,
        "neighbours": near,
        "excluded": [SCRIPT] if near else [],
        "seconds": {"sample": 2.0 + (k or 0), "retrieve": 0.5},
    }
    if k == 4:  # one of its three updates is refused
        fall = 0.02 * (1 + IMAGES.index(name)) - 0.03
        held_out = made_held_out(
            {0: 1.0, 5: 1.01, 10: 1 - fall, 20: 0.99 - fall}, 0.5 if fall > 0 else 0.0, fall
        )
        done["adapter.held_out"] = held_out.model_dump()
    if mode == "knn":
        changes = {10: 1.01, 100: 0.99, 400: 0.9 + 0.02 * IMAGES.index(name)}
        done["oracle"] = [
            {"t": t, "untuned": 0.5, "adapted": 0.5 * change} for t, change in changes.items()
        ]
    if with_truth:
        done["image.sha256"] = keep(folder, image(name))
    put(folder, [changed(record, common | done)])


def cell_folder(folder: Path, task: str, mode: str, k: int | None, seed: int) -> Path:
    """The folder of a cell."""
    record = made_record(task=task, mode=mode, k=k, seed=seed, backbone="tiny")
    return ledger_of(folder, record).folder


def add_rows(folder: Path, task: str, mode: str, k: int | None, changes: dict[str, Any]) -> None:
    """The records of a cell of seed 0 once more, with other axes: another sampler, another adapter."""
    for path in sorted((cell_folder(folder, task, mode, k, 0) / "records").glob("*.json")):
        put(folder, [changed(read_record(path), changes)])


@pytest.fixture(scope="session")
def make_results(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function that makes a folder: 2 tasks, 3 rows, 3 images, 2 seeds; one record failed and one
    missing.
    """

    def make(
        with_truth: bool = True,
        tasks: tuple[str, ...] = ("deblur", "sr4"),
        seeds: tuple[int, ...] = (0, 1),
    ) -> Path:
        folder = tmp_path_factory.mktemp("results")
        for image, task, (mode, k), seed in itertools.product(IMAGES, tasks, ROWS, seeds):
            make_record(folder, task, image, mode, k, seed, with_truth)
        return folder

    return make


@pytest.fixture(scope="session")
def results(make_results: Make) -> Path:
    """One such folder, not to be changed."""
    return make_results()


@pytest.fixture(scope="session")
def several_samplers(make_results: Make) -> Path:
    """A task with four samplers, full and lora, whose adapters hold no losses, and one that was
    planned and never run.
    """
    folder = make_results(tasks=("sr4",), seeds=(0,))
    for sampler in ("ddrm", "diffpir", "pseudo_inverse"):
        add_rows(
            folder, "sr4", "none", None, {"axes.sampler": sampler, "identity.sampler.name": sampler}
        )
    for k in (1, 4):
        add_rows(
            folder,
            "sr4",
            "knn",
            k,
            {"axes.adapter": "lora", "identity.adaptation.adapter.name": "lora"},
        )
    for path in folder.glob("adapters/*.safetensors"):
        path.write_bytes(save({"w": np.zeros(2, np.float32)}, {"facts": "{}"}))
    put_plan(folder, [made_record(task="deblur", backbone="tiny")], IMAGES, {})
    return folder
