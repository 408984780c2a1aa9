"""Metrics of image quality, and `Scoring`, which applies a list of them to an image.

A metric measures fidelity to the ground truth, perceptual quality without ground truth, or
similarity to a prompt. It takes float RGB images (B, 3, H, W) in [0, 1] and scores each image
separately, so no score depends on the batch. `data_consistency_residual` measures how well images
agree with the measurement y.

This module computes PSNR. `deep-lite0` and `clip-prompt` have modules of their own. The package
pyiqa computes the other metrics. pyiqa is imported at its first use, because the import takes 3 s
(measured, 2 cores). Its weights are verified by their SHA-256 and loaded with weights_only=True.
pyiqa alone would load them without verification and with weights_only=False.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adir.environment import garbage_collection_paused
from adir.errors import InputError
from adir.images import read_image, to_uint8
from adir.scoring.base import Direction, Metric, TextEncoder, require_images
from adir.scoring.deep import DeepLite0
from adir.scoring.prompt import PromptSimilarity
from adir.tasks.base import LinearOperator
from adir.weights.registry import WeightsFile, weights_file

MUSIQ_KONIQ, MUSIQ_AVA = weights_file("musiq_koniq"), weights_file("musiq_ava")
LPIPS_ALEX, LPIPS_VGG = weights_file("lpips_alex"), weights_file("lpips_vgg")
ALEXNET, VGG16 = weights_file("alexnet"), weights_file("vgg16")


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio over all pixels and channels, in dB.

    It is computed on RGB, not luma, and no border is cut.

    Args:
        x_hat: (B, 3, H, W) images in [0, 1].
        x: ground truth, shaped as x_hat.

    Returns:
        (B,) float64, inf for equal images.
    """
    mse = (x_hat.double() - x.double()).square().mean((1, 2, 3))
    return -10 * mse.log10()


def data_consistency_residual(operator: LinearOperator, x_hat: Tensor, y: Tensor) -> Tensor:
    """Return the root mean square of A x_hat - y for each image, in grey levels of 255.

    The mean is over the entries of y that depend on x. A good value is about sigma_y, the standard
    deviation of the noise. If the value is lower, x_hat reproduces part of the noise. If y has no
    noise, a good value is about 0; rounding y to 8 bits alone gives 0.29.

    Args:
        operator: A.
        x_hat: (B, 3, H, W) images in [-1, 1].
        y: (B, C, h, w) measurements in [-1, 1].

    Returns:
        (B,) residuals.
    """
    known = operator.known().to(x_hat.device)
    difference = (operator.A(x_hat) - y)[:, known]
    return difference.square().mean(1).sqrt() * 127.5


class PSNR:
    """Metric `psnr`: peak signal-to-noise ratio in dB, higher is better."""

    name = "psnr"
    version = "adir 1"
    direction: Direction = "higher"
    range: tuple[float | None, float | None] = (0, None)
    needs_reference = True
    needs_prompt = False
    weights_files: tuple[WeightsFile, ...] = ()

    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """Return (B,) float64 values in dB, inf for equal images; see `Metric.score`.

        Raises:
            ValueError: if the shapes differ or are not (B, 3, H, W), or a value is outside [0, 1].
        """
        require_images(self, x_hat, x)
        assert x is not None
        return psnr(x_hat, x)

    def unavailable(self) -> None:
        """Return None, because PSNR needs no file."""


