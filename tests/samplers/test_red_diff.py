"""RED-diff against Adam on the energy that a Gaussian prior gives in closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.red_diff import REDDiff

SHAPE = (3, 2, 2)
N = 12
M = torch.linspace(-0.5, 0.5, N, dtype=torch.float64)


class Gaussian:
    """The ideal denoiser of N(M, S)."""

    def __init__(self, S: Tensor) -> None:
        self.schedule, self.S = linear_schedule(), S

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        ab = self.schedule.alpha_bar[t[0]]
        C = ab * self.S + (1 - ab) * torch.eye(N, dtype=torch.float64)
        eps = (1 - ab).sqrt() * torch.linalg.solve(C, (x_t.flatten(1) - ab.sqrt() * M).T).T
        return Prediction(eps.reshape(x_t.shape), None)


class Matrix:
    image_shape = SHAPE

    def __init__(self, A: Tensor) -> None:
        self.matrix = A

    def A(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T)[:, :, None, None]

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self.matrix).reshape(-1, *SHAPE)


@pytest.mark.parametrize("noisy", [False, True])
def test_it_is_adam_on_the_energy_of_a_gaussian_prior(noisy):
    # The prior's term is affine in z and averages to its value at z = 0, lambda sigma^2 C^-1 (mu -
    # m), the gradient of an energy, with C = ab S + sigma^2 I. With z it is that of the listing.
    half = torch.randn(N, N, dtype=torch.float64) * 0.2
    S = half @ half.T + 0.05 * torch.eye(N, dtype=torch.float64)
    A, y = torch.randn(5, N, dtype=torch.float64) / 2, torch.randn(1, 5, 1, 1, dtype=torch.float64)
    n, lambda_, rate = 30, 0.7, 0.05
    zs = torch.randn(n, *SHAPE, dtype=torch.float64) * noisy
    draws = iter(zs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, **options: next(draws))
        sampler = REDDiff(n_steps=n, lambda_=lambda_, learning_rate=rate)
        result = sampler.restore(Gaussian(S), Matrix(A), y, [torch.Generator()])
    assert (result.network_evaluations, result.gradient_evaluations, result.errors) == (
        n,
        0,
        [None],
    )

    A, y, m, S = A.numpy(), y.flatten().numpy(), M.numpy(), S.numpy()
    mu, v, w = N / 5 * A.T @ y, np.zeros(N), np.zeros(N)
    for k, ab in enumerate(linear_schedule().respaced(n).alpha_bar.numpy()[::-1], 1):
        z, sigma = zs[k - 1].flatten().numpy(), math.sqrt(1 - ab)
        C = ab * S + (1 - ab) * np.eye(N)
        prior = sigma**2 * np.linalg.solve(C, mu - m)
        if noisy:
            prior = (
                sigma
                / math.sqrt(ab)
                * (sigma * np.linalg.solve(C, math.sqrt(ab) * (mu - m) + sigma * z) - z)
            )
        g = 2 * A.T @ (A @ mu - y) + lambda_ * prior
        v, w = 0.9 * v + 0.1 * g, 0.99 * w + 0.01 * g**2
        mu = mu - rate * (v / (1 - 0.9**k)) / (np.sqrt(w / (1 - 0.99**k)) + 1e-8)
    np.testing.assert_allclose(result.x_hat.flatten().numpy(), mu, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"lambda_": -1.0}, "lambda_=-1.0: a number that is not"),
        ({"learning_rate": math.inf}, "learning_rate=inf: a pos"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        REDDiff(**wrong)
