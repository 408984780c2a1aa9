"""p_theta(x_{t-1} | x_t): one formula, one function.

Shapes: images (B, 3, H, W); table values (B, 1, 1, 1) or scalar.
"""

import torch
from torch import Tensor


def diffuse(x0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """A draw of q(x_t | x0) with noise eps: DDPM (Ho et al., 2020), eq. 4."""
    return alpha_bar_t.sqrt() * x0 + (1 - alpha_bar_t).sqrt() * eps


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Clean-image estimate from predicted noise:

    DDPM, eq. 15. Not clamped: early steps do leave [-1, 1].

    At t = 999 the network's error is amplified about 157 times.
    """
    return (x_t - (1 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()


def posterior_mean(x0: Tensor, x_t: Tensor, coef1: Tensor, coef2: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x0):

    DDPM, eq. 7; the coefficients are Schedule's posterior_mean_coef1 and 2.
    """
    return coef1 * x0 + coef2 * x_t


def ddim_coefficients(
    alpha_bar: Tensor, alpha_bar_prev: Tensor, posterior_variance: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Return the factors of x0 and x_t in the mean of a DDIM step with eta times the ancestral
    noise: DDIM (Song et al., 2021).

    DDIM's step (its eq. 12, sigma = eta sqrt(beta tilde), its eq. 16) is

        x_{t-1} = sqrt(ab_prev) x0 + sqrt(1 - ab_prev - sigma^2) eps + sigma z,    eps = (x_t - sqrt(ab) x0) / sqrt(1 - ab).

    Given x0, eps is standard normal, so x_{t-1} has mean sqrt(ab_prev) x0 and variance 1 - ab_prev,
    those of q(x_{t-1} | x0), whatever sigma is. Collecting x0 and x_t gives coef2 = sqrt((1 -
    ab_prev - sigma^2) / (1 - ab)) and coef1 = sqrt(ab_prev) - coef2 sqrt(ab). At eta = 1 these are
    DDPM's eq. 7, up to rounding.

    Args:
        alpha_bar: alpha_bar of x_t, float64, in (0, 1).
        alpha_bar_prev: that of x_{t-1}, shaped as alpha_bar.
        posterior_variance: beta tilde, shaped as alpha_bar.
        eta: 0 (deterministic) to 1 (ancestral).

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
    """Return the x0 that makes a DDIM step without noise one of second order, from x0 at its start
    and that of the step before.

    With alpha = sqrt(ab) = cos(phi) and sigma = sqrt(1 - ab) = sin(phi), the probability flow (Song
    et al., 2021) has d(x / sigma) = x0 d(alpha / sigma). A constant x0 gives DDIM, x_prev = coef1
    x0 + coef2 x_t. Let x0 be a line in alpha through both predictions, of slope b = (x0 - earlier)
    / (alpha - alpha_earlier). As alpha d(alpha / sigma) = d(1 / sigma), x_prev is then DDIM's with

        x0 + b (1 - coef2 - alpha coef1) / coef1,    coef2 = sigma_prev / sigma,  coef1 = alpha_prev - coef2 alpha.

    The line is off by O(h^2), so a step by O(h^3). DPM-Solver++(2M) (Lu et al., 2022) takes its
    line in log(alpha / sigma) instead; there the last step to sigma = 0 is infinitely long, and
    steps before it overshoot when there are few. In alpha no step is: the last one extrapolates to
    alpha = 1, and where data are N(0, I), x0 = alpha x is a line.

    Args:
        x0: predicted at x_t.
        earlier: predicted at the step before, shaped as x0.
        alpha_bar_earlier: alpha_bar of that step, in (0, alpha_bar).
        alpha_bar: that of x_t.
        alpha_bar_prev: that of the step's end, in (alpha_bar, 1].
    """
    alpha, alpha_prev = alpha_bar.sqrt(), alpha_bar_prev.sqrt()
    coef2 = ((1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()
    coef1 = alpha_prev - coef2 * alpha
    ahead = (1 - coef2 - alpha * coef1) / coef1
    return x0 + ahead / (alpha - alpha_bar_earlier.sqrt()) * (x0 - earlier)


def learned_log_variance(
    variance_fraction: Tensor, log_beta_tilde: Tensor, log_beta: Tensor
) -> Tensor:
    """Log variance between its two bounds: Nichol and Dhariwal (2021), eq. 15.

    variance_fraction: (v + 1) / 2 of the network's output v; 0 gives log beta tilde, 1 gives log
        beta. Not clipped,
    as in the reference code, so values outside [0, 1] extrapolate.
    """
    return variance_fraction * log_beta + (1 - variance_fraction) * log_beta_tilde


def epsilon_loss(eps: Tensor, eps_hat: Tensor) -> Tensor:
    """l_simple per image:

    (B,) mean squared error of the predicted noise: DDPM, eq. 14. Lower is better.
    """
    return torch.mean((eps - eps_hat) ** 2, dim=(1, 2, 3))
