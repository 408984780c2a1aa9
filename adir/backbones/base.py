"""What every pretrained denoiser answers."""

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
    """What the denoiser says of x_t."""

    eps: Tensor
    """(B, 3, H, W) predicted noise."""
    variance_fraction: Tensor | None
    """(B, 3, H, W):

    (v + 1) / 2 of a network that learns its variance, see posterior.learned_log_variance; else
    None.

    The variance itself depends on the sampler's respacing, which the network does not know.
    """


class Denoiser(Protocol):
    """eps and variance at x_t: what a sampler calls. A pixel backbone is one, whole or in tiles."""

    schedule: Schedule

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """eps and variance_fraction at x_t (B, 3, H, W), original timesteps t (B,)."""


class Backbone(Protocol):
    """A pretrained denoiser of either kind: what samplers ask before they start, and what
    adaptation and the harness ask.
    """

    name: str
    kind: ClassVar[Kind]
    """`pixel`: it denoises images, as a `Denoiser`.

    `latent`: it denoises its VAE's latents under conditions.
    """
    family: ClassVar[str]
    """`guided_diffusion`, `upscaler` or `inpainting`: what its network is given besides x_t and t.

    Latent samplers and training examples are made for one.
    """
    version: ClassVar[int]
    """Raise it when a change of the class changes its predictions; part of a cell's identity."""
    trained_on: str | None
    """Its training images, as their publisher names them; None where that is not known.

    For records: a prior that has seen the test set makes a score meaningless.
    """
    resolution: int
    """Side in pixels of the images it was trained on; other sizes work."""
    schedule: Schedule
    network: Any
    """The nn.Module that is adapted: a UNet of diffusers.

    Where it is loaded when first asked for, InputError comes then.
    """
    device: torch.device
    execution: Execution
    weights_sha256: str
    config_sha256: str
    """With the former, changes whenever an output does; both are part of a cell's identity."""

    gate: Callable[[Tensor], None] | None
    """What `predict` calls with its timesteps (B,) before the network runs
    (adir.adaptation.base.adapted_at), if anything.
    """

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this."""

    @property
    def learns_variance(self) -> bool:
        """Whether `predict` gives a variance_fraction."""

    def denoising_loss(self, batch: Any) -> Tensor:
        """Return the training loss, a scalar, on a batch of the examples that adir.adaptation makes
        for this family.
        """


class PixelBackbone(Backbone, Denoiser, Protocol):
    """A backbone of images."""

    variance: Variance
    """The Sigma that goes with the network, which conf/sampler/adir.yaml takes from here."""

    def prediction(self, output: Tensor) -> Prediction:
        """The network's raw output, told apart."""
