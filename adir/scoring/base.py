"""Interfaces of metrics and of the encoder of prompts, and a check of the images to be scored."""

from typing import Literal, Protocol

from torch import Tensor

from adir.images import require_unit
from adir.weights.registry import WeightsFile

Direction = Literal["higher", "lower"]


class Metric(Protocol):
    """Quality measure that gives each image a score."""

    name: str
    direction: Direction
    """The better direction of the score."""
    range: tuple[float | None, float | None]
    """The usual lowest and highest score; None stands for no bound."""
    needs_reference: bool
    """Whether the metric compares an image with its ground truth."""
    needs_prompt: bool
    """Whether the metric compares an image with a prompt."""
    weights_files: tuple[WeightsFile, ...]

    @property
    def version(self) -> str:
        """The software and the weights of the metric, in one string.

        Scores of different versions are not compared.
        """

    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """Return (B,) float64 scores of a batch of images.

        Args:
            x_hat: (B, 3, H, W) images in [0, 1].
            x: ground truth, shaped as x_hat and in [0, 1]; None if the metric needs no reference.
            prompt: the prompt of all B images; None if the metric needs no prompt.
        """

    def unavailable(self) -> str | None:
        """Return None if the metric can be computed, else one line that says why not.

        If a weights file is to be downloaded, the line gives its size, its address and its folder.
        """


class TextEncoder(Protocol):
    """Encoder of images and prompts into one vector space.

    adir.retrieval.encoders.clip.ClipEncoder implements this interface.
    """

    name: str
    weights_sha256: str
    """Hash of the weights, the architecture and the preprocessing."""

    def image(self, batch: Tensor) -> Tensor:
        """Return (B, D) unit vectors of (B, 3, H, W) images in [-1, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of B prompts."""


def require_images(metric: Metric, x_hat: Tensor, x: Tensor | None) -> None:
    """Raise ValueError if the metric cannot score these images.

    The images x_hat must have the shape (B, 3, H, W) and values in [0, 1]. If the metric needs a
    reference, the ground truth x must be given and fulfil the same conditions.
    """
    require_unit(x_hat, metric.name)
    if metric.needs_reference:
        if x is None:
            raise ValueError(f"{metric.name} compares with the ground truth, and none was given")
        require_unit(x, metric.name)
        if x.shape != x_hat.shape:
            raise ValueError(
                f"{metric.name}: shapes {tuple(x_hat.shape)} and {tuple(x.shape)} differ"
            )
