"""DAPS: decoupled annealing posterior sampling (Zhang et al., CVPR 2025, arXiv 2407.01521)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    Adaptation,
    Restoration,
    Watch,
    draw_noise,
    needs_pixels,
    require_share,
    require_steps,
)
from adir.tasks.base import LinearOperator, Task

LOWEST = 0.01
"""The noise level that the steps of each probability flow go towards."""


def polynomial_levels(high: float, low: float, n: int) -> Tensor:
    """(n,) float64 noise levels from high to low, even in their 7th root:

    EDM (Karras et al., 2022), eq. 5 with rho = 7.
    """
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7


def langevin_step(
    x0: Tensor, x0_hat: Tensor, data_gradient: Tensor, eta: float, r: float, tau: float, z: Tensor
) -> Tensor:
    """Return x0 after one Langevin step on N(x0_hat, r^2 I) exp(-|A x - y|^2 / (2 tau^2)).

    Args:
        x0: (B, 3, H, W), where it starts.
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
class DAPS:
    """At each noise level sigma, from the paper's Algorithm 1, with x = x0 + sigma noise:

        x0_hat = end of the probability flow from x at sigma, n_ode_steps of Euler
        x0     ~ p(x0 | x, y) by n_langevin steps from x0_hat, where p(x0 | x) is N(x0_hat, sigma^2 I)
        x      = x0 + sigma_next z

    and the result is the last x0. Consecutive levels are decoupled: x0 is diffused anew, not
    corrected. The levels are the network's own, those nearest to the paper's; a flow's go from
    sigma towards `LOWEST`, even in their 7th root, the last step to 0.

    The defaults are the authors' settings for pixels, clip_x0 apart.

    n_steps: evaluations of the network in all: 1000 are 200 noise levels with 5 each. What is left
        over goes to the first.
    n_ode_steps: of each flow; the first has fewer where n_steps is less.
    n_langevin: applications of A and A^T at each level.
    eta_0: Langevin step size at the first level. eta_0 |A|^2 / tau^2 above 2 diverges.
    delta: share of it that would be left after the last level; linear in the levels' number.
    tau: standard deviation of y around A x0 that is assumed, of images in [-1, 1]; the authors',
        whose y has noise of 0.05.
    sigma_max, sigma_min: the first and the last noise level.
    clip_x0: clip the network's clean estimates to [-1, 1].
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
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
        require_steps(self.n_ode_steps)
        require_steps(self.n_steps)
        if (
            isinstance(self.n_langevin, bool)
            or not isinstance(self.n_langevin, int)
            or self.n_langevin < 0
        ):
            raise ValueError(
                f"n_langevin={self.n_langevin!r}: a whole number of at least 0 is needed"
            )
        for what in ("eta_0", "tau", "sigma_min"):
            if not 0 < getattr(self, what) < math.inf:
                raise ValueError(f"{what}={getattr(self, what)!r}: a positive number is needed")
        require_share(delta=self.delta)
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
        """x_hat from y (B, C, h, w), one CPU generator per image; nothing is differentiated."""
        alpha_bar, timesteps = backbone.schedule.alpha_bar, backbone.schedule.timesteps
        table = ((1 - alpha_bar) / alpha_bar).sqrt()

        def nearest(sigma: Tensor) -> int:
            return int((table - sigma).abs().argmin())

        def flow(x: Tensor, start: int, n_steps: int) -> Tensor:
            levels = polynomial_levels(
                float(table[start]), min(LOWEST, float(table[start])), n_steps + 1
            )
            steps = [nearest(sigma) for sigma in levels[:-1]]
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
        starts = [nearest(sigma) for sigma in anneal]
        watch = Watch(y)
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

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Any linear task on pixels."""
        return needs_pixels(self.name, backbone, task)
