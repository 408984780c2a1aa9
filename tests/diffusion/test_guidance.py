"""The noisy twin of y, the relaxed gradient and the bound on its step."""

import pytest
import torch

from adir.diffusion.guidance import (
    STABLE_STEP,
    back_projected,
    guided_step_size,
    relaxed_gradient,
)
from adir.diffusion.posterior import diffuse

MATRIX = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def A(x: torch.Tensor) -> torch.Tensor:
    return x @ MATRIX.T


def A_adjoint(y: torch.Tensor) -> torch.Tensor:
    return y @ MATRIX


def noisy_measurement(
    y: torch.Tensor, A_eps: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    return alpha_bar.sqrt() * y + (1 - alpha_bar).sqrt() * A_eps


@pytest.mark.parametrize("alpha_bar", [1.0, 0.9999, 0.3, 4e-5])
def test_one_application_of_A_gives_the_papers_gradient(alpha_bar):
    alpha_bar = torch.tensor(alpha_bar, dtype=torch.float64)
    mu, eps = torch.randn(2, 3, 12, dtype=torch.float64)
    y = torch.randn(3, 5, dtype=torch.float64)
    expected = -2 * A_adjoint(A(mu) - noisy_measurement(y, A(eps), alpha_bar))
    torch.testing.assert_close(
        relaxed_gradient(mu, eps, y, alpha_bar, A, A_adjoint), expected, rtol=1e-10, atol=1e-10
    )


def test_the_gradient_vanishes_where_mu_explains_the_noisy_measurement():
    x, eps = torch.randn(2, 3, 12, dtype=torch.float64)
    alpha_bar = torch.tensor(0.5, dtype=torch.float64)
    gradient = relaxed_gradient(diffuse(x, eps, alpha_bar), eps, A(x), alpha_bar, A, A_adjoint)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_the_cap_acts_exactly_above_its_bound_and_says_where():
    norm = 0.5
    bound = STABLE_STEP / (2 * norm**2)  # 1.8
    variance = torch.tensor([0.1, 0.17, 0.19, 5.0]).reshape(4, 1, 1, 1)
    step, capped = guided_step_size(10.0, variance, norm, cap=True)
    torch.testing.assert_close(step.flatten(), torch.tensor([1.0, 1.7, bound, bound]))
    assert (
        capped.flatten().tolist() == [False, False, True, True] and capped.shape == variance.shape
    )
    step, capped = guided_step_size(10.0, variance, norm, cap=False)
    torch.testing.assert_close(step.flatten(), torch.tensor([1.0, 1.7, 1.9, 50.0]))
    assert not capped.any()


def test_the_capped_step_shrinks_every_residual_and_turns_none_around():
    # mu -> mu + step g multiplies A mu - y_t by I - 2 step A A^T: eigenvalues in [1 - STABLE_STEP,
    # 1].
    norm = torch.linalg.matrix_norm(MATRIX, 2).item()
    step, _ = guided_step_size(1e9, torch.tensor(1.0, dtype=torch.float64), norm, cap=True)
    eigenvalues = torch.linalg.eigvalsh(torch.eye(5).double() - 2 * step * MATRIX @ MATRIX.T)
    assert eigenvalues.min().item() == pytest.approx(1 - STABLE_STEP) and eigenvalues.max() < 1


def test_back_projection_is_the_nearest_image_that_explains_y():
    # min |z - x| over A z = y, as the solution of its Lagrange conditions [[I, A^T], [A, 0]] [z; l]
    # = [x; y].
    x, y = torch.randn(12, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    zeros, eye = torch.zeros(5, 5, dtype=torch.float64), torch.eye(12, dtype=torch.float64)
    conditions = torch.cat([torch.cat([eye, MATRIX.T], 1), torch.cat([MATRIX, zeros], 1)])
    expected = torch.linalg.solve(conditions, torch.cat([x, y]))[:12]
    pseudo_inverse = torch.linalg.pinv(MATRIX)
    torch.testing.assert_close(back_projected(x, y, A, lambda r: r @ pseudo_inverse.T), expected)
