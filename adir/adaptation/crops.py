"""Training examples cut from the images that adaptation is given: random crops, timesteps and
noise.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from adir.errors import InputError


def crop_side(
    images: list[Tensor], crop_size: int, stride: int, names: Sequence[str] | None = None
) -> tuple[int, str | None]:
    """(side of the crops, one line on why it is less than crop_size, or None): what the smallest of
    the images (3, H, W) allows, rounded down to a multiple of the stride.

    Raises InputError that names an image which no crop fits into, by its place where there are no
    names.
    """
    k, smallest = min(enumerate(images), key=lambda item: min(item[1].shape[-2:]))
    height, width = smallest.shape[-2:]
    name = names[k] if names is not None else f"{k + 1} of {len(images)}"
    side = min(crop_size, height, width) // stride * stride
    if side == crop_size:
        return side, None
    if min(height, width) < stride:
        raise InputError(
            f"image {name} has {width}x{height} pixels, and the network needs {stride} or more "
            "on each side to adapt to "
            "it: take it out of what is adapted to (the corpus, or the test set where "
            "adaptation=self)"
        )
    if side == 0:
        raise InputError(f"crop_size={crop_size}: the network needs {stride} pixels or more")
    short = f"crops of {side} pixels, not crop_size={crop_size}"
    if min(height, width) >= crop_size:
        return side, f"{short}: {crop_size} is no multiple of the network's stride, {stride}"
    return side, f"{short}: image {name} has {width}x{height}, and the network's stride is {stride}"


class NoisyCrops(IterableDataset):
    """An endless stream of (z, t, eps): a crop (3, c, c), its int64 timestep and its noise, all
    from one generator.

    Each example draws an image, a position, a mirror flip (when `flip`), a timestep uniform in [0,
    n_timesteps) and noise, in that order; how the paper crops and augments is unknown.  c, `size`,
    is that of `crop_side`, and `remark` is its reason.  names: of the images, for its errors.
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
