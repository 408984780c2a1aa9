"""RED-diff: a variational sampler (Mardani, Song, Kautz and Vahdat, ICLR 2024, arXiv 2305.04391)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser
from adir.diffusion.posterior import diffuse
from adir.samplers.base import (
    Adaptation,
    Restoration,
    Watch,
    draw_noise,
    needs_pixels,
    require_steps,
)
from adir.samplers.direct import scaled_adjoint
from adir.tasks.base import LinearOperator, Task


@dataclass(frozen=True)
class REDDiff:
    """Algorithm 1 of the paper: stochastic optimisation of one image mu, t going down from the
    noisiest:

        x_t  = sqrt(ab) mu + sqrt(1 - ab) z
        loss = |A mu - y|^2 + lambda_ sqrt((1 - ab) / ab) <eps(x_t, t) - z, mu>          eps held fixed
        mu   = step of Adam on the loss

    Nothing is drawn from the posterior: mu tends to a mode of it. It starts from the scaled
    adjoint. Adam has the authors' decays, 0.9 and 0.99, so the scale of the loss is of no account.

    n_steps: evaluations of the network; the paper has 1000, and 100.
    lambda_: weight of the prior; the paper's 0.25.
    learning_rate: Adam's; the paper's 0.1, for images in [-1, 1].
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str = "red_diff"
    n_steps: int = 1000
    lambda_: float = 0.25
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        require_steps(self.n_steps)
        if not 0 <= self.lambda_ < math.inf:
            raise ValueError(f"lambda_={self.lambda_!r}: a number that is not negative is needed")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r}: a positive number is needed")

    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image; nothing is differentiated."""
        schedule = backbone.schedule.respaced(self.n_steps)
        watch = Watch(y)
        mu = scaled_adjoint(operator, y).clone()
        optimizer = torch.optim.Adam([mu], lr=self.learning_rate, betas=(0.9, 0.99))
        for i in reversed(range(len(schedule))):
            ab = schedule.alpha_bar[i]
            z = draw_noise(operator.image_shape, generators, y)
            t = schedule.timesteps[i].expand(len(y)).to(y.device)
            eps = backbone.predict(diffuse(mu, z, ab).to(y.dtype), t).eps
            prior = self.lambda_ * float(((1 - ab) / ab).sqrt()) * (eps - z)
            mu.grad = 2 * operator.A_adjoint(operator.A(mu) - y) + prior
            optimizer.step()
            watch.step(mu)
        return watch.finish(mu, "lower learning_rate", len(schedule))

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Any linear task on pixels."""
        return needs_pixels(self.name, backbone, task)
