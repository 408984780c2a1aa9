"""The operators A of y = A(x) + e.

Each degradation (adir.tasks.base.Degradation) is a small frozen dataclass. Its fields are the
operator's parameters. Calling it with an image shape builds the `Operator`; `image_shape(y_shape)`
is the shape of the images that give such a y. Borders are circular, as in the authors' images,
unless a class says otherwise. Weights sum to one, so grey stays grey, and A of an image in [-1, 1]
is the same image as A of its grey levels. Where inpainting loses a pixel, y is 0, which is mid
grey.
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
