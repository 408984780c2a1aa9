"""Measure whether tiles are visible: restorations with a tiled network against the same without.

    OMP_NUM_THREADS=1 python benchmarks/quality/tiling.py --out results/embedded

Both use the same noise. The script computes the PSNR between the two and the strength of seams. It
takes half an hour on one core. Two more restorations give the scale. In the first, each tile is
restored on its own with its own noise and blended at the end, as if the image were tiled instead of
the network. The second uses another seed: its distance is that of two equally good restorations.
"""

import statistics
from collections.abc import Iterable
from datetime import date

import numpy as np
import skimage.data
import torch
from torch import Tensor

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.files import write_bytes
from adir.images import from_uint8, generator, png_bytes, to_uint8
from adir.samplers.adir import ADIR
from adir.samplers.tiling import MARGIN, TiledBackbone, ramp, restore_any_size
from adir.scoring.metrics import psnr
from adir.tasks.restoration import RestorationTask
from benchmarks.common import command, parser_of, publish, set_threads, task_named

SIDE = 192  # pixels; 224 with the margin, more than three tiles of 96
WINDOWS = {"astronaut": (60, 150), "chelsea": (40, 170), "coffee": (90, 210)}
TASKS = ("sr4", "deblur")
TILES = (64, 96)
HEAD = """# Tiles

The embedded prior on windows of {side}x{side} pixels of {images} ({n_steps} steps), whole (with its mirrored border
{padded}x{padded}) and with tiles of 64 or 96 pixels that overlap by a quarter or more. Means over the images.

`to whole`: PSNR between a restoration and the one without tiles, both in [0, 1], dB; higher: more alike. `seam`: mean absolute
difference of neighbouring pixels across the edges of tiles, divided by that of all other neighbours, over the same ratio
of the restoration without tiles; 1: no visible edges. `to truth`: PSNR with the ground truth, dB.

| task | how | tiles | to whole | seam | to truth |
|---|---|---|---|---|---|
"""
TAIL = """
`tiled network`: `adir restore`, predictions of overlapping tiles blended at each step. `separate tiles`: each tile restored on
its own, with its own noise, and blended at the end with the same ramps. `another seed`: whole, other noise, the distance
between two equally good restorations of the same y.
Guidance scales are those of conf/task. Image: the first task and window with tiles of 96; ground truth, whole, tiled network,
separate tiles. Below: the difference of each to the whole, times four (grey: none).

![tiles](tiling.png)

{date}, {cores} thread(s):

    {command}
"""


def separate_tiles(
    sampler: ADIR,
    backbone: GuidedDiffusion,
    task: RestorationTask,
    y: Tensor,
    seed: int,
    name: str,
    tile: int,
) -> Tensor:
    """Restore each tile of y (C, h, w) on its own and blend the results to (3, H, W).

    The code is that of `restore_any_size`: a tile's border is mirrored, and its noise is its own.
    """
    shape = task.image_shape(tuple(y.shape))
    factor = shape[1] // y.shape[1]
    total, weight = torch.zeros(shape), torch.zeros(shape[1:])
    window = ramp(tile, True)[:, None] * ramp(tile, True)[None, :]
    for rows, columns in TiledBackbone(backbone, tile).tiles(*shape[1:]):
        part = y[
            :,
            rows.start // factor : rows.stop // factor,
            columns.start // factor : columns.stop // factor,
        ]
        # 2 * tile leaves room for the margin, so that one network call sees the tile and its border.
        one = restore_any_size(
            sampler, backbone, task, part, seed, f"{name} {rows.start} {columns.start}", 2 * tile
        )
        total[:, rows, columns] += window * one.x_hat
        weight[rows, columns] += window
    return total / weight


def seam(x: Tensor, edges: tuple[set[int], set[int]]) -> float:
    """Return mean |difference| across tile edges, over that across all other places.

    Args:
        x: (3, H, W) image.
        edges: rows and columns with an edge at their upper or left side.
    """
    across, elsewhere = [], []
    for dimension, places in ((1, edges[0]), (2, edges[1])):
        steps = x.diff(dim=dimension).abs().transpose(1, dimension).mean((0, 2))
        for place, step in enumerate(steps.tolist(), start=1):
            (across if place in places else elsewhere).append(step)
    return statistics.mean(across) / statistics.mean(elsewhere)


