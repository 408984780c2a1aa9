"""Operators that act on each pixel alone: colorization and inpainting."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adir.errors import InputError
from adir.tasks.operators.base import Operator, Shape, require_rgb


@dataclass(frozen=True)
class Colorization:
    """Degradation to a grey image, which is the luma of x by Rec. 601.

    The weights sum to one. deepinv's own rec601 weights sum to 1.00003.
    """

    name: ClassVar[str] = "colorization"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = True
    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        if len(self.weights) != 3 or not abs(sum(self.weights) - 1) < 1e-9:
            raise InputError(
                f"colorization weights {tuple(self.weights)}: give three weights that sum to one, "
                "otherwise grey levels shift"
            )

    def __call__(self, image_shape: Shape) -> Operator:
        require_rgb(image_shape, "colorization")
        weights = torch.tensor(list(self.weights), dtype=torch.float64)

        def build(dtype: torch.dtype) -> nn.Module:
            from deepinv.physics import Decolorize

            physics: nn.Module = Decolorize(channels=3, srf=tuple(self.weights)).to(dtype)
            # Set again, because deepinv's constructor rounds the weights to float32.
            physics.srf = weights.to(dtype).view(1, 3, 1, 1)
            physics.mask = weights.norm().to(dtype).view(1, 1, 1, 1)
            return physics

        return Operator(build, image_shape, (1, *image_shape[1:]), norm=weights.norm().item())

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return (3, H, W) for a y_shape of (1, H, W).

        Raises:
            InputError: if y_shape is not the shape of a grey image.
        """
        if len(y_shape) != 3 or y_shape[0] != 1:
            raise InputError(
                f"y of colorization is a grey image (1, H, W), got {tuple(y_shape)}; convert it "
                "to grey"
            )
        return (3, y_shape[1], y_shape[2])


def keeping(mask: Tensor) -> nn.Module:
    """Return deepinv's inpainting physics for a mask (3, H, W).

    The mask is 1 for pixels that are kept and 0 for pixels that are lost.
    """
    from deepinv.physics import Inpainting

    physics: nn.Module = Inpainting(img_size=tuple(mask.shape), mask=mask)
    return physics


class MaskedPixels:
    """Base class of inpainting degradations: y is 0 in the hole and equals the image elsewhere.

    A subclass defines the mask.
    """

    def __call__(self, image_shape: Shape) -> Operator:
        """Return A for images (3, H, W).

        Raises:
            InputError: if the hole contains no pixel or all pixels.
        """
        require_rgb(image_shape, "inpainting")
        mask = self.mask(image_shape)
        if not 0 < mask.sum() < mask.numel():
            raise InputError(
                f"inpainting: the hole of {self} contains no pixel or all pixels of an image of "
                f"shape {tuple(image_shape)}; use another hole or larger images"
            )
        return Operator(lambda dtype: keeping(mask.to(dtype)), image_shape, image_shape, norm=1.0)

    def mask(self, image_shape: Shape) -> Tensor:
        """Return the mask (3, H, W) float64: 1 for known pixels, 0 in the hole."""
        raise NotImplementedError

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return y_shape, because y is as large as the image."""
        require_rgb(y_shape, "y of inpainting")
        return y_shape


@dataclass(frozen=True)
class BoxInpainting(MaskedPixels):
    """Degradation by a centred rectangular hole.

    The sides of the hole are `side` times the sides of the image, with `side` between 0 and 1.
    """

    name: ClassVar[str] = "box_inpainting"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = False
    side: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.side < 1:
            raise InputError(f"box inpainting side {self.side!r}: give a fraction between 0 and 1")

    def mask(self, image_shape: Shape) -> Tensor:
        """Return the mask (3, H, W) float64: 1 for known pixels, 0 in the hole."""
        mask = torch.ones(image_shape, dtype=torch.float64)
        rows, columns = (round(self.side * n) for n in image_shape[1:])
        top, left = (image_shape[1] - rows) // 2, (image_shape[2] - columns) // 2
        mask[:, top : top + rows, left : left + columns] = 0
        return mask


@dataclass(frozen=True)
class RandomInpainting(MaskedPixels):
    """Degradation that sets a random fraction `lost` of the pixels to 0, in all channels alike.

    `lost` is between 0 and 1. The mask is part of the task: it is drawn from `seed` and is the same
    for all images of one size. DPS (Chung et al., 2023) and DAPS (Zhang et al., 2025) draw a new
    mask for every image.
    """

    name: ClassVar[str] = "random_inpainting"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = False
    lost: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lost < 1:
            raise InputError(
                f"random inpainting: lost={self.lost!r} must be a fraction between 0 and 1"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"random inpainting seed {self.seed!r}: give a whole number")

    def mask(self, image_shape: Shape) -> Tensor:
        """Return the mask (3, H, W) float64: 1 for known pixels, 0 for lost ones.

        It is 0 at round(lost * H * W) pixels.
        """
        _, height, width = image_shape
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(self.seed))
        mask = torch.ones(height * width, dtype=torch.float64)
        mask[order[: round(self.lost * height * width)]] = 0
        return mask.reshape(1, height, width).repeat(3, 1, 1)
