"""Samplers PiGDM, ALD, score SDE and ILVR, which add a score of p(y | x_t) to the prior's score.

Each sampler approximates p(y | x_t) differently. ALD, score SDE and ILVR run in
deepinv.sampling.PosteriorDiffusion. PiGDM is implemented in this module, because deepinv's PiGDM
differs from the paper in two ways. First, deepinv sets the prior variance to 1 for images in
[0, 1], while the paper sets it to 1 for images in [-1, 1]. Second, deepinv adds the score itself,
while the paper adds r_t^2 times the score to a DDIM step.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from deepinv.physics import LinearPhysics
from deepinv.sampling import (
    ALDDataFidelity,
    DDPMSolver,
    PosteriorDiffusion,
    VariancePreservingDiffusion,
)
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser
from adir.checks import require_choice, require_unit_interval
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    Adaptation,
    Restoration,
    StepCounter,
    draw_noise,
    in_unit_range,
    noise_level,
    separately,
)
from adir.samplers.dds import ddim_step
from adir.samplers.deepinv_samplers import BackboneDenoiser, ImageNoise
from adir.samplers.svd import SVDSampler, back_projection, full_svd
from adir.tasks.base import Task
from adir.tasks.operators import Operator

Likelihood = Literal["ald", "score_sde", "ilvr"]

WORST_CONDITION = 100
"""Largest condition number of A for which ILVR runs.

The condition number is the largest singular value divided by the smallest nonzero one. It is 2 for
super-resolution.
"""


@dataclass(frozen=True)
class PiGDM(SVDSampler):
    """Sampler for pseudo-inverse guided diffusion (Song et al., ICLR 2023), Algorithm 1.

    It assumes x0 | x_t ~ N(x0_hat, r_t^2 I) with r_t^2 = 1 - ab. Each step computes

        g       = (d x0_hat / d x_t)^T A^T (A A^T + sigma_y^2 / r_t^2 I)^-1 (y - A x0_hat)
        x_{t-1} = DDIM(x0_hat, eps; eta) + sqrt(ab_prev ab) g

    sigma_y is at least the standard deviation of the error that rounding y to 8 bits makes. Each
    step costs one network evaluation and one backpropagation through the network.

    Attributes:
        n_steps: network evaluations; the paper uses 100.
        eta: standard deviation of the fresh noise divided by DDPM's, from 0 to 1; the paper uses 1.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "pigdm"
    n_steps: int = 100
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unit_interval(eta=self.eta)

    @separately
    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        sigma_y = 2 * noise_level(operator)  # of images in [-1, 1]
        physics = full_svd(operator, y.dtype, y.device, sigma_y / 2)
        schedule = backbone.schedule.respaced(self.n_steps)
        watch = StepCounter(y)
        x_t = draw_noise(operator.image_shape, generators, y)
        for i in reversed(range(len(schedule))):
            ab, ab_prev = schedule.alpha_bar[i], schedule.alpha_bar_prev[i]
            with torch.enable_grad():
                x_t.requires_grad_()
                eps = backbone.predict(x_t, schedule.timesteps[i].expand(1).to(y.device)).eps
                x0 = predict_x0(x_t, eps, ab)
            towards = back_projection(
                physics, y - operator.A(x0.detach()), sigma_y**2 / float(1 - ab)
            )
            (g,) = torch.autograd.grad(x0, x_t, towards)
            z = draw_noise(operator.image_shape, generators, y) if i > 0 and self.eta > 0 else None
            x_t = (
                ddim_step(x0.detach(), eps.detach(), ab, ab_prev, self.eta, z)
                + (ab_prev * ab).sqrt() * g
            )
            watch.step(x_t)
        return watch.finish(x_t, "raise n_steps", len(schedule), len(schedule))


