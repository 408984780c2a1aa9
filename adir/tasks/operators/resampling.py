"""Super-resolution operators: bicubic with circular or mirrored borders, and block means.

This module does not import deepinv.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from adir.errors import InputError
from adir.tasks.operators.base import Operator, Shape, require_rgb, require_room
from adir.tasks.operators.kernels import (
    bicubic_kernel,
    downsampling_matrix,
    downsampling_norm,
    filter_2d,
)


class CircularDownsampling(nn.Module):
    """Module that filters an image circularly and keeps every factor-th row and column.

    A and A_adjoint repeat deepinv's operations one by one, so that a restoration need not import
    deepinv, which takes 2 s. A_dagger has the closed form A^T (A A^T)^-1. deepinv computes A_dagger
    by conjugate gradients, which stall while A A_dagger y still differs from y by a relative error
    of 1e-4 to 8e-4 (measured in float64, factors 4 and 8). With a lower tolerance, conjugate
    gradients take minutes for a 256 x 256 image.

    Args:
        kernel: (n,) weights, with n even; entry j weighs the pixel at offset n/2 - j.
        factor: factor of the downsampling.
        image_shape: (3, H, W).
        dtype: dtype of the weights.
    """

    filter: Tensor
    """(1, 1, n, n) weights of the pixels."""
    gram: Tensor
    """(H / factor, W / factor) diagonal of A A^T in Fourier space; see `downsampling_norm`."""

    def __init__(self, kernel: Tensor, factor: int, image_shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.factor, self.reach = factor, len(kernel) // 2
        _, height, width = image_shape
        self.register_buffer("filter", filter_2d(kernel, dtype))
        padded = functional.pad(
            self.filter[0, 0], (0, width - len(kernel), 0, height - len(kernel))
        )
        response = torch.fft.fft2(padded.roll((-self.reach, -self.reach), (0, 1)))
        power = (response.conj() * response).real
        gram = power.reshape(factor, height // factor, factor, width // factor).mean((0, 2))
        self.register_buffer("gram", gram)

    def A(self, x: Tensor) -> Tensor:
        """Return A x: (B, 3, H, W) to (B, 3, h, w)."""
        x = functional.pad(x, (self.reach - 1, self.reach) * 2, mode="circular")
        return functional.conv2d(x, self._weights(), groups=3)[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: (B, 3, h, w) to (B, 3, H, W)."""
        s, reach = self.factor, self.reach
        spread = y.new_zeros(*y.shape[:2], s * y.shape[2], s * y.shape[3])
        spread[..., ::s, ::s] = y
        x = functional.conv_transpose2d(spread, self._weights(), groups=3)
        # Add the pixels beyond each border to the opposite side, in deepinv's order. A pair is
        # (source rows or columns in x, destination in folded).
        sides = (
            (slice(-reach, None), slice(None, reach)),
            (slice(reach - 1, -reach), slice(None)),
            (slice(None, reach - 1), slice(1 - reach, None)),
        )
        folded = x[..., reach - 1 : -reach, reach - 1 : -reach].clone()
        for (rows, to_rows), (columns, to_columns) in itertools.product(sides, repeat=2):
            if (rows, columns) != (sides[1][0], sides[1][0]):
                folded[..., to_rows, to_columns] += x[..., rows, columns]
        return folded

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return the x (B, 3, H, W) of smallest norm with A x = y, for y (B, 3, h, w)."""
        return self.A_adjoint(torch.fft.ifft2(torch.fft.fft2(y) / self.gram).real)

    def _weights(self) -> Tensor:
        """Return the filter as (3, 1, n, n) weights for torch's convolutions.

        The filter is flipped, because torch correlates and deepinv convolves.
        """
        return self.filter.flip(-2, -1).expand(3, -1, -1, -1).contiguous()


@dataclass(frozen=True)
class Downsampling:
    """Base class of downsamplings.

    Attributes:
        factor: ratio of the sides of x to the sides of y, a whole number of at least 2.
    """

    factor: int

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 2:
            raise InputError(
                f"super-resolution factor {self.factor!r}: give a whole number of at least 2"
            )

    @property
    def label(self) -> str:
        """The name in error messages."""
        return f"super-resolution x{self.factor}"

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return (3, factor * h, factor * w) for a y_shape of (3, h, w).

        Raises:
            InputError: if y has not three channels.
        """
        require_rgb(y_shape, f"y of {self.label}")
        return (3, y_shape[1] * self.factor, y_shape[2] * self.factor)

    def y_shape(self, image_shape: Shape) -> Shape:
        """Return (3, H / factor, W / factor) for an image_shape of (3, H, W).

        Raises:
            InputError: if the image has not three channels, or if a side is no multiple of the
                factor.
        """
        require_rgb(image_shape, self.label)
        _, height, width = image_shape
        if height % self.factor or width % self.factor:
            raise InputError(
                f"{self.label} needs sides that are multiples of {self.factor}, but the image has "
                f"{width}x{height}; crop it"
            )
        return (3, height // self.factor, width // self.factor)

    def separable(self, image_shape: Shape, matrix: Callable[[int], Tensor]) -> Operator:
        """Return the downsampling that applies a matrix along each side of an image (3, H, W).

        `matrix` returns the matrix (n / factor, n) for a side of n pixels.

        Raises:
            InputError: as `y_shape`.
        """
        y_shape = self.y_shape(image_shape)
        rows, columns = matrix(image_shape[1]), matrix(image_shape[2])
        return Operator(
            build=lambda dtype: SeparableDownsampling(rows, columns, dtype),
            image_shape=image_shape,
            y_shape=y_shape,
            norm=(torch.linalg.matrix_norm(rows, 2) * torch.linalg.matrix_norm(columns, 2)).item(),
        )


@dataclass(frozen=True)
class SuperResolution(Downsampling):
    """Degradation by bicubic downsampling, as MATLAB's imresize with antialiasing (a = -0.5).

    The support of the kernel is 4 * factor pixels.

    Attributes:
        factor: factor of the downsampling.
        centre: position of the kernel's centre for sample 0, in pixels of the large image. None
            means (factor - 1) / 2, the middle of the block that a low-resolution pixel covers, as
            in MATLAB, Pillow and OpenCV. deepinv's own "bicubic" uses 0.5 for every factor, which
            shifts the image by 1 pixel at factor 4 and by 3 at factor 8. The authors' cropped
            images do not show whether they used (factor - 1) / 2 or 0.5.
    """

    name: ClassVar[str] = "super_resolution"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = True
    centre: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre is not None and not 0 <= self.centre <= self.factor - 1:
            raise InputError(
                f"super-resolution centre {self.centre!r}: give a value from 0 to {self.factor - 1}"
            )

    def __call__(self, image_shape: Shape) -> Operator:
        y_shape = self.y_shape(image_shape)
        _, height, width = image_shape
        kernel = bicubic_kernel(
            self.factor, (self.factor - 1) / 2 if self.centre is None else self.centre
        )
        require_room(image_shape, kernel, self.label)
        return Operator(
            build=lambda dtype: CircularDownsampling(kernel, self.factor, image_shape, dtype),
            image_shape=image_shape,
            y_shape=y_shape,
            norm=downsampling_norm(kernel, self.factor, height, width),
        )


class SeparableDownsampling(nn.Module):
    """Module that multiplies each channel X (H, W) by two matrices: rows @ X @ columns^T.

    It is used where borders are not circular. Its A_dagger uses pseudo-inverses, because A A^T is
    diagonal in Fourier space only for circular borders.

    Args:
        rows: (h, H) float64, of full row rank.
        columns: (w, W) float64, of full row rank.
        dtype: dtype of the module's tensors.
    """

    rows: Tensor
    columns: Tensor
    rows_dagger: Tensor
    columns_dagger: Tensor

    def __init__(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        for name, matrix in (("rows", rows), ("columns", columns)):
            self.register_buffer(name, matrix.to(dtype))
            self.register_buffer(f"{name}_dagger", torch.linalg.pinv(matrix).to(dtype))

    def A(self, x: Tensor) -> Tensor:
        """Return A x: (B, 3, H, W) to (B, 3, h, w)."""
        return self.rows @ x @ self.columns.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: (B, 3, h, w) to (B, 3, H, W)."""
        return self.rows.T @ y @ self.columns

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return the x (B, 3, H, W) of smallest norm with A x = y, for y (B, 3, h, w)."""
        return self.rows_dagger @ y @ self.columns_dagger.T


@dataclass(frozen=True)
class MeanDownsampling(Downsampling):
    """Degradation to the means of factor x factor blocks, as `sr4` in DDRM (Kawar et al., 2022).

    All singular values are 1 / factor.
    """

    name: ClassVar[str] = "mean_downsampling"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = True

    def __call__(self, image_shape: Shape) -> Operator:
        def matrix(n: int) -> Tensor:
            return (
                torch.eye(n // self.factor, dtype=torch.float64).repeat_interleave(self.factor, 1)
                / self.factor
            )

        return self.separable(image_shape, matrix)

    @property
    def label(self) -> str:
        """The name in error messages."""
        return f"the mean of {self.factor}x{self.factor}"


@dataclass(frozen=True)
class ReflectiveSuperResolution(Downsampling):
    """`SuperResolution` with mirrored borders, as `sr_bicubic4` in DDRM.

    The mirror image repeats the border pixel. DDRM's code sets singular values along a side to zero
    if they are below 0.03. At factor 4 this has no effect, because the smallest singular value is
    0.35.
    """

    name: ClassVar[str] = "reflective_super_resolution"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = True

    def __call__(self, image_shape: Shape) -> Operator:
        kernel = bicubic_kernel(self.factor, (self.factor - 1) / 2)
        require_rgb(image_shape, self.label)
        require_room(image_shape, kernel, self.label)
        return self.separable(
            image_shape, lambda n: downsampling_matrix(kernel, self.factor, n, mirrored=True)
        )
