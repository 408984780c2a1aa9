"""How y is shown to an encoder that looks for its neighbours. The paper does not say.

The default is `as_is`: with the `imagenet` encoder it is the best on six tasks of seven
(precision@20; on `deblur_gauss`, `regularised` gains 0.045 +- 0.026), and the pseudo-inverse of a
noisy blur finds nothing (0.07 instead of 0.61, chance 0.08).
benchmarks/quality/query_preparation.py measures it.
"""

import torch
from torch import Tensor

from adir.errors import InputError
from adir.retrieval.encoders.base import resize
from adir.tasks.base import LinearOperator, Task

QUERIES = {
    "as_is": "the image of y, at y's own size; the encoder's preprocessing does the rest",
    "resized": "the whole image of y, squeezed here to the square that the encoder's network sees",
    "pseudo_inverse": "the pseudo-inverse of y, cut off to [-1, 1], at the size of x",
    "regularised": "the ridge-regression image of y, cut off to [-1, 1], at the size of x",
}
"""Choice: what it shows."""

# size of a pixel in [-1, 1], for the ridge; root mean square of the embedded corpus 0.53,
# Caltech-101 0.60
SIGNAL = 0.5
LEAST_RIDGE = 1e-4  # where y has no noise: its rounding to 8 bits is an error of 0.0023
ITERATIONS = 30


def query_image(task: Task, y: Tensor, how: str, input_size: int) -> Tensor:
    """(3, h, w) in [-1, 1]: y as `how` shows it to an encoder whose network sees input_size x
    input_size pixels.

    y: (C, h, w), one measurement of the task.  how: a key of QUERIES, else InputError.
    """
    require_query(how)
    if how == "as_is":
        return task.image_of(y)
    if how == "resized":
        return resize(task.image_of(y), input_size)
    operator = task.operator(task.image_shape(tuple(y.shape)))
    x = operator.A_dagger(y) if how == "pseudo_inverse" else ridge(operator, y)
    return x.clamp(-1, 1)


def require_query(how: str) -> None:
    """Raise InputError unless there is such a choice."""
    if how not in QUERIES:
        raise InputError(f"unknown query preparation {how!r}; choose one of {', '.join(QUERIES)}")


def ridge(operator: LinearOperator, y: Tensor) -> Tensor:
    """(3, H, W) minimiser of |A x - y|^2 + r |x|^2 with r = (sigma_y / SIGNAL)^2, or LEAST_RIDGE
    where that is larger.

    The posterior mean of independent pixels of standard deviation SIGNAL. By conjugate gradients
    (Hestenes and Stiefel, 1952) on (A^T A + r) x = A^T y, at most ITERATIONS steps, from zero.
    """
    r = max((operator.sigma_y / SIGNAL) ** 2, LEAST_RIDGE)
    x = torch.zeros(operator.image_shape, dtype=y.dtype)
    residual = operator.A_adjoint(y)
    direction, square = residual, residual.square().sum()
    enough = 1e-10 * square
    for _ in range(ITERATIONS):
        if square <= enough:
            break
        image = operator.A_adjoint(operator.A(direction)) + r * direction
        step = square / (direction * image).sum()
        x, residual = x + step * direction, residual - step * image
        square, before = residual.square().sum(), square
        direction = residual + square / before * direction
    return x
