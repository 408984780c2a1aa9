"""Images of any size: padding to what the network takes, and overlapping tiles beyond what it
should be given at once.

Only the network is tiled. At each step its predictions for overlapping tiles of one x_t are blended
into one (MultiDiffusion, Bar-Tal et al., 2023), and everything else (noise, guidance, operator) is
the whole image's: all tiles share one noise field and agree in their overlaps after every step, so
that there is nothing to see where they meet.
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
"""Pixels of x̂ restored around the image and cut off: the operators are circular, a user's image is
not, and what wraps around the border reaches as far as the operator's support (16 for sr4).
"""


class TiledBackbone:
    """A pixel backbone whose network sees no more than `tile` pixels a side of an image at a time.

    tile: a multiple of the stride, of four strides or more. Tiles overlap by a quarter or more, and
        are weighted by linear
    ramps over it. One tile is in the network at a time.
    """

    def __init__(self, backbone: PixelBackbone, tile: int):
        self.backbone, self.tile = backbone, tile
        self.schedule = backbone.schedule

    def tiles(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each."""
        size = min(height, self.tile), min(width, self.tile)
        tops, lefts = (starts(side, self.tile, self.backbone.stride) for side in (height, width))
        return [
            (slice(top, top + size[0]), slice(left, left + size[1]))
            for top in tops
            for left in lefts
        ]

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The weighted mean of the tiles' predictions: eps and variance_fraction of x_t (B, 3, H,
        W) at timesteps t (B,).

        Differentiable as the backbone's is; a backward pass computes each tile again, one at a
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
        eps: Tensor | None = None
        fraction: Tensor | None = None
        for place in places:
            # Contiguous: a view would send the network's convolutions another way, with other
            # rounding.
            one = predict(x_t[:, :, *place].contiguous(), t)
            eps = torch.zeros_like(x_t) if eps is None else eps
            eps[:, :, *place] += window * one.eps
            if one.variance_fraction is not None:
                fraction = torch.zeros_like(x_t) if fraction is None else fraction
                fraction[:, :, *place] += window * one.variance_fraction
            weight[place] += window
        assert eps is not None
        return Prediction(eps / weight, None if fraction is None else fraction / weight)


@dataclass(frozen=True)
class TiledRestoration:
    """x_hat (3, H, W), and how it was made."""

    x_hat: Tensor
    n_tiles: int
    """Tiles of each step: the network is called so many times as often as for an image that fits
    one.
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
    """Restore one y (C, h, w) of any size: mirrored at the border, and beyond `tile` pixels a side
    with a tiled network.

    Noise comes from (seed, image_id) and does not depend on the tiles. steering: tunes the network
    meanwhile, through all of its tiles. Raises InputError for images that are too small,
    FloatingPointError where the sampler diverges.
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
    x_hat = checked(result.x_hat, result.errors).cpu()[:, margin:, margin:]
    return TiledRestoration(x_hat[:, :height, :width], n_tiles, result.capped_steps[0])


def with_margin(backbone: Backbone, task: Task, y: Tensor) -> tuple[Tensor, int]:
    """(y (C, h, w) with a mirrored border and a size that the network takes, pixels of x above and
    left of the image).
    """
    if (
        not task.shift_invariant
    ):  # what y knows of the border is not what it would know of a mirrored one
        return y, 0
    factor = task.image_shape(tuple(y.shape))[1] // y.shape[1]
    margin = math.ceil(MARGIN / factor)
    unit = math.lcm(
        backbone.stride, factor
    )  # a side of x that both the network and the operator take
    extra = [(-(side + 2 * margin) * factor % unit) // factor for side in y.shape[1:]]
    return mirrored(y, margin, extra), margin * factor


def sampled_shape(backbone: Backbone, task: Task, y: Tensor) -> tuple[int, ...]:
    """(3, H, W) of what is sampled for y: the image with its margin."""
    return task.image_shape(tuple(with_margin(backbone, task, y)[0].shape))


def needed_tile(backbone: Backbone, task: Task, y: Tensor, tile: int) -> int | None:
    """`tile` where y takes several, else None: what of it the restoration depends on.

    A latent backbone's images are whole here: its VAE has tiles of its own.
    """
    return (
        tile if backbone.kind == "pixel" and max(sampled_shape(backbone, task, y)) > tile else None
    )


def require_restorable(backbone: Backbone, task: Task, y: Tensor, tile: int) -> None:
    """Raise InputError unless `restore_any_size` can restore this y (C, h, w): asked before any
    work, and once more there.
    """
    _, height, width = task.image_shape(tuple(y.shape))
    stride = backbone.stride
    if tile < 4 * stride or tile % stride:
        raise InputError(
            f"tile={tile}: a multiple of {stride}, {4 * stride} or more, is needed for this "
            "backbone"
        )
    if not task.shift_invariant:
        if height % stride or width % stride:
            raise InputError(
                f"task {task.name}: {width}x{height} pixels, but this backbone takes multiples "
                f"of {stride}: crop it"
            )
        return
    margin = math.ceil(MARGIN / (height // y.shape[1]))
    if min(y.shape[1:]) <= margin:
        raise InputError(
            f"{y.shape[2]}x{y.shape[1]} pixels: too small for task {task.name}, {margin + 1} a "
            "side are needed"
        )


def mirrored(y: Tensor, margin: int, extra: list[int]) -> Tensor:
    """y (C, h, w) reflected by `margin` on each side, then its bottom and right edge repeated by
    extra = [rows, columns].
    """
    return pad(
        pad(y[None], (margin,) * 4, mode="reflect"), (0, extra[1], 0, extra[0]), mode="replicate"
    )[0]


def checked(x_hat: Tensor, errors: list[str | None]) -> Tensor:
    """The only image of a batch; FloatingPointError when the sampler gave it up."""
    if errors[0] is not None:
        raise FloatingPointError(errors[0])
    return x_hat[0]


def starts(side: int, tile: int, unit: int) -> list[int]:
    """First pixels of tiles that cover `side`, multiples of `unit`, overlapping by a quarter or
    more; [0] if one is enough.
    """
    if side <= tile:
        return [0]
    n = math.ceil((side - tile) / (tile * 3 // 4)) + 1
    return [round(i * (side - tile) / (n - 1) / unit) * unit for i in range(n)]


def ramp(side: int, several: bool) -> Tensor:
    """(side,) blending weights: rising over a quarter at either end, never 0; all 1 for a tile that
    is alone.
    """
    if not several:
        return torch.ones(side)
    distance = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).float()
    return (distance / (side // 4)).clamp(max=1)
