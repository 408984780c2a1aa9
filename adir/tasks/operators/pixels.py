"""Operators that act on each pixel alone: colorization and inpainting."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adir.errors import InputError
from adir.tasks.operators.base import Operator, Shape, require_rgb


@dataclass(frozen=True)
class Colorization:
    """y is the grey image, luma by Rec. 601. deepinv's own rec601 weights sum to 1.00003; these sum
    to one.
    """

    name: ClassVar[str] = "colorization"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        if len(self.weights) != 3 or not abs(sum(self.weights) - 1) < 1e-9:
            raise InputError(
                f"colorization weights {tuple(self.weights)}: give three that sum to one, or "
                "grey shifts"
            )

    def __call__(self, image_shape: Shape) -> Operator:
        require_rgb(image_shape, "colorization")
        weights = torch.tensor(list(self.weights), dtype=torch.float64)

        def build(dtype: torch.dtype) -> nn.Module:
            from deepinv.physics import Decolorize

            physics: nn.Module = Decolorize(channels=3, srf=tuple(self.weights)).to(dtype)
            physics.srf = weights.to(dtype).view(
                1, 3, 1, 1
            )  # deepinv rounds the weights to float32 on the way in
            physics.mask = weights.norm().to(dtype).view(1, 1, 1, 1)
            return physics

        return Operator(build, image_shape, (1, *image_shape[1:]), norm=weights.norm().item())

    def image_shape(self, y_shape: Shape) -> Shape:
        """(1, H, W) to (3, H, W)."""
        if len(y_shape) != 3 or y_shape[0] != 1:
            raise InputError(
                f"y of colorization is a grey image (1, H, W), got {tuple(y_shape)}: convert it "
                "to grey"
            )
        return (3, y_shape[1], y_shape[2])


def keeping(mask: Tensor) -> nn.Module:
    """deepinv's inpainting of images of the mask's shape (3, H, W): 1 where a pixel is kept, 0
    where it is lost.
    """
    from deepinv.physics import Inpainting

    physics: nn.Module = Inpainting(img_size=tuple(mask.shape), mask=mask)
    return physics


class MaskedPixels:
    """Base of the inpaintings: y is 0 where the mask is, and the image elsewhere.

    A subclass draws the mask.
    """

    def __call__(self, image_shape: Shape) -> Operator:
        """A for images (3, H, W). Raises InputError where the mask hides no pixel, or all."""
        require_rgb(image_shape, "inpainting")
        mask = self.mask(image_shape)
        if not 0 < mask.sum() < mask.numel():
            raise InputError(
                f"inpainting: {self} leaves nothing to do or to go by in {tuple(image_shape)}"
            )
        return Operator(lambda dtype: keeping(mask.to(dtype)), image_shape, image_shape, norm=1.0)

    def mask(self, image_shape: Shape) -> Tensor:
        """Return (3, H, W) float64: 1 where the pixel is known, 0 where it is not."""
        raise NotImplementedError

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape of x, which is that of y."""
        require_rgb(y_shape, "y of inpainting")
        return y_shape


@dataclass(frozen=True)
class BoxInpainting(MaskedPixels):
    """A centred hole of `side` times each side of the image; y is 0 inside it and the image
    outside.
    """

    name: ClassVar[str] = "box_inpainting"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = False
    side: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.side < 1:
            raise InputError(
                f"inpainting hole of {self.side!r} of the side: give a fraction between 0 and 1"
            )

    def mask(self, image_shape: Shape) -> Tensor:
        """(3, H, W) float64: 1 where the pixel is known, 0 in the hole."""
        mask = torch.ones(image_shape, dtype=torch.float64)
        rows, columns = (round(self.side * n) for n in image_shape[1:])
        top, left = (image_shape[1] - rows) // 2, (image_shape[2] - columns) // 2
        mask[:, top : top + rows, left : left + columns] = 0
        return mask


@dataclass(frozen=True)
class RandomInpainting(MaskedPixels):
    """Pixels lost at random, `lost` of all, in all channels alike; y is 0 there and the image
    elsewhere.

    The mask is drawn once for each size of image, by `seed`, and is the same for every image of it:
    it is part of the task. DPS (Chung et al., 2023) and DAPS (Zhang et al., 2025) draw another for
    every image.
    """

    name: ClassVar[str] = "random_inpainting"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = False
    lost: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lost < 1:
            raise InputError(
                f"inpainting with {self.lost!r} of the pixels lost: give a fraction between 0 and 1"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"inpainting seed {self.seed!r}: give a whole number")

    def mask(self, image_shape: Shape) -> Tensor:
        """(3, H, W) float64: 1 where the pixel is known, 0 where it is lost, which round(lost * H *
        W) are.
        """
        _, height, width = image_shape
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(self.seed))
        mask = torch.ones(height * width, dtype=torch.float64)
        mask[order[: round(self.lost * height * width)]] = 0
        return mask.reshape(1, height, width).repeat(3, 1, 1)
