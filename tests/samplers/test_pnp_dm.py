"""PnP-DM against the paper's algorithm as dense matrices, and against its stationary density."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.base import ROUNDING
from adir.samplers.pnp_dm import PnPDM
from adir.tasks.operators import BoxBlur, BoxInpainting, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask

SHAPE = (3, 8, 8)
N = 192
TABLE = np.sqrt(1 / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) - 1)


class Network:
    def __init__(self) -> None:
        self.schedule = linear_schedule()
        self.W = torch.randn(N, N, dtype=torch.float64) / 14

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        eps = torch.tanh(x_t.flatten(1) @ self.W + t.double()[:, None] / 1000)
        return Prediction(eps.reshape(x_t.shape), None)


class Gaussian:
    """The ideal denoiser of independent pixels of mean 0.1 and standard deviation 0.4."""

    def __init__(self) -> None:
        self.schedule = linear_schedule()

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        ab = self.schedule.alpha_bar[t[0]]
        eps = (1 - ab).sqrt() * (x_t - ab.sqrt() * 0.1) / (ab * 0.4**2 + 1 - ab)
        return Prediction(eps, None)


def nearest(sigma: float) -> int:
    return int(np.abs(TABLE - sigma).argmin())


@pytest.mark.parametrize("sigma_y", [0, 10])
@pytest.mark.parametrize(
    "degradation",
    [SuperResolution(2), BoxBlur(5), Colorization(), BoxInpainting(0.5)],
    ids=lambda d: d.name,
)
def test_it_is_the_papers_algorithm_with_matrices(degradation, sigma_y):
    network = Network()
    operator = RestorationTask("task", 1, degradation, sigma_y, 1).operator(SHAPE)
    A = operator.A(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).flatten(1).T.numpy()
    y = torch.randn(1, *operator.y_shape, dtype=torch.float64)
    sampler = PnPDM(n_steps=10, n_prior_steps=3, rho=2.0, rho_min=0.3, clip_x0=False)
    ours = sampler.restore(network, operator, y, [torch.Generator().manual_seed(3)])
    assert (ours.network_evaluations, ours.gradient_evaluations, ours.errors) == (10, 0, [None])

    noise = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(SHAPE, generator=noise, dtype=torch.float64).numpy().ravel()  # noqa: E731
    sigma = max(2 * ROUNDING, sigma_y / 127.5)
    x = np.zeros(N)
    for k, n in enumerate([4, 3, 3]):
        t = nearest(max(2.0 * 0.9 ** (100 * k / 3), 0.3))
        rho = TABLE[t]
        covariance = np.linalg.inv(A.T @ A / sigma**2 + np.eye(N) / rho**2)
        values, vectors = np.linalg.eigh(covariance)
        u = covariance @ (A.T @ y.numpy().ravel() / sigma**2 + x / rho**2)
        u = u + vectors @ (np.sqrt(values) * (vectors.T @ draw()))
        roots = np.linspace(rho ** (1 / 7), 0.01 ** (1 / 7), n + 1)[:-1]
        steps = [nearest(root**7) for root in roots]
        for j, t in enumerate(steps):
            ab = 1 / (1 + TABLE[t] ** 2)
            u_t = torch.from_numpy(np.sqrt(ab) * u).reshape(1, *SHAPE)
            eps = network.predict(u_t, torch.tensor([t])).eps.numpy().ravel()
            x = u - TABLE[t] * eps
            if j + 1 < n:  # DDPM's posterior of the less noisy image
                low, high = TABLE[steps[j + 1]] ** 2, TABLE[t] ** 2
                u = (low * u + (high - low) * x) / high + math.sqrt(
                    low * (high - low) / high
                ) * draw()
    # A^T A / sigma^2 + I / rho^2 has a condition number of up to 1e5.
    np.testing.assert_allclose(ours.x_hat.numpy().ravel(), x, rtol=0, atol=2e-6 * np.abs(x).max())


def test_its_samples_have_the_stationary_density_of_the_gibbs_chain():
    # p(x) N(y; A x, (sigma^2 + rho^2) I) where y sees a pixel, and p(x) elsewhere.
    task = RestorationTask("task", 1, BoxInpainting(0.5), 40, 1)
    operator, n = task.operator(SHAPE), 12
    y = operator.A(torch.full((n, *SHAPE), 0.7, dtype=torch.float64))
    sampler = PnPDM(n_steps=2000, n_prior_steps=100, rho=0.3, rho_decay_rate=1, clip_x0=False)
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    x = sampler.restore(Gaussian(), operator, y, generators).x_hat
    rho = TABLE[nearest(0.3)]
    width = (40 / 127.5) ** 2 + rho**2
    seen = operator.known().expand_as(x)
    for pixels, precision, mean in (
        (x[seen], 1 / 0.4**2 + 1 / width, (0.1 / 0.4**2 + 0.7 / width)),
        (x[~seen], 1 / 0.4**2, 0.1 / 0.4**2),
    ):
        m = len(pixels)
        deviation = precision**-0.5
        assert abs(pixels.mean().item() - mean / precision) / deviation < 4.5 / math.sqrt(m)
        assert abs(pixels.var().item() * precision - 1) < 4.5 * math.sqrt(2 / m) + 0.03


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_every_number_of_evaluations_is_used_up(n_steps):
    operator = RestorationTask("task", 1, SuperResolution(2), 0, 1).operator(SHAPE)
    y = torch.zeros(1, *operator.y_shape, dtype=torch.float64)
    asked = []

    class Counted(Network):
        def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
            asked.append(int(t[0]))
            return super().predict(x_t, t)

    result = PnPDM(n_steps=n_steps, n_prior_steps=3).restore(
        Counted(), operator, y, [torch.Generator().manual_seed(3)]
    )
    assert result.network_evaluations == len(asked) == n_steps and result.errors == [None]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_prior_steps": 0}, "n_prior_steps=0: a whole number"),
        ({"rho_min": 0.0}, "rho_min=0.0: a number above 0"),
        ({"rho": 0.1}, "rho_min=0.3: a number above 0 and at most rho=0.1"),
        ({"rho_decay_rate": 1.1}, "rho_decay_rate=1.1: a number above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PnPDM(**wrong)
