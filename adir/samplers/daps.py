"""DAPS: decoupled annealing posterior sampling (Zhang et al., CVPR 2025, arXiv 2407.01521)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.checks import require_positive, require_unit_interval, require_whole
from adir.diffusion.posterior import predict_x0
from adir.diffusion.schedule import Schedule
from adir.samplers.base import (
    PixelSampler,
    Restoration,
    StepCounter,
    draw_noise,
)
from adir.tasks.base import LinearOperator

LOWEST = 0.01
"""Noise level towards which the levels of each probability flow are spaced.

The last step of the flow goes to 0 instead of this level.
"""


def polynomial_levels(high: float, low: float, n: int) -> Tensor:
    """Return (n,) float64 noise levels from high to low, evenly spaced in their 7th root.

    This is EDM (Karras et al., 2022), eq. 5 with rho = 7.
    """
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7


class NoiseLevels:
    """Noise levels sigma of a network's schedule, where x is x0 plus noise of deviation sigma.

    Args:
        schedule: schedule of the network.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.sigma = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()
        """(T,) noise levels, ascending."""

    def nearest(self, sigma: float | Tensor) -> int:
        """Return the index of the level nearest to sigma."""
        return int((self.sigma - sigma).abs().argmin())

    def down_from(self, start: int, n: int) -> list[int]:
        """Return the indices of n levels from `start` towards `LOWEST`, which is not one of them.

        They are the levels nearest to sigmas that are evenly spaced in their 7th root.
        """
        high = float(self.sigma[start])
        sigmas = polynomial_levels(high, min(LOWEST, high), n + 1)
        return [self.nearest(sigma) for sigma in sigmas[:-1]]


def langevin_step(
    x0: Tensor, x0_hat: Tensor, data_gradient: Tensor, eta: float, r: float, tau: float, z: Tensor
) -> Tensor:
    """Return x0 after one Langevin step, which samples from p(x0 | x0_hat, y).

    The density is proportional to N(x0; x0_hat, r^2 I) exp(-|A x0 - y|^2 / (2 tau^2)).

    Args:
        x0: (B, 3, H, W), the start of the step.
        x0_hat: shaped as x0.
        data_gradient: A^T (A x0 - y), shaped as x0.
        eta: step size.
        r: standard deviation of x0 around x0_hat.
        tau: standard deviation of y around A x0.
        z: shaped as x0, standard normal.
    """
    gradient = (x0 - x0_hat) / r**2 + data_gradient / tau**2
    return x0 - eta * gradient + math.sqrt(2 * eta) * z


@dataclass(frozen=True)
class DAPS(PixelSampler):
    """Sampler that runs the paper's Algorithm 1.

    At a noise level sigma, x is x0 plus noise of standard deviation sigma. The sampler takes three
    steps at each noise level, from the highest to the lowest, and returns the last x0:

        x0_hat = end of the probability flow that starts at x and sigma, in n_ode_steps Euler steps
        x0     ~ p(x0 | x, y) by n_langevin steps from x0_hat, with p(x0 | x) = N(x0_hat, sigma^2 I)
        x      = x0 + sigma_next z

    Consecutive levels are decoupled, because x0 is diffused to the next level with fresh noise.
    Each noise level of the paper is replaced by the nearest level of the network's schedule. The
    levels within one flow go from sigma towards `LOWEST`, evenly spaced in their 7th root, and the
    last step ends at 0.

    The defaults are the authors' settings for pixels, except clip_x0.

    Attributes:
        n_steps: total number of network evaluations. There are n_steps // n_ode_steps noise levels,
            200 by default. A remainder of this division is added to the flow at the first level.
        n_ode_steps: Euler steps of each flow, with one network evaluation each. If n_ode_steps
            exceeds n_steps, there is one noise level, whose flow takes n_steps Euler steps.
        n_langevin: Langevin steps at each noise level; each one applies A and A^T once.
        eta_0: size of the Langevin steps at the first level. They diverge if eta_0 |A|^2 / tau^2
            exceeds 2.
        delta: decrease of the Langevin step size. At level k of n, counted from 0, the step size is
            eta_0 (delta + (1 - delta) (1 - k / n)).
        tau: assumed standard deviation of y around A x0, for images in [-1, 1]. The authors use the
            default for a y whose noise has a standard deviation of 0.05.
        sigma_max, sigma_min: the first and the last noise level, for images in [-1, 1].
        clip_x0: True clips the network's clean-image estimates to [-1, 1].
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "daps"
    n_steps: int = 1000
    n_ode_steps: int = 5
    n_langevin: int = 100
    eta_0: float = 1e-4
    delta: float = 0.01
    tau: float = 0.01
    sigma_max: float = 100.0
    sigma_min: float = 0.1
    clip_x0: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(1, n_ode_steps=self.n_ode_steps)
        require_whole(0, n_langevin=self.n_langevin)
        require_positive(eta_0=self.eta_0, tau=self.tau, sigma_min=self.sigma_min)
        require_unit_interval(delta=self.delta)
        if not self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_max={self.sigma_max!r}: a number of at least "
                f"sigma_min={self.sigma_min:g} is needed"
            )

    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image.

        Nothing is differentiated.
        """
        alpha_bar, timesteps = backbone.schedule.alpha_bar, backbone.schedule.timesteps
        levels = NoiseLevels(backbone.schedule)
        table = levels.sigma

        def flow(x: Tensor, start: int, n_steps: int) -> Tensor:
            steps = levels.down_from(start, n_steps)
            for i, i_next in zip(steps, [*steps[1:], None], strict=True):
                t = timesteps[i].expand(len(x)).to(x.device)
                x_t = alpha_bar[i].sqrt() * x
                x0_hat = predict_x0(x_t, backbone.predict(x_t, t).eps, alpha_bar[i])
                x0_hat = x0_hat.clamp(-1, 1) if self.clip_x0 else x0_hat
                sigma_next = 0 if i_next is None else table[i_next]
                x = x0_hat + sigma_next / table[i] * (x - x0_hat)
            return x

        n_levels = max(1, self.n_steps // self.n_ode_steps)
        first = self.n_steps - (n_levels - 1) * self.n_ode_steps
        anneal = polynomial_levels(self.sigma_max, self.sigma_min, n_levels)
        starts = [levels.nearest(sigma) for sigma in anneal]
        watch = StepCounter(y)
        x = table[starts[0]] * draw_noise(operator.image_shape, generators, y)
        for k, i in enumerate(starts):
            x0_hat = flow(x, i, first if k == 0 else self.n_ode_steps)
            sigma = float(table[i])
            eta = self.eta_0 * (self.delta + (1 - k / len(starts)) * (1 - self.delta))
            x0 = x0_hat
            for _ in range(self.n_langevin):
                gradient = operator.A_adjoint(operator.A(x0) - y)
                z = draw_noise(operator.image_shape, generators, y)
                x0 = langevin_step(x0, x0_hat, gradient, eta, sigma, self.tau, z)
            watch.step(x0)
            if k + 1 < len(starts):
                x = x0 + table[starts[k + 1]] * draw_noise(operator.image_shape, generators, y)
        return watch.finish(x0, "lower eta_0 or raise tau", self.n_steps)
