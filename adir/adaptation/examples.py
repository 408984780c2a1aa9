"""Training examples for either kind of backbone."""

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
    """Return the endless stream of what the backbone's `denoising_loss` takes.

    Args:
        backbone: to be tuned.
        images: (3, H, W) in [-1, 1].
        crop_size: side of the crops in pixels.
        flip: mirror half of them.
        generator: draws all that is random.
        task: the test image's own, which latent backbones need.
        names: of the images, for errors.
    """
    if backbone.kind == "latent":
        from adir.adaptation.latent import (
            latent_crops,  # here: it brings Stable Diffusion's networks, 4 s of imports
        )

        return latent_crops(backbone, images, crop_size, flip, generator, task, names)
    return NoisyCrops(
        images, crop_size, backbone.stride, len(backbone.schedule), flip, generator, names
    )
