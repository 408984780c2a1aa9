"""The velocity that some networks predict in place of the noise (Salimans and Ho, 2022, appendix
D).
"""

from torch import Tensor


def velocity(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, of the x_t that x0 and eps make. alpha_bar:

    (B, 1, 1, 1) or scalar.
    """
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0


def eps_of_velocity(x_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise in x_t where v is its velocity: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t."""
    return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x_t