class NoisedMeasurement(ALDDataFidelity):
    """deepinv data term of the score SDE (lift="A_adjoint") or of ILVR (lift="A_dagger").

    It compares A x_t with y_t = y + sigma_t A z, where z is standard normal. The noise sigma_t A z
    has the same distribution as the noise in A x_t. deepinv's own terms add sigma_t z for every A,
    which agrees only if A A^T = I. For super-resolution x4, sigma_t z has four times the standard
    deviation of the noise in A x_t.
    """

    def __init__(self, lift: Literal["A_adjoint", "A_dagger"], weight: float) -> None:
        super().__init__(weight=weight)
        self.lift = lift

    def grad(self, x: Tensor, y: Tensor, physics: LinearPhysics, sigma: Tensor) -> Tensor:
        """Return the gradient of the data term at x_t = x (1, 3, H, W).

        It is minus the score of p(y | x_t). The noise in x has standard deviation sigma.
        """
        residual = physics.A(x - sigma * torch.randn_like(x)) - y
        residual = residual / self._guidance_strength(physics, sigma, residual)
        return self.weight * getattr(physics, self.lift)(residual)


@dataclass(frozen=True)
class DataTermSampler(SVDSampler):
    """DDPM sampler that adds to the score a data term, which compares y with A x_t.

    The data term does not contain the network, so nothing is backpropagated through the network.
    `name` selects the data term:

        ald        A^T (y - A x_t) / (sigma_y^2 + sigma_t^2)
        score_sde  A^T (y + sigma_t A z - A x_t) / (sigma_y^2 + sigma_t^2)
        ilvr       A_dagger (y + sigma_t A z - A x_t) / (sigma_y^2 + sigma_t^2)

    Sources: Jalal et al., 2021 (ald); Song et al., ICLR 2021 (score_sde); Choi et al., ICCV 2021
    (ilvr).

    x_t is x0 + sigma_t noise, and z is standard normal. The annealed weight 1 / (sigma_y^2 +
    sigma_t^2) is deepinv's. A_dagger amplifies the noise of y, so ILVR refuses operators whose
    condition number exceeds `WORST_CONDITION`.

    Attributes:
        name: the data term, `ald`, `score_sde` or `ilvr`.
        n_steps: network evaluations, spread evenly over the schedule.
        weight: factor of the data term. For `ald` and `score_sde` it is in units of 1 / |A|^2.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: Likelihood
    n_steps: int = 1000
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_choice("likelihood", self.name, get_args(Likelihood))
        super().__post_init__()

    @separately
    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        weight = self.weight / operator.norm**2
        fidelity = {
            "ald": lambda: ALDDataFidelity(weight=weight),
            "score_sde": lambda: NoisedMeasurement("A_adjoint", weight),
            "ilvr": lambda: NoisedMeasurement("A_dagger", self.weight),
        }[self.name]()
        physics = full_svd(operator, torch.float64, y.device, noise_level(operator))
        denoiser = BackboneDenoiser(backbone)
        # deepinv counts times, and the last time is 0. DDPM's last step then ends at the denoised
        # image.
        times = torch.linspace(1, 0, self.n_steps + 1, dtype=torch.float64, device=y.device)
        sampler = PosteriorDiffusion(
            fidelity,
            denoiser,
            VariancePreservingDiffusion(alpha=1.0, device=y.device),
            DDPMSolver(times),
            device=y.device,
        )
        with ImageNoise(generators[0]):
            x = sampler(
                in_unit_range(operator, y).double(), physics, x_init=(1, *operator.image_shape)
            )
        return denoiser.finish(x, y, "lower weight")

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are.

        The sampler needs a pixel backbone and an operator whose singular value decomposition is
        known. In addition, ILVR needs an A_dagger that does not amplify noise too much.
        """
        reason = super().not_applicable(backbone, task, mode)
        if reason is None and self.name == "ilvr":
            operator = task.operator((3, backbone.resolution, backbone.resolution))
            s = full_svd(operator, torch.float64, torch.device("cpu"), noise_level(operator)).mask
            worst = float(s.max() / s[s > 1e-10 * s.max()].min())
            if worst > WORST_CONDITION:
                return (
                    f"sampler ilvr applies A_dagger, which amplifies the noise of task {task.name} "
                    f"up to {worst:.0f} times: use another sampler"
                )
        return reason
