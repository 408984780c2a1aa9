"""One formula each: inverses, limits, and the mean of q(x_{t-1} | x_t, x0) as sampled by the forward process."""

import pytest
import torch

from adir.diffusion.posterior import diffuse, epsilon_loss, learned_log_variance, posterior_mean, predict_x0
from adir.diffusion.schedule import linear_schedule

SCHEDULE = linear_schedule()


@pytest.mark.parametrize("t", [0, 500, 999])
def test_predict_x0_inverts_diffuse(t):
    x0, eps = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    x_t = diffuse(x0, eps, SCHEDULE.alpha_bar[t])
    torch.testing.assert_close(predict_x0(x_t, eps, SCHEDULE.alpha_bar[t]), x0, rtol=1e-10, atol=1e-10)


def test_predict_x0_is_not_clamped():
    assert predict_x0(torch.full((1, 3, 2, 2), 5.0), torch.zeros(1, 3, 2, 2), torch.tensor(0.25)).max() == 10


@pytest.mark.parametrize("n, i", [(1000, 1), (1000, 400), (10, 5), (10, 9)])
def test_the_posterior_mean_is_the_regression_of_x_prev_on_x_t(n, i):
    # Two forward steps in closed form: with x_prev = a x0 + b u and x_t = c x_prev + d w for independent unit u, w, the
    # mean of x_prev given x_t and x0 is a x0 + Cov(x_prev, x_t) / Var(x_t) (x_t - c a x0).
    p = SCHEDULE.respaced(n)
    ab_prev, beta = p.alpha_bar_prev[i], p.betas[i]
    a, b_squared, c, d_squared = ab_prev.sqrt(), 1 - ab_prev, (1 - beta).sqrt(), beta
    x0, x_t = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    expected = a * x0 + c * b_squared / (c**2 * b_squared + d_squared) * (x_t - c * a * x0)
    ours = posterior_mean(x0, x_t, p.posterior_mean_coef1[i], p.posterior_mean_coef2[i])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_learned_log_variance_runs_between_its_bounds_and_beyond():
    small, large = torch.tensor(-9.0), torch.tensor(-4.0)
    fraction = torch.tensor([0.0, 1.0, 0.5, -0.2, 1.2])
    expected = torch.tensor([-9.0, -4.0, -6.5, -10.0, -3.0])
    torch.testing.assert_close(learned_log_variance(fraction, small, large), expected)


def test_epsilon_loss_is_one_number_a_picture():
    eps, eps_hat = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    eps_hat[1] *= 3
    eps_hat[1, 0] = 0
    assert epsilon_loss(eps, eps_hat).tolist() == [1, 6]  # 9 on two of three channels
