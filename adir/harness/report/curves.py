"""Loss curves of the adapters, from the facts beside their tensors."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from adir.files import read_json

MOST_HEADER_BYTES = 100_000_000  # what the safetensors library itself allows
POINTS = 80
"""Points of a curve: more would not be seen."""


def losses_of(results: Path, key: str) -> list[float] | None:
    """The losses of an adapter of a results folder: beside its tensors, or as `adir leaderboard merge` brings them, which
    leaves the tensors where they are."""
    losses = read_losses(results / "adapters" / f"{key}.safetensors")
    if losses is None:
        try:
            losses = [float(loss) for loss in read_json(results / merged_losses(key))["losses"]] or None
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return losses


def merged_losses(key: str) -> str:
    """The name of an adapter's losses without its tensors."""
    return f"losses/{key}.json"


def read_losses(path: Path) -> list[float] | None:
    """The loss of every iteration of an adapter's training, or None where the file is not there, is damaged or has none.

    Reads the header alone: the tensors of a full adapter are of the size of the network.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER_BYTES:
                return None
            metadata = json.loads(file.read(size)).get("__metadata__", {})
        losses = json.loads(metadata["facts"])["losses"]
        return [float(loss) for loss in losses] or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(iteration, mean loss) of at most POINTS windows of equal width along the last axis, the last one shorter.

    A single iteration's loss is at one random t and says little: 40 iterations give windows of 2, 400 windows of 5.
    Iterations count from 1, and a window stands at its middle.
    """
    length = losses.shape[-1]
    width = max(2, -(-length // POINTS)) if length > 1 else 1
    starts = np.arange(0, length, width)
    sizes = np.minimum(starts + width, length) - starts
    return starts + (sizes + 1) / 2, np.add.reduceat(losses, starts, axis=-1) / sizes


def mean_curve(curves: Iterable[list[float]]) -> dict[str, Any] | None:
    """Mean over trainings, smoothed, with the 10 % and 90 % quantiles over trainings; None when there is none.

    Trainings of another length than the first are left out; n says how many were taken.
    """
    curves = list(curves)
    if not curves:
        return None
    alike = np.array([curve for curve in curves if len(curve) == len(curves[0])])
    steps, table = smoothed(alike)
    low, high = np.quantile(table, [0.1, 0.9], axis=0)
    found = {"x": steps, "mean": table.mean(axis=0), "low": low, "high": high}
    return {name: [float(f"{value:.4g}") for value in values] for name, values in found.items()} | {"n": len(alike)}
