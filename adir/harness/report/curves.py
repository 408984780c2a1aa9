"""Curves of the adapters: training losses, held-out losses, and errors of predicted noise.

Training losses come from the facts file beside each adapter's tensors, the others from the records.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adir.harness.records.record import HeldOut, OracleError

POINTS = 80
"""Most points of a curve; more could not be told apart in a chart."""


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (iteration, mean loss) of windows of equal width along the last axis.

    One iteration's loss is at one random t and therefore noisy. There are at most POINTS windows:
    40 iterations give windows of 2, 400 iterations windows of 5. The last window may be shorter.
    Iterations count from 1, and a window is placed at its middle.
    """
    length = losses.shape[-1]
    width = max(2, -(-length // POINTS)) if length > 1 else 1
    starts = np.arange(0, length, width)
    sizes = np.minimum(starts + width, length) - starts
    return starts + (sizes + 1) / 2, np.add.reduceat(losses, starts, axis=-1) / sizes


def mean_curve(
    curves: Sequence[Mapping[int, float]], smooth: bool = False
) -> dict[str, Any] | None:
    """Return the mean and the 10 and 90 % quantiles at each x over curves {x: y}.

    Curves with other x than the first are left out.

    Args:
        curves: the curves to average.
        smooth: average each curve over windows first, as `smoothed` does.

    Returns:
        {x, mean, low, high, n}, n the number of curves averaged. None without curves.
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
    """Return the mean change of the held-out loss by iteration, in percent.

    The result is that of `mean_curve` with one more entry: `said` is a sentence about all
    trainings. It gives the number of accepted updates and the means of alpha and of the fall,
    rejected updates included. Return None without trainings.
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
    """Return the relative change of the error of eps by timestep, in percent, as `mean_curve` does.

    The mean is over images; None without images.
    """
    return mean_curve(
        [
            {error.t: 100 * (error.adapted / error.untuned - 1) for error in errors}
            for errors in found
        ]
    )
