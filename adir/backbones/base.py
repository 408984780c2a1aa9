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
    """Output of a denoiser: the predicted noise and, if learned, the variance."""

    eps: Tensor
    """The predicted noise, (B, 3, H, W)."""
    variance_fraction: Tensor | None
    """(v + 1) / 2, (B, 3, H, W), where v is the network's variance output; None if it has none.

    posterior.learned_log_variance turns it into the log variance of a step. The denoiser cannot do
    that, because the variance also depends on the sampler's respacing.
    """


class Denoiser(Protocol):
    """Interface of an image denoiser, as samplers call it.

    Pixel backbones have this interface. So do wrappers that apply a pixel backbone in tiles.
    """

    schedule: Schedule

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Return eps and variance_fraction at x_t (B, 3, H, W).

        t: (B,) timesteps of the original schedule, not of a respaced one.
        """


class Backbone(Protocol):
    """Interface of a pretrained denoiser of pixels or latents, for adaptation and experiments.

    Samplers read its attributes, such as `kind`, to decide whether they can use the backbone.
    """

    name: str
    kind: ClassVar[Kind]
    """`pixel` if the network denoises images, `latent` if it denoises latents of its VAE.

    A pixel backbone is also a `Denoiser`. A latent backbone takes a condition besides the latent.
    """
    family: ClassVar[str]
    """`guided_diffusion`, `upscaler` or `inpainting`.

    The family determines the inputs of the network besides x_t and t. Each latent sampler and each
    kind of training example works with only one family.
    """
    version: ClassVar[int]
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    trained_on: str | None
    """The name of the data set on which the network was trained, or None if unknown.

    It is written to the records, because a score is meaningless if the network was trained on the
    test set.
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

    adir.adaptation.base.adapted_at sets it, to use an adapter at some timesteps only.
    """

    @property
    def stride(self) -> int:
        """An image's height and width, in pixels, must be multiples of this number."""

    @property
    def learns_variance(self) -> bool:
        """True if `predict` returns a variance_fraction."""

    def denoising_loss(self, batch: Any) -> Tensor:
        """Return the training loss of a batch, a scalar.

        batch: collated training examples from adir.adaptation.examples.training_examples.
        """


class PixelBackbone(Backbone, Denoiser, Protocol):
    """Interface of a backbone that denoises images instead of latents."""

    variance: Variance
    """The variance Sigma that suits the network; the default of sampler=adir."""

    def prediction(self, output: Tensor) -> Prediction:
        """Split the network's raw output into eps and variance_fraction."""