@dataclasses.dataclass(eq=False)
class PyiqaMetric:
    """Metric that pyiqa computes, with weights that are verified before pyiqa loads them.

    Args:
        device: device of the network.
        name: name of the metric in ADIR.
        pyiqa_name: name of the metric in pyiqa.
        direction: the better direction of the score.
        range: the usual lowest and highest score; None stands for no bound.
        needs_reference: whether the metric compares an image with its ground truth.
        smallest_side: least height and width of an image, in pixels. pyiqa fails or has nothing to
            measure on smaller images, so `score` raises InputError for them.
        weights_files: the files of pretrained weights.
        options: further arguments of pyiqa.create_metric.
    """

    device: str
    name: str
    pyiqa_name: str
    direction: Direction
    range: tuple[float | None, float | None]
    needs_reference: bool
    smallest_side: int
    weights_files: tuple[WeightsFile, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    needs_prompt = False

    @functools.cached_property
    def version(self) -> str:
        """The version of pyiqa and the names of the weights files, which contain their hashes."""
        backend = f"pyiqa {importlib.metadata.version('pyiqa')}"
        return ", ".join([backend, *(file.name for file in self.weights_files)])

    @functools.cached_property
    def _fault(self) -> str | None:
        """The result of `unavailable`, cached because hashing takes 0.1 to 0.5 s."""
        reasons = [reason for file in self.weights_files if (reason := file.unavailable())]
        return "; ".join(reasons) or None

    def unavailable(self) -> str | None:
        """Return None if the weights can be used, else one line that says why not.

        The first call tries to download missing weights. Its result is cached.
        """
        return self._fault

    @torch.no_grad()
    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """Return (B,) float64 scores; see `Metric.score`.

        Raises:
            ValueError: if the shapes differ or are not (B, 3, H, W), or a value is outside [0, 1].
            InputError: if the images are too small, or the weights are missing or damaged.
        """
        require_images(self, x_hat, x)
        height, width = x_hat.shape[-2:]
        if min(height, width) < self.smallest_side:
            raise InputError(
                f"{self.name} needs sides of at least {self.smallest_side} pixels, but the image "
                f"has {width}x{height}"
            )
        pairs = (
            (one[None], None if x is None else x[i : i + 1])
            for i, one in enumerate(x_hat.to(self.device))
        )
        scores = [
            self._model(one, ref) if self.needs_reference else self._model(one)
            for one, ref in pairs
        ]
        return torch.cat([score.reshape(1).double().cpu() for score in scores])

    @functools.cached_property
    def _model(self) -> torch.nn.Module:
        reason = self.unavailable()
        if reason is not None:
            raise InputError(f"{self.name}: {reason}")
        own = [file for file in self.weights_files if file.place == "pyiqa"]
        options = self.options | ({"pretrained_model_path": str(own[0].path)} if own else {})
        try:
            with _quiet_and_safe():
                with garbage_collection_paused():
                    import pyiqa  # here, because the import takes 3 s and `psnr` does not need it
                return pyiqa.create_metric(
                    self.pyiqa_name, device=torch.device(self.device), **options
                )
        # torch.load raises half a dozen kinds of exceptions for a damaged or wrong file.
        except Exception as error:
            if not self.weights_files:
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            files = ", ".join(str(file.path) for file in self.weights_files)
            raise InputError(f"{self.name}: cannot load {files} ({reason})") from error


@contextlib.contextmanager
def _quiet_and_safe() -> Iterator[None]:
    """Suppress pyiqa's output and make torch.load accept only tensors, within the context.

    By default, pyiqa lets torch.load unpickle any object.
    """
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


METRICS: dict[str, Callable[[str], Metric]] = {
    "psnr": lambda device: PSNR(),
    # SSIM (Wang et al., 2004), in Gaussian windows of 11x11 pixels (standard deviation 1.5 pixels),
    # without padding or downsampling, averaged over all windows and the three channels. Negative
    # contrast-structure terms are set to 0, so anticorrelated windows count as 0.
    "ssim": functools.partial(
        PyiqaMetric,
        name="ssim",
        pyiqa_name="ssimc",
        direction="higher",
        range=(0, 1),
        needs_reference=True,
        smallest_side=11,
    ),
    # LPIPS v0.1 (Zhang et al., 2018) on AlexNet; scores are about 0 to 1.
    "lpips-alex": functools.partial(
        PyiqaMetric,
        name="lpips-alex",
        pyiqa_name="lpips",
        direction="lower",
        range=(0, None),
        needs_reference=True,
        smallest_side=32,
        weights_files=(LPIPS_ALEX, ALEXNET),
    ),
    # LPIPS v0.1 (Zhang et al., 2018) on VGG16; scores are about 0 to 1.
    "lpips-vgg": functools.partial(
        PyiqaMetric,
        name="lpips-vgg",
        pyiqa_name="lpips-vgg",
        direction="lower",
        range=(0, None),
        needs_reference=True,
        smallest_side=32,
        weights_files=(LPIPS_VGG, VGG16),
    ),
    # FSIM (Zhang et al., 2011) compares phase congruency, gradient and colour. It is reported
    # beside `deep-lite0` because it uses no trained network.
    #
    # GMSD and VIF, the other metrics of pyiqa without weights, get worse with noise and blur as
    # steadily as FSIM, but have drawbacks. GMSD rates an image shifted by one pixel, which looks
    # the same, worse than the image with a 5x5 blur. It does so on 11 of the 12 test images of
    # adir.data.embedded, and FSIM on 1 of them. VIF needs sides of at least 33 pixels, and exceeds
    # 1 if the contrast is raised.
    "fsim": functools.partial(
        PyiqaMetric,
        name="fsim",
        pyiqa_name="fsim",
        direction="higher",
        range=(0, 1),
        needs_reference=True,
        smallest_side=16,
    ),
    "deep-lite0": DeepLite0,
    # PIQE (Venkatanath et al., 2015) rates blocks of 16x16 luma pixels and needs no training. If a
    # side is not a multiple of 16, pyiqa pads it by (side mod 16) pixels. It may thus ignore up to
    # 7 pixels at the right or bottom border.
    "piqe": functools.partial(
        PyiqaMetric,
        name="piqe",
        pyiqa_name="piqe",
        direction="lower",
        range=(0, 100),
        needs_reference=False,
        smallest_side=16,
    ),
    # MUSIQ (Ke et al., 2021) with KonIQ-10k weights; scores are about 0 to 100. pyiqa resizes
    # images differently from the original code. Its scores are higher by 0.42 on average and by up
    # to 1.09, which is as large as published gains.
    "musiq-koniq": functools.partial(
        PyiqaMetric,
        name="musiq-koniq",
        pyiqa_name="musiq",
        direction="higher",
        range=(0, 100),
        needs_reference=False,
        smallest_side=32,
        weights_files=(MUSIQ_KONIQ,),
    ),
    # MUSIQ (Ke et al., 2021) with AVA weights. The score is the mean of the distribution that the
    # network predicts over the ratings 1 to 10.
    "musiq-ava": functools.partial(
        PyiqaMetric,
        name="musiq-ava",
        pyiqa_name="musiq-ava",
        direction="higher",
        range=(1, 10),
        needs_reference=False,
        smallest_side=32,
        weights_files=(MUSIQ_AVA,),
        # pyiqa sets the number of outputs only if it downloads the weights itself.
        options={"num_class": 10},
    ),
    PromptSimilarity.name: lambda device: PromptSimilarity(None),
}
"""The metrics by name; each value builds its metric for a device, such as "cpu"."""


class Scoring:
    """List of metrics that is applied to one image at a time.

    Args:
        metrics: names (keys of `METRICS`) or instances of metrics.
        strict: whether to raise InputError if a metric cannot be computed, for example because
            weights are missing. If false, the scores of this metric are None.
        device: device of the networks of the metrics that are given by name.
        clip: builds the encoder of `clip-prompt` if this metric is given by name.

    Raises:
        InputError: if a name is unknown or listed twice, or because of `strict`.
    """

    def __init__(
        self,
        metrics: list[str | Metric],
        strict: bool = False,
        device: str = "cpu",
        clip: Callable[[], TextEncoder] | None = None,
    ) -> None:
        names = [metric if isinstance(metric, str) else metric.name for metric in metrics]
        unknown = [
            metric for metric in metrics if isinstance(metric, str) and metric not in METRICS
        ]
        if unknown:
            raise InputError(
                f"unknown metric {', '.join(unknown)}; choose from {', '.join(METRICS)}"
            )
        if len(set(names)) != len(names):
            raise InputError(f"a metric is listed twice in {', '.join(names)}: list each once")

        builders = METRICS | {PromptSimilarity.name: lambda device: PromptSimilarity(clip)}
        self.metrics: list[Metric] = [
            builders[metric](device) if isinstance(metric, str) else metric for metric in metrics
        ]
        if strict and self.unavailable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.unavailable.items())
            raise InputError(
                "some metrics cannot be computed (set scoring.strict=false to leave their scores "
                f"empty): {reasons}"
            )

    @property
    def unavailable(self) -> dict[str, str]:
        """The metrics that cannot be computed: {metric name: reason}.

        The first access may try to download weights.
        """
        return {metric.name: reason for metric in self.metrics if (reason := metric.unavailable())}

    @property
    def weights_to_fetch(self) -> dict[str, list[WeightsFile]]:
        """The metrics that lack weights files: {metric name: missing files}.

        Nothing is downloaded.
        """
        wanted = {
            m.name: [file for file in m.weights_files if not file.path.is_file()]
            for m in self.metrics
        }
        return {name: files for name, files in wanted.items() if files}

    def with_local_weights(self) -> "Scoring":
        """Return a `Scoring` with only the metrics whose weights need no download."""
        weights_to_fetch = self.weights_to_fetch
        return Scoring([metric for metric in self.metrics if metric.name not in weights_to_fetch])

    def score(
        self,
        x_hat: Tensor | str | Path,
        x: Tensor | str | Path | None = None,
        prompt: str | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return the scores of one image by metric name.

        Tensors are rounded to 8 bits first, so an image has the same scores before and after it is
        saved.

        Args:
            x_hat: (3, H, W) image in [-1, 1], or path of an image file.
            x: ground truth in the form of x_hat; None if there is none.
            prompt: text; None if there is none.

        Returns:
            {metric name: dict}. Each dict has the keys `value`, `direction` and `version`. If there
                is no finite score, `value` is None and the key `reason` says why: unusable weights,
                no ground truth or prompt, too small an image, or an infinite or undefined score.
                For example, PSNR of equal images is infinite, and JSON has no infinite numbers.

        Raises:
            ValueError: if a pixel is NaN or Inf, or if shapes differ.
            InputError: if a file cannot be read as an image.
        """
        x_hat = as_saved(x_hat)
        x = None if x is None else as_saved(x)
        return {metric.name: score_one(metric, x_hat, x, prompt) for metric in self.metrics}


def score_one(
    metric: Metric, x_hat: Tensor, x: Tensor | None, prompt: str | None = None
) -> dict[str, Any]:
    """Return the dict that `Scoring.score` returns for one metric.

    The images are (1, 3, H, W) in [0, 1].
    """
    entry: dict[str, Any] = {
        "value": None,
        "direction": metric.direction,
        "version": metric.version,
    }
    if metric.needs_reference and x is None:
        return entry | {"reason": "needs the ground truth, which is missing"}
    if metric.needs_prompt and prompt is None:
        return entry | {"reason": "needs a prompt, and this task has none"}
    reason = metric.unavailable()
    if reason is not None:
        return entry | {"reason": reason}
    try:
        value = metric.score(
            x_hat, x if metric.needs_reference else None, prompt if metric.needs_prompt else None
        ).item()
    except InputError as error:
        return entry | {"reason": str(error)}
    if not math.isfinite(value):
        equal = math.isinf(value) and x is not None and torch.equal(x_hat, x)
        return entry | {
            "reason": f"the score is {value}, "
            + ("because the images are equal" if equal else "which is undefined for this image")
        }
    return entry | {"value": value}


def as_saved(x: Tensor | str | Path) -> Tensor:
    """Return an image rounded to the 8-bit levels that a file stores.

    The argument is a (3, H, W) tensor in [-1, 1] or the path of an image file. The result is
    (1, 3, H, W) float32 with values k / 255.

    Raises:
        ValueError: if a pixel is NaN or Inf.
        InputError: if the file cannot be read as an image.
    """
    if not isinstance(x, Tensor):
        x = read_image(x)
    if not torch.isfinite(x).all():
        raise ValueError(
            "an image with NaN or Inf cannot be scored, because its restoration has failed"
        )
    return torch.from_numpy(to_uint8(x)).permute(2, 0, 1)[None].float() / 255
