"""benchmarks/quality/independent.py with made weights and images, through the path that the
published files take.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.quality import independent as study


def passing_through() -> dict[str, Tensor]:
    """Weights in the published file's names that return y: a 4 added at first keeps the ReLUs open,
    and goes at the end.
    """
    weights = {}
    for number in range(12):
        n_in, n_out = 13 if number == 0 else 96, 12 if number == 11 else 96
        kernel = torch.zeros(n_out, n_in, 3, 3)
        for channel in range(12):
            kernel[channel, channel, 1, 1] = 1
        weights[f"model.{2 * number}.weight"] = kernel
        weights[f"model.{2 * number}.bias"] = torch.full(
            (n_out,), {0: 4.0, 11: -4.0}.get(number, 0.0)
        )
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The weights, and three images of odd sides, of grey levels that noise of 50 seldom takes over
    the edge.
    """
    torch.save(passing_through(), tmp_path / "ffdnet_color.pth")
    (tmp_path / "CBSD68").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(118, 138, (65, 97, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "CBSD68" / f"{number:04}.png")
    return tmp_path


def test_noise_that_nobody_removes_has_the_psnr_of_its_standard_deviation(folder):
    rows = study.measure(folder)
    assert [(sigma, n) for sigma, n, *_ in rows] == [(30, 3), (50, 3)]
    for sigma, _, here, as_task in rows:
        # x_hat is 8-bit, so clipped at 2.5 sigma and more, and rounded. 57,000 values: the mean is
        # known to 0.03 dB.
        expected = 10 * math.log10(255**2 / (sigma**2 + 1 / 12))
        assert here == pytest.approx(expected, abs=0.05 if sigma == 30 else 0.15)
        assert as_task == pytest.approx(
            here, abs=0.01
        )  # y clipped before or after is one where the network does nothing


def test_the_network_sees_the_four_half_size_images_and_the_noise_level():
    network, y = study.FFDNet(), torch.rand(1, 3, 5, 7)
    seen: list[Tensor] = []
    network.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert network(y, 0.2).shape == y.shape
    (x,) = seen
    even = np.pad(y[0].numpy(), ((0, 0), (0, 1), (0, 1)), mode="edge")
    corners = [
        even[channel, row::2, column::2]
        for channel in range(3)
        for row in (0, 1)
        for column in (0, 1)
    ]
    np.testing.assert_array_equal(x[0, :12].numpy(), np.stack(corners))
    assert torch.equal(x[0, 12], torch.full((3, 4), 0.2))


def test_the_network_is_given_y_in_0_to_1_and_the_noise_in_the_same_units():
    given: list[tuple[Tensor, float]] = []

    def network(y: Tensor, sigma: float) -> Tensor:
        given.append((y, sigma))
        return y

    x = torch.full((3, 128, 128), 0.2)  # 0.6 in [0, 1]
    for sigma, as_task in ((30, False), (50, False), (30, True)):
        study.score(network, x, "a", sigma, as_task)
        y, told = given[-1]
        assert told == pytest.approx(sigma / 255) and y.mean().item() == pytest.approx(
            0.6, abs=0.004
        )
        assert y.std().item() == pytest.approx(sigma / 255, rel=0.02)
        levels = y * 255
        assert torch.allclose(levels, levels.round(), atol=1e-3) == as_task


def test_the_script_says_what_it_found_and_that_made_weights_do_not_agree(
    folder, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys, "argv", ["independent.py", str(folder), "--out", str(folder / "out.md")]
    )
    assert study.main() == 1
    text = (folder / "out.md").read_text()
    assert (
        capsys.readouterr().out == text
        and "| 30 | 3 | 30.32 | 18.5" in text
        and "| 50 | 3 | 27.97 | 14." in text
    )
    monkeypatch.setattr(study, "PUBLISHED", {30: 18.59})
    assert study.main() == 0


@pytest.mark.parametrize("lack", ["weights", "images", "other weights"])
def test_missing_and_other_files_are_one_line(folder, lack, monkeypatch, capsys):
    if lack == "images":
        for path in (folder / "CBSD68").iterdir():
            path.unlink()
    else:
        (folder / "ffdnet_color.pth").unlink()
    if lack == "other weights":
        torch.save(
            {"model.0.weight": torch.zeros(64, 5, 3, 3)}, folder / "ffdnet_color.pth"
        )  # FFDNet's for grey images
    monkeypatch.setattr(sys, "argv", ["independent.py", str(folder)])
    assert study.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("independent.py: ") and said.count("\n") == 1
