"""Restoration without a network: bicubic upsampling, the scaled adjoint, the pseudo-inverse.

What any sampler must beat.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser
from adir.samplers.base import Adaptation, Restoration, Watch, needs_pixels, one_by_one
from adir.tasks.base import LinearOperator, Task


def upsampled(operator: LinearOperator, y: Tensor) -> Tensor:
    """y (B, C, h, w) as an image (B, 3, H, W): grey in three channels, enlarged by bicubic
    interpolation (a = -0.5).

    Pixel centres are those of MATLAB, Pillow and OpenCV, which are super-resolution's default ones;
    borders are replicated, as such programs do, where A is circular. A y that is as large as the
    image comes back as it is.
    """
    image = y.expand(-1, 3, -1, -1)
    if image.shape[-2:] == operator.image_shape[-2:]:
        return image.clone()
    # antialias changes nothing when enlarging, but for the kernel: a = -0.5, where torch's other
    # one has -0.75.
    return torch.nn.functional.interpolate(
        image, size=operator.image_shape[-2:], mode="bicubic", align_corners=False, antialias=True
    )


def scaled_adjoint(operator: LinearOperator, y: Tensor) -> Tensor:
    """c A^T y with c = (values of x) / (values of y), which keeps the mean: s^2 A^T y for
    super-resolution by s.

    That is what the authors' page shows as bicubic.
    """
    values = torch.Size(operator.image_shape).numel()
    return values / y[0].numel() * operator.A_adjoint(y)


def pseudo_inverse(operator: LinearOperator, y: Tensor) -> Tensor:
    """A_dagger y: the image of smallest norm that explains y best.

    Noise is amplified without bound.
    """
    return operator.A_dagger(y)


@dataclass(frozen=True)
class Direct:
    """One of the three as a sampler: no network, no steps, no randomness."""

    METHODS: ClassVar[dict[str, Callable[[LinearOperator, Tensor], Tensor]]] = {
        "bicubic": upsampled,
        "adjoint": scaled_adjoint,
        "pseudo_inverse": pseudo_inverse,
    }
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str
    n_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.name not in self.METHODS:
            raise ValueError(
                f"unknown direct method {self.name!r}; choose one of {', '.join(self.METHODS)}"
            )

    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """x_hat from y (B, C, h, w)."""
        method = self.METHODS[self.name]
        return one_by_one(
            lambda y, _: Watch(y).finish(method(operator, y), "y has it already", 0), y, generators
        )

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Mode none only: without a network there is nothing to adapt."""
        if mode.trains:
            return (
                f"sampler {self.name} uses no network, so adaptation={mode.name} changes "
                "nothing: use adaptation=none"
            )
        return needs_pixels(self.name, backbone, task)
