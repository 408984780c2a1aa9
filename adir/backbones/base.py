"""Interfaces of the pretrained denoisers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from adir.backbones.execution import Execution
from adir.diffusion.schedule import Schedule

Variance = Literal["learned", "small", "large"]
Kind = Literal["pixel", "latent"]


@dataclass(frozen=True)
class Prediction:
    """Output of a denoiser at x_t."""

    eps: Tensor
    """The predicted noise, (B, 3, H, W)."""
    variance_fraction: Tensor | None
    """(v + 1) / 2, (B, 3, H, W), if the network learns its variance, else None.

    See posterior.learned_log_variance. The variance itself is not returned because it depends on
    the sampler's respacing, which the network does not know.
    """


class Denoiser(Protocol):
    """Denoiser of images, as samplers call it: a pixel backbone, whole or applied in tiles."""

    schedule: Schedule

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Return eps and variance_fraction at x_t (B, 3, H, W).

        t: (B,) timesteps of the original schedule, not of a respaced one.
        """


class Backbone(Protocol):
    """Pretrained denoiser of pixels or latents, as adaptation and the harness use it.

    Samplers read its attributes before they start.
    """

    name: str
    kind: ClassVar[Kind]
    """`pixel` if the network denoises images, `latent` if it denoises latents of its VAE.

    A pixel backbone is also a `Denoiser`. A latent backbone takes a condition besides the latent.
    """
    family: ClassVar[str]
    """`guided_diffusion`, `upscaler` or `inpainting`.

    The family fixes the inputs of the network besides x_t and t. Each latent sampler and each kind
    of training example works with one family.
    """
    version: ClassVar[int]
    """Raise it if a change of the class changes its predictions; part of a cell's identity."""
    trained_on: str | None
    """The name of the training images, as their publisher gives it; None if unknown.

    It is written to the records because a score is meaningless if the test set was in the training
    images.
    """
    resolution: int
    """The side in pixels of the training images; other sizes work."""
    schedule: Schedule
    network: Any
    """The nn.Module that is adapted: a UNet of diffusers.

    Some backbones load it at first access. In that case the access may raise InputError.
    """
    device: torch.device
    execution: Execution
    weights_sha256: str
    config_sha256: str
    """A hash of the network's settings; part of a cell's identity, like `weights_sha256`.

    One of the two hashes changes whenever the network's output changes.
    """

    gate: Callable[[Tensor], None] | None
    """A function that `predict` calls with its timesteps (B,) before the network runs, or None.

    See adir.adaptation.base.adapted_at, which sets it.
    """

    @property
    def stride(self) -> int:
        """The number of pixels of which an image's height and width must be multiples."""

    @property
    def learns_variance(self) -> bool:
        """True if `predict` returns a variance_fraction."""

    def denoising_loss(self, batch: Any) -> Tensor:
        """Return the training loss, a scalar.

        batch: examples that adir.adaptation makes for this family.
        """


class PixelBackbone(Backbone, Denoiser, Protocol):
    """Backbone that denoises images."""

    variance: Variance
    """The variance Sigma that suits the network. conf/sampler/adir.yaml reads it from here."""

    def prediction(self, output: Tensor) -> Prediction:
        """Split the network's raw output into eps and variance_fraction."""
