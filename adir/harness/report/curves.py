"""Mean curves of a report: training losses, held-out losses, and errors of the predicted noise.

Training losses are read from the results folder, one list per adapter. Held-out losses and errors
are in the records, of which there is one per restored image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adir.harness.records.record import HeldOut, OracleError

POINTS = 80
"""The largest number of points in a smoothed curve; a chart could not show more."""


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (iterations, mean losses), averaged over windows of consecutive iterations.

    The loss of a single iteration is noisy, because its timesteps are random. There are at most
    POINTS windows. They have equal widths, except that the last may be shorter. For example, 40
    iterations are averaged in windows of 2, and 400 iterations in windows of 5.

    Args:
        losses: losses (..., n), the last axis being the iterations.

    Returns:
        iterations: (windows,), the middle of each window; iterations count from 1.
        means: (..., windows).
    """
    length = losses.shape[-1]
    width = max(2, -(-length // POINTS)) if length > 1 else 1
    starts = np.arange(0, length, width)
    sizes = np.minimum(starts + width, length) - starts
    return starts + (sizes + 1) / 2, np.add.reduceat(losses, starts, axis=-1) / sizes


def mean_curve(
    curves: Sequence[Mapping[int, float]], smooth: bool = False
) -> dict[str, Any] | None:
    """Return the mean of several curves at each x, with the 10 % and 90 % quantiles.

    Args:
        curves: curves {x: y}. A curve is ignored if its x differ from those of the first curve.
        smooth: whether each curve is first averaged over windows, as by `smoothed`.

    Returns:
        {"x": [...], "mean": [...], "low": [...], "high": [...], "n": number of curves averaged},
        or None if `curves` is empty.
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
    """Return the mean change of the held-out loss by iteration, in percent of the untuned loss.

    Args:
        found: held-out results, one per trained adapter.

    Returns:
        The dictionary of `mean_curve` with an additional entry "said", or None if `found` is empty.
        "said" is a text with the number of accepted updates, the mean of alpha (the factor by which
        an update is scaled), and the mean fall of the loss. Both means include rejected updates.
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
        f"{accepted} of {len(found)} updates accepted, mean alpha {alpha:.2f}, mean fall of the "
        f"loss {100 * fall:.2f} %"
    )
    return curve | {"said": said}


def oracle_curve(found: Sequence[Sequence[OracleError]]) -> dict[str, Any] | None:
    """Return the mean change of the error of eps by timestep, in percent of the untuned error.

    found: for each image, the errors of eps before and after adaptation at several timesteps.

    Returns the dictionary of `mean_curve` over images, or None if `found` is empty.
    """
    return mean_curve(
        [
            {error.t: 100 * (error.adapted / error.untuned - 1) for error in errors}
            for errors in found
        ]
    )
