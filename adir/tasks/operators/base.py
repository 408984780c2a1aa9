"""Linear operator A of y = A(x) + e, and the checks of image shapes that degradations share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adir.errors import InputError

Shape = tuple[int, ...]  # (3, H, W) of an image, (C, h, w) of a measurement


@dataclass(frozen=True, eq=False)
class Operator:
    """Linear operator from images (3, H, W) to measurements (C, h, w), with its norm and noise.

    x and y are float32 or float64, with or without a batch axis.

    Attributes:
        build: function that returns A for a dtype, on the CPU. A is a linear physics of deepinv, or
            any module with A, A_adjoint and A_dagger. A is built anew for each dtype, because
            casting a deepinv physics rounds its weights and drops the imaginary part of its Fourier
            buffers. The modules are cached per dtype and device.
        image_shape: (3, H, W).
        y_shape: (C, h, w).
        norm: largest singular value of A.
        sigma_y: standard deviation of the noise e on the scale of images in [-1, 1]. It is the
            standard deviation on the scale of 0 to 255, divided by 127.5.
    """

    build: Callable[[torch.dtype], nn.Module]
    image_shape: Shape
    y_shape: Shape
    norm: float
    sigma_y: float = 0.0
    _built: dict[tuple[torch.dtype, torch.device], nn.Module] = field(
        default_factory=dict, repr=False
    )

    @property
    def physics(self) -> nn.Module:
        """A as a module in float32 on the CPU: a physics of deepinv, or a similar module."""
        return self._physics_for(torch.empty(0))

    def A(self, x: Tensor) -> Tensor:
        """Return A x: (B, 3, H, W) to (B, C, h, w), or without the batch axis.

        Raises:
            ValueError: if x has another shape.
        """
        return self._apply("A", x, self.image_shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: (B, C, h, w) to (B, 3, H, W), or without the batch axis.

        Raises:
            ValueError: if y has another shape.
        """
        return self._apply("A_adjoint", y, self.y_shape)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return A_dagger y, the pseudo-inverse of A applied to y.

        The result is the image of smallest norm among the images with the smallest |A x - y|. It is
        exact except for blurs. For blurs, frequencies that A multiplies by less than 1e-5 are set
        to zero. The other frequencies, with their noise, are amplified by up to 1e5.
        """
        return self._apply("A_dagger", y, self.y_shape)

    def known(self) -> Tensor:
        """Return a (C, h, w) bool mask that is True at the entries of y that depend on x.

        It is False only in the hole of inpainting.
        """
        return self.A(torch.ones(self.image_shape)) > 0.5  # 1 if an entry has weights, else 0

    def _apply(self, method: str, z: Tensor, shape: Shape) -> Tensor:
        if tuple(z.shape[-3:]) != shape or z.ndim not in (3, 4):
            raise ValueError(f"{method} takes {shape}, batched or not, got shape {tuple(z.shape)}")
        apply, batch = getattr(self._physics_for(z), method), z if z.ndim == 4 else z[None]
        # On a CPU one image at a time, because a convolution's order of summation may depend on
        # the batch size, with some instruction sets.
        parts = batch.split(1) if z.device.type == "cpu" else [batch]
        result = torch.cat([apply(part) for part in parts])
        return result if z.ndim == 4 else result[0]

    def _physics_for(self, z: Tensor) -> nn.Module:
        key = (z.dtype, z.device)
        if key not in self._built:
            self._built[key] = self.build(z.dtype).to(z.device)
        return self._built[key]


def require_rgb(shape: Shape, what: str) -> None:
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(
            f"{what} needs an RGB image (3, H, W), got {tuple(shape)}; convert it to RGB"
        )


def require_room(image_shape: Shape, kernel: Tensor, what: str) -> None:
    smallest = len(kernel)
    if min(image_shape[1:]) < smallest:
        raise InputError(
            f"{what} reaches over {smallest} pixels, but the image has "
            f"{image_shape[2]}x{image_shape[1]}; use an image of at least {smallest}x{smallest}"
        )
