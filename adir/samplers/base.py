"""Interface of samplers, and helpers that several samplers share.

The helpers count steps, draw noise, convert value ranges, and explain why a sampler does not
support a backbone or a task.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from adir.backbones.base import Backbone
from adir.checks import require_whole
from adir.tasks.base import LinearOperator, Task


@dataclass(frozen=True)
class Restoration:
    """Result of a sampler for one batch; each list has one entry per image."""

    x_hat: Tensor
    """Restored images (B, 3, H, W), with values in about [-1, 1].

    A failed image is NaN throughout, so that nobody can mistake it for a result.
    """
    capped_steps: list[int]
    """The number of steps, out of `n_steps`, at which guidance was lowered for stability."""
    errors: list[str | None]
    """None, or one line on the step at which NaN or Inf appeared and on a remedy."""
    network_evaluations: int
    """The number of network calls per image, with and without gradients."""
    gradient_evaluations: int
    """The number of these network calls that were differentiated.

    Each one costs a backward pass in addition.
    """


class Adaptation(Protocol):
    """Interface of an adaptation mode, which determines how the network is tuned to a measurement.

    It has only the attributes that samplers read. adir.adaptation.modes.Mode implements it.
    """

    @property
    def name(self) -> str:
        """The name of the mode, such as knn."""

    trains: ClassVar[bool]
    """True if the network is tuned before sampling."""
    on_y: ClassVar[bool]
    """True if the network is tuned on y itself, before or during sampling."""


class Sampler(Protocol):
    """Method that restores an image from a measurement y, such as ADIR."""

    @property
    def name(self) -> str:
        """The name in configurations, paths and tables."""

    version: ClassVar[int]
    """The version of the class, which is part of a cell's identity with `name` and the settings.

    Raise it whenever a change of the class alters its results.
    """

    @property
    def n_steps(self) -> int:
        """The number of sampling steps; 0 for a method that takes no steps and draws no noise."""

    def restore(
        self, backbone: Any, operator: Any, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return restored images for a batch of measurements.

        Args:
            backbone: a `Denoiser`. A latent sampler instead needs a backbone of the one class that
                it supports.
            operator: a `LinearOperator`; some samplers also need its deepinv physics, or the mask
                and prompt of an edit.
            y: (B, C, h, w) measurements.
            generators: one CPU generator per image, which alone determines the image's random
                numbers.
        """

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are."""


class Steered(Protocol):
    """Network that is tuned to one image while that image is sampled.

    The implementation is adir.adaptation.steering.SteeredNetwork.
    """

    network_evaluations: int
    """The number of network calls that this object has made for the image so far.

    It counts tuning iterations and predictions of the tuned network.
    """
    gradient_evaluations: int
    """The number of these network calls that were differentiated."""

    def eps(
        self,
        i: int,
        eps: Tensor,
        predict: Callable[[], Tensor],
        outcome: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return the tuned network's eps at step i, after tuning the network if step i requires it.

        On return, the network has its original weights again.

        Args:
            i: index of the step; 0 is the cleanest and last step.
            eps: (1, 3, H, W) prediction of the untuned network.
            predict: returns eps of the network in its current state. The result is differentiable
                in the network's weights if gradients are enabled.
            outcome: maps an eps to (x_hat, A x_hat - y), where x_hat is the clean-image estimate
                that follows from this eps. x_hat and A x_hat - y are differentiable in eps.
        """


@runtime_checkable
class Steering(Protocol):
    """Adaptation mode that tunes the network during sampling.

    The implementation is adir.adaptation.steering.SteerableConditional.
    """

    def steered(self, network: nn.Module, generator: torch.Generator) -> Steered:
        """Return the network with a new adapter for one image.

        The generator draws the adapter's initial weights.
        """


@runtime_checkable
class SteerableSampler(Protocol):
    """`Sampler` that can use a network which is tuned during sampling."""

    def restore_steered(
        self,
        backbone: Any,
        operator: Any,
        y: Tensor,
        generators: list[torch.Generator],
        steering: list[Steered],
    ) -> Restoration:
        """Return the restoration of y, with the network tuned to each image during sampling.

        The list `steering` has one tuned network per image. For the other parameters see
        `Sampler.restore`.
        """


