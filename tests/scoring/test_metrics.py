"""Metrics against scikit-image, closed forms and pyiqa's networks called directly; and what happens
without weights.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from adir.errors import InputError
from adir.files import sha256_of_file
from adir.images import write_png
from adir.scoring import metrics
from adir.scoring.metrics import (
    METRICS,
    PSNR,
    PyiqaMetric,
    Scoring,
    data_consistency_residual,
    psnr,
)
from adir.tasks.operators import BoxBlur, BoxInpainting, SuperResolution
from adir.weights import download, registry

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "scoring").glob("*.yaml"))
TRAINED = [
    metrics.MUSIQ_KONIQ,
    metrics.MUSIQ_AVA,
    metrics.LPIPS_ALEX,
    metrics.LPIPS_VGG,
    metrics.ALEXNET,
    metrics.VGG16,
]


def pair(height: int = 48, width: int = 64, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit images in [0, 1], the second a noisy copy of the first, smooth enough for no window to
    be anticorrelated.
    """
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    smooth = torch.stack([(0.5 + 0.4 * torch.sin(rows / (3 + i) + columns / 5)) for i in range(3)])
    x = torch.stack([(255 * (smooth * (1 - 0.1 * i))).round() / 255 for i in range(batch)])
    return ((x + 0.03 * torch.randn(x.shape)).clamp(0, 1) * 255).round() / 255, x


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).double().numpy()


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch):
    """No weights of this machine are seen."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_psnr_is_scikit_images():
    x_hat, x = pair()
    expected = peak_signal_noise_ratio(channels_last(x), channels_last(x_hat), data_range=1)
    assert PSNR().score(x_hat, x).item() == pytest.approx(expected, abs=1e-9)


def test_psnr_of_one_grey_level_everywhere_is_48_13_dB():
    x = torch.full((2, 3, 16, 16), 100 / 255)
    assert psnr(x + 1 / 255, x).tolist() == pytest.approx(
        [20 * math.log10(255)] * 2, abs=1e-4
    )  # 48.1308


def test_ssim_is_scikit_images():
    x_hat, x = pair()
    expected = structural_similarity(
        channels_last(x),
        channels_last(x_hat),
        channel_axis=-1,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    # scikit-image averages over the windows that lie inside, as pyiqa does.
    assert METRICS["ssim"]("cpu").score(x_hat, x).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["psnr", "ssim", "fsim", "piqe"])
def test_a_score_does_not_depend_on_the_batch(name):
    x_hat, x = pair(batch=3)
    together = METRICS[name]("cpu").score(x_hat, x)
    alone = [METRICS[name]("cpu").score(x_hat[i : i + 1], x[i : i + 1]).item() for i in range(3)]
    assert together.tolist() == alone
    assert together.dtype == torch.float64


@pytest.mark.parametrize("name", ["psnr", "ssim", "fsim", "deep-lite0", "piqe"])
def test_a_noisier_image_scores_worse(name):
    x_hat, x = pair()
    noisier = ((x + 0.2 * torch.randn(x.shape)).clamp(0, 1) * 255).round() / 255
    metric = METRICS[name]("cpu")
    gain = metric.score(x_hat, x) - metric.score(noisier, x)
    assert (gain if metric.direction == "higher" else -gain).item() > 0


def test_fsim_is_1_for_equal_images_and_symmetric_and_sees_colour():
    x_hat, x = pair()
    fsim = METRICS["fsim"]("cpu")
    assert fsim.score(x, x).item() == pytest.approx(1, abs=1e-6)
    assert fsim.score(x_hat, x).item() == pytest.approx(fsim.score(x, x_hat).item(), abs=1e-6)
    luma = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert fsim.score(luma.expand_as(x), x).item() < 0.999  # all detail of the luma is there


def random_musiq(
    file: registry.WeightsFile, n_outputs: int
) -> tuple[torch.nn.Module, registry.WeightsFile]:
    """pyiqa's MUSIQ with random weights, saved where pyiqa looks for the trained ones, and that
    file with its hash.
    """
    from pyiqa.archs.musiq_arch import MUSIQ

    net = MUSIQ(pretrained=False, num_class=n_outputs).eval()
    file.path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file.path)
    return net, dataclasses.replace(
        file, sha256=hashlib.sha256(file.path.read_bytes()).hexdigest()[:8]
    )


def with_file(metric: PyiqaMetric, *files: registry.WeightsFile) -> PyiqaMetric:
    metric.weights_files = files
    return metric


@pytest.mark.parametrize("name, n_outputs", [("musiq-koniq", 1), ("musiq-ava", 10)])
def test_musiq_is_pyiqas_network_on_the_file_in_the_hub_folder(name, n_outputs, capfd):
    metric = METRICS[name]("cpu")
    net, file = random_musiq(metric.weights_files[0], n_outputs)
    x_hat, _ = pair(batch=2)
    with torch.no_grad():
        expected = [net(one[None]).item() for one in x_hat]
    metric = with_file(metric, file)
    assert metric.unavailable() is None
    assert metric.score(x_hat).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]
    assert capfd.readouterr().out == ""  # pyiqa prints what it loads


def test_lpips_is_pyiqas_network_and_zero_for_equal_images():
    from torchvision.models import alexnet

    metric = METRICS["lpips-alex"]("cpu")
    heads, backbone = metric.weights_files
    for file in (heads, backbone):
        file.path.parent.mkdir(parents=True)
    torch.save(alexnet().state_dict(), backbone.path)
    lins = {
        f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1)
        for i, n in enumerate([64, 192, 384, 256, 256])
    }
    torch.save(lins, heads.path)
    files = [dataclasses.replace(f, sha256=sha256_of_file(f.path)[:8]) for f in (heads, backbone)]
    metric = with_file(metric, *files)
    x_hat, x = pair(64, 64)
    assert metric.score(x, x).item() == 0

    # Zhang et al. (2018), eq. 1, from torchvision's layers: after each of the 5 ReLUs, unit vectors
    # over channels.
    net = alexnet()
    net.load_state_dict(torch.load(backbone.path, weights_only=True))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    a, b = ((z - mean.view(3, 1, 1)) / std.view(3, 1, 1) for z in (x_hat, x))
    expected, relus = 0.0, 0
    with torch.no_grad():
        for layer in net.features[:12]:
            a, b = layer(a), layer(b)
            if isinstance(layer, torch.nn.ReLU):
                difference = (
                    torch.nn.functional.normalize(a, dim=1)
                    - torch.nn.functional.normalize(b, dim=1)
                ) ** 2
                expected += (difference * lins[f"lin{relus}.model.1.weight"]).sum(1).mean().item()
                relus += 1
    # LPIPS rounds ImageNet's mean and standard deviation to three digits in [-1, 1].
    assert metric.score(x_hat, x).item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("file", TRAINED, ids=lambda f: f.name)
def test_addresses_and_hashes_are_those_that_pyiqa_and_torchvision_name(file):
    from pyiqa.archs import lpips_arch, musiq_arch
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    known = [*musiq_arch.default_model_urls.values(), *lpips_arch.default_model_urls.values()]
    known += [AlexNet_Weights.IMAGENET1K_V1.url, VGG16_Weights.IMAGENET1K_V1.url]
    (url,) = file.mirrors
    assert url in known
    assert file.name == url.split("/")[-1]
    assert file.name.endswith(f"-{file.sha256}.pth")


def test_the_hub_folder_is_pyiqas():
    from pyiqa.utils.download_util import DEFAULT_CACHE_DIR

    assert (
        Path(DEFAULT_CACHE_DIR).parts[-2:]
        == metrics.MUSIQ_KONIQ.path.parent.parts[-2:]
        == ("hub", "pyiqa")
    )


def test_missing_weights_are_one_line_with_file_size_folder_and_address(monkeypatch, tmp_path):
    reason = METRICS["musiq-koniq"]("cpu").unavailable()
    for part in (
        "musiq_koniq_ckpt-e95806b9.pth",
        "109 MB",
        str(tmp_path / "torch"),
        "https://huggingface.co/",
        "OFFLINE",
    ):
        assert part in reason
    assert "\n" not in reason
    with pytest.raises(InputError, match="musiq-koniq: musiq_koniq"):
        METRICS["musiq-koniq"]("cpu").score(pair()[0])


def test_a_failing_fetch_is_tried_once_per_process(monkeypatch):
    calls = []

    def no_host(opener, request, timeout):
        calls.append((request.full_url, timeout))
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_host)
    for _ in range(2):
        assert "Name or service not known" in METRICS["musiq-ava"]("cpu").unavailable()
    assert calls == [(url, download.TIMEOUT_SECONDS) for url in metrics.MUSIQ_AVA.mirrors]


@pytest.mark.parametrize("content, right", [(b"weights", True), (b"a login page", False)])
def test_a_fetched_file_is_kept_only_with_the_right_hash(content, right, monkeypatch, tmp_path):
    source = tmp_path / "source.pth"
    source.write_bytes(content)
    sha256 = hashlib.sha256(b"weights").hexdigest()[:8]
    file = dataclasses.replace(metrics.MUSIQ_KONIQ, mirrors=(source.as_uri(),), sha256=sha256)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert (file.unavailable() is None) == right
    (left,) = [path.name for path in file.path.parent.iterdir()]  # the file, or what was set aside
    assert left == file.name if right else left.startswith(f"{file.name}.part.corrupt-")


def test_a_file_with_another_hash_is_not_loaded():
    file = metrics.MUSIQ_KONIQ
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"half a file")
    assert "delete it" in METRICS["musiq-koniq"]("cpu").unavailable()


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["TORCH_HOME"] + "/ran",)


def test_code_in_a_weights_file_does_not_run(tmp_path):
    file = metrics.MUSIQ_KONIQ
    file.path.parent.mkdir(parents=True)
    torch.save({"payload": Payload()}, file.path)
    file = dataclasses.replace(file, sha256=sha256_of_file(file.path)[:8])
    metric = with_file(METRICS["musiq-koniq"]("cpu"), file)
    with pytest.raises(InputError, match="cannot load"):
        metric.score(pair()[0])
    assert not (tmp_path / "torch" / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_scoring_file_builds_and_scores_what_it_can(file):
    assert file.read_text().startswith("# ")
    scoring = instantiate(OmegaConf.load(file))
    x_hat, x = (2 * z[0] - 1 for z in pair())
    scores = scoring.score(x_hat, x)
    assert [metric.name for metric in scoring.metrics] == list(scores)
    for name, entry in scores.items():
        assert (entry["value"] is None) == (name in scoring.unavailable) == ("reason" in entry)
        assert entry["direction"] in ("higher", "lower")
        assert entry["version"]
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_an_image_scores_the_same_before_and_after_it_is_saved(tmp_path):
    scoring = Scoring(["psnr", "ssim", "piqe"])
    x_hat, x = torch.rand(2, 3, 32, 32) * 2.4 - 1.2  # not 8-bit, and beyond [-1, 1]
    for name, image in (("x_hat.png", x_hat), ("x.png", x)):
        write_png(tmp_path / name, image)
    assert scoring.score(x_hat, x) == scoring.score(tmp_path / "x_hat.png", str(tmp_path / "x.png"))


def test_equal_images_have_no_psnr_and_the_record_says_why():
    entry = Scoring(["psnr"]).score(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))["psnr"]
    assert entry["value"] is None
    assert "equal" in entry["reason"]


@pytest.mark.parametrize(
    "name, side, words",
    [("ssim", 10, "at least 11"), ("piqe", 15, "at least 16"), ("piqe", 16, "undefined")],
)
def test_an_image_that_cannot_be_scored_has_a_reason(name, side, words):
    black = torch.full((3, side, side), -1.0)  # PIQE divides by the brightest pixel
    assert words in Scoring([name]).score(black, black)[name]["reason"]


def test_too_small_for_musiq_is_said_before_the_weights_are_needed():
    with pytest.raises(InputError, match="at least 32 pixels, but the image has 64x31"):
        METRICS["musiq-koniq"]("cpu").score(pair(31, 64)[0])


def test_without_ground_truth_only_the_metrics_that_need_it_are_empty():
    scores = Scoring(["psnr", "piqe"]).score(torch.rand(3, 32, 32))
    assert "ground truth" in scores["psnr"]["reason"]
    assert scores["piqe"]["value"] is not None


def test_a_failed_restoration_is_not_scored():
    with pytest.raises(ValueError, match="NaN"):
        Scoring(["psnr"]).score(torch.full((3, 8, 8), math.nan), torch.zeros(3, 8, 8))


def test_images_of_unequal_shapes_or_beyond_0_1_are_refused():
    x_hat, x = pair()
    with pytest.raises(ValueError, match="differ"):
        PSNR().score(x_hat, x[..., :-1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        METRICS["ssim"]("cpu").score(2 * x_hat - 1, x)


def test_strict_scoring_refuses_to_start_and_lists_what_is_missing():
    with pytest.raises(InputError, match=r"musiq-koniq: .*musiq-ava: "):
        Scoring(["psnr", "musiq-koniq", "musiq-ava"], strict=True)


@pytest.mark.parametrize("names", [["psrn"], ["psnr", "psnr"]])
def test_unknown_and_repeated_names_are_refused(names):
    with pytest.raises(InputError):
        Scoring(names)


def test_the_residual_is_the_noise_in_grey_levels():
    # y = A x + 10 / 127.5 * noise, so the residual of x itself is 10 up to the error of 3 * 128^2
    # draws: 0.03.
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    operator = BoxBlur(5)((3, 128, 128))
    y = operator.A(x) + 10 / 127.5 * torch.randn(2, 3, 128, 128)
    assert data_consistency_residual(operator, x, y).tolist() == pytest.approx([10, 10], abs=0.15)


def test_the_residual_counts_the_known_pixels_only():
    x = torch.zeros(1, 3, 16, 16)
    operator = BoxInpainting(0.5)((3, 16, 16))
    y = operator.A(torch.full((1, 3, 16, 16), 2 / 127.5))
    assert data_consistency_residual(operator, x, y).item() == pytest.approx(2, abs=1e-5)


def test_the_residual_of_an_exact_solution_is_zero():
    operator = SuperResolution(4)((3, 32, 32))
    y = torch.rand(1, 3, 8, 8)
    assert data_consistency_residual(operator, operator.A_dagger(y), y).item() < 1e-3


def test_importing_metrics_does_not_import_pyiqa():
    import subprocess
    import sys

    code = "import sys, adir.scoring.metrics; sys.exit('pyiqa' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_pyiqas_logger_stays_quiet_below_warnings():
    METRICS["ssim"]("cpu").score(*pair())
    assert logging.getLogger("pyiqa").level == logging.WARNING
