"""DMSP, restoration with a deep mean-shift prior.

Source: Bigdeli et al., NeurIPS 2017, arXiv 1709.03749.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.samplers.base import (
    PixelSampler,
    Restoration,
    StepCounter,
    draw_noise,
    separately,
)
from adir.samplers.deepinv_samplers import BackboneDenoiser
from adir.samplers.direct import scaled_adjoint, upsampled
from adir.tasks.base import LinearOperator
from adir.tasks.operators import Operator, SeparableDownsampling


def energy(operator: LinearOperator) -> tuple[int, float]:
    """Return M, the number of values of y that depend on x, and tr(A A^T).

    tr(A A^T) is the sum of A's squared entries; for a blur with the 2-D kernel k it is M |k|^2. In
    general it is computed as M times the squared norm of one nonzero row of A, because all nonzero
    rows have the same norm. This is not so with mirrored borders, so for a `SeparableDownsampling`
    the sum is computed from its two matrices.
    """
    known = operator.known()
    physics = operator.build(torch.float64) if isinstance(operator, Operator) else None
    if isinstance(physics, SeparableDownsampling):
        return int(known.sum()), 3 * float(
            physics.rows.square().sum() * physics.columns.square().sum()
        )
    delta = torch.zeros(operator.y_shape, dtype=torch.float64)
    delta[tuple(known.nonzero()[0])] = 1
    return int(known.sum()), int(known.sum()) * float(operator.A_adjoint(delta).square().sum())


def blind_precision(known: int, trace: float, residual: Tensor, sigma_net: float) -> float:
    """Return an estimate of 1 / sigma_d^2, where sigma_d is the unknown noise level of y.

    The estimate is M / (|A x - y|^2 + 2 sigma_net^2 tr(A A^T)). The denominator is the mean of
    |A (x + n) - y|^2 over Gaussian noise n of variance 2 sigma_net^2, as in the paper's Bayes risk.

    Args:
        known: M, the number of values of y that depend on x, from `energy`.
        trace: tr(A A^T), from `energy`.
        residual: A x - y.
        sigma_net: standard deviation of the denoiser's noise, in the units of x.
    """
    return known / (float(residual.square().sum()) + 2 * sigma_net**2 * trace)


@dataclass(frozen=True)
class DMSP(PixelSampler):
    """Sampler that extends the authors' DMSPDeblur.m to every linear operator.

    It minimises the data term plus the prior by gradient descent with momentum. It starts from y if
    y has the shape of the image, and otherwise from the scaled adjoint. If y has no noise, the
    sampler estimates a noise level at each iteration, as in the paper's noise-blind method. With a
    noise level of 0 the prior would have the weight 0.

    Attributes:
        n_steps: iterations; each one costs one network evaluation.
        sigma_net: noise level of the denoiser, in grey levels of 255.
        alpha: step length.
        mu: momentum.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "dmsp"
    n_steps: int = 300
    sigma_net: float = 11.0
    alpha: float = 0.1
    mu: float = 0.9

    @separately
    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        sigma_net, sigma_y = self.sigma_net / 255, operator.sigma_y / 2
        known, trace = energy(operator)
        watch, denoiser = StepCounter(y), BackboneDenoiser(backbone)
        start = upsampled if operator.y_shape == operator.image_shape else scaled_adjoint
        x = (start(operator, y) + 1) / 2
        step = torch.zeros_like(x)
        for _ in range(self.n_steps):
            # y belongs to an image in [-1, 1], whose residual is twice the one in [0, 1].
            residual = (operator.A(2 * x - 1) - y) / 2
            precision = (
                1 / sigma_y**2
                if sigma_y > 0
                else blind_precision(known, trace, residual, sigma_net)
            )
            denoised = denoiser(
                x + sigma_net * draw_noise(operator.image_shape, generators, y), sigma_net
            )
            # The authors' code calls this weight `relative_weight`.
            weight = precision / (precision + 1 / sigma_net**2)
            # x - D(x + noise) is minus the mean-shift vector. It estimates -sigma_net^2 times the
            # gradient of the smoothed log density.
            gradient = weight * operator.A_adjoint(residual) + (1 - weight) * (x - denoised)
            step = self.mu * step - self.alpha * gradient
            x = (x + step).clamp(0, 1)
            watch.step(x)
        return watch.finish(2 * x - 1, "lower alpha", denoiser.evaluations)
