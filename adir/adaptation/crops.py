"""Training examples for pixel backbones: random crops of images, with timesteps and noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from adir.errors import InputError


def crop_side(
    images: list[Tensor], crop_size: int, stride: int, names: Sequence[str] | None = None
) -> tuple[int, str | None]:
    """Return the side of the training crops, and the reason if it is less than `crop_size`.

    The side is the largest multiple of the stride up to `crop_size` that fits into the smallest
    image.

    Args:
        images: (3, H, W) each.
        crop_size: requested side in pixels.
        stride: stride of the network in pixels.
        names: names of the images, for errors; None numbers the images from 1.

    Returns:
        (side in pixels, reason). The reason is one line, or None if the side is `crop_size`.

    Raises:
        InputError: if an image or `crop_size` is smaller than the stride.
    """
    k, smallest = min(enumerate(images), key=lambda item: min(item[1].shape[-2:]))
    height, width = smallest.shape[-2:]
    name = names[k] if names is not None else f"{k + 1} of {len(images)}"
    side = min(crop_size, height, width) // stride * stride
    if side == crop_size:
        return side, None
    if min(height, width) < stride:
        raise InputError(
            f"image {name} has {width}x{height} pixels, but adaptation needs at least {stride} "
            "on each side: remove the image from the corpus, or from the test set if "
            "adaptation=self"
        )
    if side == 0:
        raise InputError(f"crop_size={crop_size}: the network needs {stride} pixels or more")
    short = f"crops of {side} pixels instead of crop_size={crop_size}, because"
    if min(height, width) >= crop_size:
        return side, f"{short} {crop_size} is not a multiple of the network's stride, {stride}"
    size = f"{width}x{height} pixels"
    return side, f"{short} image {name} has {size} and the network's stride is {stride}"


class NoisyCrops(IterableDataset):
    """Endless stream of (z, t, eps): a crop (3, c, c), its int64 timestep and its noise.

    For each example the generator draws an image, a crop position, a mirror flip (if `flip`), a
    timestep uniform in [0, n_timesteps), and noise, in this order. The paper does not say how it
    crops and augments.

    The attribute `size` is the side c of the crops in pixels. If it is less than `crop_size`, the
    attribute `remark` gives the reason (see `crop_side`), otherwise it is None.

    Args:
        images: (3, H, W) each.
        crop_size: requested side of the crops in pixels.
        stride: stride of the network in pixels.
        n_timesteps: number of timesteps of the network's noise schedule.
        flip: mirror half of the crops.
        generator: the only source of randomness.
        names: names of the images, for errors.
    """

    def __init__(
        self,
        images: list[Tensor],
        crop_size: int,
        stride: int,
        n_timesteps: int,
        flip: bool,
        generator: torch.Generator,
        names: Sequence[str] | None = None,
    ):
        self.size, self.remark = crop_side(images, crop_size, stride, names)
        self.images, self.n_timesteps, self.flip, self.generator = (
            images,
            n_timesteps,
            flip,
            generator,
        )

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            image = self.images[self._below(len(self.images))]
            top = self._below(image.shape[1] - self.size + 1)
            left = self._below(image.shape[2] - self.size + 1)
            z = image[:, top : top + self.size, left : left + self.size]
            if self.flip and self._below(2):
                z = z.flip(2)
            t = torch.randint(self.n_timesteps, (), generator=self.generator)
            yield z, t, torch.randn(z.shape, generator=self.generator)
