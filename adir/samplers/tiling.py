"""Restoration of images of any size: the image is padded, and a large image is tiled.

Padding extends an image to a size that the network accepts. Overlapping tiles limit the number of
pixels that the network processes at once.

Only the network is tiled. At each step, its predictions for the overlapping tiles of one x_t are
blended into one prediction (MultiDiffusion, Bar-Tal et al., 2023). Noise, guidance and operator
apply to the whole image. All tiles therefore share one noise field and agree in their overlaps
after every step, so no seams are visible.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from adir.backbones.base import Backbone, PixelBackbone, Prediction
from adir.backbones.execution import recompute
from adir.errors import InputError
from adir.images import generator
from adir.samplers.base import Sampler, SteerableSampler, Steering
from adir.tasks.base import Task

MARGIN = 16
"""Width in pixels of the border that is restored around an image and cut off afterwards.

The operators are circular, but a user's image is not. Values that wrap around the border reach as
far as the operator's support (16 pixels for sr4).
"""


class TiledBackbone:
    """Pixel backbone whose network sees at most `tile` x `tile` pixels of an image at a time.

    Tiles overlap by a quarter of their side or more and are blended with linear ramps. They pass
    through the network one after the other.

    Args:
        backbone: the backbone to call on each tile.
        tile: side of a tile in pixels, a multiple of `backbone.stride` and at least four times it.
    """

    def __init__(self, backbone: PixelBackbone, tile: int):
        self.backbone, self.tile = backbone, tile
        self.schedule = backbone.schedule

    def tiles(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Return the slices (rows, columns) of each tile."""
        size = min(height, self.tile), min(width, self.tile)
        tops, lefts = (
            tile_offsets(side, self.tile, self.backbone.stride) for side in (height, width)
        )
        return [
            (slice(top, top + size[0]), slice(left, left + size[1]))
            for top in tops
            for left in lefts
        ]

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Return the blended prediction for x_t (B, 3, H, W) at the timesteps t (B,).

        Its eps and its variance_fraction are weighted means over the tiles. The result is
        differentiable if the backbone's prediction is. A backward pass recomputes one tile at a
        time.
        """
        predict = self.backbone.predict
        if torch.is_grad_enabled() and x_t.requires_grad:
            predict = partial(recompute, predict)
        height, width = x_t.shape[-2:]
        places = self.tiles(height, width)
        if len(places) == 1:
            return predict(x_t, t)
        rows, columns = places[0]
        down, across = (
            ramp(s.stop, side > s.stop) for s, side in ((rows, height), (columns, width))
        )
        window = (down[:, None] * across[None, :]).to(x_t.device)
        weight = torch.zeros(height, width, device=x_t.device)
        eps = torch.zeros_like(x_t)
        fraction: Tensor | None = None
        for place in places:
            # Contiguous, because for a view the network's convolutions use another algorithm, with
            # other rounding.
            one = predict(x_t[:, :, *place].contiguous(), t)
            eps[:, :, *place] += window * one.eps
            if one.variance_fraction is not None:
                fraction = torch.zeros_like(x_t) if fraction is None else fraction
                fraction[:, :, *place] += window * one.variance_fraction
            weight[place] += window
        return Prediction(eps / weight, None if fraction is None else fraction / weight)


@dataclass(frozen=True)
class TiledRestoration:
    """Result of `restore_any_size` for one image, with x_hat (3, H, W)."""

    x_hat: Tensor
    n_tiles: int
    """The number of tiles of each step.

    Each step needs this many network calls, instead of one for an image that fits into one tile.
    """
    capped_steps: int


def restore_any_size(
    sampler: Sampler,
    backbone: Any,
    task: Task,
    y: Tensor,
    seed: int,
    image_id: str,
    tile: int,
    steering: Steering | None = None,
) -> TiledRestoration:
    """Return the restoration of one measurement y of any size.

    The border of y is mirrored. If a side of the image exceeds `tile` pixels, the network of a
    pixel backbone is tiled. The noise depends only on `seed` and `image_id`, so it is the same for
    all values of `tile`.

    Args:
        sampler: the method of restoration.
        backbone: the denoiser.
        task: the task that y is a measurement of.
        y: (C, h, w).
        seed: seed of the noise.
        image_id: name of the image, which selects the image's noise.
        tile: side of a tile in pixels.
        steering: adaptation mode that tunes the network during sampling, on all tiles; None leaves
            the network as it is.

    Raises:
        InputError: if `require_restorable` refuses y or tile.
        FloatingPointError: if the sampler diverges.
    """
    require_restorable(backbone, task, y, tile)
    _, height, width = task.image_shape(tuple(y.shape))
    shape = sampled_shape(backbone, task, y)
    network, n_tiles = backbone, 1
    if needed_tile(backbone, task, y, tile) is not None:
        network = TiledBackbone(backbone, tile)
        n_tiles = len(network.tiles(*shape[1:]))
    y, margin = with_margin(backbone, task, y)
    noise = generator(seed, image_id, "sampler")
    operator, batch = task.operator(shape), y[None].to(backbone.device)
    if steering is None:
        result = sampler.restore(network, operator, batch, [noise])
    else:
        assert isinstance(sampler, SteerableSampler)
        steered = steering.steered(backbone.network, generator(seed, image_id, "adaptation"))
        result = sampler.restore_steered(network, operator, batch, [noise], [steered])
    if result.errors[0] is not None:
        raise FloatingPointError(result.errors[0])
    x_hat = result.x_hat[0].cpu()[:, margin:, margin:]
    return TiledRestoration(x_hat[:, :height, :width], n_tiles, result.capped_steps[0])


def with_margin(backbone: Backbone, task: Task, y: Tensor) -> tuple[Tensor, int]:
    """Return y (C, h, w) with a mirrored border, and the border's width in pixels of x.

    Beyond the border, y is extended at the bottom and right to a size that the network accepts. If
    the task is not shift-invariant, the result is the unchanged y and 0.
    """
    if not task.shift_invariant:  # a mirrored y is not the y of a mirrored image
        return y, 0
    factor = task.image_shape(tuple(y.shape))[1] // y.shape[1]
    margin = math.ceil(MARGIN / factor)
    # A side of x must suit both the network and the operator.
    unit = math.lcm(backbone.stride, factor)
    extra = [(-(side + 2 * margin) * factor % unit) // factor for side in y.shape[1:]]
    return mirrored(y, margin, extra), margin * factor


def sampled_shape(backbone: Backbone, task: Task, y: Tensor) -> tuple[int, ...]:
    """Return the shape (3, H, W) of the image that is sampled for y, including the margin."""
    return task.image_shape(tuple(with_margin(backbone, task, y)[0].shape))


def needed_tile(backbone: Backbone, task: Task, y: Tensor, tile: int) -> int | None:
    """Return `tile` if the image of y needs several tiles, and None if it fits into one.

    The restoration depends on `tile` only if several tiles are needed. A latent backbone gives
    None, because it processes the whole image at once, and its VAE has tiles of its own.
    """
    return (
        tile if backbone.kind == "pixel" and max(sampled_shape(backbone, task, y)) > tile else None
    )


def require_restorable(backbone: Backbone, task: Task, y: Tensor, tile: int) -> None:
    """Raise InputError unless `restore_any_size` can restore this y (C, h, w) with this tile.

    Callers check this before any work, and `restore_any_size` checks it again.
    """
    _, height, width = task.image_shape(tuple(y.shape))
    stride = backbone.stride
    if tile < 4 * stride or tile % stride:
        raise InputError(
            f"tile={tile}: this backbone needs a multiple of {stride} that is at least {4 * stride}"
        )
    if not task.shift_invariant:
        if height % stride or width % stride:
            raise InputError(
                f"task {task.name}: the image has {width}x{height} pixels, but this backbone takes "
                f"multiples of {stride}; crop the image"
            )
        return
    margin = math.ceil(MARGIN / (height // y.shape[1]))
    if min(y.shape[1:]) <= margin:
        raise InputError(
            f"{y.shape[2]}x{y.shape[1]} pixels are too few for task {task.name}: use an image of "
            f"at least {margin + 1}x{margin + 1}"
        )


def mirrored(y: Tensor, margin: int, extra: list[int]) -> Tensor:
    """Return y (C, h, w) with reflected borders, then extended at the bottom and right.

    The reflected border is `margin` pixels of y wide on each side. The extension repeats the last
    row extra[0] times and the last column extra[1] times.
    """
    return pad(
        pad(y[None], (margin,) * 4, mode="reflect"), (0, extra[1], 0, extra[0]), mode="replicate"
    )[0]


def tile_offsets(side: int, tile: int, unit: int) -> list[int]:
    """Return the index of the first pixel of each tile along one side of an image.

    The tiles, `tile` pixels wide, cover all `side` pixels, and neighbours overlap by a quarter of
    `tile` or more. The indices are multiples of `unit`. The result is [0] if one tile is enough.
    """
    if side <= tile:
        return [0]
    n = math.ceil((side - tile) / (tile * 3 // 4)) + 1
    return [round(i * (side - tile) / (n - 1) / unit) * unit for i in range(n)]


def ramp(side: int, several: bool) -> Tensor:
    """Return (side,) blending weights for one axis of a tile.

    If `several` is True, the axis has several tiles. The weights then rise linearly over a quarter
    of the tile at either end and are never 0. For a single tile, all weights are 1.
    """
    if not several:
        return torch.ones(side)
    distance = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).float()
    return (distance / (side // 4)).clamp(max=1)
