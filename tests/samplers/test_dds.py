"""DDS: conjugate gradients against direct solutions; the sampler against its listing and closed
forms on Gaussian priors.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.adir import ADIR
from adir.samplers.dds import DDS, conjugate_gradients
from benchmarks.quality import gaussian_prior as study

SHAPE = (3, 2, 2)
N = 12


class Denoiser:
    """Any function of (x_t, t) as a backbone."""

    def __init__(self, eps: Callable[[Tensor, Tensor], Tensor], n_timesteps: int = 1000):
        self.schedule, self.eps = linear_schedule(n_timesteps), eps

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(self.eps(x_t, t), None)


class Matrix:
    """A dense A on flattened images."""

    def __init__(self, matrix: Tensor):
        self.matrix, self.image_shape = matrix, SHAPE
        self.norm = torch.linalg.matrix_norm(matrix, 2).item()

    def A(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T)[:, :, None, None]

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self.matrix).reshape(-1, *SHAPE)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# ---- conjugate gradients -------------------------------------------------------------------------


def system(n_images: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """M (12, 12) symmetric positive definite, b and x (n, 3, 2, 2)."""
    half = torch.randn(N, N, dtype=torch.float64)
    b, x = torch.randn(2, n_images, *SHAPE, dtype=torch.float64)
    return half @ half.T / N + 0.5 * torch.eye(N, dtype=torch.float64), b, x


def by(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x.flatten(1) @ matrix).reshape(x.shape)


def solution(matrix: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, b.flatten(1).T).T.reshape(b.shape)


@pytest.mark.parametrize("n_steps", [N, 3 * N], ids=["as many steps as unknowns", "more"])
def test_conjugate_gradients_solve_the_system(n_steps):
    M, b, x = system()
    torch.testing.assert_close(
        conjugate_gradients(by(M), b, x, n_steps), solution(M, b), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("n_steps", [0, 1, 2, 5])
def test_a_few_steps_give_the_best_point_of_the_krylov_space(n_steps):
    # x_k minimises x^T M x / 2 - b^T x over x_0 + span(r, M r, ..., M^(k-1) r), r = b - M x_0.
    M, b, x = system(1)
    r = b.flatten() - M @ x.flatten()
    columns = [torch.linalg.matrix_power(M, k) @ r for k in range(n_steps)]
    best = x.flatten()
    if columns:
        basis = torch.linalg.qr(torch.stack(columns, 1)).Q
        best = best + basis @ torch.linalg.solve(basis.T @ M @ basis, basis.T @ r)
    torch.testing.assert_close(conjugate_gradients(by(M), b, x, n_steps).flatten(), best)


def test_the_gradient_is_that_through_the_direct_solution():
    M, b, x = system()
    weights = torch.randn(b.shape, dtype=torch.float64)
    gradients = []
    for solve in (lambda b: conjugate_gradients(by(M), b, x, N), lambda b: solution(M, b)):
        at = b.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((solve(at).sin() * weights).sum(), at)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_few_steps_is_that_of_finite_differences():
    M, b, x = system(2)
    inputs = (b.requires_grad_(), x.requires_grad_())
    assert torch.autograd.gradcheck(lambda b, x: conjugate_gradients(by(M), b, x, 3), inputs)


def test_images_of_a_batch_have_step_sizes_of_their_own():
    M, b, x = system()
    scale = torch.tensor([1.0, 1e4, 1e-4], dtype=torch.float64).reshape(3, 1, 1, 1)
    together = conjugate_gradients(by(M), scale * b, scale * x, 2)
    torch.testing.assert_close(
        together / scale, conjugate_gradients(by(M), b, x, 2)
    )  # linear in (b, x), image by image
    alone = torch.cat([conjugate_gradients(by(M), b[k : k + 1], x[k : k + 1], 2) for k in range(3)])
    torch.testing.assert_close(conjugate_gradients(by(M), b, x, 2), alone)


def test_what_is_solved_stays_and_has_a_finite_gradient():
    # The residual of b = 2 x under M = 2 is exactly 0: the step sizes would be 0 / 0.
    x = torch.randn(2, *SHAPE, dtype=torch.float64).requires_grad_()
    found = conjugate_gradients(lambda x: 2 * x, 2 * x.detach(), x, 3)
    assert torch.equal(found, x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()


# ---- the sampler ---------------------------------------------------------------------------------


class Shifted:
    """A tuning that adds 0.3 to eps at all steps but the noisiest two."""

    network_evaluations, gradient_evaluations = 5, 2

    def __init__(self) -> None:
        self.steps: list[int] = []

    def eps(self, i, eps, predict, outcome):
        self.steps.append(i)
        assert torch.equal(predict(), eps)
        return eps + 0.3 if i < 6 else eps


@pytest.mark.parametrize("steered", [False, True], ids=["dds", "steered"])
@pytest.mark.parametrize("clip", [False, True], ids=["free", "clipped"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_sampler_is_the_listing_with_matrices(eta, clip, steered):
    W, A = torch.randn(N, N, dtype=torch.float64) / 4, torch.randn(5, N, dtype=torch.float64) / 4

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ W.T + t.double()[:, None] / 1000).reshape(x.shape)

    n, gamma = 8, 3.0
    y = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    # A has 5 singular values, so I + gamma A^T A has 6 eigenvalues: 6 steps solve it.
    sampler = DDS(n_steps=n, eta=eta, gamma=gamma, n_cg_steps=6, clip_x0=clip)
    if steered:
        steering = [Shifted(), Shifted()]
        result = sampler.restore_steered(Denoiser(eps), Matrix(A), y, generators(3, 4), steering)
        assert [one.steps for one in steering] == [[7, 6, 5, 4, 3, 2, 1, 0]] * 2
        assert (result.network_evaluations, result.gradient_evaluations) == (n + 5, 2)
    else:
        result = sampler.restore(Denoiser(eps), Matrix(A), y, generators(3, 4))
        assert (result.network_evaluations, result.gradient_evaluations) == (n, 0)

    kept = np.round(np.linspace(0, 999, n)).astype(int)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[kept]
    A = A.numpy()
    normal = np.eye(N) + gamma * A.T @ A
    for image, seed in enumerate((3, 4)):
        (g,) = generators(seed)
        x = torch.randn(SHAPE, generator=g, dtype=torch.float64).flatten().numpy()
        for i in reversed(range(n)):
            a = alpha_bar[i]
            direction = (
                eps(torch.from_numpy(x).reshape(1, *SHAPE), torch.tensor([kept[i]]))
                .flatten()
                .numpy()
            )
            x0 = (
                x - math.sqrt(1 - a) * (direction + (0.3 if steered and i < 6 else 0))
            ) / math.sqrt(a)
            x0 = np.clip(x0, -1, 1) if clip else x0
            if i > 0:
                a_next = alpha_bar[i - 1]
                x_hat = np.linalg.solve(normal, x0 + gamma * A.T @ y[image].flatten().numpy())
                sigma = eta * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
                x = math.sqrt(a_next) * x_hat + math.sqrt(1 - a_next - sigma**2) * direction
                if eta > 0:
                    x = (
                        x
                        + sigma
                        * torch.randn(SHAPE, generator=g, dtype=torch.float64).flatten().numpy()
                    )
        np.testing.assert_allclose(result.x_hat[image].flatten().numpy(), x0, rtol=1e-8, atol=1e-9)


def test_without_data_it_is_the_ancestral_sampler():
    # DDIM with eta = 1 is DDPM (Song et al., 2021, section 4.1); Algorithm 1 without guidance is
    # DDPM, written otherwise.
    W = torch.randn(N, N, dtype=torch.float64) / 4
    denoiser = Denoiser(
        lambda x, t: torch.tanh(x.flatten(1) @ W.T + t.double()[:, None] / 1000).reshape(x.shape)
    )
    y = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    found = [
        sampler.restore(
            denoiser, Matrix(torch.randn(5, N, dtype=torch.float64)), y, generators(3, 4)
        ).x_hat
        for sampler in (
            DDS(n_steps=20, eta=1.0, gamma=0.0),
            ADIR(n_steps=20, guidance_scale=0, variance="small", clip_x0=False),
        )
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def correlated_prior() -> tuple[Tensor, Tensor]:
    """m and S of 12 correlated pixels with variances around 0.3."""
    half = torch.randn(N, N, dtype=torch.float64) * 0.15
    return torch.linspace(-0.5, 0.5, N, dtype=torch.float64), half @ half.T + 0.05 * torch.eye(
        N, dtype=torch.float64
    )


def moments(
    m: Tensor, S: Tensor, A: Tensor, y: Tensor, n: int, eta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the samples for the ideal denoiser of N(m, S), by the affine recursion
    with exact solutions.
    """
    tables, eye = linear_schedule().respaced(n), torch.eye(N, dtype=torch.float64)
    inverse = torch.linalg.inv(eye + gamma * A.T @ A)
    mean, covariance = torch.zeros(N, dtype=torch.float64), eye
    for i in reversed(range(n)):
        a, a_next = tables.alpha_bar[i], tables.alpha_bar_prev[i]
        K, k = study.eps_map(m, S, a)
        X, h = (eye - (1 - a).sqrt() * K) / a.sqrt(), -((1 - a) / a).sqrt() * k  # x0 = X x_t + h
        if i == 0:
            return X @ mean + h, X @ covariance @ X.T
        variance = eta**2 * tables.posterior_variance[i]
        direction = (1 - a_next - variance).sqrt()
        step = a_next.sqrt() * inverse @ X + direction * K
        mean = step @ mean + a_next.sqrt() * inverse @ (h + gamma * A.T @ y) + direction * k
        covariance = step @ covariance @ step.T + variance * eye
    raise AssertionError


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_samples_have_the_moments_that_the_affine_recursion_gives(eta):
    m, S = correlated_prior()
    A, y = torch.randn(5, N, dtype=torch.float64) / 4, torch.randn(5, dtype=torch.float64)
    n = 3000
    sampler = DDS(n_steps=15, eta=eta, gamma=4.0, n_cg_steps=6)
    batch = y.reshape(1, 5, 1, 1).expand(n, -1, -1, -1)
    x = sampler.restore(
        Denoiser(study.exact_eps(m, S)), Matrix(A), batch, generators(*range(n))
    ).x_hat.flatten(1)
    mean, covariance = moments(m, S, A, y, 15, eta, 4.0)
    scale = covariance.diagonal().sqrt()
    assert (x.mean(0) - mean).abs().div(scale).max() < 4.5 / math.sqrt(n)
    assert (torch.cov(x.T) - covariance).abs().div(
        torch.outer(scale, scale)
    ).max() < 4.5 * math.sqrt(2 / n)


