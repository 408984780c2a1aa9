"""RED-diff, a variational sampler.

Source: Mardani, Song, Kautz and Vahdat, ICLR 2024, arXiv 2305.04391.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.checks import require_not_negative, require_positive
from adir.diffusion.posterior import diffuse
from adir.samplers.base import (
    PixelSampler,
    Restoration,
    StepCounter,
    draw_noise,
)
from adir.samplers.direct import scaled_adjoint
from adir.tasks.base import LinearOperator


@dataclass(frozen=True)
class REDDiff(PixelSampler):
    """Sampler that optimises one image mu by stochastic steps: Algorithm 1 of the paper.

    It takes one step at each timestep t, from the noisiest to the cleanest:

        x_t  = sqrt(ab) mu + sqrt(1 - ab) z
        loss = |A mu - y|^2 + lambda_ sqrt((1 - ab) / ab) <eps(x_t, t) - z, mu>     with eps fixed
        mu   = step of Adam on the loss

    z is standard normal. mu tends to a mode of the posterior, so the result is not a posterior
    sample. The initial mu is the scaled adjoint c A^T y (adir.samplers.direct). Adam uses the
    authors' decays, 0.9 and 0.99. Adam normalises gradients, so the scale of the loss does not
    matter.

    Attributes:
        n_steps: network evaluations; the paper has results for 1000 and for 100.
        lambda_: weight of the prior; the paper uses 0.25.
        learning_rate: learning rate of Adam; the paper uses 0.1, for images in [-1, 1].
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "red_diff"
    n_steps: int = 1000
    lambda_: float = 0.25
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(lambda_=self.lambda_)
        require_positive(learning_rate=self.learning_rate)

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
        schedule = backbone.schedule.respaced(self.n_steps)
        watch = StepCounter(y)
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
