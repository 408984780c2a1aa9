"""Operators A of y = A x + e, and the degradations that build them.

A degradation implements adir.tasks.base.Degradation. It is a small frozen dataclass, whose fields
are the operator's parameters. Calling it with an image shape builds the `Operator`. Its method
`image_shape(y_shape)` returns the shape of the images whose y has shape y_shape.

Borders are circular, as in the authors' images, unless a class says otherwise. Each value of y is a
weighted sum over pixels or channels of x, with weights that sum to one. A grey image therefore
keeps its grey level, and A gives the same image whether x is in [-1, 1] or in grey levels. At
pixels that inpainting loses, y is 0, which is mid grey.
"""

from adir.tasks.operators.base import Operator, Shape
from adir.tasks.operators.blurs import BoxBlur, GaussianBlur
from adir.tasks.operators.pixels import (
    BoxInpainting,
    Colorization,
    MaskedPixels,
    RandomInpainting,
    keeping,
)
from adir.tasks.operators.resampling import (
    CircularDownsampling,
    MeanDownsampling,
    ReflectiveSuperResolution,
    SeparableDownsampling,
    SuperResolution,
)

__all__ = [
    "BoxBlur",
    "BoxInpainting",
    "CircularDownsampling",
    "Colorization",
    "GaussianBlur",
    "MaskedPixels",
    "MeanDownsampling",
    "Operator",
    "RandomInpainting",
    "ReflectiveSuperResolution",
    "SeparableDownsampling",
    "Shape",
    "SuperResolution",
    "keeping",
]
