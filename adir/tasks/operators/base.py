"""An operator A of y = A(x) + e: a linear physics with its norm, and what every degradation
requires of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adir.errors import InputError

Shape = tuple[int, ...]  # (3, H, W) of an image, (C, h, w) of a measurement


@dataclass(frozen=True, eq=False)
class Operator:
    """A linear A from images (3, H, W) to measurements (C, h, w), single or batched, in float32 or
    float64.

    build: A for a dtype, on the CPU: a linear physics of deepinv, or any module with its A,
        A_adjoint and A_dagger. It is built per dtype because casting a deepinv physics rounds its
        weights and drops the imaginary part of its Fourier buffers; copies are kept per dtype and
        device.
    norm: largest singular value of A.
    sigma_y: standard deviation of e in units of [-1, 1], that is, grey levels of 255 divided by
        127.5.
    `physics` is the float32 module.
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
        """The module in float32 on the CPU."""
        return self._physics_for(torch.empty(0))

    def A(self, x: Tensor) -> Tensor:
        """A x:

        (B, 3, H, W) to (B, C, h, w), or without the batch axis. Raises ValueError on any other
        shape.
        """
        return self._apply("A", x, self.image_shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Transpose of A, applied to y."""
        return self._apply("A_adjoint", y, self.y_shape)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Pseudo-inverse of A, applied to y: of the images with the smallest |A x - y|, the one of
        smallest norm.

        Exact but for the blurs: there, frequencies that A damps below 1e-5 are set to zero, and the
        others are amplified, up to 1e5 times, noise included.
        """
        return self._apply("A_dagger", y, self.y_shape)

    def known(self) -> Tensor:
        """(C, h, w) bool: the entries of y that depend on x at all.

        False in the hole of inpainting only.
        """
        return self.A(torch.ones(self.image_shape)) > 0.5  # weights sum to one, or there are none

    def _apply(self, method: str, z: Tensor, shape: Shape) -> Tensor:
        if tuple(z.shape[-3:]) != shape or z.ndim not in (3, 4):
            raise ValueError(f"{method} takes {shape}, batched or not, got shape {tuple(z.shape)}")
        apply, batch = getattr(self._physics_for(z), method), z if z.ndim == 4 else z[None]
        # On a CPU each alone: the order of a convolution's sums may follow the size of the batch,
        # by the instruction set.
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
            f"{what} needs an RGB image (3, H, W), got {tuple(shape)}: convert it to RGB"
        )


def require_room(image_shape: Shape, kernel: Tensor, what: str) -> None:
    smallest = len(kernel)
    if min(image_shape[1:]) < smallest:
        raise InputError(
            f"{what} reaches over {smallest} pixels, the image has "
            f"{image_shape[2]}x{image_shape[1]}: "
            f"take one of at least {smallest}x{smallest}"
        )
