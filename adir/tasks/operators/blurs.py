"""Operators of deblurring: circular blurs by a box and by a Gaussian."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adir.errors import InputError
from adir.tasks.operators.base import Operator, Shape, require_rgb, require_room
from adir.tasks.operators.kernels import filter_2d, frequency_response, gaussian_kernel


def circular_blur(image_shape: Shape, kernel: Tensor, what: str) -> Operator:
    """Return the operator of a circular blur with the 2-D kernel outer(kernel, kernel).

    Args:
        image_shape: (3, H, W).
        kernel: (n,) weights; entry j weighs the pixel at offset n//2 - j.
        what: name of the blur, for errors.
    """
    require_rgb(image_shape, what)
    require_room(image_shape, kernel, what)
    _, height, width = image_shape

    def build(dtype: torch.dtype) -> nn.Module:
        from deepinv.physics import BlurFFT  # here, because deepinv takes 2 s to import

        return BlurFFT(img_size=image_shape, filter=filter_2d(kernel, dtype))

    return Operator(
        build,
        image_shape=image_shape,
        y_shape=image_shape,
        norm=(
            frequency_response(kernel, height).max() * frequency_response(kernel, width).max()
        ).item(),
    )


@dataclass(frozen=True)
class BoxBlur:
    """Degradation by a box blur: y[n] is the mean of x[n - (size-1)//2 .. n + size//2].

    The mean is taken along rows and along columns. The offsets are -2 to +2 at size 5, which is
    centred, and -1 to +2 at size 4.
    """

    name: ClassVar[str] = "box_blur"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = True
    size: int

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"box blur size {self.size!r}: give a whole number of at least 1")

    def __call__(self, image_shape: Shape) -> Operator:
        kernel = torch.full((self.size,), 1 / self.size, dtype=torch.float64)
        return circular_blur(image_shape, kernel, f"the {self.size}x{self.size} box blur")

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return y_shape, because y is as large as the image."""
        require_rgb(y_shape, "y of the box blur")
        return y_shape


@dataclass(frozen=True)
class GaussianBlur:
    """Degradation by a centred Gaussian blur, cut to a window of size x size pixels.

    Attributes:
        std: standard deviation in pixels.
        size: side of the window in pixels, an odd number.
    """

    name: ClassVar[str] = "gaussian_blur"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = True
    std: float
    size: int

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise InputError(f"Gaussian blur std {self.std!r}: give a positive number of pixels")
        if (
            isinstance(self.size, bool)
            or not isinstance(self.size, int)
            or self.size < 1
            or self.size % 2 == 0
        ):
            raise InputError(f"Gaussian blur size {self.size!r}: give an odd number of pixels")

    def __call__(self, image_shape: Shape) -> Operator:
        return circular_blur(
            image_shape,
            gaussian_kernel(self.std, self.size),
            f"the {self.size}x{self.size} Gaussian blur",
        )

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return y_shape, because y is as large as the image."""
        require_rgb(y_shape, "y of the Gaussian blur")
        return y_shape
