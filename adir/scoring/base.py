"""Interfaces of metrics and of the encoder of prompts, and the check of the images to score."""

from typing import Literal, Protocol

from torch import Tensor

from adir.images import require_unit
from adir.weights.registry import WeightsFile

Direction = Literal["higher", "lower"]


class Metric(Protocol):
    """Quality measure that gives each image a score."""

    name: str
    direction: Direction
    range: tuple[float | None, float | None]
    """The usual lowest and highest score; None stands for no bound."""
    needs_reference: bool
    """Whether the metric compares an image with its ground truth."""
    needs_prompt: bool
    """Whether the metric compares an image with a prompt."""
    weights_files: tuple[WeightsFile, ...]

    @property
    def version(self) -> str:
        """The backend and weights in one string. Scores of different versions are not compared."""

    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """Return (B,) float64 scores of a batch of images.

        Args:
            x_hat: (B, 3, H, W) images in [0, 1].
            x: ground truth, shaped as x_hat and in [0, 1]; None if the metric needs no reference.
            prompt: None if the metric needs no prompt.
        """

    def unavailable(self) -> str | None:
        """Return None if the metric can be computed, else one line on the missing file.

        The line gives the file's size, where to put the file and where to get it.
        """


class TextEncoder(Protocol):
    """Encoder of images and prompts into one vector space.

    adir.retrieval.encoders.clip.ClipEncoder is one.
    """

    name: str
    weights_sha256: str

    def image(self, batch: Tensor) -> Tensor:
        """Return (B, D) unit vectors of (B, 3, H, W) images in [-1, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of B prompts."""


def require_images(metric: Metric, x_hat: Tensor, x: Tensor | None) -> None:
    """Raise ValueError unless the images fit the metric.

    x_hat, and x if the metric needs a reference, must have equal shapes (B, 3, H, W) and values in
    [0, 1].
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
