"""What a metric is, what it refuses, and what metrics of a prompt ask of an encoder."""

from typing import Literal, Protocol

from torch import Tensor

from adir.images import require_unit
from adir.weights.registry import WeightsFile

Direction = Literal["higher", "lower"]


class Metric(Protocol):
    """One number per image."""

    name: str
    direction: Direction
    range: tuple[float | None, float | None]
    """Usual lowest and highest value; None where there is no bound."""
    needs_reference: bool
    """Whether it compares with the ground truth."""
    needs_prompt: bool
    """Whether it compares with a prompt."""
    weights_files: tuple[WeightsFile, ...]

    @property
    def version(self) -> str:
        """Backend and weights; scores of two versions are not compared."""

    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """(B,) float64 scores of (B, 3, H, W) images in [0, 1]; x, the ground truth, likewise.

        x, prompt: None for a metric that needs none.
        """

    def unavailable(self) -> str | None:
        """None, or one line: which file is missing, how large it is, where it goes and where it
        comes from.
        """


class TextEncoder(Protocol):
    """An encoder of images and prompts into one space; adir.retrieval.encoders.clip.ClipEncoder."""

    name: str
    weights_sha256: str

    def image(self, batch: Tensor) -> Tensor:
        """(B, D) unit vectors of (B, 3, H, W) images in [-1, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """(B, D) unit vectors."""


def require_images(metric: Metric, x_hat: Tensor, x: Tensor | None) -> None:
    """Raise ValueError unless x_hat, and x where the metric needs it, are equal-shaped (B, 3, H, W)
    in [0, 1].
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
