"""Held-out loss: the loss of a denoiser on images that it was not tuned on.

The loss is estimated in each of `N_STRATA` strata, which are ranges of timesteps.
`adir.adaptation.safe` uses the loss to choose an iteration of the training, to scale the update of
the weights, and to accept or reject it. The ground truth of the test image is never among the
held-out images.
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
    """Split the timesteps 0 to n_timesteps - 1 into `N_STRATA` ranges of nearly equal length."""
    bounds = [n_timesteps * s // N_STRATA for s in range(N_STRATA + 1)]
    return [range(first, end) for first, end in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Split:
    """Training images and held-out images; both may be parts of larger images."""

    training: list[Tensor]
    held_out: list[Tensor]
    places: list[int]
    """The index of each training image in the list that was split."""


def split(images: list[Tensor], crop_size: int, stride: int, generator: torch.Generator) -> Split:
    """Hold out every fifth image, or a part of each image if there are fewer than ten.

    With ten images or more, the third image and every fifth image after it are held out. With
    fewer, each image is cut into two disjoint parts, as in `split_image`.

    Args:
        images: (3, H, W) each, nearest first.
        crop_size: requested side of the crops in pixels.
        stride: stride of the network in pixels.
        generator: draws for each image which end is held out; unused with ten images or more.
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
    """Cut an image (3, H, W) in two, and return (part to tune on, held-out part).

    The held-out part is a strip at one end of the longer side. Its width is the largest multiple of
    `stride` that is at most `crop_size` and at most half of the longer side.

    Args:
        image: (3, H, W).
        crop_size: requested side of the crops in pixels.
        stride: stride of the network in pixels.
        generator: draws the end at which the held-out part lies.

    Raises:
        InputError: if the longer side is shorter than two strides.
    """
    at_end = bool(torch.randint(2, (), generator=generator))
    dim = 1 if image.shape[1] > image.shape[2] else 2
    side = image.shape[dim]
    width = min(crop_size, side // 2) // stride * stride
    if width == 0:
        raise InputError(
            f"an image of {image.shape[2]}x{image.shape[1]} pixels is too small: with fewer than "
            "ten images, fine_tuning=safe holds out a part of each, which needs a longer side of "
            f"at least {2 * stride} pixels"
        )
    first, second = image.split([side - width, width] if at_end else [width, side - width], dim)
    return (first, second) if at_end else (second, first)


class HeldOutCrops:
    """Held-out crops with fixed timesteps and noise, which make losses of denoisers comparable."""

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[Tensor],
        crop_size: int,
        per_stratum: int,
        generator: torch.Generator,
        task: Task | None,
    ):
        """Draw the crops, timesteps and noise.

        Args:
            backbone: the backbone, whose `denoising_loss` is the loss of a crop.
            images: held-out images, (3, H, W) each. In each stratum (range of timesteps), all of
                them give equally many crops, up to a difference of one.
            crop_size: requested side of the crops in pixels; smaller images give smaller crops.
            per_stratum: number of crops in each stratum.
            generator: the only source of randomness.
            task: the task of the test image; required by latent backbones.
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
        """(N_STRATA, per_stratum): the index in `images` of the image that each crop is from."""
        self._examples: list[Any] = []
        for stratum, row in zip(self.strata, self.images.tolist(), strict=True):
            for k in row:
                t = torch.randint(stratum.start, stratum.stop, (), generator=generator)
                self._examples.append(default_collate([at_timestep(next(streams[k]), t)]))

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Return the loss of the network in its current state on each crop.

        Returns:
            (N_STRATA, per_stratum) float64, the backbone's `denoising_loss`.
        """
        # Imported here, because Lightning takes longer to import than torch.
        from pytorch_lightning.utilities import move_data_to_device

        device = next(self._backbone.network.parameters()).device
        losses = [
            float(self._backbone.denoising_loss(move_data_to_device(example, device)))
            for example in self._examples
        ]
        return torch.tensor(losses, dtype=torch.float64).reshape(self.images.shape)


def at_timestep(example: Any, t: Tensor) -> Any:
    """Return a training example in which the timestep is replaced by t."""
    if isinstance(example, dict):
        return example | {"t": t}
    z, _, eps = example
    return z, t, eps


def relative_loss(losses: Tensor, untuned: Tensor) -> float:
    """Return the mean of loss / untuned loss over the strata (ranges of timesteps).

    A result below 1 is an improvement. The losses of each stratum are divided before the mean over
    the strata is taken, because the loss at the lowest timesteps is several times larger than at
    the others and would dominate a mean of undivided losses.

    Args:
        losses: (strata, crops), the losses of the tuned denoiser.
        untuned: (strata, crops), the losses of the untuned denoiser.
    """
    return float((losses.mean(1) / untuned.mean(1)).mean())


def improvement_and_error(losses: Tensor, untuned: Tensor, images: Tensor) -> tuple[float, float]:
    """Return the mean relative decrease of the loss by tuning, and its standard error.

    The decrease on a crop is divided by the untuned denoiser's mean loss in the crop's stratum
    (range of timesteps). The decreases are averaged per image. The mean and the standard error are
    those of the images' averages, or those of the crops if there is only one image.

    Args:
        losses: (strata, crops), the losses of the tuned denoiser.
        untuned: (strata, crops), the losses of the untuned denoiser.
        images: (strata, crops), the index of the image that each crop is from.
    """
    falls = (untuned - losses) / untuned.mean(1, keepdim=True)
    groups = [falls[images == k].mean() for k in images.unique()]
    values = torch.stack(groups) if len(groups) > 1 else falls.flatten()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
