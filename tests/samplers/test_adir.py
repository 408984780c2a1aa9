"""Algorithm 1 against a twin written from the paper's formulas, and against closed forms on
Gaussian priors.
"""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import NoAdaptation
from adir.backbones.base import Prediction
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.diffusion.schedule import linear_schedule
from adir.samplers.adir import ADIR, FastADIR
from adir.samplers.base import StepCounter
from adir.tasks.operators import BoxBlur, BoxInpainting, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask
from benchmarks.quality import gaussian_prior as study

SHAPE = (3, 2, 2)


class Denoiser:
    """Any function of (x_t, t) as a backbone."""

    def __init__(self, eps: Callable, fraction: Callable | None = None, n_timesteps: int = 1000):
        self.schedule = linear_schedule(n_timesteps)
        self.eps, self.fraction = eps, fraction

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(self.eps(x_t, t), self.fraction(x_t, t) if self.fraction else None)


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


def literal_algorithm_1(
    eps_theta, fraction, A, y, x_T, noise, n, s, variance, clip, level, eta=1.0, tau=1.0, fast=False
) -> np.ndarray:  # fmt: skip
    """The paper's listing for one image as a vector; A is a matrix, applied to mu and to eps apart.
    eta: DDIM's eq. 12.

    fast: the second-order step in angles, alpha = cos(phi). Where x0 = a + b alpha, x = C sigma + a
        alpha + b has x's flow.
    """
    kept = np.round(np.linspace(0, 999, n)).astype(int)
    alpha_bar_all = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x, earlier = x_T, None
    for step in range(n):
        i = n - 1 - step
        ab = alpha_bar_all[kept[i]]
        ab_prev = alpha_bar_all[kept[i - 1]] if i > 0 else 1.0
        beta = 1 - ab / ab_prev
        beta_tilde = (1 - ab_prev) / (1 - ab) * beta
        if i == 0:  # the reference's convention: log beta tilde of the step before
            ab_1 = alpha_bar_all[kept[1]]
            beta_tilde = (1 - ab) / (1 - ab_1) * (1 - ab_1 / ab)
        eps = eps_theta(x, kept[i])
        x0 = (x - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
        if clip:
            x0 = np.clip(x0, -1, 1)
        mu = (
            math.sqrt(ab_prev) * beta / (1 - ab) * x0
            + math.sqrt(1 - beta) * (1 - ab_prev) / (1 - ab) * x
        )
        if variance == "learned":
            f = fraction(x, kept[i])
            Sigma = beta**f * beta_tilde ** (1 - f)
        else:
            Sigma = {"small": beta_tilde, "large": beta}[variance] * np.ones_like(x)
        ab_y = {"mean": ab_prev, "current": ab}[level]
        y_t = math.sqrt(ab_y) * y + math.sqrt(1 - ab_y) * (A @ eps)
        if eta != 1:
            direction = (x - math.sqrt(ab) * x0) / math.sqrt(1 - ab)
            variance_left = 1 - ab_prev - eta**2 * (1 - ab_prev) / (1 - ab) * beta
            mu = math.sqrt(ab_prev) * x0 + math.sqrt(variance_left) * direction
        if fast:
            phi, phi_prev = math.acos(math.sqrt(ab)), math.acos(math.sqrt(ab_prev))
            if earlier is not None:
                b = (x0 - earlier) / (math.cos(phi) - math.sqrt(alpha_bar_all[kept[i + 1]]))
                a = x0 - b * math.cos(phi)
                C = (x - a * math.cos(phi) - b) / math.sin(phi)
                mu = C * math.sin(phi_prev) + a * math.cos(phi_prev) + b
            earlier = x0
        g = -2 * A.T @ (A @ mu - y_t)
        x = mu + s * Sigma * g
        if i > 0:
            x = x + tau * eta * np.sqrt(Sigma) * noise[step]
    return x


@pytest.mark.parametrize("clip", [False, True], ids=["free", "clipped"])
@pytest.mark.parametrize("level", ["mean", "current"])
@pytest.mark.parametrize(
    "variance, eta, tau, fast",
    [
        *(
            ("small", 1, 1, False),
            ("large", 1, 1, False),
            ("learned", 1, 1, False),
            ("small", 0.3, 1, False),
        ),
        *(
            ("learned", 0.5, 0.7, False),
            ("large", 0, 1, False),
            ("small", 0, 1, True),
            ("learned", 0, 1, True),
        ),
    ],
)
def test_the_sampler_equals_the_papers_listing_given_the_same_noise(
    variance, eta, tau, fast, level, clip
):
    W, V, A = torch.randn(3, 12, 12, dtype=torch.float64)
    A = A[:5] / 4

    def eps(x, t):
        return torch.tanh(x.flatten(1) @ W.T / 4 + t.double()[:, None] / 1000).reshape(x.shape)

    def fraction(x, t):  # leaves [0, 1] too, where it must extrapolate
        return 0.5 + torch.sin(x.flatten(1) @ V.T).reshape(x.shape)

    def flat(f: Callable) -> Callable:
        return lambda x, t: (
            f(torch.from_numpy(x).reshape(1, *SHAPE), torch.tensor([t])).flatten().numpy()
        )

    n, s = 12, 0.7
    y = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    cls = FastADIR if fast else ADIR
    sampler = cls(
        "adir", n, s, variance, clip, cap=False, measurement_level=level, eta=eta, temperature=tau
    )
    result = sampler.restore(Denoiser(eps, fraction), Matrix(A), y, generators(3, 4))
    for image, seed in enumerate((3, 4)):
        (g,) = generators(seed)
        noise = [
            torch.randn(SHAPE, generator=g, dtype=torch.float64).flatten().numpy() for _ in range(n)
        ]
        twin = literal_algorithm_1(
            flat(eps), flat(fraction), A.numpy(), y[image].flatten().numpy(), noise[0], noise[1:], n, s,
            variance, clip, level, eta, tau, fast,
        )  # fmt: skip
        np.testing.assert_allclose(
            result.x_hat[image].flatten().numpy(), twin, rtol=1e-9, atol=1e-11
        )


# ---- Gaussian priors -----------------------------------------------------------------------------


def correlated_prior() -> tuple[Tensor, Tensor]:
    """m and S of 12 correlated pixels with variances around 0.3."""
    half = torch.randn(12, 12, dtype=torch.float64) * 0.15
    return torch.linspace(-0.5, 0.5, 12, dtype=torch.float64), half @ half.T + 0.05 * torch.eye(
        12, dtype=torch.float64
    )


def sample_moments(prior, A, y, n_images, **settings) -> tuple[Tensor, Tensor]:
    denoiser, operator = Denoiser(study.exact_eps(*prior)), Matrix(A)
    batch = y.reshape(1, -1, 1, 1).expand(n_images, -1, -1, -1)
    x = (
        ADIR(clip_x0=False, **settings)
        .restore(denoiser, operator, batch, generators(*range(n_images)))
        .x_hat
    )
    x = x.flatten(1)
    return x.mean(0), torch.cov(x.T)


@pytest.mark.parametrize("cap", [False, True], ids=["literal", "capped"])
@pytest.mark.parametrize(
    "variance, level, eta",
    [("small", "mean", 1.0), ("large", "current", 1.0), ("small", "mean", 0.5)],
)
def test_samples_have_the_mean_and_covariance_that_the_affine_recursion_gives(
    variance, level, eta, cap
):
    m, S = correlated_prior()
    A = torch.randn(5, 12, dtype=torch.float64) / 4
    y = torch.randn(5, dtype=torch.float64)
    # s = 3 is stable without the cap and above the bound in the first steps of 15.
    settings = {
        "n_steps": 15,
        "guidance_scale": 3.0,
        "variance": variance,
        "cap": cap,
        "measurement_level": level,
    }
    settings |= {"eta": eta}
    n = 3000
    mean, covariance = sample_moments((m, S), A, y, n, **settings)
    exact_mean, exact_covariance = study.propagate(linear_schedule(), m, S, A, y, **settings)
    scale = exact_covariance.diagonal().sqrt()
    assert (mean - exact_mean).abs().div(scale).max() < 4.5 / math.sqrt(n)
    # The standard error of an entry of a sample covariance is at most sqrt(2 / n) of the two
    # standard deviations.
    assert (covariance - exact_covariance).abs().div(
        torch.outer(scale, scale)
    ).max() < 4.5 * math.sqrt(2 / n)


def test_the_recursion_itself_is_what_the_sampler_does_to_the_mean():
    # The average over all noises z and -z of an affine map is its value at z = 0: the mean, with no
    # statistics.
    m, S = correlated_prior()
    A, y = torch.randn(4, 12, dtype=torch.float64) / 4, torch.randn(4, dtype=torch.float64)
    settings = {
        "n_steps": 10,
        "guidance_scale": 2.0,
        "variance": "large",
        "cap": False,
        "measurement_level": "mean",
    }
    original = torch.randn
    outputs = []
    for sign in (1, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *a, sign=sign, **k: sign * original(*a, **k))
            sampler = ADIR(clip_x0=False, **settings)
            batch = y.reshape(1, -1, 1, 1)
            outputs.append(
                sampler.restore(
                    Denoiser(study.exact_eps(m, S)), Matrix(A), batch, generators(7)
                ).x_hat.flatten()
            )
    mean, _ = study.propagate(linear_schedule(), m, S, A, y, **settings)
    torch.testing.assert_close((outputs[0] + outputs[1]) / 2, mean, rtol=1e-10, atol=1e-10)


def test_without_guidance_the_samples_tend_to_the_prior_as_steps_grow():
    m, S = correlated_prior()
    errors = []
    for n in (250, 500, 1000):
        mean, covariance = study.propagate(
            linear_schedule(n),
            m,
            S,
            torch.zeros(1, 12).double(),
            torch.zeros(1).double(),
            n,
            0.0,
            "small",
        )
        errors.append(((covariance - S).norm() / S.norm()).item())
        # x_T ~ N(0, I) although sqrt(alpha_bar_T) m = 0.006 m is not quite 0: the only error of the
        # mean.
        assert (mean - m).norm() < 0.01 * m.norm()
    assert errors[2] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)  # first order in the step
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_without_guidance_the_samples_of_a_ddim_step_tend_to_the_prior_too(eta):
    m, S = correlated_prior()
    errors = []
    for n in (250, 500, 1000):
        A, y = torch.zeros(1, 12).double(), torch.zeros(1).double()
        mean, covariance = study.propagate(linear_schedule(n), m, S, A, y, n, 0.0, "small", eta=eta)
        errors.append(((covariance - S).norm() / S.norm()).item())
        assert (mean - m).norm() < 0.01 * m.norm()
    assert errors[2] < 0.015
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)  # first order in the step
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.8])
def test_a_lowered_temperature_scales_the_covariance_of_unguided_samples(tau):
    # adir.samplers.adir: w tends to tau^2 + (1 - tau^2) v ab_T / V_T, whose last term is x_T's own
    # noise; w = 1 at tau = 1.
    m, S = correlated_prior()
    errors = []
    for n in (250, 500, 1000):
        A, y = torch.zeros(1, 12).double(), torch.zeros(1).double()
        mean, covariance = study.propagate(
            linear_schedule(n), m, S, A, y, n, 0.0, "small", temperature=tau
        )
        ab = linear_schedule(n).alpha_bar[-1]
        left = ab * torch.linalg.inv(ab * S + (1 - ab) * torch.eye(12).double()) @ S @ S
        errors.append(((covariance - tau**2 * S - (1 - tau**2) * left).norm() / S.norm()).item())
        assert (mean - m).norm() < 0.01 * m.norm()
    assert errors[2] < 0.03
    if tau > 0:
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)  # first order in the step
        assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("n", [1, 7, 50])
