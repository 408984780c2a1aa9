"""ADIR's sampler (arXiv 2212.03221): Algorithm 1 samples x_0 from noise x_T, guided by y.

    1  x_T ~ N(0, I)
    2  for t = T..1:
    3      eps = eps_theta(x_t, t);  x0_hat = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
    4      mu, Sigma = mean and variance of p_theta(x_{t-1} | x_t)
    5      y_{t-1} = sqrt(alpha_bar_{t-1}) y + sqrt(1 - alpha_bar_{t-1}) A eps
    6      g = -2 A^T (A mu - y_{t-1})
    7      x_{t-1} ~ N(mu + s Sigma g, Sigma); the last step takes the mean, without noise

The comments in `ADIR.restore` refer to these line numbers. The gradient g is computed without
backpropagation through eps_theta. In the formulas below, ab is alpha_bar, and beta_tilde is the
variance of q(x_{t-1} | x_t, x_0).

`eta` scales the fresh noise of line 7, as in DDIM (Song et al., 2021). It changes lines 4 and 7, as
`ddim_coefficients` derives:

    4  mu = sqrt(ab_{t-1}) x0_hat + sqrt(1 - ab_{t-1} - eta^2 beta_tilde) eps~
            with eps~ = (x_t - sqrt(ab_t) x0_hat) / sqrt(1 - ab_t)
    7  x_{t-1} ~ N(mu + s Sigma g, eta^2 Sigma)

With less fresh noise, the step keeps more of the noise eps~, so the noise level of x_{t-1} does not
depend on eta. At eta = 1 this is Algorithm 1: mu contains less noise than y_{t-1}, so guidance also
adds noise to A mu. At eta = 0 and without clipping of x0_hat, eps~ = eps and A mu - y_{t-1} =
sqrt(ab_{t-1}) (A x0_hat - y), so guidance depends only on the residual A x0_hat - y.

`temperature` tau also scales the fresh noise, but it leaves mu unchanged: x_{t-1} ~ N(mu + s Sigma
g, tau^2 eta^2 Sigma). With tau < 1, x_{t-1} contains less noise than the network expects.

The effect can be derived for a Gaussian prior N(m, S), eta = 1 and no guidance. The variance v of
x_t along an eigenvector of S with eigenvalue q obeys dv/dr = (1 - 2 / V) v + tau^2, where r = log
ab and V = ab q + 1 - ab. Substituting v = V w gives dw/dr = (tau^2 - w) / V, starting at w = 1.
Therefore w tends to tau^2, and the distribution of the samples to N(m, tau^2 S). These samples have
less spread than the prior and lie nearer to m: sampling at a lowered temperature (Kingma and
Dhariwal, 2018). deepinv's DDRM has the same effect if the SVD of A is real, because it adds
1 / sqrt(2) of the noise that the network expects.

`FastADIR` sets eta = 0 and takes second-order steps: in line 4 it replaces x0_hat by the result of
`extrapolated_x0`. Lines 5 to 7 do not change, so guidance remains first-order. As n_steps grows,
FastADIR converges to the result of ADIR with eta = 0.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser, Variance
from adir.checks import require_choice, require_not_negative, require_unit_interval
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
    PixelSampler,
    Restoration,
    StepCounter,
    draw_noise,
)
from adir.tasks.base import LinearOperator, Task

NOISY = (
    "back_projection=true would amplify the noise of {source} ({level:g} grey levels): "
    "use back_projection=false"
)


@dataclass(frozen=True)
class ADIR(PixelSampler):
    """Sampler that runs Algorithm 1 and exposes its free parameters.

    The defaults are the paper's values if the paper states them. The files in conf/sampler/ have
    the values of this project. Line numbers refer to Algorithm 1 in the docstring of this module.

    Attributes:
        n_steps: number of sampling steps, spread evenly over the schedule (paper: 1000 for guided
            diffusion).
        guidance_scale: s of line 7. The paper does not state its value.
        variance: Sigma, also the variance of the added noise: `learned` by the network, `small`
            (beta tilde) or `large` (beta). `learned` raises ValueError if the network predicts no
            variance.
        clip_x0: True clips x0_hat to [-1, 1].
        cap: True limits s Sigma so that the step remains stable
            (adir.diffusion.guidance.STABLE_STEP); False is the literal algorithm.
        measurement_level: timestep of alpha_bar in line 5: `mean` takes t-1, because mu is the mean
            of x_{t-1}, and `current` takes t. The index in the paper can be read in both
            ways, and the results agree as n_steps grows.
        eta: factor by which the standard deviation of the fresh noise is multiplied, from 0
            (deterministic after x_T) to 1 (the paper).
        temperature: further factor of the fresh noise, from 0 to 1 (the paper). Unlike eta, it
            leaves mu unchanged, and lower values give smoother images.
        back_projection: True returns x_hat + A_dagger (y - A x_hat), which reproduces y exactly. It
            requires a y without noise.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
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
        super().__post_init__()
        require_not_negative(guidance_scale=self.guidance_scale)
        require_unit_interval(eta=self.eta, temperature=self.temperature)
        require_choice("variance", self.variance, get_args(Variance))
        require_choice("measurement_level", self.measurement_level, ("mean", "current"))

    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image.

        Nothing is backpropagated through the network.

        Raises:
            ValueError: if back_projection=True and y has noise, or if variance="learned" and the
                network predicts no variance.
        """
        if self.back_projection and operator.sigma_y > 0:
            raise ValueError(NOISY.format(source="y", level=operator.sigma_y * 127.5))
        # Table entries are 0-dimensional float64 tensors. So 1 - alpha_bar keeps its digits, and
        # products with x_t remain float32.
        schedule = backbone.schedule.respaced(self.n_steps)
        level = schedule.alpha_bar_prev if self.measurement_level == "mean" else schedule.alpha_bar
        coef1, coef2 = self._mean_coefficients(schedule)
        timesteps = schedule.timesteps.to(y.device)
        noise_scale = self.eta * self.temperature
        watch = StepCounter(y)

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

            # Lines 5 and 6 in one. A is linear, so A mu - y_{t-1} needs one application of A
            # instead of two.
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
        """Return one line on why these arguments are not supported, or None if they are."""
        reason = super().not_applicable(backbone, task, mode)
        if reason is None and self.back_projection and task.sigma_y > 0:
            return NOISY.format(source=f"task {task.name}", level=task.sigma_y)
        return reason

    def _x0_of_step(
        self, x0_hat: Tensor, earlier: Tensor | None, schedule: Schedule, i: int
    ) -> Tensor:
        """Return the estimate of x_0 from which mu of step i is computed.

        `x0_hat` is the network's estimate at step i. `earlier` is its estimate at the previous
        step, or None at the first step.
        """
        return x0_hat

    def _mean_coefficients(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        # At eta = 1 both formulas agree up to rounding, which would change published results.
        if self.eta == 1:
            return schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
        return ddim_coefficients(
            schedule.alpha_bar, schedule.alpha_bar_prev, schedule.posterior_variance, self.eta
        )

    def _log_variance(self, fraction: Tensor | None, schedule: Schedule, i: int) -> Tensor:
        log_small, log_large = schedule.posterior_log_variance[i], schedule.betas[i].log()
        if self.variance == "learned":
            if fraction is None:
                raise ValueError(
                    "variance=learned, but this backbone predicts no variance: "
                    "use variance=small or variance=large"
                )
            return learned_log_variance(fraction, log_small, log_large)
        return {"small": log_small, "large": log_large}[self.variance]


@dataclass(frozen=True)
class FastADIR(ADIR):
    """ADIR sampler without fresh noise; its steps are second-order, with one network call each.

    It has the parameters of `ADIR`, but `eta` must be 0. Any other value raises ValueError, because
    fresh noise makes the step first-order.
    """

    version: ClassVar[int] = 1
    name: str = "adir_fast"
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta != 0:
            raise ValueError(
                f"eta={self.eta!r} adds noise, which the second-order step does not allow: use "
                "eta=0, or sampler=adir"
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
