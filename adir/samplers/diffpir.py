"""DiffPIR: diffusion models for plug-and-play restoration (Zhu et al., CVPR workshops 2023, arXiv
2305.08995).
"""

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
    noise_level,
    one_by_one,
    require_share,
    require_steps,
)
from adir.samplers.deepinv_samplers import needs_svd
from adir.samplers.svd import back_projection, full_svd
from adir.tasks.base import Task
from adir.tasks.operators import Operator


def quadratic_steps(n_steps: int, length: int) -> Tensor:
    """(n_steps,) int64, descending: the authors' `quad` choice of a schedule's indices, from length
    - 1 to 0, denser near 0.
    """
    away = torch.linspace(0, length**2, n_steps, dtype=torch.float64).sqrt().long()
    return (length - 1 - away).clamp(min=0)


@dataclass(frozen=True)
class DiffPIR:
    """Algorithm 1 of the paper, with the steps and the units of the authors' code
    (main_ddpir_deblur.py):

        x0      = clip((x_t - sqrt(1 - ab) eps) / sqrt(ab))
        x0'     = argmin_x |A x - y|^2 + rho |x - x0|^2 = x0 + A^T (A A^T + rho I)^-1 (y - A x0)
        eps'    = (x_t - sqrt(ab) x0') / sqrt(1 - ab)                                    the effective noise
        x_{t-1} = sqrt(ab_prev) x0' + sqrt(1 - ab_prev) (sqrt(1 - zeta) eps' + sqrt(zeta) z)

    with rho = lambda_ sigma_y^2 / sigma_t^2, sigma_t^2 = (1 - ab) / ab. As in the authors' code,
    sigma_y is that of images in [0, 1] and sigma_t that of images in [-1, 1]: a quarter of the
    paper's rho. deepinv.sampling.DiffPIR has twice this rho. The result is the last x0. The
    authors' code and deepinv's compute it, and return the x_t that it was made of.

    eps' is not of unit variance: where A damps, x0' holds noise of y, up to sigma_t /
    sqrt(lambda_), and a small zeta carries that on as noise of which the network is not told. So
    few steps need a zeta near 1 on deblurring: conf/sampler/diffpir.yaml.

    n_steps: evaluations of the network.
    lambda_: weight of the prior; the paper finds 3 to 25 good.
    zeta: share of fresh noise in a step, from 0 to 1; the authors' code has 0.1.
    """

    version: ClassVar[int] = 2
    """Raise it when a change of this class changes its result."""
    name: str = "diffpir"
    n_steps: int = 100
    lambda_: float = 7.0
    zeta: float = 0.1

    def __post_init__(self) -> None:
        require_steps(self.n_steps, least=2)
        if not 0 < self.lambda_ < math.inf:
            raise ValueError(f"lambda_={self.lambda_!r}: a positive number is needed")
        require_share(zeta=self.zeta)

    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image."""
        sigma_y = noise_level(operator)
        # float64: A A^T + rho is inverted at rho down to 4e-10, at the first steps and where y is
        # exact but for rounding.
        physics = full_svd(operator, torch.float64, y.device, sigma_y)
        schedule = backbone.schedule
        steps = quadratic_steps(self.n_steps, len(schedule))

        def restore_one(y: Tensor, generators: list[torch.Generator]) -> Restoration:
            watch = Watch(y)
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

        return one_by_one(restore_one, y, generators)

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Pixels, and an operator whose singular value decomposition is known, by which the
        proximal step is exact.
        """
        return needs_pixels(self.name, backbone, task) or needs_svd(self.name, backbone, task)