def test_without_noise_or_guidance_the_sampler_is_the_closed_form_of_ddim_on_a_gaussian_prior(n):
    # Along an eigenvector of S, of variance v, with d = x_t - sqrt(ab) m and V = ab v + 1 - ab, the
    # denoiser gives x0_hat = m + sqrt(ab) v d / V and eps = sqrt(1 - ab) d / V: a step multiplies d
    # by (sqrt(ab_prev ab) v + sqrt((1 - ab_prev) (1 - ab))) / V.
    m, S = correlated_prior()
    variances, vectors = torch.linalg.eigh(S)
    p = linear_schedule().respaced(n)
    factor = torch.ones(12, dtype=torch.float64)
    for ab, ab_prev in zip(p.alpha_bar, p.alpha_bar_prev, strict=True):
        step = (ab_prev * ab).sqrt() * variances + ((1 - ab_prev) * (1 - ab)).sqrt()
        factor = factor * step / (ab * variances + 1 - ab)
    (g,) = generators(5)
    x_T = torch.randn(SHAPE, generator=g, dtype=torch.float64).flatten()
    expected = m + vectors @ (factor * (vectors.T @ (x_T - p.alpha_bar[-1].sqrt() * m)))
    sampler = ADIR(n_steps=n, guidance_scale=0.0, variance="small", clip_x0=False, eta=0.0)
    y = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    result = sampler.restore(
        Denoiser(study.exact_eps(m, S)), Matrix(torch.ones(2, 12).double()), y, generators(5)
    )
    torch.testing.assert_close(result.x_hat.flatten(), expected, rtol=1e-9, atol=1e-11)