class StepCounter:
    """Counter of the steps of each image of a batch.

    It counts capped steps, at which guidance was lowered for stability, and the steps before the
    first NaN or Inf. The counts stay on y's device until `finish` reads them, because reading them
    from a GPU at every step would leave the GPU idle until the next step is queued. An image with
    NaN or Inf is therefore sampled to the end. It counts as failed even if its later values are
    finite.
    """

    def __init__(self, y: Tensor) -> None:
        self._dtype = y.dtype
        self._n_steps = 0
        self._sound = torch.ones(len(y), dtype=torch.bool, device=y.device)
        self._sound_steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
        self._capped_steps = torch.zeros_like(self._sound_steps)

    def step(self, x_t: Tensor, capped: Tensor | None = None) -> None:
        """Count one step, whose result is x_t (B, C, h, w).

        `capped` is True where guidance was lowered for stability. It has one value for each entry
        of x_t, or is 0-dimensional and applies to all of them.
        """
        self._n_steps += 1
        if capped is not None:
            self._capped_steps += self._sound & (
                capped.flatten(1).any(1) if capped.ndim else capped
            )
        self._sound &= finite(x_t)
        self._sound_steps += self._sound

    @torch.no_grad()
    def finish(
        self, x_hat: Tensor, remedy: str, network_evaluations: int, gradient_evaluations: int = 0
    ) -> Restoration:
        """Return the `Restoration` of the batch, with failed images set to NaN.

        Args:
            x_hat: (B, 3, H, W) restored images, which are converted to the dtype of y.
            remedy: advice at the end of a failed image's error message, such as "lower alpha".
            network_evaluations: number of network calls per image.
            gradient_evaluations: number of these calls that were differentiated.
        """
        sound = self._sound & finite(x_hat)
        errors: list[str | None] = [None] * len(x_hat)
        for b, (ok, before) in enumerate(
            zip(sound.tolist(), self._sound_steps.tolist(), strict=True)
        ):
            if not ok:
                failing = before < self._n_steps
                where = f"at step {before + 1} of {self._n_steps}" if failing else "in the result"
                errors[b] = f"NaN or Inf {where}: {remedy}"
        x_hat = torch.where(sound[:, None, None, None], x_hat, torch.nan).to(self._dtype)
        return Restoration(
            x_hat, self._capped_steps.tolist(), errors, network_evaluations, gradient_evaluations
        )


def finite(x: Tensor) -> Tensor:
    """Return (B,) bool, True for each image of a batch without NaN and Inf."""
    return torch.isfinite(x).flatten(1).all(1)


Restore = TypeVar("Restore", bound=Callable[..., Restoration])


def separately(restore: Restore) -> Restore:
    """Decorate a sampler's `restore` or `restore_steered`, so that it restores images one by one.

    The decorated method accepts a batch. The method itself is called once per image, with y of
    shape (1, C, h, w) and lists of one entry. The decorator is for methods whose rounding or noise
    would otherwise depend on the other images of the batch.
    """

    @functools.wraps(restore)
    def one_by_one(
        self: Any, backbone: Any, operator: Any, y: Tensor, *lists: Any, **named_lists: Any
    ) -> Restoration:
        results = [
            restore(
                self,
                backbone,
                operator,
                y[b : b + 1],
                *([of_image[b]] for of_image in lists),
                **{name: [of_image[b]] for name, of_image in named_lists.items()},
            )
            for b in range(len(y))
        ]
        return Restoration(
            torch.cat([one.x_hat for one in results]),
            [one.capped_steps[0] for one in results],
            [one.errors[0] for one in results],
            results[0].network_evaluations,
            results[0].gradient_evaluations,
        )

    return cast(Restore, one_by_one)


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Return standard normal noise (B, *shape); generators[b] draws image b on the CPU.

    The noise has the dtype and the device of `like`.
    """
    noise = [torch.randn(shape, generator=generator, dtype=like.dtype) for generator in generators]
    stacked = torch.stack(noise)
    if like.device.type == "cuda":
        # A copy from pageable memory would wait for the previous step to finish.
        stacked = stacked.pin_memory()
    return stacked.to(like.device, non_blocking=True)


ROUNDING = 1 / (255 * math.sqrt(12))
"""Standard deviation of rounding to 8 bits, for images in [0, 1].

It is the uncertainty of a y without noise.
"""


def in_unit_range(operator: LinearOperator, y: Tensor) -> Tensor:
    """Return the measurement of (x + 1) / 2, given the measurement y of x.

    If x is in [-1, 1], then (x + 1) / 2 is in [0, 1]. By linearity the result is (y + A 1) / 2,
    where 1 is an image of ones. In the hole of inpainting A 1 = 0, so y stays 0.
    """
    ones = torch.ones(operator.image_shape, dtype=y.dtype, device=y.device)
    return (y + operator.A(ones)) / 2


def noise_level(operator: LinearOperator) -> float:
    """Return the standard deviation of y's noise, for images in [0, 1].

    The value is at least `ROUNDING`, the rounding error of the 8-bit file that y comes from.
    """
    return max(operator.sigma_y / 2, ROUNDING)


def needs_pixels(name: str, backbone: Backbone, task: Task) -> str | None:
    """Return why a pixel sampler cannot run with this backbone and task, or None if it can.

    Such a sampler supports neither latent backbones nor tasks with a prompt.
    """
    if backbone.kind == "latent":
        return (
            f"sampler {name} works on pixels, but backbone {backbone.name} on latents: "
            "use a pixel backbone"
        )
    if task.edits:
        return (
            f"task {task.name} edits images by a prompt, which neither backbone "
            f"{backbone.name} nor sampler {name} supports: "
            "use backbone=sd_inpaint sampler=sd_inpaint"
        )
    return None


@dataclass(frozen=True)
class PixelSampler:
    """Base class of samplers that can run every linear task on a pixel backbone.

    Attributes:
        name: name in configurations, paths and tables.
        n_steps: number of sampling steps.
    """

    name: str
    n_steps: int

    def __post_init__(self) -> None:
        require_whole(1, n_steps=self.n_steps)

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are."""
        return needs_pixels(self.name, backbone, task)
