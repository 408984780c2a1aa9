"""Records as `adir run` leaves them, made by hand: for tests and benchmarks, without a network or
an image.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adir.files import hash_of, json_bytes, sha256_of_bytes, write_json
from adir.harness.records.layout import Layout
from adir.harness.records.ledger import Ledger
from adir.harness.records.planned import PlannedCell
from adir.harness.records.record import (
    SCHEMA,
    Adapter,
    Axes,
    Direction,
    HeldOut,
    Measurement,
    Record,
    Sampling,
    Score,
    Status,
    TestImage,
    parse_record,
)

DIRECTIONS: dict[str, Direction] = {
    "lpips": "lower",
    "lpips-alex": "lower",
    "piqe": "lower",
    "residual": "none",
}
"""Of the metrics for which higher is not better."""
SIGMA_Y = 10.0
"""Noise of y beside the residual, in grey levels."""
SEARCHING = ("knn", "random", "pixel")
"""Modes with neighbours."""


def made_record(
    image: str = "a",
    *,
    task: str = "sr4",
    mode: str = "none",
    k: int | None = None,
    seed: int = 0,
    sampler: str = "adir",
    backbone: str = "made",
    adapter: str = "full",
    data: str | None = "made",
    scores: Mapping[str, float | None] = {"psnr": 25.0},
    status: Status = "done",
    settings: Mapping[str, Any] = {},
) -> Record:
    """Return the record of one image of one cell.

    x follows from the image's id, and y from task and id, whatever the name of the data set.

    Args:
        adapter: in every mode but none, which has no adapter.
        scores: {metric: value}, each of version 1.
        settings: put over those of the identity: {"sampler.n_steps": 3}.
    """
    done = status == "done"
    trains = mode != "none"
    identity: dict[str, Any] = {
        "backbone": {
            "name": backbone,
            "version": 1,
            "weights_sha256": sha256_of(f"weights of {backbone}"),
        },
        "task": {"name": task, "version": 1},
        "sampler": {"name": sampler, "version": 1, "n_steps": 50},
        "adaptation": {"name": mode, "version": 1},
        "seed": seed,
        "noise_seed": 0,
    }
    if trains:
        identity["adaptation"] |= {
            "adapter": {"name": adapter, "version": 1},
            "fine_tuning": {"name": "fine_tuning", "version": 1, "n_iterations": 400},
        }
    if mode in SEARCHING:
        identity["adaptation"]["k"] = k
        identity["retrieval"] = {"corpus": sha256_of("corpus"), "encoder": sha256_of("encoder")}
    put_inside(identity, settings)
    cell = hash_of(identity)
    return Record(
        status=status,
        cell=cell,
        axes=Axes(
            backbone=backbone,
            task=task,
            adaptation=mode,
            k=k,
            adapter=adapter if trains else None,
            sampler=sampler,
            seed=seed,
        ),
        identity=identity,
        seed=seed,
        image=TestImage(id=image, data=data, sha256=sha256_of(f"x of {image}") if done else None),
        y=Measurement(sha256=sha256_of(f"y of {task} {image}")) if done else None,
        scores={name: made_score(name, value) for name, value in scores.items()} if done else {},
        sampler=Sampling(n_steps=50, capped_steps=0, network_evaluations=50) if done else None,
        adapter=made_adapter(f"{cell} {image}") if done and trains else None,
        seconds={"sample": 2.0} if done else {},
        error="ValueError: made to fail" if status == "failed" else None,
    )


def made_score(metric: str, value: float | None) -> Score:
    """Return a score as its metric would give it."""
    return Score(
        value=value,
        direction=DIRECTIONS.get(metric, "higher"),
        version="1",
        sigma_y=SIGMA_Y if metric == "residual" else None,
    )


def made_adapter(name: str) -> Adapter:
    """Return what a record says of an adapter whose key and tensors follow from the name."""
    return Adapter(
        key=sha256_of(f"key of {name}"),
        sha256=sha256_of(f"tensors of {name}"),
        n_layers=2,
        n_parameters=100,
        training_seconds=5.0,
        first_loss=0.5,
        last_loss=0.25,
    )


def made_held_out(losses: Mapping[int, float], alpha: float, fall: float) -> HeldOut:
    """Return what held-out images said; {iteration: loss}, whose lowest is kept."""
    kept = min(losses, key=lambda iteration: losses[iteration])
    return HeldOut(
        losses=dict(losses),
        kept_iteration=kept,
        alphas={0.0: 1.0, 1.0: losses[kept]},
        alpha=alpha,
        gate=False,
        fall=fall,
        standard_error=0.01,
    )


def changed(record: Record, changes: Mapping[str, Any]) -> Record:
    """Return a record with other fields:

    {"scores.psnr.value": 1.0}. It is checked again; its cell follows its identity.
    """
    content = record.as_json()
    put_inside(content, changes)
    if "cell" not in changes:
        content["cell"] = hash_of(content["identity"])
    return parse_record(content).model_copy(update={"path": record.path})


def put_inside(content: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change leaves of nested dicts, {"scores.psnr.value": 1.0}; every part on the way to a leaf
    must be there.
    """
    for place, value in changes.items():
        *parts, last = place.split(".")
        inside = content
        for part in parts:
            inside = inside[part]
        inside[last] = value


def ledger_of(results: Path, record: Record) -> Ledger:
    """Return the ledger of a record's cell, in a folder named as a run names it."""
    axes = record.axes
    label = (
        f"{axes.adaptation}-k{axes.k}-{axes.adapter}-{axes.sampler}-s{axes.seed}-{record.cell[:10]}"
    )
    return Ledger(results / "cells" / axes.backbone / axes.task / label)


def put(results: Path, records: Iterable[Record]) -> list[Path]:
    """Write records into a results folder, which it marks; their files.

    Does not wait for the disk, unlike `Ledger.write`.
    """
    Layout(results).mark()
    files = []
    for record in records:
        files.append(ledger_of(results, record).record_path(record.image.id))
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_bytes(json_bytes(record.as_json()))
    return files


def put_plan(
    results: Path, records: Iterable[Record], images: Iterable[str], image_hashes: Mapping[str, str]
) -> Path:
    """Write the plan of a grid that asks for `images` in the cells of these records; its file.

    image_hashes: {id: SHA-256 of the image}, as far as the plan tells it.
    """
    cells = {
        record.cell: PlannedCell(
            cell=record.cell,
            axes=record.axes,
            identity=record.identity,
            images=list(images),
            data=record.image.data or "",
            image_hashes=dict(image_hashes),
        ).model_dump(mode="json")
        for record in records
    }
    grid = hash_of(cells)
    path = Layout(results).plan(grid)
    write_json(path, {"schema": SCHEMA, "grid": grid, "cells": list(cells.values())})
    return path


def sha256_of(text: str) -> str:
    """64 hex digits that follow from a text."""
    return sha256_of_bytes(text.encode())
