"""Velocity prediction, an alternative to noise prediction (Salimans and Ho, 2022, appendix D)."""

from torch import Tensor


def velocity(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0.

    alpha_bar has shape (B, 1, 1, 1) or is a scalar.
    """
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0


def eps_of_velocity(x_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the noise in x_t with velocity v: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t."""
    return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x_t
