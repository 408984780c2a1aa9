"""Noise schedules: the tables of DDPM (Ho et al., 2020), in float64, and their respacing.

Respacing follows Nichol and Dhariwal (2021).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Tables of one diffusion process, all of shape (n_steps,); index 0 is the cleanest step.

    All tables but `timesteps` are float64. In float32, 1 - alpha_bar has only 4 correct digits near
    t = 0, and the posterior mean is off by 5e-5.
    """

    timesteps: Tensor
    """The original timestep t, int64, that the network receives at each step."""
    betas: Tensor
    alpha_bar: Tensor
    alpha_bar_prev: Tensor
    """The alpha_bar of the next, cleaner step; 1 at index 0."""
    posterior_variance: Tensor
    """The variance beta tilde; 0 at index 0."""
    posterior_log_variance: Tensor
    """The logarithm of beta tilde.

    At index 0 it would be -inf and is replaced by the value at index 1, as in guided-diffusion.
    """
    posterior_mean_coef1: Tensor
    """The factor of x0 in the mean of q(x_{t-1} | x_t, x0)."""
    posterior_mean_coef2: Tensor
    """The factor of x_t in the mean of q(x_{t-1} | x_t, x0)."""

    def __len__(self) -> int:
        return len(self.betas)

    def respaced(self, n_steps: int) -> "Schedule":
        """Return a shorter schedule that keeps `n_steps` of the steps of this one.

        The steps are spread evenly from the first to the last, both included. If n_steps is 1, the
        noisiest step is used.

        Raises:
            ValueError: unless 1 <= n_steps <= len(self).
        """
        if not 1 <= n_steps <= len(self):
            raise ValueError(
                f"n_steps={n_steps}: choose from 1 to {len(self)}, the number of steps of the "
                "schedule"
            )
        # A single step must be the noisiest, because the sampler starts from pure noise.
        kept = torch.linspace(0, len(self) - 1, n_steps, dtype=torch.float64).round().long()
        kept[-1] = len(self) - 1
        alpha_bar = self.alpha_bar[kept]
        betas = 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        return schedule_from_betas(betas, self.timesteps[kept])


def schedule_from_betas(betas: Tensor, timesteps: Tensor) -> Schedule:
    """Return the schedule of betas (n,) float64: DDPM, eqs. 6 and 7.

    `timesteps` (n,) are the original timesteps, which the network receives.
    """
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    posterior_variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
    # With a single step there is no index 1 to take the value from, so take beta itself.
    first = posterior_variance[1:2] if len(betas) > 1 else betas[:1]
    return Schedule(
        timesteps=timesteps,
        betas=betas,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        posterior_variance=posterior_variance,
        posterior_log_variance=torch.log(torch.cat([first, posterior_variance[1:]])),
        posterior_mean_coef1=betas * alpha_bar_prev.sqrt() / (1 - alpha_bar),
        posterior_mean_coef2=(1 - alpha_bar_prev) * (1 - betas).sqrt() / (1 - alpha_bar),
    )


def require_betas(betas: Tensor) -> Tensor:
    """Return the betas; raise ValueError unless all lie between 0 and 1."""
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"betas must lie between 0 and 1, but they range from {betas.min():.3g} to "
            f"{betas.max():.3g}"
        )
    return betas


def linear_betas(n_steps: int, first: float, last: float) -> Tensor:
    """Return n_steps float64 betas spread evenly from first to last: DDPM, section 4."""
    return torch.linspace(first, last, n_steps, dtype=torch.float64)


def scaled_linear_betas(n_steps: int, first: float, last: float) -> Tensor:
    """Return n_steps float64 betas whose square roots are spread evenly from first to last.

    This is the schedule of latent diffusion (Rombach et al., 2022). `first` and `last` are betas.
    """
    return torch.linspace(first**0.5, last**0.5, n_steps, dtype=torch.float64) ** 2


def cosine_betas(n_steps: int) -> Tensor:
    """Return n_steps float64 betas of the cosine schedule: Nichol and Dhariwal (2021), eq. 17.

    They are clipped at 0.999.
    """
    t = torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def linear_schedule(n_steps: int = 1000) -> Schedule:
    """Return DDPM's linear schedule, with beta from 1e-4 to 0.02 at 1000 steps.

    At other numbers of steps the betas are scaled so that their sum stays the same.

    Raises:
        ValueError: below 21 steps, where the last beta would be 1 or more.
    """
    scale = 1000 / n_steps
    betas = require_betas(linear_betas(n_steps, scale * 1e-4, scale * 0.02))
    return schedule_from_betas(betas, torch.arange(n_steps))
