"""One formula each: inverses, limits, and the mean of q(x_{t-1} | x_t, x0) as sampled by the
forward process.
"""

import pytest
import torch

from adir.diffusion.posterior import (
    ddim_coefficients,
    diffuse,
    epsilon_loss,
    extrapolated_x0,
    learned_log_variance,
    posterior_mean,
    predict_x0,
)
from adir.diffusion.schedule import linear_schedule

SCHEDULE = linear_schedule()


@pytest.mark.parametrize("t", [0, 500, 999])
def test_predict_x0_inverts_diffuse(t):
    x0, eps = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    x_t = diffuse(x0, eps, SCHEDULE.alpha_bar[t])
    torch.testing.assert_close(
        predict_x0(x_t, eps, SCHEDULE.alpha_bar[t]), x0, rtol=1e-10, atol=1e-10
    )


def test_predict_x0_is_not_clamped():
    assert (
        predict_x0(torch.full((1, 3, 2, 2), 5.0), torch.zeros(1, 3, 2, 2), torch.tensor(0.25)).max()
        == 10
    )


@pytest.mark.parametrize("n, i", [(1000, 1), (1000, 400), (10, 5), (10, 9)])
def test_the_posterior_mean_is_the_regression_of_x_prev_on_x_t(n, i):
    # Two forward steps in closed form: with x_prev = a x0 + b u and x_t = c x_prev + d w for
    # independent unit u, w, the mean of x_prev given x_t and x0 is a x0 + Cov(x_prev, x_t) /
    # Var(x_t) (x_t - c a x0).
    p = SCHEDULE.respaced(n)
    ab_prev, beta = p.alpha_bar_prev[i], p.betas[i]
    a, b_squared, c, d_squared = ab_prev.sqrt(), 1 - ab_prev, (1 - beta).sqrt(), beta
    x0, x_t = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    expected = a * x0 + c * b_squared / (c**2 * b_squared + d_squared) * (x_t - c * a * x0)
    ours = posterior_mean(x0, x_t, p.posterior_mean_coef1[i], p.posterior_mean_coef2[i])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


ETAS = (0.0, 0.25, 0.5, 1.0)


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("eta", ETAS)
def test_a_ddim_step_keeps_the_mean_and_variance_of_x_prev_given_x0(eta, n):
    # Of x_{t-1} = coef1 x0 + coef2 x_t + eta sqrt(beta tilde) z with x_t = sqrt(ab) x0 + sqrt(1 -
    # ab) eps.
    p = SCHEDULE.respaced(n)
    coef1, coef2 = ddim_coefficients(p.alpha_bar, p.alpha_bar_prev, p.posterior_variance, eta)
    torch.testing.assert_close(
        coef1 + coef2 * p.alpha_bar.sqrt(), p.alpha_bar_prev.sqrt(), rtol=0, atol=1e-14
    )
    variance = coef2**2 * (1 - p.alpha_bar) + eta**2 * p.posterior_variance
    torch.testing.assert_close(variance, 1 - p.alpha_bar_prev, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("eta", ETAS)
def test_a_ddim_step_is_the_equation_of_the_ddim_paper(eta):
    p, i = SCHEDULE.respaced(10), 6
    x0, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    ab, ab_prev = p.alpha_bar[i], p.alpha_bar_prev[i]
    sigma = eta * ((1 - ab_prev) / (1 - ab)).sqrt() * (1 - ab / ab_prev).sqrt()  # its eq. 16
    expected = ab_prev.sqrt() * x0 + (1 - ab_prev - sigma**2).sqrt() * eps  # its eq. 12
    coefficients = ddim_coefficients(ab, ab_prev, p.posterior_variance[i], eta)
    torch.testing.assert_close(posterior_mean(x0, diffuse(x0, eps, ab), *coefficients), expected)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_a_ddim_step_with_all_the_noise_is_the_ancestral_one(n):
    p = SCHEDULE.respaced(n)
    coef1, coef2 = ddim_coefficients(p.alpha_bar, p.alpha_bar_prev, p.posterior_variance, 1.0)
    torch.testing.assert_close(coef1, p.posterior_mean_coef1, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(coef2, p.posterior_mean_coef2, rtol=1e-9, atol=1e-14)


def test_learned_log_variance_runs_between_its_bounds_and_beyond():
    small, large = torch.tensor(-9.0), torch.tensor(-4.0)
    fraction = torch.tensor([0.0, 1.0, 0.5, -0.2, 1.2])
    expected = torch.tensor([-9.0, -4.0, -6.5, -10.0, -3.0])
    torch.testing.assert_close(learned_log_variance(fraction, small, large), expected)


def test_epsilon_loss_is_one_number_an_image():
    eps, eps_hat = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    eps_hat[1] *= 3
    eps_hat[1, 0] = 0
    assert epsilon_loss(eps, eps_hat).tolist() == [1, 6]  # 9 on two of three channels


@pytest.mark.parametrize("alpha_bar_prev", [0.75, 1.0])
def test_the_second_order_step_is_exact_on_a_unit_prior(alpha_bar_prev):
    # For x0 ~ N(0, I) every x_t is N(0, I) and E[x0 | x_t] = sqrt(ab) x_t: the probability flow
    # stands still.
    earlier, ab, ab_prev = torch.tensor([0.1, 0.4, alpha_bar_prev], dtype=torch.float64)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    x0 = extrapolated_x0(ab.sqrt() * x, earlier.sqrt() * x, earlier, ab, ab_prev)
    coef1, coef2 = ddim_coefficients(ab, ab_prev, torch.zeros(()), 0.0)
    torch.testing.assert_close(posterior_mean(x0, x, coef1, coef2), x, rtol=1e-12, atol=1e-12)
    first_order = posterior_mean(ab.sqrt() * x, x, coef1, coef2)
    assert (first_order - x).abs().max() > 0.05 * x.abs().max()
