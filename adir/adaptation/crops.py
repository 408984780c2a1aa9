"""Training examples cut from the pictures that adaptation is given: random crops, timesteps and noise."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset


class NoisyCrops(IterableDataset):
    """An endless stream of (z, t, eps): a crop (3, c, c), its int64 timestep and its noise, all from one generator.

    Each example draws a picture, a position, a mirror flip (when `flip`), a timestep uniform in [0, n_timesteps) and
    noise, in that order; how the paper crops and augments is unknown.  c is crop_size, or less where the smallest
    picture is smaller, rounded down to a multiple of the network's stride.  Raises ValueError when nothing is left of it.
    """

    def __init__(
        self,
        pictures: list[Tensor],
        crop_size: int,
        stride: int,
        n_timesteps: int,
        flip: bool,
        generator: torch.Generator,
    ):
        smallest = min(min(picture.shape[-2:]) for picture in pictures)
        self.size = min(crop_size, smallest) // stride * stride
        if self.size == 0:
            raise ValueError(
                f"crop_size={crop_size} on pictures of {smallest} pixels: the network needs {stride} or more"
            )
        self.pictures, self.n_timesteps, self.flip, self.generator = pictures, n_timesteps, flip, generator

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            picture = self.pictures[self._below(len(self.pictures))]
            top = self._below(picture.shape[1] - self.size + 1)
            left = self._below(picture.shape[2] - self.size + 1)
            z = picture[:, top : top + self.size, left : left + self.size]
            if self.flip and self._below(2):
                z = z.flip(2)
            t = torch.randint(self.n_timesteps, (), generator=self.generator)
            yield z, t, torch.randn(z.shape, generator=self.generator)
