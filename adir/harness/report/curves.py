"""Curves of the adapters: losses from the facts beside their tensors, held-out losses and errors of
eps from the records.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adir.harness.records.record import HeldOut, OracleError

POINTS = 80
"""Points of a curve: more would not be seen."""


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(iteration, mean loss) of at most POINTS windows of equal width along the last axis, the last
    one shorter.

    A single iteration's loss is at one random t and says little: 40 iterations give windows of 2,
    400 windows of 5. Iterations count from 1, and a window stands at its middle.
    """
    length = losses.shape[-1]
    width = max(2, -(-length // POINTS)) if length > 1 else 1
    starts = np.arange(0, length, width)
    sizes = np.minimum(starts + width, length) - starts
    return starts + (sizes + 1) / 2, np.add.reduceat(losses, starts, axis=-1) / sizes


def mean_curve(
    curves: Sequence[Mapping[int, float]], smooth: bool = False
) -> dict[str, Any] | None:
    """Mean over curves ({x: y}), with their 10 and 90 % quantiles at each x:

    {x, mean, low, high, n}; None where there is none.

    Those that have other x than the first are left out; n says how many were taken.  smooth: see
    `smoothed`.
    """
    if not curves:
        return None
    x = np.array(list(curves[0]))
    table = np.array(
        [
            [curve[place] for place in curves[0]]
            for curve in curves
            if curve.keys() == curves[0].keys()
        ]
    )
    if smooth:
        x, table = smoothed(table)
    low, high = np.quantile(table, [0.1, 0.9], axis=0)
    found = {"x": x, "mean": table.mean(axis=0), "low": low, "high": high}
    return {name: [float(f"{value:.4g}") for value in values] for name, values in found.items()} | {
        "n": len(table)
    }


def held_out_curve(found: Sequence[HeldOut]) -> dict[str, Any] | None:
    """Mean change of the held-out loss by iteration in percent, as `mean_curve`; None when there is
    none.

    `said` tells of all trainings how many updates were accepted, and the means of alpha and of the
    fall, refused ones included.
    """
    curve = mean_curve(
        [{step: 100 * (one.losses[step] - 1) for step in sorted(one.losses)} for one in found]
    )
    if curve is None:
        return None
    accepted = sum(one.alpha > 0 for one in found)
    alpha, fall = (
        float(np.mean([getattr(one, name) for one in found])) for name in ("alpha", "fall")
    )
    said = (
        f"{accepted} of {len(found)} updates accepted, mean alpha {alpha:.2f}, mean fall "
        f"{100 * fall:.2f} %"
    )
    return curve | {"said": said}


def oracle_curve(found: Sequence[Sequence[OracleError]]) -> dict[str, Any] | None:
    """Relative change of the error of eps by timestep in percent, mean over images, as
    `mean_curve`; None without images.
    """
    return mean_curve(
        [
            {error.t: 100 * (error.adapted / error.untuned - 1) for error in errors}
            for errors in found
        ]
    )
