"""Loss curves against numpy and against adapters as their store writes them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adir.harness.records.layout import read_losses
from adir.harness.report.curves import POINTS, mean_curve, smoothed
from adir.harness.running.stores import AdapterStore


def test_losses_are_read_from_what_the_store_writes(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.put("a" * 64, {"w": torch.ones(3)}, {"losses": [0.5, 0.25]})
    assert read_losses(store.path("a" * 64)) == [0.5, 0.25]


@pytest.mark.parametrize(
    "content", [b"", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_a_damaged_adapter_has_no_losses(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter").write_bytes(content)
    assert read_losses(tmp_path / "adapter") is None
    assert read_losses(tmp_path / "nothing") is None


@pytest.mark.parametrize("length", [1, 2, 3, 40, 400, 401])
def test_windows_cover_every_iteration_once(length: int) -> None:
    losses = np.arange(1.0, length + 1)  # of a straight line the mean of a window is the iteration it stands at
    steps, means = smoothed(losses)
    np.testing.assert_allclose(steps, means)
    assert len(steps) <= POINTS and steps[0] <= 3.5
    widths = np.diff(np.concatenate([[0.5], steps]))
    assert widths.min() > 0


def test_the_mean_curve_is_over_trainings() -> None:
    rng = np.random.default_rng(0)
    curves = rng.uniform(size=(7, 40))
    found = mean_curve([*curves.tolist(), [1.0, 2.0]])  # one training of another length is left out
    assert found is not None and found["n"] == 7
    pairs = curves.reshape(7, 20, 2).mean(axis=2)
    np.testing.assert_allclose(found["mean"], pairs.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found["low"], np.quantile(pairs, 0.1, axis=0), rtol=1e-3)
    assert mean_curve([]) is None
