"""DiffPIR, diffusion models for plug-and-play image restoration.

Source: Zhu et al., CVPR workshops 2023, arXiv 2305.08995.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.checks import require_positive, require_unit_interval, require_whole
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    Restoration,
    StepCounter,
    draw_noise,
    noise_level,
    separately,
)
from adir.samplers.svd import SVDSampler, back_projection, full_svd
from adir.tasks.operators import Operator


def quadratic_steps(n_steps: int, length: int) -> Tensor:
    """Return (n_steps,) int64 schedule indices from length - 1 down to 0, denser near 0.

    They are the `quad` option of the authors' code.
    """
    away = torch.linspace(0, length**2, n_steps, dtype=torch.float64).sqrt().long()
    return (length - 1 - away).clamp(min=0)


@dataclass(frozen=True)
class DiffPIR(SVDSampler):
    """Sampler that runs Algorithm 1 of the paper.

    Steps and units are as in the authors' main_ddpir_deblur.py. Each step computes

        x0      = clip((x_t - sqrt(1 - ab) eps) / sqrt(ab))
        x0'     = argmin_x |A x - y|^2 + rho |x - x0|^2 = x0 + A^T (A A^T + rho I)^-1 (y - A x0)
        eps'    = (x_t - sqrt(ab) x0') / sqrt(1 - ab)                          the effective noise
        x_{t-1} = sqrt(ab_prev) x0' + sqrt(1 - ab_prev) (sqrt(1 - zeta) eps' + sqrt(zeta) z)

    with rho = lambda_ sigma_y^2 / sigma_t^2 and sigma_t^2 = (1 - ab) / ab. As in the authors' code,
    sigma_y is for images in [0, 1] and sigma_t for images in [-1, 1], so this rho is a quarter of
    the paper's. deepinv.sampling.DiffPIR uses twice this rho. The result is the last x0. The
    authors' code and deepinv compute the last x0 too, but return the x_t from which it was
    computed.

    The variance of eps' is not 1. In directions that A damps, x0' contains noise of y with a
    standard deviation of up to sigma_t / sqrt(lambda_). A small zeta keeps this noise, which the
    network does not expect. Deblurring with few steps therefore needs a zeta near 1: see
    conf/sampler/diffpir.yaml.

    Attributes:
        n_steps: network evaluations, at least 2.
        lambda_: weight of the prior; the paper finds values from 3 to 25 good.
        zeta: variance of the fresh noise divided by 1 - ab_prev, from 0 to 1; the authors' code
            uses 0.1.
    """

    version: ClassVar[int] = 2
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "diffpir"
    n_steps: int = 100
    lambda_: float = 7.0
    zeta: float = 0.1

    def __post_init__(self) -> None:
        require_whole(2, n_steps=self.n_steps)
        require_positive(lambda_=self.lambda_)
        require_unit_interval(zeta=self.zeta)

    @separately
    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        sigma_y = noise_level(operator)
        # float64, because A A^T + rho is inverted with rho as small as 4e-10. This happens at the
        # first steps if y has no noise except rounding.
        physics = full_svd(operator, torch.float64, y.device, sigma_y)
        schedule = backbone.schedule
        steps = quadratic_steps(self.n_steps, len(schedule))
        watch = StepCounter(y)
        x_t = draw_noise(operator.image_shape, generators, y)
        for k, i in enumerate(steps):
            ab = schedule.alpha_bar[i]
            eps = backbone.predict(x_t, schedule.timesteps[i].expand(1).to(y.device)).eps
            x0 = predict_x0(x_t, eps, ab).clamp(-1, 1)
            watch.step(x0)
            if k + 1 == len(steps):
                break
            rho = float(self.lambda_ * sigma_y**2 * ab / (1 - ab))
            x0 = (x0 + back_projection(physics, y.double() - physics.A(x0.double()), rho)).to(
                y.dtype
            )
            eps = (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()
            ab_prev = schedule.alpha_bar[steps[k + 1]]
            z = draw_noise(operator.image_shape, generators, y)
            noise = (1 - self.zeta) ** 0.5 * eps + self.zeta**0.5 * z
            x_t = ab_prev.sqrt() * x0 + (1 - ab_prev).sqrt() * noise
        return watch.finish(x0, "raise lambda_ or zeta", len(steps))
