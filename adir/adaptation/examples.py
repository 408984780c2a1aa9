"""Training examples for a backbone that denoises pixels or latents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adir.adaptation.crops import NoisyCrops
from adir.backbones.base import Backbone
from adir.tasks.base import Task

if TYPE_CHECKING:
    from adir.adaptation.latent import LatentCrops


def training_examples(
    backbone: Backbone,
    images: list[Tensor],
    crop_size: int,
    flip: bool,
    generator: torch.Generator,
    task: Task | None,
    names: Sequence[str] | None,
) -> "NoisyCrops | LatentCrops":
    """Return an endless stream of training examples for the backbone's `denoising_loss`.

    Args:
        backbone: the backbone to tune.
        images: (3, H, W) each, in [-1, 1].
        crop_size: requested side of the crops in pixels.
        flip: mirror half of the crops.
        generator: the only source of randomness.
        task: the task of the test image; required by latent backbones, ignored by pixel backbones.
        names: names of the images, for error messages; None numbers the images from 1.
    """
    if backbone.kind == "latent":
        from adir.adaptation.latent import (
            latent_crops,  # here, because Stable Diffusion's networks take 4 s to import
        )

        return latent_crops(backbone, images, crop_size, flip, generator, task, names)
    return NoisyCrops(
        images, crop_size, backbone.stride, len(backbone.schedule), flip, generator, names
    )
