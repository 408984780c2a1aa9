"""DDPG, a sampler whose guidance moves from back-projection to least squares.

Source: Garber and Tirer, CVPR 2024, arXiv 2312.16519.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from deepinv.physics import DecomposablePhysics
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    Restoration,
    StepCounter,
    draw_noise,
    separately,
)
from adir.samplers.svd import SVDSampler, back_projection, full_svd
from adir.tasks.operators import Operator

LEAST_ETA = 1e-4
"""Smallest regularisation of A A^T; it is used for y without noise.

The value is `eta_reg` in the authors' ddpg_scheme.py.
"""


def preconditioned_guidance(
    physics: DecomposablePhysics, residual: Tensor, delta: float, eta: float, step_scale: float
) -> Tensor:
    """Return A^T W residual, where W is the preconditioner of the paper.

    W = (1 - delta) (A A^T + eta I)^-1 + delta c I, with c = step_scale. At delta = 0 the result is
    the back-projection of the residual. At delta = 1 it is c times the gradient of least squares.

    Args:
        physics: A with its full singular value decomposition.
        residual: A x0_hat - y, (B, C, h, w).
        delta: weight of the least-squares gradient, from 0 to 1.
        eta: regularisation of A A^T, above 0.
        step_scale: c, the step size of the least-squares gradient.
    """
    return (1 - delta) * back_projection(
        physics, residual, eta
    ) + delta * step_scale * physics.A_adjoint(residual)


@dataclass(frozen=True)
class DDPG(SVDSampler):
    """Sampler of the paper, with the steps and names of the authors' functions/ddpg_scheme.py.

    Each step computes

        x0    = (x_t - sqrt(1 - ab) eps) / sqrt(ab)
        delta = ab_prev^gamma, or 0 if y has no noise
        x~    = x0 - mu A^T ((1 - delta) (A A^T + eta I)^-1 + delta c I) (A x0 - y)
        eps~  = (x_t - sqrt(ab) x~) / sqrt(1 - ab)                          the effective noise
        x_t-1 = sqrt(ab_prev) x~ + sqrt(1 - ab_prev) (sqrt(zeta) z + w sqrt(1 - zeta) eps~)

    If y has noise, mu = (1 - ab_prev) / (1 - ab), eta = max(1e-4, eta_tilde sigma_y^2) and w =
    delta, and the result is the last x0. If y has no noise, mu = w = 1 and eta = 1e-4, and the
    result is the last x~. sigma_y is for images in [-1, 1], and z is standard normal.

    Attributes:
        n_steps: network evaluations.
        zeta: variance of the fresh noise divided by 1 - ab_prev, from 0 to 1, if y has no noise.
        zeta_noisy: the value of zeta if y has noise.
        gamma: exponent that determines, if y has noise, when guidance moves to least squares; with
            a larger value it moves later.
        eta_tilde: regularisation eta in units of sigma_y^2.
        step_scale: c, at most 1 / |A|^2.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "ddpg"
    n_steps: int = 100
    zeta: float = 0.7
    zeta_noisy: float = 0.4
    gamma: float = 10.0
    eta_tilde: float = 0.7
    step_scale: float = 1.0

    @separately
    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        physics = full_svd(operator, y.dtype, y.device, operator.sigma_y)
        schedule = backbone.schedule.respaced(self.n_steps)
        noisy = operator.sigma_y > 0
        zeta = self.zeta_noisy if noisy else self.zeta
        eta = max(LEAST_ETA, self.eta_tilde * operator.sigma_y**2)
        watch = StepCounter(y)
        x_t = draw_noise(operator.image_shape, generators, y)
        for i in reversed(range(len(schedule))):
            ab, ab_prev = schedule.alpha_bar[i], schedule.alpha_bar_prev[i]
            eps = backbone.predict(x_t, schedule.timesteps[i].expand(1).to(y.device)).eps
            x0_hat = predict_x0(x_t, eps, ab)
            delta = float(ab_prev**self.gamma) if noisy else 0.0
            guidance = preconditioned_guidance(
                physics, operator.A(x0_hat) - y, delta, eta, self.step_scale
            )
            x0_guided = x0_hat - (float((1 - ab_prev) / (1 - ab)) if noisy else 1.0) * guidance
            if i > 0:
                eps_guided = (x_t - ab.sqrt() * x0_guided) / (1 - ab).sqrt()
                fresh = draw_noise(operator.image_shape, generators, y)
                mixed = (
                    zeta**0.5 * fresh + (delta if noisy else 1.0) * (1 - zeta) ** 0.5 * eps_guided
                )
                x_t = ab_prev.sqrt() * x0_guided + (1 - ab_prev).sqrt() * mixed
            watch.step(x0_guided)
        x_hat = x0_hat if noisy else x0_guided
        return watch.finish(x_hat, "lower zeta, or raise eta_tilde", len(schedule))
