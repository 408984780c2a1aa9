"""ADIR's sampler (arXiv 2212.03221), Algorithm 1: from x_T ~ N(0, I) down to x_0, guided towards y at every step."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from adir.backbones.base import Denoiser
from adir.diffusion.guidance import guided_step_size, relaxed_gradient
from adir.diffusion.posterior import learned_log_variance, posterior_mean, predict_x0
from adir.diffusion.schedule import Schedule
from adir.samplers.base import Restoration, draw_noise, needs_pixels, require_steps

Variance = Literal["learned", "small", "large"]


class Operator(Protocol):
    """What Algorithm 1 needs of the degradation; adir.tasks.operators.Operator."""

    @property
    def image_shape(self) -> tuple[int, ...]: ...
    @property
    def norm(self) -> float: ...
    def A(self, x: Tensor) -> Tensor: ...
    def A_adjoint(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ADIR:
    """Algorithm 1 with its free parameters; the defaults are the paper's where it states them, conf/sampler/ has ours.

    n_steps: sampling steps, spread evenly over the schedule (paper: 1000 for guided diffusion).
    guidance_scale: s; the paper does not state it.
    variance: Sigma, also the noise that is added: `learned` by the network, `small` (beta tilde) or `large` (beta).
        `learned` on a network without learned variance raises ValueError.
    clip_x0: clip x0_hat to [-1, 1].
    cap: lower s Sigma where the step would diverge (adir.diffusion.guidance.STABLE_STEP); False is the literal algorithm.
    measurement_level: the noise level of y_t: `mean` is that of mu, the next, cleaner level; `current` is that of x_t.
        The paper's index allows both readings; they agree as n_steps grows.
    """

    name: str = "adir"
    n_steps: int = 1000
    guidance_scale: float = 1.0
    variance: Variance = "learned"
    clip_x0: bool = True
    cap: bool = True
    measurement_level: Literal["mean", "current"] = "mean"

    def __post_init__(self) -> None:
        require_steps(self.n_steps)
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale={self.guidance_scale!r}: a number that is not negative is needed")
        for what, choices in (("variance", get_args(Variance)), ("measurement_level", ("mean", "current"))):
            if getattr(self, what) not in choices:
                raise ValueError(f"unknown {what} {getattr(self, what)!r}; choose one of {', '.join(choices)}")

    @torch.no_grad()
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per picture; no backpropagation through the network."""
        schedule = backbone.schedule.respaced(self.n_steps)
        x_t = draw_noise(operator.image_shape, generators, y)
        capped_steps = [0] * len(y)
        # An answer from a GPU makes it idle until the next step is queued, so there it is asked for now and then only.
        every = 1 if y.device.type == "cpu" else 25
        capped_since = torch.zeros(len(y), dtype=torch.long, device=y.device)
        errors: list[str | None] = [None] * len(y)
        alive = list(range(len(y)))  # pictures that have not failed; x_t and y hold only those

        for i in reversed(range(len(schedule))):
            # 0-dimensional float64 entries: 1 - alpha_bar keeps its digits, and products keep the pictures' float32.
            alpha_bar_t, alpha_bar_prev = schedule.alpha_bar[i], schedule.alpha_bar_prev[i]
            prediction = backbone.predict(x_t, schedule.timesteps[i].expand(len(x_t)).to(x_t.device))
            eps = prediction.eps
            x0_hat = predict_x0(x_t, eps, alpha_bar_t)
            if self.clip_x0:
                x0_hat = x0_hat.clamp(-1, 1)
            mu = posterior_mean(x0_hat, x_t, schedule.posterior_mean_coef1[i], schedule.posterior_mean_coef2[i])
            log_variance = self._log_variance(prediction.variance_fraction, schedule, i)
            sigma_sq = log_variance.exp()

            level = alpha_bar_prev if self.measurement_level == "mean" else alpha_bar_t
            g = relaxed_gradient(mu, eps, y, level, operator.A, operator.A_adjoint)
            step, capped = guided_step_size(self.guidance_scale, sigma_sq, operator.norm, self.cap)
            x_t = mu + step * g
            if i > 0:  # the last step returns its mean
                noise = draw_noise(operator.image_shape, [generators[b] for b in alive], y)
                x_t = x_t + (log_variance / 2).exp() * noise

            capped_since += capped.to(y.device).expand_as(x_t).flatten(1).any(1)
            if i % every:
                continue
            for b, n_capped in zip(alive, capped_since.tolist(), strict=True):
                capped_steps[b] += n_capped
            capped_since.zero_()
            finite = torch.isfinite(x_t).flatten(1).all(1)
            if not finite.all():
                for b, ok in zip(alive, finite.tolist(), strict=True):
                    if not ok:
                        errors[b] = self._divergence(i)
                alive = [b for b, ok in zip(alive, finite.tolist(), strict=True) if ok]
                x_t, y, capped_since = x_t[finite], y[finite], capped_since[finite]
                if not alive:
                    break

        x_hat = torch.full((len(generators), *operator.image_shape), torch.nan, dtype=y.dtype, device=y.device)
        x_hat[alive] = x_t
        return Restoration(x_hat, capped_steps, errors, network_evaluations=len(schedule))

    def not_applicable(self, backbone: Any, task: Any, mode: str) -> str | None:
        """A one-line reason why this sampler cannot do a cell; None where it can."""
        return needs_pixels(self.name, backbone, task)

    def _log_variance(self, fraction: Tensor | None, schedule: Schedule, i: int) -> Tensor:
        log_small, log_large = schedule.posterior_log_variance[i], schedule.betas[i].log()
        if self.variance == "learned":
            if fraction is None:
                raise ValueError("variance=learned, but this backbone predicts no variance: use small or large")
            return learned_log_variance(fraction, log_small, log_large)
        return {"small": log_small, "large": log_large}[self.variance]

    def _divergence(self, i: int) -> str:
        remedy = "lower guidance_scale" if self.cap else "lower guidance_scale or set cap=true"
        return (
            f"NaN or Inf at step {self.n_steps - i} of {self.n_steps} with guidance_scale={self.guidance_scale:g}, "
            f"cap={str(self.cap).lower()}: {remedy}"
        )
