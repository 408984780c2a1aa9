"""ADIR's sampler (arXiv 2212.03221), Algorithm 1: from x_T ~ N(0, I) down to x_0, guided towards y
at every step.

    1  x_T ~ N(0, I)
    2  for t = T..1:
    3      eps = eps_theta(x_t, t);  x0_hat = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
    4      mu, Sigma = mean and variance of p_theta(x_{t-1} | x_t)
    5      y_{t-1} = sqrt(alpha_bar_{t-1}) y + sqrt(1 - alpha_bar_{t-1}) A eps
    6      g = -2 A^T (A mu - y_{t-1})
    7      x_{t-1} ~ N(mu + s Sigma g, Sigma), and at the last step its mean

`ADIR.restore` carries these numbers. It differentiates nothing: g takes the place of a gradient
through eps_theta.

`eta` scales the noise of line 7 as DDIM does (Song et al., 2021; `ddim_coefficients` derives it):

    4  mu = sqrt(ab_{t-1}) x0_hat + sqrt(1 - ab_{t-1} - eta^2 beta_tilde) eps~
            with eps~ = (x_t - sqrt(ab_t) x0_hat) / sqrt(1 - ab_t)
    7  x_{t-1} ~ N(mu + s Sigma g, eta^2 Sigma)

What the step adds less in fresh noise it keeps in the direction of eps~, so x_{t-1} stays at its
noise level. At eta = 1 this is Algorithm 1. At eta = 0, where x0_hat is not clipped, eps~ = eps and
A mu - y_{t-1} = sqrt(ab_{t-1}) (A x0_hat - y): guidance sees the residual alone. At eta = 1 it also
pushes A mu back up to the noise that mu lacks.

`temperature` tau leaves mu and scales the noise alone, x_{t-1} ~ N(mu + s Sigma g, tau^2 eta^2
Sigma): the network is told of more noise than there is. For a Gaussian prior N(m, S), at eta = 1
and unguided, the variance v along an eigenvector of S obeys dv/dr = (1 - 2 / V) v + tau^2 in r =
log ab, with V = ab S + 1 - ab. With v = V w this is dw/dr = (tau^2 - w) / V from w = 1, so the
samples tend to N(m, tau^2 S): sampling at a lowered temperature (Kingma and Dhariwal, 2018), with
less spread and nearer to the mean. deepinv's DDRM does the same where its coefficients are real:
its noise is 1 / sqrt(2) of what the network is told.

`FastADIR` is eta = 0 with a step of second order: line 4 takes the x0_hat that `extrapolated_x0`
expects along the step in place of the one at its start. Lines 5 to 7 stay, so guidance is of first
order; both tend to one limit as n_steps grows.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser, Variance
from adir.diffusion.guidance import back_projected, guided_step_size, relaxed_gradient
from adir.diffusion.posterior import (
    ddim_coefficients,
    extrapolated_x0,
    learned_log_variance,
    posterior_mean,
    predict_x0,
)
from adir.diffusion.schedule import Schedule
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

NOISY = (
    "back_projection=true reproduces y exactly, and {}, which would come back amplified: "
    "use back_projection=false"
)


@dataclass(frozen=True)
class ADIR:
    """Algorithm 1 with its free parameters; the defaults are the paper's where it states them,
    conf/sampler/ has ours.

    n_steps: sampling steps, spread evenly over the schedule (paper: 1000 for guided diffusion).
    guidance_scale: s; the paper does not state it.
    variance: Sigma, also the noise that is added: `learned` by the network, `small` (beta tilde) or
        `large` (beta). `learned` on a network without learned variance raises ValueError.
    clip_x0: clip x0_hat to [-1, 1].
    cap: lower s Sigma where the step would diverge (adir.diffusion.guidance.STABLE_STEP); False is
        the literal algorithm.
    measurement_level: the noise level of line 5: `mean` is that of mu, the next, cleaner level;
        `current` is that of x_t. The paper's index allows both readings; they agree as n_steps
        grows.
    eta: fresh noise of a step over that of Algorithm 1, from 0 (none: deterministic after x_T) to 1
        (the paper).
    temperature: fresh noise over the noise that the network is told of, from 0 to 1 (the paper);
        lower is smoother.
    back_projection: return x_hat + A_dagger (y - A x_hat), which explains y exactly; for y without
        noise alone.
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str = "adir"
    n_steps: int = 1000
    guidance_scale: float = 1.0
    variance: Variance = "learned"
    clip_x0: bool = True
    cap: bool = True
    measurement_level: Literal["mean", "current"] = "mean"
    eta: float = 1.0
    temperature: float = 1.0
    back_projection: bool = False

    def __post_init__(self) -> None:
        require_steps(self.n_steps)
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(
                f"guidance_scale={self.guidance_scale!r}: a number that is not negative is needed"
            )
        require_share(eta=self.eta, temperature=self.temperature)
        for what, choices in (
            ("variance", get_args(Variance)),
            ("measurement_level", ("mean", "current")),
        ):
            if getattr(self, what) not in choices:
                raise ValueError(
                    f"unknown {what} {getattr(self, what)!r}; choose one of {', '.join(choices)}"
                )

    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image; no backpropagation through the
        network.

        Raises ValueError for back_projection of a noisy y, and for variance=learned of a network
        without it.
        """
        if self.back_projection and operator.sigma_y > 0:
            raise ValueError(
                NOISY.format(f"y has noise of {operator.sigma_y * 127.5:g} grey levels")
            )
        # The tables' entries are 0-dimensional float64: 1 - alpha_bar keeps its digits, and
        # products keep x_t's float32.
        schedule = backbone.schedule.respaced(self.n_steps)
        level = schedule.alpha_bar_prev if self.measurement_level == "mean" else schedule.alpha_bar
        coef1, coef2 = self._mean_coefficients(schedule)
        timesteps = schedule.timesteps.to(y.device)
        noise_scale = self.eta * self.temperature
        watch = Watch(y)

        x_t = draw_noise(operator.image_shape, generators, y)  # 1
        x0_hat: Tensor | None = None
        for i in reversed(range(len(schedule))):  # 2
            predicted = backbone.predict(x_t, timesteps[i].expand(len(x_t)))  # 3
            earlier, x0_hat = x0_hat, predict_x0(x_t, predicted.eps, schedule.alpha_bar[i])
            x0_hat = x0_hat.clamp(-1, 1) if self.clip_x0 else x0_hat

            mu = posterior_mean(
                self._x0_of_step(x0_hat, earlier, schedule, i), x_t, coef1[i], coef2[i]
            )  # 4
            log_Sigma = self._log_variance(predicted.variance_fraction, schedule, i)

            # 5 and 6 in one: A is linear, so A mu - y_{t-1} takes one application of A where the
            # two lines take two.
            g = relaxed_gradient(mu, predicted.eps, y, level[i], operator.A, operator.A_adjoint)

            s_Sigma, capped = guided_step_size(
                self.guidance_scale, log_Sigma.exp(), operator.norm, self.cap
            )
            x_t = mu + s_Sigma * g  # 7
            if i > 0 and noise_scale > 0:
                x_t = x_t + noise_scale * (log_Sigma / 2).exp() * draw_noise(
                    operator.image_shape, generators, y
                )
            watch.step(x_t, capped)

        if self.back_projection:
            x_t = back_projected(x_t, y, operator.A, operator.A_dagger)
        remedy = f"lower guidance_scale={self.guidance_scale:g}" + (
            "" if self.cap else ", or set cap=true"
        )
        return watch.finish(x_t, remedy, network_evaluations=len(schedule))

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """A one-line reason why this sampler cannot do a cell; None where it can."""
        reason = needs_pixels(self.name, backbone, task)
        if reason is None and self.back_projection and task.sigma_y > 0:
            return NOISY.format(f"task {task.name} has noise of {task.sigma_y:g} grey levels")
        return reason

    def _x0_of_step(
        self, x0_hat: Tensor, earlier: Tensor | None, schedule: Schedule, i: int
    ) -> Tensor:
        """x_0 that step i goes by; earlier: x0_hat of the step before, None at the first."""
        return x0_hat

    def _mean_coefficients(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        if (
            self.eta == 1
        ):  # equal to the others but for their last digit, which would change published results
            return schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
        return ddim_coefficients(
            schedule.alpha_bar, schedule.alpha_bar_prev, schedule.posterior_variance, self.eta
        )

    def _log_variance(self, fraction: Tensor | None, schedule: Schedule, i: int) -> Tensor:
        log_small, log_large = schedule.posterior_log_variance[i], schedule.betas[i].log()
        if self.variance == "learned":
            if fraction is None:
                raise ValueError(
                    "variance=learned, but this backbone predicts no variance: use small or large"
                )
            return learned_log_variance(fraction, log_small, log_large)
        return {"small": log_small, "large": log_large}[self.variance]


@dataclass(frozen=True)
class FastADIR(ADIR):
    """ADIR without fresh noise, of second order in the step at one network evaluation a step;
    parameters are those of `ADIR`.

    eta: 0 alone; another raises ValueError, as noise is of first order.
    """

    version: ClassVar[int] = 1
    name: str = "adir_fast"
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta != 0:
            raise ValueError(
                f"eta={self.eta!r}: the second-order step has no noise; use eta=0, or sampler=adir"
            )

    def _x0_of_step(
        self, x0_hat: Tensor, earlier: Tensor | None, schedule: Schedule, i: int
    ) -> Tensor:
        if earlier is None:
            return x0_hat
        alpha_bar_earlier, alpha_bar = schedule.alpha_bar[i + 1], schedule.alpha_bar[i]
        return extrapolated_x0(
            x0_hat, earlier, alpha_bar_earlier, alpha_bar, schedule.alpha_bar_prev[i]
        )
