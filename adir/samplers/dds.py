"""DDS, decomposed diffusion sampling, with a network that may be tuned during sampling.

Source: Chung, Lee and Ye, ICLR 2024, arXiv 2303.05754.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.checks import require_not_negative, require_unit_interval, require_whole
from adir.diffusion.posterior import predict_x0
from adir.samplers.base import (
    PixelSampler,
    Restoration,
    Steered,
    StepCounter,
    draw_noise,
    separately,
)
from adir.tasks.base import LinearOperator


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, n_steps: int
) -> Tensor:
    """Return x after n_steps of conjugate gradients on M x = b (Hestenes and Stiefel, 1952).

    The result is differentiable in b and x.

    Args:
        apply: M on batches: linear, symmetric and positive definite. No image of a batch may affect
            another.
        b: (B, C, H, W).
        x: start of the iteration, shaped as b.
        n_steps: number of steps. If it equals the number of distinct eigenvalues of M, the system
            is solved up to rounding.

    Returns:
        x, shaped as b. Each image has its own step sizes; an image that is solved does not change.
    """
    r = b - apply(x)
    p, rr = r, dot(r, r)
    for _ in range(n_steps):
        Mp = apply(p)
        alpha = rr / nonzero(dot(p, Mp))
        x, r = x + alpha * p, r - alpha * Mp
        rr_before, rr = rr, dot(r, r)
        p = r + rr / nonzero(rr_before) * p
    return x


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return (B, 1, 1, 1), the inner product of each image in `a` with the same image in `b`."""
    return (a * b).sum((1, 2, 3), keepdim=True)


def nonzero(value: Tensor) -> Tensor:
    """Return the value with each 0 replaced by 1, as the denominator of a step size.

    If the residual has vanished, the step size of conjugate gradients would be 0 / 0. With this
    denominator, the step size and its gradient are 0.
    """
    return torch.where(value == 0, 1, value)


def ddim_step(
    x0: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: float, z: Tensor | None
) -> Tensor:
    """Return x_{t-1} of a DDIM step (Song, Meng and Ermon, 2021), eq. 12.

    The noise has sigma = eta sqrt(beta tilde), eq. 16.

    Args:
        x0: (B, 3, H, W), the clean-image estimate to step towards.
        eps: shaped as x0, the direction to x_t.
        alpha_bar: alpha_bar of x_t, in (0, 1).
        alpha_bar_prev: alpha_bar of x_{t-1}, in (0, 1].
        eta: from 0 (deterministic) to 1 (as much noise as in DDPM).
        z: shaped as x0, standard normal; None if eta is 0.
    """
    variance = eta**2 * (1 - alpha_bar / alpha_bar_prev) * (1 - alpha_bar_prev) / (1 - alpha_bar)
    x_prev = alpha_bar_prev.sqrt() * x0 + (1 - alpha_bar_prev - variance).sqrt() * eps
    return x_prev if z is None else x_prev + variance.sqrt() * z


def differentiable_eps(backbone: Denoiser, x_t: Tensor, t: Tensor) -> Tensor:
    """Return eps at x_t.

    If gradients are enabled, eps is differentiable in the network weights that require gradients.
    """
    # A backbone records a graph only if x_t requires gradients.
    return backbone.predict(x_t.detach().requires_grad_(), t).eps