def test_without_noise_the_map_tends_to_that_of_the_probability_flow():
    # The probability-flow ODE keeps the quantiles: x_0 = m + (S / V_T)^(1/2) (x_T - sqrt(ab_T) m),
    # V_T = ab_T S + 1 - ab_T.
    m, S = correlated_prior()
    variances, vectors = torch.linalg.eigh(S)
    errors = []
    for n in (250, 500, 1000):
        ab = linear_schedule(n).alpha_bar[-1]
        scale = (variances / (ab * variances + 1 - ab)).sqrt()
        exact = vectors @ torch.diag(scale**2) @ vectors.T  # of x_T ~ N(0, I)
        A, y = torch.zeros(1, 12).double(), torch.zeros(1).double()
        _, covariance = study.propagate(linear_schedule(n), m, S, A, y, n, 0.0, "small", eta=0.0)
        errors.append((covariance - exact).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15) and errors[1] / errors[
        2
    ] == pytest.approx(2, rel=0.15)


def images_of(sampler: ADIR, prior, A: Tensor, y: Tensor) -> Tensor:
    """(8, 12) results of the ideal denoiser for x_T of eight seeds."""
    batch = y.reshape(1, -1, 1, 1).expand(8, -1, -1, -1)
    result = sampler.restore(
        Denoiser(study.exact_eps(*prior)), Matrix(A), batch, generators(*range(8))
    )
    assert result.network_evaluations == sampler.n_steps
    return result.x_hat.flatten(1)