def test_noise_free_data_are_met_and_what_they_leave_open_is_the_priors_own_flow():
    # Independent pixels, half of them measured through A = I / 4 with a large gamma. The posterior
    # of y = A x is 4 y on those and the prior on the others, where the deterministic sampler
    # follows the probability flow: that of x_T's quantile, m + s (x_T - sqrt(ab_T) m) / sqrt(ab_T
    # s^2 + 1 - ab_T).
    m, s = (
        torch.linspace(-0.5, 0.5, N, dtype=torch.float64),
        torch.linspace(0.3, 1.1, N, dtype=torch.float64),
    )
    A, y = (
        torch.eye(N, dtype=torch.float64)[::2] / 4,
        torch.linspace(-0.2, 0.2, 6, dtype=torch.float64),
    )
    errors = []
    for n in (250, 500, 1000):
        sampler = DDS(n_steps=n, eta=0.0, gamma=1e4, n_cg_steps=2)  # two eigenvalues: two steps
        denoiser = Denoiser(study.exact_eps(m, torch.diag(s**2), linear_schedule(n)), n)
        x = sampler.restore(
            denoiser, Matrix(A), y.reshape(1, 6, 1, 1), generators(1)
        ).x_hat.flatten()
        x_T = torch.randn(SHAPE, generator=generators(1)[0], dtype=torch.float64).flatten()
        torch.testing.assert_close(x[::2], 4 * y, rtol=0, atol=3e-3)
        ab = denoiser.schedule.alpha_bar[-1]
        flow = m + s * (x_T - ab.sqrt() * m) / (ab * s**2 + 1 - ab).sqrt()
        errors.append((x - flow)[1::2].abs().max().item())
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)  # first order in the step


@pytest.mark.parametrize(
    "wrong",
    [
        {"eta": -0.1},
        {"eta": 1.5},
        {"gamma": -1.0},
        {"gamma": math.inf},
        {"n_cg_steps": -1},
        {"n_cg_steps": 2.5},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}: a "):
        DDS(**wrong)


def test_a_network_that_gives_nan_fails_its_image_alone():
    def eps(x: Tensor, t: Tensor) -> Tensor:
        out = x.clone()
        out[1] = torch.nan
        return out

    A, y = torch.eye(N, dtype=torch.float64)[::2], torch.zeros(2, 6, 1, 1, dtype=torch.float64)
    result = DDS(n_steps=3).restore(Denoiser(eps), Matrix(A), y, generators(3, 4))
    assert result.errors == [None, "NaN or Inf at step 1 of 3: lower gamma"]
    assert result.x_hat[0].isfinite().all() and result.x_hat[1].isnan().all()
