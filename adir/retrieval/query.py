"""Query image: the image, made from a measurement y, whose nearest neighbours are searched.

The paper does not specify the query image. QUERIES lists the four ways to make it; the default is
`as_is`. With the `imagenet` encoder, `as_is` has the highest precision@20 on six of seven tasks,
sometimes tied. Precision@20 is the share of the 20 neighbours that have the category of x.
On `deblur_gauss`, `regularised` is better by 0.045 +- 0.026 (standard error). The pseudo-inverse of
a noisy blur fails: on `deblur`, its precision is 0.07 instead of 0.61, while images chosen at
random have 0.08. benchmarks/quality/query_preparation.py makes these measurements.
"""

import torch
from torch import Tensor

from adir.errors import InputError
from adir.retrieval.encoders.base import resize
from adir.tasks.base import LinearOperator, Task

QUERIES = {
    "as_is": "y as an RGB image of its own size; only the encoder's preprocessing is applied",
    "resized": "y as an RGB image, resized without cropping to the encoder's square input",
    "pseudo_inverse": "the pseudo-inverse of y, clamped to [-1, 1], at the size of x",
    "regularised": "the ridge-regression estimate from y, clamped to [-1, 1], at the size of x",
}
"""Description of each query preparation, by name."""

# prior standard deviation of a pixel in [-1, 1] for the ridge; the root mean square is 0.53 in the
# embedded corpus and 0.60 in Caltech-101
SIGNAL = 0.5
LEAST_RIDGE = 1e-4  # for y without noise: rounding to 8 bits has a standard deviation of 0.0023
ITERATIONS = 30


def query_image(task: Task, y: Tensor, how: str, input_size: int) -> Tensor:
    """Return the query image of a measurement, with shape (3, h, w) and values in [-1, 1].

    Args:
        task: the task that made the measurement.
        y: (C, h, w) measurement.
        how: way to make the query image; a key of QUERIES.
        input_size: side in pixels of the encoder network's square input.

    Raises:
        InputError: if `how` is unknown.
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
    """Raise InputError if `how` is not a key of QUERIES."""
    if how not in QUERIES:
        raise InputError(f"unknown query preparation {how!r}; choose one of {', '.join(QUERIES)}")


def ridge(operator: LinearOperator, y: Tensor) -> Tensor:
    """Return the (3, H, W) minimiser of |A x - y|^2 + r |x|^2.

    r is the larger of (sigma_y / SIGNAL)^2 and LEAST_RIDGE; sigma_y is the standard deviation of
    the noise of y. For r = (sigma_y / SIGNAL)^2, the result is the posterior mean of x given y, if
    the pixels of x are independent with mean 0 and standard deviation SIGNAL. The system
    (A^T A + r) x = A^T y is solved by conjugate gradients (Hestenes and Stiefel, 1952), starting
    from zero, in at most ITERATIONS steps.
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
