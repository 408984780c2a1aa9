"""DDNM+ against the paper's equations as dense matrices."""

import numpy as np
import pytest
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.base import ROUNDING
from adir.samplers.ddnm import DDNM, range_space_factors
from adir.tasks.operators import BoxBlur, BoxInpainting, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask

SHAPE = (3, 8, 8)
N = 192


class Network:
    def __init__(self) -> None:
        self.schedule = linear_schedule()
        self.W = torch.randn(N, N, dtype=torch.float64) / 14

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(
            torch.tanh(x_t.flatten(1) @ self.W + t.double()[:, None] / 1000).reshape(x_t.shape),
            None,
        )


@pytest.mark.parametrize("sigma_y", [0, 10, 60])
@pytest.mark.parametrize(
    "degradation",
    [SuperResolution(2), BoxBlur(5), Colorization(), BoxInpainting(0.5)],
    ids=lambda d: d.name,
)
def test_it_is_the_papers_algorithm_with_matrices(degradation, sigma_y):
    # Wang et al., section 3.3 and appendix: x_{t-1} = a (x0 - Sigma A^+ (A x0 - y)) + Phi^(1/2) z,
    # both diagonal in V.
    network, operator = (
        Network(),
        RestorationTask("task", 1, degradation, sigma_y, 1).operator(SHAPE),
    )
    A = operator.A(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).flatten(1).T.numpy()
    y = torch.randn(1, *operator.y_shape, dtype=torch.float64)
    n, eta = 7, 0.85
    ours = DDNM(n_steps=n, eta=eta).restore(
        network, operator, y, [torch.Generator().manual_seed(3)]
    )
    assert (ours.network_evaluations, ours.gradient_evaluations, ours.errors) == (n, 0, [None])

    noise = torch.Generator().manual_seed(3)
    z = [
        torch.randn(SHAPE, generator=noise, dtype=torch.float64).flatten().numpy() for _ in range(n)
    ]
    kept = np.round(np.linspace(0, 999, n)).astype(int)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[kept]
    sigma = max(2 * ROUNDING, sigma_y / 127.5)
    U, short, Vt = np.linalg.svd(A, full_matrices=True)
    s = np.concatenate([short, np.zeros(N - len(short))])
    x, cases = z[0], set()
    for i in reversed(range(n)):
        ab, a = alpha_bar[i], np.sqrt(alpha_bar[i - 1] if i else 1.0)
        sigma_t = np.sqrt(1 - a**2)
        eps = (
            network.predict(torch.from_numpy(x).reshape(1, *SHAPE), torch.tensor([kept[i]]))
            .eps.flatten()
            .numpy()
        )
        x0 = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
        residual = U.T @ (A @ x0 - y.flatten().numpy())
        step, fresh = np.zeros(N), np.zeros(N)
        for k in range(N):
            if s[k] < 1e-10:
                cases.add("blind")
                fresh[k] = sigma_t * (
                    eta * (Vt[k] @ z[n - i] if i else 0) + np.sqrt(1 - eta**2) * Vt[k] @ eps
                )
            else:
                data = a * sigma / s[k]  # noise that the data bring into x_{t-1}
                cases.add("clean" if sigma_t >= data else "noisy")
                lam = 1.0 if sigma_t >= data else sigma_t * np.sqrt(1 - eta**2) / data
                std = np.sqrt(sigma_t**2 - data**2) if sigma_t >= data else sigma_t * eta
                step[k] = lam / s[k] * residual[k]
                fresh[k] = std * (Vt[k] @ z[n - i] if i else 0)
        x = a * (x0 - Vt.T @ step) + (Vt.T @ fresh if i else 0)
    np.testing.assert_allclose(ours.x_hat.flatten().numpy(), x, rtol=1e-6, atol=1e-6)
    assert {"clean", "noisy"} <= cases


def test_x_has_the_noise_that_the_network_is_told_of_in_every_direction():
    s = torch.tensor([0.0, 1e-6, 0.01, 0.2, 1.0], dtype=torch.float64)
    a, sigma_t, sigma_y = 0.8, 0.6, 0.1
    gain, fresh, kept = range_space_factors(s, a, sigma_t, sigma_y, 0.85)
    total = (a * gain * sigma_y) ** 2 + fresh**2 + kept**2
    torch.testing.assert_close(total, torch.full_like(s, sigma_t**2))
    assert torch.equal(gain[3:], 1 / s[3:])  # consistent with y


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"eta=1.5: a number from 0 to 1"):
        DDNM(eta=1.5)
