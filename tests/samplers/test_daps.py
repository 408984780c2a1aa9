"""DAPS against the exact moments of its affine recursion on a Gaussian prior, its flow against the
closed form.
"""

import math

import pytest
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.daps import DAPS, langevin_step, polynomial_levels

SHAPE = (3, 2, 2)
N = 12
MEAN = torch.linspace(-0.5, 0.5, N, dtype=torch.float64)
STD = torch.linspace(0.1, 0.9, N, dtype=torch.float64)


class Gaussian:
    """The ideal denoiser of N(MEAN, diag(STD^2))."""

    def __init__(self) -> None:
        self.schedule = linear_schedule()
        self.asked: list[int] = []

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        self.asked.append(int(t[0]))
        ab = self.schedule.alpha_bar[t[0]]
        x = x_t.flatten(1)
        eps = (1 - ab).sqrt() * (x - ab.sqrt() * MEAN) / (ab * STD**2 + 1 - ab)
        return Prediction(eps.reshape(x_t.shape), None)


class Diagonal:
    """y = a x on every second value."""

    image_shape = SHAPE
    a = torch.linspace(0.3, 1, N // 2, dtype=torch.float64)

    def A(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, ::2] * self.a)[:, :, None, None]

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(len(y), N, dtype=y.dtype)
        x[:, ::2] = y.flatten(1) * self.a
        return x.reshape(-1, *SHAPE)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def levels_of(sampler: DAPS) -> list[list[int]]:
    """The t that the network is asked for, level by level."""
    table = ((1 - linear_schedule().alpha_bar) / linear_schedule().alpha_bar).sqrt()
    nearest = lambda sigma: int((table - sigma).abs().argmin())  # noqa: E731
    found = []
    for k in range(n := sampler.n_steps // sampler.n_ode_steps):
        at = k / (n - 1)
        root = (1 - at) * sampler.sigma_max ** (1 / 7) + at * sampler.sigma_min ** (1 / 7)
        start = float(table[nearest(root**7)])
        steps = torch.arange(sampler.n_ode_steps) / sampler.n_ode_steps
        found.append(
            [nearest(float((1 - s) * start ** (1 / 7) + s * 0.01 ** (1 / 7)) ** 7) for s in steps]
        )
    return found


def test_samples_have_the_moments_that_the_affine_recursion_gives():
    n = 3000
    operator, y = Diagonal(), torch.linspace(-0.4, 0.4, N // 2, dtype=torch.float64)
    sampler = DAPS(
        n_steps=12,
        n_ode_steps=3,
        n_langevin=5,
        eta_0=4e-4,
        delta=0.1,
        tau=0.05,
        sigma_min=0.2,
        clip_x0=False,
    )
    denoiser = Gaussian()
    result = sampler.restore(
        denoiser, operator, y.reshape(1, -1, 1, 1).expand(n, -1, -1, -1), generators(*range(n))
    )
    assert (result.network_evaluations, result.gradient_evaluations) == (12, 0)
    asked = levels_of(sampler)
    assert denoiser.asked == [t for level in asked for t in level] and asked[0][0] > 950

    alpha_bar = denoiser.schedule.alpha_bar
    sigma = lambda t: ((1 - alpha_bar[t]) / alpha_bar[t]).sqrt()  # noqa: E731
    a, measured = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    a[::2], measured[::2] = operator.a, y
    mean, variance = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for k, level in enumerate(asked):
        variance = variance + sigma(level[0]) ** 2
        slope, offset = (
            torch.ones(N, dtype=torch.float64),
            torch.zeros(N, dtype=torch.float64),
        )  # x0_hat of x
        for t, t_next in zip(level, [*level[1:], None], strict=True):
            shrink = STD**2 / (STD**2 + sigma(t) ** 2)  # E[x0 | x] = MEAN + shrink (x - MEAN)
            ratio = 0 if t_next is None else sigma(t_next) / sigma(t)
            slope, offset = (
                (shrink + ratio * (1 - shrink)) * slope,
                (shrink + ratio * (1 - shrink)) * offset + (1 - ratio) * (1 - shrink) * MEAN,
            )
        mean, variance = slope * mean + offset, slope**2 * variance
        eta = 4e-4 * (0.1 + (1 - k / 4) * 0.9)
        # x0 = own x0_hat + constant + noise of variance fresh
        own = torch.ones(N, dtype=torch.float64)
        constant, fresh = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
        factor = 1 - eta * (1 / sigma(level[0]) ** 2 + a**2 / 0.05**2)
        for _ in range(5):
            own = factor * own + eta / sigma(level[0]) ** 2
            constant = factor * constant + eta * a * measured / 0.05**2
            fresh = factor**2 * fresh + 2 * eta
        mean, variance = own * mean + constant, own**2 * variance + fresh
    x = result.x_hat.flatten(1)
    assert ((x.mean(0) - mean).abs() / variance.sqrt()).max() < 4.5 / math.sqrt(n)
    assert (x.var(0) / variance - 1).abs().max() < 4.5 * math.sqrt(2 / n)


def test_langevin_steps_sample_the_posterior():
    # N(x0_hat, r^2) times N(y; a x0, tau^2) is a Gaussian: its moments, up to the first order in
    # the step.
    operator, r, tau = Diagonal(), 0.5, 0.3
    y = torch.linspace(-1, 1, N // 2, dtype=torch.float64).reshape(1, -1, 1, 1)
    x0_hat = torch.linspace(-1, 1, N, dtype=torch.float64).reshape(1, *SHAPE)
    x0, noise = x0_hat.expand(20000, -1, -1, -1), generators(0)[0]
    for _ in range(1000):
        z = torch.randn(x0.shape, generator=noise, dtype=torch.float64)
        x0 = langevin_step(x0, x0_hat, operator.A_adjoint(operator.A(x0) - y), 2e-3, r, tau, z)
    precision = torch.full((N,), 1 / r**2, dtype=torch.float64)
    precision[::2] += operator.a**2 / tau**2
    mean = x0_hat.flatten() / r**2
    mean[::2] += operator.a * y.flatten() / tau**2
    mean = mean / precision
    assert (x0.flatten(1).mean(0) - mean).abs().max() < 4.5 * 0.5 / math.sqrt(20000)
    assert (x0.flatten(1).var(0) * precision - 1).abs().max() < 0.06


def test_without_langevin_steps_at_one_level_it_is_the_priors_probability_flow():
    # x0 = m + s (x - m) / sqrt(s^2 + sigma^2), to which Euler converges at first order.
    errors = []
    for n in (40, 80):
        sampler = DAPS(
            n_steps=n, n_ode_steps=n, n_langevin=0, sigma_max=20.0, sigma_min=20.0, clip_x0=False
        )
        denoiser = Gaussian()
        y = torch.zeros(1, N // 2, 1, 1, dtype=torch.float64)
        x0 = sampler.restore(denoiser, Diagonal(), y, generators(3)).x_hat.flatten()
        ab = denoiser.schedule.alpha_bar[denoiser.asked[0]]
        sigma = ((1 - ab) / ab).sqrt()
        x = sigma * torch.randn(SHAPE, generator=generators(3)[0], dtype=torch.float64).flatten()
        errors.append(
            (x0 - MEAN - STD * (x - MEAN) / (STD**2 + sigma**2).sqrt()).abs().max().item()
        )
    assert errors[1] < 0.05 and errors[0] / errors[1] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_every_number_of_evaluations_is_used_up(n_steps):
    # `adir plan` times other numbers than the one asked for.
    denoiser, y = Gaussian(), torch.zeros(1, N // 2, 1, 1, dtype=torch.float64)
    result = DAPS(n_steps=n_steps, n_ode_steps=3).restore(denoiser, Diagonal(), y, generators(3))
    assert result.network_evaluations == len(denoiser.asked) == n_steps and result.errors == [None]


def test_levels_are_those_of_edm():
    expected = [(5 ** (1 / 7) + k / 4 * (0.1 ** (1 / 7) - 5 ** (1 / 7))) ** 7 for k in range(5)]
    assert polynomial_levels(5.0, 0.1, 5).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_langevin": -1}, "n_langevin=-1: a whole number"),
        ({"tau": 0.0}, "tau=0.0: a positive number"),
        ({"delta": 2.0}, "delta=2.0: a number from 0 to 1"),
        ({"sigma_max": 0.05}, "sigma_max=0.05: a number of at least sigma_min=0.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DAPS(**wrong)
