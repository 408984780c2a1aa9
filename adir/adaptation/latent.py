"""Training examples for Stable Diffusion's x4 upscaler and its inpainting model: random crops.

All random numbers of an example are drawn in this module, on the CPU, from one generator. The
backbone's `denoising_loss` draws none. An example is a dictionary. The keys for both models are:

    z: (3, c, c) crop.
    t: int64 timestep.
    eps: standard normal noise in the shape of the crop's latent.
    posterior_noise: standard normal noise in the shape of `eps`, for sampling the VAE's posterior.
    prompt: text.

`UpscalingCrops` and `InpaintingCrops` list the further keys for each model.
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
        backbone: backbone whose `family` is `upscaler` or `inpainting`.
        images: (3, H, W) each, in [-1, 1].
        crop_size: requested side of the crops in pixels.
        flip: mirror half of the crops.
        generator: the only source of randomness.
        task: the task of the test image. The upscaler needs its operator, the inpainting model its
            prompt.
        names: names of the images, for error messages.

    Raises:
        ValueError: if the task is None, if the task of an inpainting model has no prompt, or if the
            family is unknown.
    """
    if task is None or (backbone.family == "inpainting" and task.prompt is None):
        needed = "task" if task is None else "prompt of the task"
        raise ValueError(f"adapting {backbone.name} needs the {needed}: pass task=...")
    if backbone.family == "upscaler":
        return UpscalingCrops(backbone, images, crop_size, flip, generator, task, names)
    if backbone.family == "inpainting" and task.prompt is not None:
        return InpaintingCrops(backbone, images, crop_size, flip, generator, task.prompt, names)
    raise ValueError(f"no training examples are known for backbone {backbone.name}")


class LatentCrops(IterableDataset):
    """Endless stream of training examples for a latent backbone; base class.

    For each example the generator draws an image, a crop position (a multiple of the stride), a
    mirror flip (if `flip`), a timestep, and noise, in this order.

    The attribute `size` is the side of the crops in pixels. If it is less than `crop_size`, the
    attribute `remark` gives the reason (see `adir.adaptation.crops.crop_side`), otherwise it is
    None.

    Args:
        backbone: the latent backbone.
        images: (3, H, W) each.
        crop_size: requested side of the crops in pixels.
        flip: mirror half of the crops.
        generator: the only source of randomness.
        prompt: prompt of all examples.
        names: names of the images, for error messages.
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
        """Return the additional keys of the example whose crop begins at (top, left) in image k."""
        raise NotImplementedError


class UpscalingCrops(LatentCrops):
    """Stream of training examples for the x4 upscaler, with low-resolution versions of the crops.

    The prompt is empty. Each example has three additional keys:

        low: the low-resolution version of the crop, (3, c / stride, c / stride).
        low_noise: standard normal noise in the shape of `low`.
        noise_level: int64, uniform in [0, max_noise_level), as in the upscaler's training.

    The task degrades each whole image and its mirror image once, with the task's noise, and `low`
    is cut from the results. A circular border of the task's operator therefore affects only crops
    at the image's border.

    The parameter `task` is the task of the test image. The others are those of `LatentCrops`.
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
    """Stream of training examples for the inpainting model, with random holes.

    Each example has two additional keys:

        hole: (1, c, c) mask, 1 in the hole and 0 outside.
        masked_noise: standard normal noise in the shape of the crop's latent, for sampling the
            VAE's posterior of the crop with the hole.
    """

    def _more(self, k: int, top: int, left: int, flipped: bool) -> dict[str, Any]:
        return {
            "hole": random_hole(self.size, self.generator),
            "masked_noise": self._noise(*self.latent_shape),
        }