@pytest.mark.parametrize("sampler, order", [(ADIR, 1), (FastADIR, 2)])
def test_without_noise_or_guidance_the_step_converges_to_the_probability_flow_at_its_order(
    sampler, order
):
    # x_0 = m + (S / V_T)^(1/2) (x_T - sqrt(ab_T) m) as above. Of 1000 steps 112, 334 and all are
    # exactly 9, 3 and 1 apart.
    m, S = correlated_prior()
    variances, vectors = torch.linalg.eigh(S)
    ab = linear_schedule().alpha_bar[-1]
    flow = vectors @ torch.diag((variances / (ab * variances + 1 - ab)).sqrt()) @ vectors.T
    x_T = torch.stack(
        [
            torch.randn(SHAPE, generator=g, dtype=torch.float64).flatten()
            for g in generators(*range(8))
        ]
    )
    expected = m + (x_T - ab.sqrt() * m) @ flow
    A = torch.ones(2, 12, dtype=torch.float64)
    errors = []
    for n in (112, 334, 1000):
        made = sampler(n_steps=n, guidance_scale=0.0, variance="small", clip_x0=False, eta=0.0)
        errors.append((images_of(made, (m, S), A, A[:, 0]) - expected).norm().item())
    assert errors[0] / errors[1] == pytest.approx(3**order, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(3**order, rel=0.15)


def test_guided_the_second_order_step_tends_to_the_limit_of_the_first_order_one():
    m, S = correlated_prior()
    A, y = torch.randn(4, 12, dtype=torch.float64) / 4, torch.randn(4, dtype=torch.float64)
    apart, moved = [], 0.0
    for n in (112, 334, 1000):
        settings = {"n_steps": n, "variance": "small", "clip_x0": False, "eta": 0.0}
        first, second = (
            images_of(s(guidance_scale=3.0, **settings), (m, S), A, y) for s in (ADIR, FastADIR)
        )
        apart.append((first - second).norm().item())
        moved = (
            (second - images_of(FastADIR(guidance_scale=0.0, **settings), (m, S), A, y))
            .norm()
            .item()
        )
    assert apart[0] / apart[1] > 2.5 and apart[1] / apart[2] > 2.5  # 3 for first order
    assert apart[2] < 0.01 * moved


def test_the_second_order_step_takes_one_evaluation_a_step_and_no_noise():
    times: list[int] = []
    denoiser = Denoiser(lambda x, t: (times.append(int(t[0])), unit_eps(x, t))[1])
    FastADIR(n_steps=10, variance="small").restore(denoiser, BLUR, blurred(), generators(1))
    assert times == list(range(999, -1, -111))
    with pytest.raises(ValueError, match=r"eta=0\.5 adds noise"):
        FastADIR(n_steps=10, eta=0.5)


def test_without_noise_guidance_sees_the_residual_of_x0_hat_alone():
    # At eta = 0, A mu - y_{t-1} = sqrt(ab_prev) (A x0_hat - y): where A x0_hat = y, guidance of any
    # strength changes nothing.
    y = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64).reshape(1, -1, 1, 1)
    x0 = y.reshape(1, *SHAPE)

    def eps(x: Tensor, t: Tensor) -> Tensor:  # the noise that leaves x0 as the clean image
        ab = linear_schedule().alpha_bar[t].reshape(-1, 1, 1, 1)
        return (x - ab.sqrt() * x0) / (1 - ab).sqrt()

    weak, strong = (
        ADIR(n_steps=10, guidance_scale=s, variance="small", eta=0.0)
        .restore(Denoiser(eps), Matrix(torch.eye(12).double()), y, generators(5))
        .x_hat
        for s in (0.0, 10.0)
    )
    torch.testing.assert_close(strong, weak, rtol=0, atol=1e-10)


