"""Guidance towards y = A x + e by the relaxed gradient of ADIR (arXiv 2212.03221), Algorithm 1.

A and A_adjoint are linear maps on batches. x_t, mu and eps are (B, 3, H, W), and y is (B, C, h, w).
No function here differentiates through the network.
"""

from collections.abc import Callable

from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]

STABLE_STEP = 0.9
"""The upper bound on 2 s Sigma ||A||^2 that keeps the guided step stable.

The guided step multiplies A mu - y by 1 - 2 s Sigma ||A||^2. With 2 s Sigma ||A||^2 above 1 the
step oscillates, and above 2 it diverges.
"""


def relaxed_gradient(
    mu: Tensor, eps: Tensor, y: Tensor, alpha_bar: Tensor, A: LinearMap, A_adjoint: LinearMap
) -> Tensor:
    """Return g = -2 A^T (A mu - y_t), shaped as mu.

    y_t = sqrt(alpha_bar) y + sqrt(1 - alpha_bar) A eps is the measurement of an image at the noise
    level of alpha_bar. A is applied once instead of twice. This is possible because A is linear:
    A mu - y_t = A(mu - sqrt(1 - alpha_bar) eps) - sqrt(alpha_bar) y.
    """
    residual = A(mu - (1 - alpha_bar).sqrt() * eps) - alpha_bar.sqrt() * y
    return -2 * A_adjoint(residual)


def guided_step_size(
    guidance_scale: float, variance: Tensor, operator_norm: float, cap: bool
) -> tuple[Tensor, Tensor]:
    """Return the factor s Sigma of the gradient, and a mask of its capped entries.

    Args:
        guidance_scale: s.
        variance: Sigma, of any shape that broadcasts with mu.
        operator_norm: ||A||, the largest singular value of A.
        cap: True limits s Sigma so that 2 s Sigma ||A||^2 <= STABLE_STEP everywhere. False is the
            algorithm of the paper, which may diverge.

    Returns:
        Two tensors shaped as variance. The mask is boolean and True at the entries of s Sigma that
        the cap lowered.
    """
    step = guidance_scale * variance
    bound = STABLE_STEP / (2 * operator_norm**2)
    capped = step > bound
    return (step.clamp(max=bound), capped) if cap else (step, capped & False)


def back_projected(x: Tensor, y: Tensor, A: LinearMap, A_dagger: LinearMap) -> Tensor:
    """Return x + A_dagger (y - A x), the image nearest to x among those that fit y best.

    The component of x in the null space of A is unchanged.
    """
    return x + A_dagger(y - A(x))
