"""Loss curves of the adapters, from the facts beside their tensors."""

from collections.abc import Iterable
from typing import Any

import numpy as np

POINTS = 80
"""Points of a curve: more would not be seen."""


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
