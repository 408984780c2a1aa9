"""Curves against numpy, against sums by hand, and against adapters as their store writes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_records import made_held_out

from adir.harness.records.layout import Layout, losses_of
from adir.harness.records.record import OracleError
from adir.harness.report.curves import POINTS, held_out_curve, mean_curve, oracle_curve, smoothed
from adir.harness.running.stores import AdapterStore


def test_losses_are_read_from_what_the_store_writes(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.put("a" * 64, {"w": torch.ones(3)}, {"losses": [0.5, 0.25]})
    assert losses_of(tmp_path, "a" * 64) == [0.5, 0.25]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"],
)
def test_a_damaged_adapter_has_no_losses(tmp_path: Path, content: bytes) -> None:
    adapter = Layout(tmp_path).adapter("a" * 64)
    adapter.parent.mkdir()
    adapter.write_bytes(content)
    assert losses_of(tmp_path, "a" * 64) is None
    assert losses_of(tmp_path, "b" * 64) is None


@pytest.mark.parametrize("length", [1, 2, 3, 40, 400, 401])
def test_windows_cover_every_iteration_once(length: int) -> None:
    losses = np.arange(
        1.0, length + 1
    )  # of a straight line the mean of a window is the iteration it stands at
    steps, means = smoothed(losses)
    np.testing.assert_allclose(steps, means)
    assert len(steps) <= POINTS and steps[0] <= 3.5
    widths = np.diff(np.concatenate([[0.5], steps]))
    assert widths.min() > 0


def test_the_mean_curve_is_over_trainings() -> None:
    rng = np.random.default_rng(0)
    curves = rng.uniform(size=(7, 40))
    every = [dict(enumerate(losses, 1)) for losses in (*curves.tolist(), [1.0, 2.0])]
    found = mean_curve(every, smooth=True)  # one training of another length is left out
    assert found is not None and found["n"] == 7
    pairs = curves.reshape(7, 20, 2).mean(axis=2)
    np.testing.assert_allclose(found["mean"], pairs.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found["low"], np.quantile(pairs, 0.1, axis=0), rtol=1e-3)
    assert mean_curve([]) is None


def test_the_held_out_curve_is_over_trainings_and_says_how_many_updates_were_accepted() -> None:
    found = [
        made_held_out({0: 1.0, 20: 0.9, 5: 0.98}, alpha=1.0, fall=0.08),
        made_held_out({0: 1.0, 5: 0.96, 20: 0.8}, alpha=0.25, fall=0.04),
        made_held_out({0: 1.0, 5: 1.03, 20: 1.2}, alpha=0.0, fall=-0.03),
    ]
    curve = held_out_curve(found)
    assert curve is not None and (curve["x"], curve["n"]) == ([0, 5, 20], 3)
    assert curve["mean"] == [0, -1, -3.333]  # percent: (-10 - 20 + 20) / 3
    assert curve["low"] == [0, -3.6, -18] and curve["high"] == [
        0,
        2,
        14,
    ]  # a fifth of the way to the middle one
    assert curve["said"] == "2 of 3 updates accepted, mean alpha 0.42, mean fall of the loss 3.00 %"
    assert held_out_curve([]) is None


def test_the_change_of_the_error_is_relative_to_the_untuned_denoiser_at_each_t() -> None:
    def errors(*pairs: tuple[float, float]) -> list[OracleError]:
        return [
            OracleError(t=t, untuned=a, adapted=b)
            for t, (a, b) in zip((10, 400), pairs, strict=True)
        ]

    # +10 and 0 %, -50 and -10 %: not the change of the mean errors, in which t = 10 would outweigh
    # the rest.
    curve = oracle_curve([errors((10.0, 11.0), (0.2, 0.1)), errors((1.0, 1.0), (0.1, 0.09))])
    assert curve is not None and (curve["x"], curve["mean"], curve["n"]) == (
        [10, 400],
        [5.0, -30.0],
        2,
    )
    assert oracle_curve([]) is None
