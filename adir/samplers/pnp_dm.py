"""PnP-DM: split Gibbs sampling with a diffusion prior (Wu et al., NeurIPS 2024; 2405.18782)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from deepinv.physics import DecomposablePhysics
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.checks import require_whole
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    Restoration,
    StepCounter,
    draw_noise,
    noise_level,
    separately,
)
from adir.samplers.daps import NoiseLevels
from adir.samplers.svd import SVDSampler, full_svd
from adir.tasks.operators import Operator


def likelihood_step(
    physics: DecomposablePhysics, x: Tensor, y: Tensor, rho: float, sigma_y: float, z: Tensor
) -> Tensor:
    """Return a sample of the density proportional to N(y; A u, sigma_y^2 I) N(u; x, rho^2 I).

    This is the paper's equation 4 for a linear operator. The density is Gaussian, with covariance
    (A^T A / sigma_y^2 + I / rho^2)^-1, so the sample is exact.

    Args:
        physics: A with its full singular value decomposition.
        x: (B, 3, H, W).
        y: (B, C, h, w).
        rho: standard deviation of the sample around x.
        sigma_y: standard deviation of the noise of y, above 0.
        z: shaped as x, standard normal.
    """
    s = physics.mask
    variance = 1 / (s**2 / sigma_y**2 + 1 / rho**2)
    mean = variance * (s * physics.U_adjoint(y) / sigma_y**2 + physics.V_adjoint(x) / rho**2)
    return physics.V(mean + variance.sqrt() * physics.V_adjoint(z))


@dataclass(frozen=True)
class PnPDM(SVDSampler):
    """Sampler that alternates between the data and the prior: the paper's Algorithm 1.

    Each iteration k draws, at a coupling rho_k that falls from rho to rho_min,

        u ~ p(u | x, y), proportional to N(y; A u, sigma_y^2 I) N(u; x, rho_k^2 I)   (the data)
        x ~ p(x | u),    proportional to p(x) N(u; x, rho_k^2 I)                     (the prior)

    and the last x is the result. The first line is exact; see `likelihood_step`. The second line is
    the network's reverse diffusion that starts at u with noise level rho_k, in n_prior_steps
    ancestral steps; the last one returns x0_hat. The noise levels in it are the nearest ones of the
    network's schedule, spaced as in DAPS. The assumed noise of y is at least the rounding to 8
    bits. The chain starts at x = 0; at rho = 10 the start does not matter.

    The defaults are the authors' settings for linear problems on images. They run 100 iterations
    with up to 100 network evaluations each, and return the mean of 20 of the last 60 images.

    Attributes:
        n_steps: total number of network evaluations. There are n_steps // n_prior_steps
            iterations. A remainder of this division is added to the first iteration.
        n_prior_steps: network evaluations of each iteration. If n_prior_steps exceeds n_steps,
            there is one iteration.
        rho: standard deviation of u around x in the first iteration, for images in [-1, 1].
        rho_decay_rate: factor of rho_k per hundredth of the iterations.
        rho_min: lower bound of rho_k.
        clip_x0: True clips the network's clean-image estimates to [-1, 1].
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "pnp_dm"
    n_steps: int = 1000
    n_prior_steps: int = 10
    rho: float = 10.0
    rho_decay_rate: float = 0.9
    rho_min: float = 0.3
    clip_x0: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(1, n_prior_steps=self.n_prior_steps)
        if not 0 < self.rho_min <= self.rho < math.inf:
            raise ValueError(
                f"rho_min={self.rho_min!r}: a number above 0 and at most rho={self.rho!r} is needed"
            )
        if not 0 < self.rho_decay_rate <= 1:
            raise ValueError(
                f"rho_decay_rate={self.rho_decay_rate!r}: a number above 0 and at most 1 is needed"
            )

    @separately
    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image.

        Nothing is differentiated.
        """
        alpha_bar, timesteps = backbone.schedule.alpha_bar, backbone.schedule.timesteps
        levels = NoiseLevels(backbone.schedule)
        sigma_y = 2 * noise_level(operator)  # of images in [-1, 1]
        physics = full_svd(operator, y.dtype, y.device, sigma_y / 2)
        n = max(1, self.n_steps // self.n_prior_steps)
        first = self.n_steps - (n - 1) * self.n_prior_steps

        def noise() -> Tensor:
            return draw_noise(operator.image_shape, generators, y)

        watch = StepCounter(y)
        x = torch.zeros(1, *operator.image_shape, dtype=y.dtype, device=y.device)
        for k in range(n):
            rho = max(self.rho * self.rho_decay_rate ** (100 * k / n), self.rho_min)
            start = levels.nearest(rho)
            u = likelihood_step(physics, x, y, float(levels.sigma[start]), sigma_y, noise())
            steps = levels.down_from(start, first if k == 0 else self.n_prior_steps)
            for i, i_next in zip(steps, [*steps[1:], None], strict=True):
                t = timesteps[i].expand(1).to(y.device)
                u_t = alpha_bar[i].sqrt() * u
                x = predict_x0(u_t, backbone.predict(u_t, t).eps, alpha_bar[i])
                x = x.clamp(-1, 1) if self.clip_x0 else x
                if i_next is not None:
                    # Draw the less noisy image given x and u, as in DDPM.
                    sigma = levels.sigma[i_next]
                    share = (sigma / levels.sigma[i]) ** 2
                    u = x + share * (u - x) + sigma * (1 - share).sqrt() * noise()
            watch.step(x)
        return watch.finish(x, "raise rho_min", self.n_steps)
