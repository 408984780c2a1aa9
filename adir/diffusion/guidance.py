"""Guidance towards y = A x + e by the relaxed gradient of ADIR (arXiv 2212.03221), Algorithm 1.

A and A_adjoint are linear maps on batches; x_t, mu and eps are (B, 3, H, W), y is (B, C, h, w). No
function here differentiates through the network.
"""

from collections.abc import Callable

from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]

STABLE_STEP = 0.9
"""Bound on 2 s Sigma ||A||^2.

The guided step multiplies A mu - y by 1 minus that: oscillation above 1, divergence above 2.
"""


def noisy_measurement(y: Tensor, A_eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """y_t = sqrt(alpha_bar) y + sqrt(1 - alpha_bar) A eps: the measurement that an image at that
    noise level would give.
    """
    return alpha_bar.sqrt() * y + (1 - alpha_bar).sqrt() * A_eps


def relaxed_gradient(
    mu: Tensor, eps: Tensor, y: Tensor, alpha_bar: Tensor, A: LinearMap, A_adjoint: LinearMap
) -> Tensor:
    """g = -2 A^T (A mu - y_t), with y_t = `noisy_measurement(y, A eps, alpha_bar)`; shaped as mu.

    A is linear, so A mu - y_t = A(mu - sqrt(1 - alpha_bar) eps) - sqrt(alpha_bar) y: one
    application of A, not two.
    """
    residual = A(mu - (1 - alpha_bar).sqrt() * eps) - alpha_bar.sqrt() * y
    return -2 * A_adjoint(residual)


def guided_step_size(
    guidance_scale: float, variance: Tensor, operator_norm: float, cap: bool
) -> tuple[Tensor, Tensor]:
    """(s Sigma, capped): the factor of the gradient, and where it was lowered to keep the step
    stable.

    variance: Sigma, any shape that broadcasts with mu.  operator_norm: ||A||, the largest singular
        value.
    With cap, 2 s Sigma ||A||^2 <= STABLE_STEP everywhere; without it the literal algorithm, which
    may diverge. capped is a boolean tensor shaped as variance.
    """
    step = guidance_scale * variance
    bound = STABLE_STEP / (2 * operator_norm**2)
    capped = step > bound
    return (step.clamp(max=bound), capped) if cap else (step, capped & False)


def back_projected(x: Tensor, y: Tensor, A: LinearMap, A_dagger: LinearMap) -> Tensor:
    """x + A_dagger (y - A x): of the images that explain y as well as any does, the nearest to x;
    what A cannot see stays.
    """
    return x + A_dagger(y - A(x))
