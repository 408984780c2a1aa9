"""What a sampler is and gives, and what samplers share: the watch over a batch, noise, ranges,
reasons for not taking part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from adir.backbones.base import Backbone
from adir.tasks.base import LinearOperator, Task


@dataclass(frozen=True)
class Restoration:
    """The sampler's result for one batch; every list has one entry per image."""

    x_hat: Tensor
    """(B, 3, H, W), about [-1, 1]; NaN throughout for an image that failed, so that it cannot pass
    for a result.
    """
    capped_steps: list[int]
    """Number of steps at which the guidance was lowered to stay stable, of `n_steps`."""
    errors: list[str | None]
    """Why an image failed: the step at which NaN or Inf appeared, and what to do."""
    network_evaluations: int
    """Calls of the network for one image, with and without a gradient."""
    gradient_evaluations: int
    """Those of them that were differentiated, each of which costs a backward pass besides."""


class Adaptation(Protocol):
    """What a sampler asks of the mode of adaptation; adir.adaptation.modes.Mode."""

    @property
    def name(self) -> str:
        """The mode, such as knn."""

    trains: ClassVar[bool]
    """Whether the network is tuned before sampling."""
    on_y: ClassVar[bool]
    """Whether it is tuned on y itself."""


class Sampler(Protocol):
    """What turns y into a restored image; ADIR is one."""

    @property
    def name(self) -> str:
        """In configurations, paths and tables."""

    version: ClassVar[int]
    """Of the class, with `name` and the settings part of a cell's identity: raised when a change
    changes its result.
    """

    @property
    def n_steps(self) -> int:
        """0 for methods without steps, which draw nothing."""

    def restore(
        self, backbone: Any, operator: Any, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image, on which alone the image's
        randomness depends.

        backbone: a `Denoiser`, or for a latent sampler its family's class.  operator: a
            `LinearOperator`, or one with more
        to it: deepinv's physics, an edit's mask and prompt.
        """

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """One line on why this sampler cannot do a cell; None where it can."""


class Steered(Protocol):
    """The network as it is tuned to one image while that is sampled;
    adir.adaptation.steering.SteeredNetwork.
    """

    network_evaluations: int
    """Calls of the network so far, for this image, by the tuning."""
    gradient_evaluations: int
    """Those of them that were differentiated."""

    def eps(
        self,
        i: int,
        eps: Tensor,
        predict: Callable[[], Tensor],
        outcome: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Tune the network, if that is due at this step, and return the tuned network's eps.

        The network is as it was then.

        Args:
            i: the step, counted from the cleanest, 0.
            eps: (1, 3, H, W) of the untuned network.
            predict: the eps of the network as it stands, differentiable in its weights where
                gradients are enabled.
            outcome: the clean image x_hat that follows from an eps, and A x_hat - y;
                differentiable.
        """


@runtime_checkable
class Steering(Protocol):
    """A mode of adaptation that tunes the network while it samples;
    adir.adaptation.steering.SteerableConditional.
    """

    def steered(self, network: nn.Module, generator: torch.Generator) -> Steered:
        """Return the network with a fresh adapter for one image. generator: of the adapter's first
        weights.
        """


@runtime_checkable
class SteerableSampler(Protocol):
    """A `Sampler` under which the network may be tuned at each step."""

    def restore_steered(
        self,
        backbone: Any,
        operator: Any,
        y: Tensor,
        generators: list[torch.Generator],
        steering: list[Steered],
    ) -> Restoration:
        """As `Sampler.restore`. steering: one per image."""


class Watch:
    """Counts, for each image of a batch, the steps whose guidance was capped, and those before its
    first NaN or Inf.

    The counts stay on y's device until `finish` reads them: an answer from a GPU would leave it
    idle until the next step is queued. So an image that fails is sampled to the end, and stays
    failed whatever it becomes on the way.
    """

    def __init__(self, y: Tensor) -> None:
        self._dtype = y.dtype
        self._n_steps = 0
        self._sound = torch.ones(len(y), dtype=torch.bool, device=y.device)
        self._sound_steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
        self._capped_steps = torch.zeros_like(self._sound_steps)

    def step(self, x_t: Tensor, capped: Tensor | None = None) -> None:
        """Look at x_t (B, C, h, w) after a step.  capped: where its guidance was lowered, shaped as
        x_t or 0-dimensional.
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
        """The batch's result, in the type of y.  remedy: what to do about an image that failed,
        such as "lower alpha".
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
    """(B,) bool: the images of a batch without NaN and Inf."""
    return torch.isfinite(x).flatten(1).all(1)


def one_by_one(
    restore_one: Callable[[Tensor, list[torch.Generator]], Restoration],
    y: Tensor,
    generators: list[torch.Generator],
) -> Restoration:
    """Restore each image of the batch y (B, C, h, w) apart: for methods whose rounding, or noise,
    is a whole batch's.
    """
    results = [restore_one(y[b : b + 1], [noise]) for b, noise in enumerate(generators)]
    return Restoration(
        torch.cat([one.x_hat for one in results]),
        [one.capped_steps[0] for one in results],
        [one.errors[0] for one in results],
        results[0].network_evaluations,
        results[0].gradient_evaluations,
    )


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """(B, *shape) standard normal, image b from generators[b] on the CPU, in the type and on the
    device of `like`.
    """
    noise = [torch.randn(shape, generator=generator, dtype=like.dtype) for generator in generators]
    stacked = torch.stack(noise)
    if (
        like.device.type == "cuda"
    ):  # from pageable memory the copy would wait for the step before it
        stacked = stacked.pin_memory()
    return stacked.to(like.device, non_blocking=True)


ROUNDING = 1 / (255 * math.sqrt(12))
"""Standard deviation that rounding to 8 bits leaves in an image in [0, 1]: what is unknown of y
where it has no noise.
"""


def in_unit_range(operator: LinearOperator, y: Tensor) -> Tensor:
    """y of an image in [-1, 1] as y of the same image in [0, 1]:

    (y + A 1) / 2, as A((x + 1) / 2) is that.

    For inpainting 0 stays 0 in the hole, where A 1 is 0.
    """
    ones = torch.ones(operator.image_shape, dtype=y.dtype, device=y.device)
    return (y + operator.A(ones)) / 2


def noise_level(operator: LinearOperator) -> float:
    """Standard deviation of y's noise for an image in [0, 1]: at least the rounding of its file, as
    y is never exact.
    """
    return max(operator.sigma_y / 2, ROUNDING)


def needs_pixels(name: str, backbone: Backbone, task: Task) -> str | None:
    """The reason for which a sampler that restores pixels leaves out a latent backbone, or a task
    that has a prompt.
    """
    if backbone.kind == "latent":
        return f"sampler {name} works on pixels, and backbone {backbone.name} on latents"
    if task.edits:
        return (
            f"task {task.name} repaints as a prompt says, which neither backbone "
            f"{backbone.name} nor sampler {name} can: "
            "use backbone=sd_inpaint sampler=sd_inpaint"
        )
    return None


def require_steps(n_steps: Any, least: int = 1) -> None:
    """Raise ValueError unless a sampler can take this many steps."""
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < least:
        raise ValueError(f"n_steps={n_steps!r}: a whole number of at least {least} is needed")


def require_share(**values: float) -> None:
    """Raise ValueError for the first of these settings, by name, that is not from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: a number from 0 to 1 is needed")