def test_with_all_the_noise_the_numbers_are_those_of_the_ancestral_step_to_the_bit(monkeypatch):
    # ddim_coefficients gives the ancestral ones but for their last digit, so eta = 1 must not ask
    # for them.
    monkeypatch.setattr("adir.samplers.adir.ddim_coefficients", None)
    sampler = ADIR(n_steps=5, variance="small", eta=1.0)
    literal = ADIR(n_steps=5, variance="small")
    results = [
        s.restore(Denoiser(unit_eps), BLUR, blurred(), generators(1)).x_hat
        for s in (sampler, literal)
    ]
    assert torch.equal(*results)
    with pytest.raises(TypeError):
        ADIR(n_steps=5, variance="small", eta=0.5).restore(
            Denoiser(unit_eps), BLUR, blurred(), generators(1)
        )


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("what", ["eta", "temperature"])
def test_a_share_of_the_noise_outside_0_to_1_raises(what, share):
    with pytest.raises(ValueError, match=f"{what}=.*: a number from 0 to 1"):
        ADIR(**{what: share})


@pytest.mark.parametrize("n", [1, 7, 50])
def test_large_variance_is_exact_for_a_unit_prior_at_any_number_of_steps(n):
    # For x0 ~ N(0, I), q(x_{t-1} | x_t) has covariance beta_t. Only the last step, which returns
    # its mean, leaves out its own beta: 1e-4, or 1 - alpha_bar_T when there is a single step.
    zero, eye = torch.zeros(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64)
    _, covariance = study.propagate(
        linear_schedule(), zero, eye, zero[None], zero[:1], n, 0.0, "large"
    )
    beta_0 = 1e-4 if n > 1 else 1 - np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    torch.testing.assert_close(covariance, (1 - beta_0) * eye, rtol=1e-10, atol=1e-10)


def test_algorithm_1_is_exact_where_the_posterior_is_as_wide_as_the_noise():
    # Posterior precision S^-1 + A^T A / sigma^2 = I makes the likelihood's own scale, S / (sigma^2
    # C_t + S (1 - ab) a^2), the same at all t: 1 / sigma^2 = 2 s. Then only the step size separates
    # Algorithm 1 from the posterior.
    A = torch.randn(5, 12, dtype=torch.float64)
    A /= torch.linalg.matrix_norm(A, 2)
    sigma, eye = 1.3, torch.eye(12, dtype=torch.float64)
    S = torch.linalg.inv(eye - A.T @ A / sigma**2)
    m, y = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    posterior_mean, posterior_covariance = study.posterior(m, S, A, y, sigma)
    torch.testing.assert_close(posterior_covariance, eye)
    errors = []
    for n in (250, 500, 1000):
        mean, covariance = study.propagate(
            linear_schedule(n), m, S, A, y, n, 1 / (2 * sigma**2), "large"
        )
        errors.append(((mean - posterior_mean).norm().item(), (covariance - eye).norm().item()))
    assert errors[2][0] < 0.02 * posterior_mean.norm() and errors[2][1] < 0.02
    assert errors[0][1] / errors[2][1] == pytest.approx(4, rel=0.15)  # first order in the step


