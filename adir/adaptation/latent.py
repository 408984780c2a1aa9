"""Training examples for Stable Diffusion's two families, cut from the images to adapt to.

The families are the x4 upscaler and the inpainting model. All random numbers of an example are
drawn in this module, on the CPU, from one generator. The backbone computes the loss of an example
(`StableDiffusion.denoising_loss`). An example is a dictionary of one crop. Each family adds further
keys to these:

    z: (3, c, c) crop.
    t: int64 timestep.
    eps: noise of the latent's shape.
    posterior_noise: noise of the latent's shape, for the VAE's draw from its posterior.
    prompt: text.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from adir.adaptation.crops import crop_side
from adir.adaptation.holes import random_hole
from adir.backbones.stable_diffusion import StableDiffusion, StableDiffusionX4
from adir.tasks.base import Task


def latent_crops(
    backbone: Any,
    images: list[Tensor],
    crop_size: int,
    flip: bool,
    generator: torch.Generator,
    task: Task | None,
    names: Sequence[str] | None = None,
) -> "LatentCrops":
    """Return the stream of training examples for a latent backbone.

    Args:
        backbone: backbone of family `upscaler` or `inpainting`.
        images: (3, H, W) in [-1, 1].
        crop_size: requested side of the crops in pixels.
        flip: mirror half of the crops.
        generator: the only source of randomness.
        task: the task of the test image, with its operator or prompt.
        names: names of the images, for errors.

    Raises:
        ValueError: if the task is None, if an inpainting model gets no prompt, or if the family is
            unknown.
    """
    if task is None or (backbone.family == "inpainting" and task.prompt is None):
        raise ValueError(f"adapting {backbone.name} needs the task: its operator or its prompt")
    if backbone.family == "upscaler":
        return UpscalingCrops(backbone, images, crop_size, flip, generator, task, names)
    if backbone.family == "inpainting" and task.prompt is not None:
        return InpaintingCrops(backbone, images, crop_size, flip, generator, task.prompt, names)
    raise ValueError(f"no training examples are known for backbone {backbone.name}")


class LatentCrops(IterableDataset):
    """Base class of the families' endless streams of crops.

    For each example the generator draws an image, a position in steps of the stride, a mirror flip
    (if `flip`), a timestep, and noise, in this order.

    Args:
        backbone: backbone of the family.
        images: (3, H, W) each.
        crop_size: requested side in pixels. `size` is the actual side, and `remark` the reason if
            it is less (see `adir.adaptation.crops.crop_side`).
        flip: mirror half of the crops.
        generator: the only source of randomness.
        prompt: prompt of all examples.
        names: names of the images, for errors.
    """

    def __init__(
        self,
        backbone: StableDiffusion,
        images: list[Tensor],
        crop_size: int,
        flip: bool,
        generator: torch.Generator,
        prompt: str,
        names: Sequence[str] | None = None,
    ):
        self.stride = backbone.stride
        self.size, self.remark = crop_side(images, crop_size, self.stride, names)
        self.latent_shape = backbone.latent_shape((3, self.size, self.size))
        self.n_timesteps = len(backbone.schedule)
        self.images, self.flip, self.generator, self.prompt = images, flip, generator, prompt

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator))

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            k = self._below(len(self.images))
            _, height, width = self.images[k].shape
            top = self.stride * self._below((height - self.size) // self.stride + 1)
            left = self.stride * self._below((width - self.size) // self.stride + 1)
            flipped = bool(self.flip and self._below(2))
            z = self.images[k][:, top : top + self.size, left : left + self.size]
            yield {
                "z": z.flip(2) if flipped else z,
                "t": torch.randint(self.n_timesteps, (), generator=self.generator),
                "eps": self._noise(*self.latent_shape),
                "posterior_noise": self._noise(*self.latent_shape),
                "prompt": self.prompt,
                **self._more(k, top, left, flipped),
            }

    def _more(self, k: int, top: int, left: int, flipped: bool) -> dict[str, Any]:
        """Return the keys that the family adds to the example at (top, left) in image k."""
        raise NotImplementedError


class UpscalingCrops(LatentCrops):
    """Stream of crops for the x4 upscaler, with their low-resolution versions.

    The keys that this family adds to an example are `low` (the crop of y), `low_noise` (noise of
    its shape) and `noise_level`, drawn uniformly below the upscaler's highest level as in its
    training. The prompt is empty.

    `low` is cut from the y of the whole image, which has the task's noise. The circular border of A
    therefore affects only crops at the border of the image.

    The parameter `task` provides A and its noise. The other parameters are those of `LatentCrops`.
    """

    def __init__(
        self,
        backbone: StableDiffusionX4,
        images: list[Tensor],
        crop_size: int,
        flip: bool,
        generator: torch.Generator,
        task: Task,
        names: Sequence[str] | None = None,
    ):
        super().__init__(backbone, images, crop_size, flip, generator, "", names)
        stride = backbone.stride
        whole = [
            p[:, : p.shape[1] // stride * stride, : p.shape[2] // stride * stride] for p in images
        ]
        self.max_noise_level = backbone.max_noise_level
        # The image is mirrored before A, because A of a mirrored image need not be the mirrored y.
        self.low = [
            (task.degrade(p, generator), task.degrade(p.flip(2), generator).flip(2)) for p in whole
        ]

    def _more(self, k: int, top: int, left: int, flipped: bool) -> dict[str, Any]:
        rows, columns = (
            slice(start // self.stride, (start + self.size) // self.stride) for start in (top, left)
        )
        low = self.low[k][flipped][:, rows, columns]
        return {
            "low": low.flip(2) if flipped else low,
            "low_noise": self._noise(*low.shape),
            "noise_level": torch.randint(self.max_noise_level, (), generator=self.generator),
        }


class InpaintingCrops(LatentCrops):
    """Stream of crops for the inpainting model, with random holes.

    The keys that this family adds to an example are `hole` (1, c, c), which is 1 in the hole, and
    `masked_noise`, the noise for the VAE's encoding of the crop without the hole.
    """

    def _more(self, k: int, top: int, left: int, flipped: bool) -> dict[str, Any]:
        return {
            "hole": random_hole(self.size, self.generator),
            "masked_noise": self._noise(*self.latent_shape),
        }
