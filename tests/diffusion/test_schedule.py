"""The tables against DDPM's definitions, and respacing against the process that it thins out."""

import math

import numpy as np
import pytest
import torch

from adir.diffusion.schedule import linear_schedule, schedule_from_betas

FULL = linear_schedule()


def test_betas_run_from_1e_4_to_0_02_and_leave_almost_no_image():
    assert len(FULL) == 1000 and FULL.betas[0].item() == 1e-4 and FULL.betas[-1].item() == 0.02
    # log alpha_bar_T = sum log(1 - beta): 4.04e-5, whose root amplifies errors of eps 157 times.
    log_alpha_bar = math.fsum(math.log1p(-(1e-4 + (0.02 - 1e-4) * k / 999)) for k in range(1000))
    assert FULL.alpha_bar[-1].item() == pytest.approx(math.exp(log_alpha_bar), rel=1e-12)
    assert math.exp(-log_alpha_bar / 2) == pytest.approx(157.4, abs=0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 100, 999, 1000])
def test_a_respaced_process_has_the_alpha_bar_of_the_steps_it_keeps(n):
    process = FULL.respaced(n)
    expected = np.round(np.linspace(0, 999, n)).astype(int) if n > 1 else np.array([999])
    np.testing.assert_array_equal(process.timesteps.numpy(), expected)
    assert process.timesteps.dtype == torch.int64 and len(process) == n
    torch.testing.assert_close(process.alpha_bar, FULL.alpha_bar[expected], rtol=1e-11, atol=0)
    assert process.alpha_bar_prev[0] == 1 and torch.equal(
        process.alpha_bar_prev[1:], process.alpha_bar[:-1]
    )
    assert ((process.betas > 0) & (process.betas < 1)).all()


def test_keeping_all_steps_changes_nothing():
    torch.testing.assert_close(FULL.respaced(1000).betas, FULL.betas, rtol=1e-11, atol=0)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_the_posterior_tables_are_those_of_bayes_rule(n):
    # q(x_{t-1} | x_t, x0) as the product of N(x_t; sqrt(1-beta) x_{t-1}, beta) and N(x_{t-1};
    # sqrt(ab_prev) x0, 1-ab_prev): precisions add. Step 0 has a delta as its second factor.
    p = FULL.respaced(n)
    if n > 1:
        beta, ab_prev = p.betas[1:], p.alpha_bar_prev[1:]
        variance = 1 / ((1 - beta) / beta + 1 / (1 - ab_prev))
        torch.testing.assert_close(p.posterior_variance[1:], variance, rtol=1e-9, atol=0)
        torch.testing.assert_close(p.posterior_log_variance[1:].exp(), variance, rtol=1e-9, atol=0)
        torch.testing.assert_close(
            p.posterior_mean_coef1[1:], variance * ab_prev.sqrt() / (1 - ab_prev), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(
            p.posterior_mean_coef2[1:], variance * (1 - beta).sqrt() / beta, rtol=1e-9, atol=0
        )
        assert p.posterior_log_variance[0] == p.posterior_log_variance[1]
    assert p.posterior_variance[0] == 0 and p.posterior_mean_coef2[0] == 0
    assert p.posterior_mean_coef1[0].item() == pytest.approx(1, rel=1e-9)
    assert all(table.isfinite().all() for table in (p.posterior_log_variance, p.betas.log()))


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_step_numbers_out_of_range_raise(n):
    with pytest.raises(ValueError, match=f"n_steps={n}: choose from 1 to 1000"):
        FULL.respaced(n)


def test_respacing_twice_keeps_the_original_timesteps():
    timesteps = FULL.respaced(10).respaced(4).timesteps
    assert timesteps.tolist() == [FULL.respaced(10).timesteps[i].item() for i in (0, 3, 6, 9)]


def test_other_lengths_of_the_linear_schedule_carry_the_same_noise():
    assert linear_schedule(250).betas.sum().item() == pytest.approx(
        FULL.betas.sum().item(), rel=1e-12
    )


def test_tables_are_float64():
    process = schedule_from_betas(torch.full((3,), 0.1, dtype=torch.float64), torch.arange(3))
    for name in (
        "betas",
        "alpha_bar",
        "alpha_bar_prev",
        "posterior_variance",
        "posterior_mean_coef1",
    ):
        assert getattr(process, name).dtype == torch.float64


def test_betas_of_1_and_more_are_refused():
    linear_schedule(21)
    with pytest.raises(ValueError, match=r"betas must lie between 0 and 1.* to 2$"):
        linear_schedule(10)  # 100 x 0.02
