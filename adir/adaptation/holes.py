"""Random holes for adapting an inpainting model.

The holes are strokes and boxes in the manner of LaMa (Suvorov et al., 2022), whose holes Stable
Diffusion's inpainting models were trained with. The paper does not say which holes it adapts with.
"""

import math

import torch
from torch import Tensor

STROKE_SHARE = 0.5  # share of the holes that are strokes; the others are boxes
MAX_STROKES, MAX_VERTICES, MAX_BOXES = 4, 6, 3
# (smallest, largest) as a share of the image's side
WIDTH = (1 / 16, 1 / 5)  # of a stroke
LENGTH = (1 / 8, 1 / 2)  # of each straight leg of a stroke
SIDE = (1 / 6, 1 / 2)  # of a box


def random_hole(size: int, generator: torch.Generator) -> Tensor:
    """Return a random mask (1, size, size) float32 that is 1 in the hole and 0 outside.

    The hole is never empty and never the whole square.
    """
    while True:
        strokes = bool(torch.rand((), generator=generator) < STROKE_SHARE)
        hole = random_strokes(size, generator) if strokes else random_boxes(size, generator)
        if 0 < hole.sum() < hole.numel():
            return hole.float()[None]


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Return one draw from the uniform distribution on [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def random_boxes(size: int, generator: torch.Generator) -> Tensor:
    """Return a (size, size) bool mask of 1 to MAX_BOXES rectangles inside the square."""
    hole = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(1 + int(torch.randint(MAX_BOXES, (), generator=generator))):
        height, width = (max(1, round(size * uniform(*SIDE, generator))) for _ in range(2))
        top, left = (
            int(torch.randint(size - side + 1, (), generator=generator)) for side in (height, width)
        )
        hole[top : top + height, left : left + width] = True
    return hole


def random_strokes(size: int, generator: torch.Generator) -> Tensor:
    """Return a (size, size) bool mask of 1 to MAX_STROKES brush strokes.

    A stroke is a polygonal line with round ends, and may leave the square.
    """
    centres = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    hole = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(1 + int(torch.randint(MAX_STROKES, (), generator=generator))):
        a, radius = torch.rand(2, generator=generator), uniform(*WIDTH, generator) / 2
        for _ in range(1 + int(torch.randint(MAX_VERTICES, (), generator=generator))):
            angle, length = uniform(0, 2 * math.pi, generator), uniform(*LENGTH, generator)
            leg = length * torch.tensor([math.sin(angle), math.cos(angle)])
            # Project each pixel onto the leg, 0 at a and 1 at a + leg, and clip to its ends.
            along = (((y - a[0]) * leg[0] + (x - a[1]) * leg[1]) / length**2).clamp(0, 1)
            hole |= (y - a[0] - along * leg[0]) ** 2 + (x - a[1] - along * leg[1]) ** 2 < radius**2
            a = a + leg
    return hole
