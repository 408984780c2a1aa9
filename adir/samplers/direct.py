"""Restoration without a network: bicubic upsampling, the scaled adjoint, the pseudo-inverse.

Every sampler should beat these baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser
from adir.checks import require_choice
from adir.samplers.base import (
    Adaptation,
    Restoration,
    StepCounter,
    needs_pixels,
    separately,
)
from adir.tasks.base import LinearOperator, Task


def upsampled(operator: LinearOperator, y: Tensor) -> Tensor:
    """Return y (B, C, h, w) as an image (B, 3, H, W), enlarged by bicubic interpolation.

    The bicubic kernel has a = -0.5. A grey y is copied to three channels. If y already has the size
    of the image, it is not interpolated. Pixel centres are those of MATLAB, Pillow and OpenCV, and
    of `SuperResolution` by default. Borders are replicated, as in MATLAB, Pillow and OpenCV, even
    if A has circular borders.
    """
    image = y.expand(-1, 3, -1, -1)
    if image.shape[-2:] == operator.image_shape[-2:]:
        return image.clone()
    # For enlarging, antialias only selects the kernel: a = -0.5 instead of torch's usual -0.75.
    return torch.nn.functional.interpolate(
        image, size=operator.image_shape[-2:], mode="bicubic", align_corners=False, antialias=True
    )


def scaled_adjoint(operator: LinearOperator, y: Tensor) -> Tensor:
    """Return c A^T y, where the factor c makes the mean equal to the mean of y.

    c is the number of values of x divided by the number of values of y. For super-resolution by s,
    the result is s^2 A^T y. The ADIR authors' web page shows this image under the name "bicubic".
    """
    values = torch.Size(operator.image_shape).numel()
    return values / y[0].numel() * operator.A_adjoint(y)


def pseudo_inverse(operator: LinearOperator, y: Tensor) -> Tensor:
    """Return A_dagger y, the image of smallest norm among the best fits to y.

    The noise of y is not suppressed: its component along a singular vector of A is divided by the
    singular value.
    """
    return operator.A_dagger(y)


@dataclass(frozen=True)
class Direct:
    """Sampler that restores y by one formula, without network, steps or random numbers.

    `name` selects the formula from `METHODS`: `bicubic`, `adjoint` or `pseudo_inverse`.
    """

    METHODS: ClassVar[dict[str, Callable[[LinearOperator, Tensor], Tensor]]] = {
        "bicubic": upsampled,
        "adjoint": scaled_adjoint,
        "pseudo_inverse": pseudo_inverse,
    }
    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str
    n_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require_choice("direct method", self.name, self.METHODS)

    @separately
    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w)."""
        x_hat = self.METHODS[self.name](operator, y)
        return StepCounter(y).finish(x_hat, "check the values of y", 0)

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are.

        The sampler runs only with adaptation=none, because it has no network to adapt.
        """
        if mode.trains:
            return (
                f"sampler {self.name} uses no network, so adaptation={mode.name} changes "
                "nothing: use adaptation=none"
            )
        return needs_pixels(self.name, backbone, task)
