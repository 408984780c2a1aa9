"""What every pretrained denoiser answers."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from adir.diffusion.schedule import Schedule

Variance = Literal["learned", "small", "large"]


@dataclass(frozen=True)
class Prediction:
    """What the denoiser says of x_t."""

    eps: Tensor
    """(B, 3, H, W) predicted noise."""
    variance_fraction: Tensor | None
    """(B, 3, H, W): (v + 1) / 2 of a network that learns its variance, see posterior.learned_log_variance; else None.

    The variance itself depends on the sampler's respacing, which the network does not know.
    """


class Denoiser(Protocol):
    """What Algorithm 1 needs of a backbone."""

    schedule: Schedule

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """eps and variance_fraction at x_t (B, 3, H, W), original timesteps t (B,)."""
