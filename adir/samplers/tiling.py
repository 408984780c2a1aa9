"""Pictures of any size: padding to what the network takes, and overlapping tiles beyond what it should be given at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.errors import InputError
from adir.images import generator
from adir.samplers.adir import ADIR
from adir.tasks.restoration import RestorationTask

MARGIN = 16
"""Pixels of x̂ restored around the picture and cut off: the operators are circular, a user's picture is not, and what wraps
around the border reaches as far as the operator's support (16 for sr4)."""


@dataclass(frozen=True)
class TiledRestoration:
    """x_hat (3, H, W), and how it was made."""

    x_hat: Tensor
    n_tiles: int
    capped_steps: int
    """The most of any tile."""


def restore_any_size(
    sampler: ADIR, backbone: GuidedDiffusion, task: RestorationTask, y: Tensor, seed: int, image_id: str, tile: int
) -> TiledRestoration:
    """Restore one y (C, h, w) of any size: mirrored at the border, cut into tiles of `tile` pixels that overlap by a quarter,
    and blended with linear ramps.

    Each tile has its own noise, from (seed, image_id, its place). Raises InputError for pictures that are too small or
    tasks whose operator is not the same everywhere, FloatingPointError where the sampler diverges.
    """
    require_restorable(backbone, task, y, tile)
    _, height, width = task.image_shape(tuple(y.shape))
    stride = backbone.stride
    if not task.shift_invariant:
        operator, noise = task.operator((3, height, width)), generator(seed, image_id, "sampler")
        result = sampler.restore(backbone, operator, y[None].to(backbone.device), [noise])
        return TiledRestoration(checked(result.x_hat, result.errors).cpu(), 1, result.capped_steps[0])

    factor = height // y.shape[1]
    margin = math.ceil(MARGIN / factor)
    unit = math.lcm(stride, factor)  # a side of x that both the network and the operator take
    extra = [(-(side * factor + 2 * margin * factor) % unit) // factor for side in y.shape[1:]]
    padded = mirrored(y, margin, extra)

    shape = [side * factor for side in padded.shape[1:]]
    tops, lefts = (starts(side, tile, unit) for side in shape)
    size = [min(side, tile) for side in shape]
    window = ramp(size[0], len(tops) > 1)[:, None] * ramp(size[1], len(lefts) > 1)[None, :]
    total, weight = torch.zeros(3, *shape), torch.zeros(*shape)
    operator, capped_steps = task.operator((3, *size)), 0
    for top in tops:
        for left in lefts:
            part = padded[:, top // factor : (top + size[0]) // factor, left // factor : (left + size[1]) // factor]
            noise = generator(seed, image_id, f"sampler {top} {left}")
            result = sampler.restore(backbone, operator, part[None].to(backbone.device), [noise])
            rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
            total[:, rows, columns] += window * checked(result.x_hat, result.errors).cpu()
            weight[rows, columns] += window
            capped_steps = max(capped_steps, result.capped_steps[0])
    start = margin * factor
    x_hat = (total / weight)[:, start : start + height, start : start + width]
    return TiledRestoration(x_hat, len(tops) * len(lefts), capped_steps)


def require_restorable(backbone: GuidedDiffusion, task: RestorationTask, y: Tensor, tile: int) -> None:
    """Raise InputError unless `restore_any_size` can restore this y (C, h, w): asked before any work, and once more there."""
    _, height, width = task.image_shape(tuple(y.shape))
    stride = backbone.stride
    if not task.shift_invariant:
        if height % stride or width % stride:
            raise InputError(
                f"task {task.name}: {width}x{height} pixels, but this backbone takes multiples of {stride}: crop it"
            )
        return
    factor = height // y.shape[1]
    margin = math.ceil(MARGIN / factor)
    if min(y.shape[1:]) <= margin:
        raise InputError(
            f"{y.shape[2]}x{y.shape[1]} pixels: too small for task {task.name}, {margin + 1} a side are needed"
        )
    unit = math.lcm(stride, factor)
    if tile < 4 * unit or tile % unit:
        raise InputError(f"tile={tile}: a multiple of {unit}, {4 * unit} or more, is needed for task {task.name}")


def mirrored(y: Tensor, margin: int, extra: list[int]) -> Tensor:
    """y (C, h, w) reflected by `margin` on each side, then its bottom and right edge repeated by extra = [rows, columns]."""
    return pad(pad(y[None], (margin,) * 4, mode="reflect"), (0, extra[1], 0, extra[0]), mode="replicate")[0]


def checked(x_hat: Tensor, errors: list[str | None]) -> Tensor:
    """The only picture of a batch; FloatingPointError when the sampler gave it up."""
    if errors[0] is not None:
        raise FloatingPointError(errors[0])
    return x_hat[0]


def starts(side: int, tile: int, unit: int) -> list[int]:
    """First pixels of tiles that cover `side`, multiples of `unit`, overlapping by a quarter or more; [0] if one is enough."""
    if side <= tile:
        return [0]
    n = math.ceil((side - tile) / (tile * 3 // 4)) + 1
    return [round(i * (side - tile) / (n - 1) / unit) * unit for i in range(n)]


def ramp(side: int, several: bool) -> Tensor:
    """(side,) blending weights: rising over a quarter at either end, never 0; all 1 for a tile that is alone."""
    if not several:
        return torch.ones(side)
    distance = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).float()
    return (distance / (side // 4)).clamp(max=1)
