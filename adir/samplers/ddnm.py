"""DDNM+, the denoising diffusion null-space model for clean and noisy measurements y.

Source: Wang, Yu and Zhang, ICLR 2023, arXiv 2212.00490.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.checks import require_unit_interval
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    Restoration,
    StepCounter,
    draw_noise,
    noise_level,
    separately,
)
from adir.samplers.svd import SVDSampler, full_svd
from adir.tasks.operators import Operator


def range_space_factors(
    s: Tensor, a: float, sigma_t: float, sigma_y: float, eta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors (gain, fresh, kept) of a DDNM+ step for each singular direction of A.

    The formulas are those of the paper's appendix, in the DDIM form of the authors' code. In every
    direction the noise of x_{t-1} has standard deviation sigma_t. If x0 were replaced by the data
    y / s, the noise of y would contribute a standard deviation of a sigma_y / s. If this is at most
    sigma_t, the data replace x0, and fresh noise fills the gap to sigma_t. If it is more, x0 moves
    only part of the way to the data. In the null space of A, x0 does not change.

    Args:
        s: singular values, at least 0; they are 0 in the null space of A.
        a: sqrt(alpha_bar) of x_{t-1}.
        sigma_t: sqrt(1 - alpha_bar) of x_{t-1}.
        sigma_y: standard deviation of the noise of y, above 0.
        eta: standard deviation of the fresh noise divided by sigma_t, from 0 to 1, in the
            directions in which the data do not fully replace x0.

    Returns:
        Three tensors shaped as s. `gain` multiplies U^T (y - A x0), so that V gain U^T is the
        paper's Sigma_t A_dagger. `fresh` multiplies standard normal noise, and `kept` multiplies
        the network's eps.
    """
    seen = s > 1e-10 * s.max()
    at_most = sigma_t / (a * sigma_y)  # upper bound of the gain, before the factor sqrt(1 - eta^2)
    clean = seen & (s * at_most >= 1)
    inverse = torch.where(clean, 1 / torch.where(clean, s, 1), 0)
    keeps = (1 - eta**2) ** 0.5
    gain = torch.where(clean, inverse, torch.where(seen, at_most * keeps, 0))
    fresh = torch.where(
        clean, (sigma_t**2 - (a * sigma_y * inverse) ** 2).clamp(min=0).sqrt(), sigma_t * eta
    )
    kept = torch.where(seen, 0, torch.full_like(s, sigma_t * keeps))
    return gain, fresh, kept


@dataclass(frozen=True)
class DDNM(SVDSampler):
    """Sampler that takes from y what A preserves, and the rest of the image from the network.

    The part of the image in the range of A^T comes from y, and the part in the null space of A from
    the network. Each step computes

        x0      = (x_t - sqrt(1 - ab) eps) / sqrt(ab)
        x0'     = x0 + V gain U^T (y - A x0)
        x_{t-1} = sqrt(ab_prev) x0' + V fresh V^T z + V kept V^T eps

    A = U diag(s) V^T is the singular value decomposition of A, z is standard normal, and
    `range_space_factors` returns gain, fresh and kept. The assumed noise of y is at least the
    rounding to 8 bits. As it tends to 0, the step tends to the step of the paper's DDNM, the method
    for y without noise.

    Attributes:
        n_steps: network evaluations; the authors' code uses 100.
        eta: standard deviation of the fresh noise in the null space of A, divided by sqrt(1 -
            ab_prev), from 0 to 1; the authors' code uses 0.85.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "ddnm"
    n_steps: int = 100
    eta: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unit_interval(eta=self.eta)

    @separately
    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image.

        Nothing is differentiated.
        """
        sigma_y = 2 * noise_level(operator)  # of images in [-1, 1]
        physics = full_svd(operator, y.dtype, y.device, sigma_y / 2)
        schedule = backbone.schedule.respaced(self.n_steps)
        watch = StepCounter(y)
        x_t = draw_noise(operator.image_shape, generators, y)
        for i in reversed(range(len(schedule))):
            ab, ab_prev = schedule.alpha_bar[i], schedule.alpha_bar_prev[i]
            eps = backbone.predict(x_t, schedule.timesteps[i].expand(1).to(y.device)).eps
            x0 = predict_x0(x_t, eps, ab)
            gain, fresh, kept = range_space_factors(
                physics.mask,
                float(ab_prev.sqrt()),
                float((1 - ab_prev).sqrt()),
                sigma_y,
                self.eta,
            )
            x_t = ab_prev.sqrt() * (x0 + physics.V(gain * physics.U_adjoint(y - operator.A(x0))))
            if i > 0:
                z = draw_noise(operator.image_shape, generators, y)
                x_t = x_t + physics.V(fresh * physics.V_adjoint(z) + kept * physics.V_adjoint(eps))
            watch.step(x_t)
        return watch.finish(x_t, "raise n_steps", len(schedule))
