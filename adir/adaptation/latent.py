"""Training examples of Stable Diffusion's two families, cut from the images that adaptation is
given.

All that is random is drawn here, on the CPU, from one generator; the backbone turns an example into
its loss (`StableDiffusion.denoising_loss`). Each example is a dictionary of one crop: `z` (3, c,
c), its int64 timestep `t`, the noise `eps` of its latent's shape, `posterior_noise` for the VAE's
draw, `prompt`, and what its family adds.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from adir.adaptation.crops import crop_side
from adir.adaptation.holes import random_hole
from adir.backbones.stable_diffusion import StableDiffusion, StableDiffusionX4
from adir.tasks.base import Task

if TYPE_CHECKING:
    from adir.backbones.stable_diffusion import StableDiffusion, StableDiffusionX4


def latent_crops(
    backbone: Any,
    images: list[Tensor],
    crop_size: int,
    flip: bool,
    generator: torch.Generator,
    task: Task | None,
    names: Sequence[str] | None = None,
) -> "LatentCrops":
    """The stream of examples for a backbone. task: bound to the test image.

    Raises ValueError without one, and for an inpainting model where it has no prompt.
    """
    if task is None or (backbone.family == "inpainting" and task.prompt is None):
        raise ValueError(f"adapting {backbone.name} needs the task: its operator or its prompt")
    if backbone.family == "upscaler":
        return UpscalingCrops(backbone, images, crop_size, flip, generator, task, names)
    if backbone.family == "inpainting" and task.prompt is not None:
        return InpaintingCrops(backbone, images, crop_size, flip, generator, task.prompt, names)
    raise ValueError(f"no training examples are known for backbone {backbone.name}")


class LatentCrops(IterableDataset):
    """What the families share: an endless stream of crops with timesteps, noise and a prompt.

    The crops' side, `size`, is that of `crop_side`, and `remark` is its reason. Each example draws
    an image, a position in steps of the stride, a mirror flip (when `flip`), a timestep, and noise,
    in that order.  names: of the images, for errors.
    """

    def __init__(
        self,
        backbone: "StableDiffusion",
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
        """What the family adds to the crop of image k at (top, left)."""
        raise NotImplementedError


class UpscalingCrops(LatentCrops):
    """For the x4 upscaler:

    `low`, the crop's low-resolution twin, with `low_noise` at a `noise_level`, drawn uniformly
    below the highest as in its training; the prompt is empty.

    The twin is cut from the whole image's y (A and the task's noise), so that A's circular border
    stays outside of it.
    """

    def __init__(
        self,
        backbone: "StableDiffusionX4",
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
        # Mirrored before A, as A of a mirrored image need not be the mirrored A.
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
    """For the inpainting model: a random `hole` (1, c, c) and `masked_noise` for the VAE's draw of
    what is left.
    """

    def _more(self, k: int, top: int, left: int, flipped: bool) -> dict[str, Any]:
        return {
            "hole": random_hole(self.size, self.generator),
            "masked_noise": self._noise(*self.latent_shape),
        }
