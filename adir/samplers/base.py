"""What the baseline samplers share: one picture at a time, ranges, failures, and reasons for not taking part."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.tasks.operators import Operator
from adir.tasks.restoration import RestorationTask

ROUNDING = 1 / (255 * math.sqrt(12))
"""Standard deviation that rounding to 8 bits leaves in a picture in [0, 1]: what is unknown of y where it has no noise."""


@dataclass(frozen=True)
class Restoration:
    """The sampler's result for one batch; every list has one entry per picture."""

    x_hat: Tensor
    """(B, 3, H, W), about [-1, 1]; NaN throughout for a picture that failed, so that it cannot pass for a result."""
    capped_steps: list[int]
    """Number of steps at which the guidance was lowered to stay stable, of `n_steps`."""
    errors: list[str | None]
    """Why a picture failed: the step and scale at which NaN or Inf appeared."""
    network_evaluations: int = 0
    """Calls of the network for one picture that did not fail."""


class Sampler(Protocol):
    """What the harness needs of a sampler; ADIR is one."""

    name: str
    n_steps: int
    """0 for methods without steps."""

    def restore(
        self, backbone: GuidedDiffusion, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per picture, on which alone the picture's randomness depends."""

    def not_applicable(self, backbone: GuidedDiffusion, task: RestorationTask, mode: str) -> str | None:
        """One line on why this sampler cannot do a cell; None where it can."""


def one_by_one(
    restore_one: Callable[[Tensor, torch.Generator], tuple[Tensor, int]],
    operator: Any,
    y: Tensor,
    generators: list[torch.Generator],
    remedy: str,
) -> Restoration:
    """Restore each picture of the batch y (B, C, h, w) apart, as libraries draw noise for whole batches.

    restore_one: y (1, C, h, w) and a generator to x_hat (1, 3, H, W) in about [-1, 1], and its network evaluations; it may
    raise FloatingPointError.  A result with NaN or Inf is NaN throughout, and its error ends with `remedy`.
    """
    x_hat = torch.full((len(generators), *operator.image_shape), torch.nan, dtype=y.dtype, device=y.device)
    errors: list[str | None] = [None] * len(generators)
    evaluations = 0
    for b, noise in enumerate(generators):
        try:
            restored, evaluations = restore_one(y[b : b + 1], noise)
            if not torch.isfinite(restored).all():
                raise FloatingPointError(f"NaN or Inf in the result: {remedy}")
            x_hat[b : b + 1] = restored
        except FloatingPointError as error:
            errors[b] = str(error)
    return Restoration(x_hat, [0] * len(generators), errors, evaluations)


def in_unit_range(operator: Operator, y: Tensor) -> Tensor:
    """y of a picture in [-1, 1] as y of the same picture in [0, 1]: (y + A 1) / 2, as A((x + 1) / 2) is that.

    For inpainting 0 stays 0 in the hole, where A 1 is 0.
    """
    ones = torch.ones(operator.image_shape, dtype=y.dtype, device=y.device)
    return (y + operator.A(ones)) / 2


def noise_level(operator: Operator) -> float:
    """Standard deviation of y's noise for a picture in [0, 1]: at least the rounding of its file, as y is never exact."""
    return max(operator.sigma_y / 2, ROUNDING)


def needs_pixels(name: str, backbone: Any, task: Any) -> str | None:
    """The reason for which a sampler that restores pixels leaves out a latent backbone, or a task that has a prompt."""
    if backbone.kind == "latent":
        return f"sampler {name} works on pixels, and backbone {backbone.name} on latents"
    if hasattr(task, "with_mask"):
        return (
            f"task {task.name} repaints as a prompt says, which neither backbone {backbone.name} nor sampler {name} can: "
            "use backbone=sd_inpaint sampler=sd_inpaint"
        )
    return None


def require_steps(n_steps: Any, least: int = 1) -> None:
    """Raise ValueError unless a sampler can take this many steps."""
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < least:
        raise ValueError(f"n_steps={n_steps!r}: a whole number of at least {least} is needed")


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """(B, *shape) standard normal, picture b from generators[b] on the CPU, in the type and on the device of `like`."""
    noise = [torch.randn(shape, generator=generator, dtype=like.dtype) for generator in generators]
    stacked = torch.stack(noise)
    if like.device.type == "cuda":  # from pageable memory the copy would wait for the step before it
        stacked = stacked.pin_memory()
    return stacked.to(like.device, non_blocking=True)