@dataclass(frozen=True)
class DDS(PixelSampler):
    """Sampler that alternates a Tweedie estimate, conjugate gradients and a DDIM step.

    Conjugate gradients make the estimate consistent with y. Each step computes

        x0_hat  = (x_t - sqrt(1 - ab) eps) / sqrt(ab)
        x_hat   = n_cg_steps of conjugate gradients, started at x0_hat, on
                  (I + gamma A^T A) x = x0_hat + gamma A^T y
        x_{t-1} = sqrt(ab_prev) x_hat + sqrt(1 - ab_prev - sigma^2) eps + sigma z
                  with sigma = eta sqrt(beta tilde)

    The result is the last x0_hat. Conjugate gradients after it would bring back y's noise. The
    defaults are those of steerable conditional diffusion (Barbano et al., 2025), which is DDS with
    a network tuned during sampling. Barbano et al. take every 10th of 1000 timesteps, from 0 to
    990. This class takes timesteps spread evenly from 0 to 999.

    Attributes:
        n_steps: network evaluations.
        eta: standard deviation of the fresh noise divided by DDPM's, from 0 to 1.
        gamma: weight of y relative to x0_hat, for images in [-1, 1]. It multiplies the squared
            singular values of A, the largest of which is 1 for the blurs of this package and about
            1/16 for super-resolution x4. At gamma = 0, y is ignored.
        n_cg_steps: steps of conjugate gradients, the paper's M.
        clip_x0: True clips x0_hat, and therefore the result, to [-1, 1].
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "dds"
    n_steps: int = 100
    eta: float = 0.2
    gamma: float = 10.0
    n_cg_steps: int = 3
    clip_x0: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unit_interval(eta=self.eta)
        require_not_negative(gamma=self.gamma)
        require_whole(0, n_cg_steps=self.n_cg_steps)

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
        return self._sample(backbone, operator, y, generators, None)

    @separately
    def restore_steered(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
        steering: list[Steered],
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), with the network tuned to each image.

        The network is tuned during sampling. The images are sampled one after the other, and
        `steering` has one tuned network per image. x0_hat uses eps of the tuned network, while the
        direction of the DDIM step uses eps of the untuned network. The random noise is the same as
        in `restore`.
        """
        return self._sample(backbone, operator, y, generators, steering[0])

    @torch.no_grad()
    def _sample(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
        steered: Steered | None,
    ) -> Restoration:
        schedule = backbone.schedule.respaced(self.n_steps)
        watch = StepCounter(y)
        gamma_At_y = self.gamma * operator.A_adjoint(y)

        def normal_equations(x: Tensor) -> Tensor:
            return x + self.gamma * operator.A_adjoint(operator.A(x))

        def consistent(x0_hat: Tensor) -> Tensor:
            return conjugate_gradients(
                normal_equations, x0_hat + gamma_At_y, x0_hat, self.n_cg_steps
            )

        def clean(x_t: Tensor, ab: Tensor, eps: Tensor) -> Tensor:
            x0_hat = predict_x0(x_t, eps, ab)
            return x0_hat.clamp(-1, 1) if self.clip_x0 else x0_hat

        def outcome(x_t: Tensor, ab: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            x_hat = consistent(clean(x_t, ab, eps))
            return x_hat, operator.A(x_hat) - y

        x_t = draw_noise(operator.image_shape, generators, y)
        for i in reversed(range(len(schedule))):
            ab, ab_prev = schedule.alpha_bar[i], schedule.alpha_bar_prev[i]
            t = schedule.timesteps[i].expand(len(y)).to(y.device)
            eps = backbone.predict(x_t, t).eps
            eps_tuned = eps
            if steered is not None:
                eps_tuned = steered.eps(
                    i, eps, partial(differentiable_eps, backbone, x_t, t), partial(outcome, x_t, ab)
                )
            x0_hat = clean(x_t, ab, eps_tuned)
            if i > 0:
                z = draw_noise(operator.image_shape, generators, y) if self.eta > 0 else None
                x_t = ddim_step(consistent(x0_hat), eps, ab, ab_prev, self.eta, z)
            watch.step(x_t if i > 0 else x0_hat)

        evaluations, gradients = len(schedule), 0
        remedy = "lower gamma"
        if steered is not None:
            evaluations, gradients = (
                evaluations + steered.network_evaluations,
                steered.gradient_evaluations,
            )
            remedy += ", or the learning rate of the adaptation"
        return watch.finish(x0_hat, remedy, evaluations, gradients)