@pytest.mark.parametrize("r", [0.1, 1.0, 10.0])
def test_the_bias_on_a_unit_prior_is_the_one_that_the_continuous_limit_has(r):
    # One pixel, x ~ N(0, 1), y = a x + e, r = 2 s a^2. In u = alpha_bar the moments obey u dv/du =
    # 1 - (1 + 2 r u) v   and   u dm/du = sqrt(u) r y / a - (1/2 + r u) m, so v = (1 - exp(-2 r)) /
    # 2 r and m = (1 - exp(-r)) y / a, where the posterior at s = 1/(2 sigma^2), r = a^2/sigma^2,
    # has 1 / (1 + r) and r / (1 + r) y / a.
    a, y, n = 0.5, 0.8, 4000
    one = torch.ones(1, 1, dtype=torch.float64)
    mean, covariance = study.propagate(
        linear_schedule(n),
        0 * one[0],
        one,
        a * one,
        y * one[0],
        n,
        r / (2 * a**2),
        "large",
        cap=False,
    )
    assert covariance.item() == pytest.approx((1 - math.exp(-2 * r)) / (2 * r), rel=0.01)
    assert mean.item() == pytest.approx((1 - math.exp(-r)) * y / a, rel=0.01)


def test_strong_capped_guidance_meets_noise_free_measurements_and_leaves_the_rest_to_the_prior():
    # A with equal singular values and S diagonal in its frame: the posterior of y = A x is y in the
    # row space and the prior elsewhere, and guidance at the cap takes 0.9 of the residual away at
    # each step.
    S = torch.diag(torch.linspace(0.1, 1.2, 12, dtype=torch.float64))
    m = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
    A, y = (
        torch.eye(12, dtype=torch.float64)[::2] / 4,
        torch.linspace(-0.2, 0.2, 6, dtype=torch.float64),
    )
    mean, covariance = study.propagate(linear_schedule(), m, S, A, y, 1000, 1e9, "small")
    posterior_mean, posterior_covariance = study.posterior(m, S, A, y, 1e-9)
    torch.testing.assert_close(mean, posterior_mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(covariance, posterior_covariance, rtol=0, atol=0.02)
    assert (covariance.diagonal()[::2] < 1e-4).all()


# ---- back-projection -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "degradation",
    [SuperResolution(4), SuperResolution(8), Colorization(), BoxInpainting()],
    ids=lambda d: d.name,
)
def test_back_projection_meets_y_and_leaves_what_A_cannot_see(degradation):
    operator = degradation((3, 40, 40))
    y = operator.A(torch.rand(2, 3, 40, 40, dtype=torch.float64) * 2 - 1)
    off, on = (
        ADIR(n_steps=3, variance="small", back_projection=back_projection)
        .restore(Denoiser(unit_eps), operator, y, generators(1, 2))
        .x_hat
        for back_projection in (False, True)
    )
    assert (operator.A(off) - y).abs().max() > 0.01
    torch.testing.assert_close(operator.A(on), y, rtol=0, atol=1e-9)
    unseen_off, unseen_on = (x - operator.A_dagger(operator.A(x)) for x in (off, on))
    torch.testing.assert_close(unseen_on, unseen_off, rtol=0, atol=1e-9)


def test_back_projection_of_a_noisy_y_is_refused_in_one_line():
    mode = NoAdaptation(Full(), FineTuning())
    task = RestorationTask("deblur", 1, BoxBlur(5), sigma_y=10, guidance_scale=1)
    sampler = ADIR(n_steps=2, variance="small", back_projection=True)
    reason = sampler.not_applicable(GuidedDiffusion(), task, mode)
    assert reason == (
        "back_projection=true would amplify the noise of task deblur (10 grey levels): "
        "use back_projection=false"
    )
    with pytest.raises(ValueError, match=r"the noise of y \(10 grey levels"):
        sampler.restore(Denoiser(unit_eps), task.operator((3, 16, 16)), blurred(), generators(1))
    quiet = RestorationTask("sr4", 1, SuperResolution(4), sigma_y=0, guidance_scale=1)
    assert sampler.not_applicable(GuidedDiffusion(), quiet, mode) is None


