"""Random holes for adapting an inpainting model.

Strokes and boxes, in the manner of LaMa (Suvorov et al., 2022), whose holes Stable Diffusion's
inpainting models were trained with. What holes the paper adapts with is unknown.
"""

import math

import torch
from torch import Tensor

STROKE_SHARE = 0.5  # of the holes; the others are boxes
MAX_STROKES, MAX_VERTICES, MAX_BOXES = 4, 6, 3
WIDTH = (1 / 16, 1 / 5)  # of strokes, in sides of the image
LENGTH = (1 / 8, 1 / 2)  # of a stroke's legs
SIDE = (1 / 6, 1 / 2)  # of boxes


def random_hole(size: int, generator: torch.Generator) -> Tensor:
    """(1, size, size) float32, 1 in the hole: never empty, and never the whole square."""
    while True:
        strokes = bool(torch.rand((), generator=generator) < STROKE_SHARE)
        hole = random_strokes(size, generator) if strokes else random_boxes(size, generator)
        if 0 < hole.sum() < hole.numel():
            return hole.float()[None]


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One draw."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def random_boxes(size: int, generator: torch.Generator) -> Tensor:
    """(size, size) bool: the union of 1 to MAX_BOXES rectangles inside the square."""
    hole = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(1 + int(torch.randint(MAX_BOXES, (), generator=generator))):
        height, width = (max(1, round(size * uniform(*SIDE, generator))) for _ in range(2))
        top, left = (
            int(torch.randint(size - side + 1, (), generator=generator)) for side in (height, width)
        )
        hole[top : top + height, left : left + width] = True
    return hole


def random_strokes(size: int, generator: torch.Generator) -> Tensor:
    """(size, size) bool: 1 to MAX_STROKES polygonal brush strokes with round ends, which may leave
    the square.
    """
    centres = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    hole = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(1 + int(torch.randint(MAX_STROKES, (), generator=generator))):
        a, radius = torch.rand(2, generator=generator), uniform(*WIDTH, generator) / 2
        for _ in range(1 + int(torch.randint(MAX_VERTICES, (), generator=generator))):
            angle, length = uniform(0, 2 * math.pi, generator), uniform(*LENGTH, generator)
            leg = length * torch.tensor([math.sin(angle), math.cos(angle)])
            # Place of the foot of each pixel on the leg from a to a + leg, clipped to its ends.
            along = (((y - a[0]) * leg[0] + (x - a[1]) * leg[1]) / length**2).clamp(0, 1)
            hole |= (y - a[0] - along * leg[0]) ** 2 + (x - a[1] - along * leg[1]) ** 2 < radius**2
            a = a + leg
    return hole
