"""How far Algorithm 1 of ADIR is from the posterior, on Gaussian priors, where both are known in closed form.

For x ~ N(m, S) the ideal denoiser E[eps | x_t] is affine, so each step of Algorithm 1 is affine too, and the mean and
covariance of its samples follow from those of x_T ~ N(0, I) with no sampling error. tests/samplers/test_adir.py checks
this recursion against the sampler itself. Pixels are vectors here: m (d,), S (d, d), A (k, d), y (k,), all float64.

Run: python benchmarks/quality/gaussian_prior.py [--out results/embedded/gaussian_prior.md]; seconds on one core.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from adir.diffusion.guidance import STABLE_STEP
from adir.diffusion.schedule import Schedule, linear_schedule
from adir.files import write_bytes
from adir.tasks.operators import BoxBlur, SuperResolution

SIDE = 32  # pixels of the study's pictures, one channel: A is separable and the same for each


def exact_eps(m: Tensor, S: Tensor, schedule: Schedule | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """E[eps | x_t] for x ~ N(m, S), on pictures (B, ...) of d values and timesteps (B,), all the same in a batch."""
    alpha_bars = (schedule or linear_schedule()).alpha_bar

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        K, offset = eps_map(m, S, alpha_bars[t[0]])
        return (x_t.flatten(1).double() @ K.T + offset).reshape(x_t.shape).to(x_t.dtype)

    return eps


def eps_map(m: Tensor, S: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """K and k with E[eps | x_t] = K x_t + k: sqrt(1 - ab) (ab S + (1 - ab) I)^-1 (x_t - sqrt(ab) m)."""
    eye = torch.eye(len(m), dtype=torch.float64)
    K = (1 - alpha_bar).sqrt() * torch.linalg.inv(alpha_bar * S + (1 - alpha_bar) * eye)
    return K, -alpha_bar.sqrt() * K @ m


def propagate(
    schedule: Schedule,
    m: Tensor,
    S: Tensor,
    A: Tensor,
    y: Tensor,
    n_steps: int,
    guidance_scale: float,
    variance: str,
    cap: bool = True,
    measurement_level: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the samples of Algorithm 1 without clipping, for the ideal denoiser of N(m, S)."""
    tables = schedule.respaced(n_steps)
    eye, norm = torch.eye(len(m), dtype=torch.float64), torch.linalg.matrix_norm(A, 2).item()
    mean, covariance = torch.zeros_like(m), eye
    for i in reversed(range(n_steps)):
        alpha_bar, alpha_bar_prev = tables.alpha_bar[i], tables.alpha_bar_prev[i]
        K, k = eps_map(m, S, alpha_bar)
        # x0 = X x_t + h and mu = M x_t + c
        X, h = (eye - (1 - alpha_bar).sqrt() * K) / alpha_bar.sqrt(), -((1 - alpha_bar) / alpha_bar).sqrt() * k
        coef1, coef2 = tables.posterior_mean_coef1[i], tables.posterior_mean_coef2[i]
        M, c = coef1 * X + coef2 * eye, coef1 * h
        sigma_sq = {"small": tables.posterior_log_variance[i].exp(), "large": tables.betas[i]}[variance]
        step = guidance_scale * sigma_sq
        if cap and norm > 0:
            step = step.clamp(max=STABLE_STEP / (2 * norm**2))
        level = alpha_bar_prev if measurement_level == "mean" else alpha_bar
        M, c = (
            M - 2 * step * A.T @ (A @ M - (1 - level).sqrt() * A @ K),
            c - 2 * step * A.T @ (A @ c - level.sqrt() * y - (1 - level).sqrt() * A @ k),
        )
        mean, covariance = M @ mean + c, M @ covariance @ M.T
        if i > 0:
            covariance = covariance + sigma_sq * eye
    return mean, covariance


def posterior(m: Tensor, S: Tensor, A: Tensor, y: Tensor, sigma_y: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given y = A x + e, e ~ N(0, sigma_y^2 I)."""
    gain = S @ A.T @ torch.linalg.inv(A @ S @ A.T + sigma_y**2 * torch.eye(len(y), dtype=torch.float64))
    return m + gain @ (y - A @ m), S - gain @ A @ S