# ---- the cap and failures ------------------------------------------------------------------------


def unit_eps(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x ~ N(0, I)."""
    alpha_bar = linear_schedule().alpha_bar[t].reshape(-1, 1, 1, 1)
    return ((1 - alpha_bar).sqrt() * x).to(x.dtype)


BLUR = BoxBlur(5)((3, 16, 16))
DIVERGING = {"n_steps": 50, "guidance_scale": 10.0, "variance": "small"}


def blurred(n: int = 1) -> Tensor:
    return BLUR.A(
        torch.rand(n, *BLUR.image_shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    )


def test_the_literal_algorithm_diverges_and_the_error_names_step_and_scale():
    # 2 s Sigma_t ||A||^2 = 20 Sigma_t is above 2 for most of 50 steps. The cube stands for a
    # network out of its range.
    denoiser = Denoiser(lambda x, t: unit_eps(x, t) + 0.01 * x**3)
    result = ADIR(**DIVERGING, cap=False).restore(denoiser, BLUR, blurred(), generators(1))
    assert (
        "step " in result.errors[0]
        and " of 50" in result.errors[0]
        and "guidance_scale=10," in result.errors[0]
    )
    assert "cap=true" in result.errors[0]
    assert result.x_hat.isnan().all() and result.capped_steps == [0]


def test_the_cap_keeps_the_same_run_finite_and_is_reported():
    result = ADIR(**DIVERGING).restore(Denoiser(unit_eps), BLUR, blurred(), generators(1))
    variance = linear_schedule().respaced(50).posterior_log_variance.exp()
    assert (
        result.errors == [None] and result.x_hat.isfinite().all() and result.x_hat.abs().max() < 5
    )
    assert result.capped_steps == [(2 * 10 * variance * BLUR.norm**2 > 0.9).sum().item()]
    assert 0 < result.capped_steps[0] < 50


def test_where_no_step_exceeds_the_bound_the_cap_changes_no_bit():
    gentle = {**DIVERGING, "guidance_scale": 0.5}
    on, off = (
        ADIR(**gentle, cap=cap).restore(Denoiser(unit_eps), BLUR, blurred(), generators(1))
        for cap in (True, False)
    )
    assert torch.equal(on.x_hat, off.x_hat) and on.capped_steps == off.capped_steps == [0]


def test_an_image_that_fails_does_not_touch_the_others_of_its_batch():
    y = blurred(3)
    y[1, 0, 3, 3] = torch.nan
    sampler = ADIR(n_steps=5, variance="small")
    result = sampler.restore(Denoiser(unit_eps), BLUR, y, generators(1, 2, 3))
    assert [error is None for error in result.errors] == [True, False, True]
    assert "step 1 of 5" in result.errors[1]
    assert result.x_hat[1].isnan().all()
    for b, seed in ((0, 1), (2, 3)):
        alone = sampler.restore(Denoiser(unit_eps), BLUR, y[b : b + 1], generators(seed))
        assert torch.equal(result.x_hat[b], alone.x_hat[0])


def test_an_image_that_fails_midway_stays_failed_and_the_first_bad_step_is_named():
    # Of 5 steps over 1000 the third is the first below t = 600; the network is sound again from the
    # fourth on.
    def eps(x: Tensor, t: Tensor) -> Tensor:
        broken = (400 < t) & (t < 600)
        return torch.where(
            broken[:, None, None, None] & (x.mean((1, 2, 3), keepdim=True) > 0), torch.nan, x
        )

    y = torch.stack([torch.full(BLUR.image_shape, value) for value in (-0.9, 0.9)])
    kept: list[Tensor] = []
    result = ADIR(n_steps=5, guidance_scale=1e9, variance="small").restore(
        Denoiser(lambda x, t: (kept.append(x), eps(x, t))[1]), BLUR, y, generators(1, 2)
    )
    assert result.errors == [None, "NaN or Inf at step 3 of 5: lower guidance_scale=1e+09"]
    assert result.x_hat[0].isfinite().all() and result.x_hat[1].isnan().all()
    assert [x.isnan().flatten(1).any(1).tolist() for x in kept] == [[False, False]] * 3 + [
        [False, True]
    ] * 2
    assert result.capped_steps == [
        5,
        3,
    ]  # s = 1e9 caps each step, and those after the failure do not count


class Unread:
    """A backbone and an operator on torch's `meta` device, whose tensors have shapes and no
    numbers: reading one raises.
    """

    schedule, image_shape, norm = linear_schedule(), SHAPE, 1.0

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        assert x_t.is_meta and t.is_meta
        return Prediction(x_t, x_t)

    def A(self, x: Tensor) -> Tensor:
        return x

    A_adjoint = A


@pytest.mark.parametrize("variance", ["small", "learned"])
def test_no_step_waits_for_a_number_from_the_device(monkeypatch, variance):
    y = torch.empty(2, *SHAPE, device="meta")
    finished: list[Tensor] = []
    monkeypatch.setattr(StepCounter, "finish", lambda self, x_hat, *_, **__: finished.append(x_hat))
    ADIR(n_steps=3, variance=variance).restore(Unread(), Unread(), y, generators(1, 2))
    assert finished[0].shape == y.shape and finished[0].is_meta
    monkeypatch.undo()
    with pytest.raises(
        (NotImplementedError, RuntimeError), match="meta"
    ):  # the watch itself reads, once, at the end
        ADIR(n_steps=3, variance=variance).restore(Unread(), Unread(), y, generators(1, 2))


@pytest.mark.parametrize("module", ["adir.samplers.base", "adir.samplers.adir"])
def test_algorithm_1_needs_no_diffusers(module):
    # A class for the network costs seconds to import; the algorithm takes any eps(x_t, t).
    code = f"import {module}, sys; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_when_all_images_fail_all_are_reported():
    result = ADIR(n_steps=5, variance="small").restore(
        Denoiser(lambda x, t: x * torch.inf), BLUR, blurred(2), generators(1, 2)
    )
    assert all("step 1 of 5" in error for error in result.errors) and result.x_hat.isnan().all()


def test_learned_variance_on_a_network_without_one_raises():
    with pytest.raises(ValueError, match="use variance=small or variance=large"):
        ADIR(n_steps=2, variance="learned").restore(
            Denoiser(unit_eps), BLUR, blurred(), generators(1)
        )


def test_a_single_step_works():
    # One step from pure noise returns the guided mean; x0_hat = sqrt(ab) x_T for the unit prior.
    result = ADIR(n_steps=1, guidance_scale=0.0, variance="small").restore(
        Denoiser(unit_eps), BLUR, blurred(), generators(1)
    )
    (g,) = generators(1)
    x_T = torch.randn(BLUR.image_shape, generator=g)
    expected = linear_schedule().alpha_bar[-1].sqrt() * x_T
    torch.testing.assert_close(result.x_hat[0], expected.float(), rtol=0, atol=1e-4)


def test_more_steps_than_the_schedule_has_raise():
    with pytest.raises(ValueError, match="from 1 to 1000"):
        ADIR(n_steps=1001, variance="small").restore(
            Denoiser(unit_eps), BLUR, blurred(), generators(1)
        )


def test_alone_in_a_batch_and_in_another_order_an_image_is_bit_equal():
    backbone, operator = GuidedDiffusion(), BoxBlur(5)((3, 32, 32))
    y = operator.A(torch.rand(3, 3, 32, 32) * 2 - 1)
    sampler = ADIR(n_steps=4, guidance_scale=2.0, variance="small")
    batch = sampler.restore(backbone, operator, y, generators(1, 2, 3)).x_hat
    order = [2, 0, 1]
    turned = sampler.restore(backbone, operator, y[order], generators(3, 1, 2)).x_hat
    assert torch.equal(turned, batch[order])
    for b in range(3):
        assert torch.equal(
            sampler.restore(backbone, operator, y[b : b + 1], generators(b + 1)).x_hat[0], batch[b]
        )
    assert not torch.equal(batch[0], batch[1])


def test_restore_leaves_its_inputs_and_the_gradient_mode_alone():
    y = blurred()
    before = y.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x_hat = (
            ADIR(n_steps=3, variance="small")
            .restore(Denoiser(unit_eps), BLUR, y, generators(1))
            .x_hat
        )
    assert torch.equal(y, before) and torch.is_grad_enabled() and not x_hat.requires_grad
    assert x_hat.dtype == torch.float32 and x_hat.shape == (1, 3, 16, 16)