def edges_of(backbone: GuidedDiffusion, tile: int, margin: int) -> tuple[set[int], set[int]]:
    """Return the rows and columns of the image at which a tile of the padded image starts or ends."""
    padded = SIDE + 2 * margin
    places = TiledBackbone(backbone, tile).tiles(padded, padded)
    return tuple(  # type: ignore[return-value]
        {
            p - margin
            for place in places
            for p in (place[axis].start, place[axis].stop)
            if 0 < p - margin < SIDE
        }
        for axis in (0, 1)
    )


def decibels(a: Tensor, b: Tensor) -> float:
    """Return the PSNR of two images in [-1, 1] after rounding to 8 bits, as they are saved."""
    one, other = (from_uint8(to_uint8(x))[None] / 2 + 0.5 for x in (a, b))
    return float(psnr(one, other))


def study(
    n_steps: int, names: Iterable[str], tasks: Iterable[str]
) -> tuple[list[str], Tensor | None]:
    """Return the table's rows, and the comparison image of the first task and window."""
    backbone, rows, sheet = GuidedDiffusion(), [], None
    for task_name in tasks:
        task = task_named(task_name)
        sampler = ADIR(n_steps=n_steps, guidance_scale=task.guidance_scale, variance="small")
        found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
        for name in names:
            top, left = WINDOWS[name]
            pixels = getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE]
            x = from_uint8(pixels)
            y = task.degrade(x, generator(0, name, "noise"))
            whole = restore_any_size(sampler, backbone, task, y, 0, name, 512).x_hat
            other = restore_any_size(sampler, backbone, task, y, 1, name, 512).x_hat
            images = {("whole", 1): whole, ("whole, another seed", 1): other}
            for tile in TILES:
                tiled = restore_any_size(sampler, backbone, task, y, 0, name, tile)
                images["tiled network", tile] = tiled.x_hat
                images["separate tiles", tile] = separate_tiles(
                    sampler, backbone, task, y, 0, name, tile
                )
            for (how, tile), image in images.items():
                edges = edges_of(
                    backbone,
                    tile if tile > 1 else TILES[-1],
                    0 if how.startswith("separate") else MARGIN,
                )
                excess = seam(image, edges) / seam(whole, edges)
                found.setdefault((how, tile), []).append(
                    (decibels(image, whole), excess, decibels(image, x))
                )
            if sheet is None:
                columns = [
                    x,
                    whole,
                    images["tiled network", TILES[-1]],
                    images["separate tiles", TILES[-1]],
                ]
                sheet = torch.cat(
                    [torch.cat(columns, 2), torch.cat([4 * (c - whole) for c in columns], 2)], 1
                )
            print(
                task_name,
                name,
                {key: [f"{v:.2f}" for v in values[-1]] for key, values in found.items()},
                flush=True,
            )
        for (how, tile), values in found.items():
            close, excess, truth = (statistics.mean(column) for column in zip(*values, strict=True))
            same = how == "whole"
            rows.append(
                f"| {task_name} | {how} | {tile if tile > 1 else ''} | "
                f"{'' if same else f'{close:.1f}'} "
                f"| {'' if same else f'{excess:.3f}'} | {truth:.2f} |"
            )
    return rows, sheet


def main() -> None:
    """Measure, print, and write the report and its image if --out is given."""
    parser = parser_of(__doc__, what="folder for tiling.md and tiling.png")
    parser.add_argument("--n-steps", type=int, default=50)
    parser.add_argument("--images", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    threads = set_threads()
    rows, sheet = study(arguments.n_steps, arguments.images, arguments.tasks)
    head = HEAD.format(
        side=SIDE,
        images=", ".join(arguments.images),
        n_steps=arguments.n_steps,
        padded=SIDE + 2 * MARGIN,
    )
    tail = TAIL.format(date=date.today(), cores=threads, command=command(__file__))
    publish(head + "\n".join(rows) + "\n" + tail, arguments.out and arguments.out / "tiling.md")
    if arguments.out is not None and sheet is not None:
        write_bytes(arguments.out / "tiling.png", png_bytes(np.asarray(to_uint8(sheet))))


if __name__ == "__main__":
    main()
