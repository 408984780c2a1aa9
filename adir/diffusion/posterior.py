"""Formulas for p_theta(x_{t-1} | x_t), one formula in each function.

Images have shape (B, 3, H, W). Values from the tables of a schedule have shape (B, 1, 1, 1) or are
scalars.
"""

import torch
from torch import Tensor


def diffuse(x0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return a draw of q(x_t | x0) with noise eps: DDPM (Ho et al., 2020), eq. 4."""
    return alpha_bar_t.sqrt() * x0 + (1 - alpha_bar_t).sqrt() * eps


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return the clean-image estimate from predicted noise: DDPM, eq. 15.

    The estimate is not clamped, and its values leave [-1, 1] at large t. At t = 999 of DDPM's
    schedule, the error of eps is amplified about 157 times.
    """
    return (x_t - (1 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()


def posterior_mean(x0: Tensor, x_t: Tensor, coef1: Tensor, coef2: Tensor) -> Tensor:
    """Return the mean of q(x_{t-1} | x_t, x0): DDPM, eq. 7.

    coef1 and coef2 are `posterior_mean_coef1` and `posterior_mean_coef2` of the Schedule.
    """
    return coef1 * x0 + coef2 * x_t


def ddim_coefficients(
    alpha_bar: Tensor, alpha_bar_prev: Tensor, posterior_variance: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Return the factors of x0 and x_t in the mean of a DDIM step (Song et al., 2021).

    The fresh noise of the step has eta times the standard deviation of DDPM's (ancestral) noise.
    With ab = alpha_bar, the step is (DDIM, eq. 12, with sigma from eq. 16)

            x_{t-1} = sqrt(ab_prev) x0 + sqrt(1 - ab_prev - sigma^2) eps + sigma z,
            eps     = (x_t - sqrt(ab) x0) / sqrt(1 - ab),    sigma = eta sqrt(beta tilde).

    Given x0, eps is standard normal. x_{t-1} therefore has variance 1 - ab_prev and mean
    sqrt(ab_prev) x0, as under q(x_{t-1} | x0), for every sigma. Collecting x0 and x_t gives

            coef2 = sqrt((1 - ab_prev - sigma^2) / (1 - ab)),
            coef1 = sqrt(ab_prev) - coef2 sqrt(ab).

    At eta = 1 these are DDPM's eq. 7, up to rounding.

    Args:
        alpha_bar: alpha_bar of x_t, float64, in (0, 1).
        alpha_bar_prev: alpha_bar of x_{t-1}, shaped as alpha_bar.
        posterior_variance: beta tilde, shaped as alpha_bar.
        eta: from 0 (deterministic) to 1 (ancestral).

    Returns:
        (coef1, coef2) for `posterior_mean`, shaped as alpha_bar.
    """
    coef2 = ((1 - alpha_bar_prev - eta**2 * posterior_variance) / (1 - alpha_bar)).sqrt()
    return alpha_bar_prev.sqrt() - coef2 * alpha_bar.sqrt(), coef2


def extrapolated_x0(
    x0: Tensor,
    earlier: Tensor,
    alpha_bar_earlier: Tensor,
    alpha_bar: Tensor,
    alpha_bar_prev: Tensor,
) -> Tensor:
    """Return the x0 that makes a DDIM step without fresh noise second-order.

    Notation: alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), and `prev` marks the end of the
    step. The probability flow (Song et al., 2021) has d(x / sigma) = x0 d(alpha / sigma). If x0 is
    constant during the step, this gives the DDIM step x_prev = coef1 x0 + coef2 x_t, with

            coef2 = sigma_prev / sigma,    coef1 = alpha_prev - coef2 alpha.

    This function assumes that x0 is linear in alpha and passes through the predictions at this step
    and at the previous one. The slope is b = (x0 - earlier) / (alpha - alpha_earlier). Because
    alpha d(alpha / sigma) = d(1 / sigma), x_prev is then the DDIM step with x0 replaced by

            x0 + b (1 - coef2 - alpha coef1) / coef1.

    For a step of size h, the linear x0 is off by O(h^2), so the step is off by O(h^3). For data
    from N(0, I), x0 = alpha x is linear in alpha.

    DPM-Solver++(2M) (Lu et al., 2022) makes x0 linear in log(alpha / sigma) instead. In this
    variable the last step, to sigma = 0, is infinitely long, and earlier steps overshoot if there
    are few. In alpha every step has finite length, and the last one extrapolates to alpha = 1.

    Args:
        x0: prediction at x_t.
        earlier: prediction at the previous, noisier step, shaped as x0.
        alpha_bar_earlier: alpha_bar of the previous step, in (0, alpha_bar).
        alpha_bar: alpha_bar of x_t.
        alpha_bar_prev: alpha_bar of the end of the step, in (alpha_bar, 1].
    """
    alpha, alpha_prev = alpha_bar.sqrt(), alpha_bar_prev.sqrt()
    coef2 = ((1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()
    coef1 = alpha_prev - coef2 * alpha
    ahead = (1 - coef2 - alpha * coef1) / coef1
    return x0 + ahead / (alpha - alpha_bar_earlier.sqrt()) * (x0 - earlier)


def learned_log_variance(
    variance_fraction: Tensor, log_beta_tilde: Tensor, log_beta: Tensor
) -> Tensor:
    """Return the interpolated log variance of a step: Nichol and Dhariwal (2021), eq. 15.

    Args:
        variance_fraction: (v + 1) / 2 of the network's output v. 0 gives log beta tilde, and 1
            gives log beta. As in the reference code it is not clipped, so values outside [0, 1]
            extrapolate.
        log_beta_tilde: logarithm of beta tilde, the lower end of the interpolation.
        log_beta: logarithm of beta, the upper end of the interpolation.
    """
    return variance_fraction * log_beta + (1 - variance_fraction) * log_beta_tilde


def epsilon_loss(eps: Tensor, eps_hat: Tensor) -> Tensor:
    """Return l_simple per image, the mean squared error of the predicted noise: DDPM, eq. 14.

    The result has shape (B,). Lower is better.
    """
    return torch.mean((eps - eps_hat) ** 2, dim=(1, 2, 3))
