"""Held-out loss: what a denoiser loses on images that it was not tuned on, in strata of the
timestep.

It serves `adir.adaptation.safe` to stop early, to scale the update and to reject it. The ground
truth is never among the images.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from adir.adaptation.examples import training_examples
from adir.backbones.base import Backbone
from adir.errors import InputError
from adir.tasks.base import Task

N_STRATA = 8


def strata(n_timesteps: int) -> list[range]:
    """Split the timesteps 0 to n_timesteps - 1 into `N_STRATA` ranges of equal length, as far as
    they can be.
    """
    bounds = [n_timesteps * s // N_STRATA for s in range(N_STRATA + 1)]
    return [range(first, end) for first, end in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Split:
    """Images to tune on, and images or parts of images to judge by."""

    training: list[Tensor]
    held_out: list[Tensor]
    places: list[int]
    """Of each training image among the images that were split."""


def split(images: list[Tensor], crop_size: int, stride: int, generator: torch.Generator) -> Split:
    """Hold out one image in five of ten or more, and of fewer images a part of each that no
    training crop overlaps.

    Args:
        images: (3, H, W), nearest first; every fifth, from the third on, is held out where there
            are ten or more.
        crop_size: side of the crops in pixels. The held-out part is that wide, at most half of the
            longer side.
        stride: of the network; the parts' sides are multiples of it.
        generator: draws the side of each image where the held-out part lies.
    """
    if len(images) >= 10:
        places = [k for k in range(len(images)) if k % 5 != 2]
        return Split([images[k] for k in places], images[2::5], places)
    parts = [split_image(z, crop_size, stride, generator) for z in images]
    return Split(
        [training for training, _ in parts],
        [held_out for _, held_out in parts],
        list(range(len(images))),
    )


def split_image(
    image: Tensor, crop_size: int, stride: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut an image (3, H, W) across its longer side into two disjoint images: to tune on, and held
    out.

    Raises InputError for an image too small for two crops of one stride.
    """
    at_end = bool(torch.randint(2, (), generator=generator))
    dim = 1 if image.shape[1] > image.shape[2] else 2
    side = image.shape[dim]
    width = min(crop_size, side // 2) // stride * stride
    if width == 0:
        raise InputError(
            f"an image of {image.shape[2]}x{image.shape[1]} pixels is too small to hold a part "
            "of it out, as "
            "fine_tuning=safe does with less than ten images: the network needs "
            f"{2 * stride} pixels"
        )
    first, second = image.split([side - width, width] if at_end else [width, side - width], dim)
    return (first, second) if at_end else (second, first)


class HeldOutCrops:
    """Fixed crops with fixed timesteps and noise: every denoiser is judged on the same ones."""

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[Tensor],
        crop_size: int,
        per_stratum: int,
        generator: torch.Generator,
        task: Task | None,
    ):
        """Draw the crops.

        Args:
            backbone: gives the loss of a crop.
            images: held-out images (3, H, W), each of which gives the same number of crops, or one
                more.
            crop_size: side of the crops in pixels; less where an image is smaller.
            per_stratum: crops in each stratum of the timestep.
            generator: draws positions, timesteps and noise.
            task: the test image's own, which latent backbones need.
        """
        self._backbone = backbone
        streams = [
            iter(training_examples(backbone, [z], crop_size, False, generator, task, None))
            for z in images
        ]
        self.strata = strata(len(backbone.schedule))
        self.images = torch.arange(N_STRATA * per_stratum).reshape(N_STRATA, per_stratum) % len(
            images
        )
        """(N_STRATA, per_stratum): the place in `images` of the image that each crop was cut from.
        """
        self._examples: list[Any] = []
        for stratum, row in zip(self.strata, self.images.tolist(), strict=True):
            for k in row:
                t = torch.randint(stratum.start, stratum.stop, (), generator=generator)
                self._examples.append(default_collate([at_timestep(next(streams[k]), t)]))

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Return the mean squared error of eps on each crop by the network as it stands:

        (N_STRATA, per_stratum) float64.
        """
        device = next(self._backbone.network.parameters()).device
        losses = [
            float(self._backbone.denoising_loss(moved(example, device)))
            for example in self._examples
        ]
        return torch.tensor(losses, dtype=torch.float64).reshape(self.images.shape)


def at_timestep(example: Any, t: Tensor) -> Any:
    """Return a training example of either kind with another timestep."""
    if isinstance(example, dict):
        return example | {"t": t}
    z, _, eps = example
    return z, t, eps


def moved(example: Any, device: torch.device) -> Any:
    """Return an example with its tensors on a device."""
    if isinstance(example, dict):
        return {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in example.items()
        }
    return [value.to(device) for value in example]


def relative_loss(losses: Tensor, untuned: Tensor) -> float:
    """Return the mean over the strata of loss / untuned loss: below 1, the denoiser became better.

    The plain mean would be the lowest stratum's: there the loss is several times that of the
    others.

    Args:
        losses: (strata, crops) of the tuned denoiser.
        untuned: the same of the untuned one.
    """
    return float((losses.mean(1) / untuned.mean(1)).mean())


def fall_and_error(losses: Tensor, untuned: Tensor, images: Tensor) -> tuple[float, float]:
    """Return (mean fall of the loss, its standard error), both relative to the untuned loss of the
    stratum.

    The standard error is over the images; over the crops where there is one image.

    Args:
        losses: (strata, crops) of the tuned denoiser.
        untuned: the same of the untuned one.
        images: (strata, crops), which image each crop is of.
    """
    falls = (untuned - losses) / untuned.mean(1, keepdim=True)
    groups = [falls[images == k].mean() for k in images.unique()]
    values = torch.stack(groups) if len(groups) > 1 else falls.flatten()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
