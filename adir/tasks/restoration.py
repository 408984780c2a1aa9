"""A restoration task: an operator, a noise level, and what a degraded image looks like on disk."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from adir.errors import InputError
from adir.images import from_uint8, read_pixels, to_uint8, write_png
from adir.tasks.base import Degradation, TextEncoder
from adir.tasks.operators import Operator, Shape


class RestorationTask:
    """y = A(x) + e, with e ~ N(0, sigma_y^2 I), then rounded to 8 bits and clipped, as a user's
    image file is.

    version: raise it when a change alters what the task measures; it is part of a cell's identity.
    operator: builds A for an image shape (a `Degradation`).
    sigma_y: noise in grey levels of 255, before clipping. (10 measured after clipping reads about
        9.96.)
    guidance_scale: the sampler's s for this task, tuned per task because its useful size depends on
        ||A||.
    Raises InputError on values that make no task.
    """

    edits: ClassVar[bool] = False
    prompt: ClassVar[None] = None

    def __init__(
        self, name: str, version: int, operator: Degradation, sigma_y: float, guidance_scale: float
    ) -> None:
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InputError(f"task {name}: version {version!r}; give a whole number from 1 up")
        for what, value in (("sigma_y", sigma_y), ("guidance_scale", guidance_scale)):
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(
                    f"task {name}: {what} is {value!r}; give a number that is not negative"
                )
        self.name = name
        self.version = version
        self.sigma_y = float(sigma_y)
        self.guidance_scale = float(guidance_scale)
        self.degradation = operator
        self._build = functools.lru_cache(maxsize=8)(self._operator)  # a test set has few shapes

    @property
    def shift_invariant(self) -> bool:
        """Whether A is the same wherever an image is cut, as `adir restore` needs to pad and tile."""
        return self.degradation.shift_invariant

    def bound(self, data: object, image_id: str) -> "RestorationTask":
        """The task as it is for one image of a test set: itself.

        (Editing has a mask and a prompt for each.)
        """
        return self

    def operator(self, image_shape: Shape) -> Operator:
        """A for images of this shape, cached. Raises InputError for shapes that it cannot take."""
        return self._build(tuple(image_shape))

    def _operator(self, image_shape: Shape) -> Operator:
        return dataclasses.replace(self.degradation(image_shape), sigma_y=self.sigma_y / 127.5)

    def image_shape(self, y_shape: Shape) -> Shape:
        """Shape (3, H, W) of the images whose y is (C, h, w).

        Raises InputError for a y that the task cannot have.
        """
        image_shape = self.degradation.image_shape(tuple(y_shape))
        return self.operator(
            image_shape
        ).image_shape  # so that a y that is too small is refused here

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The y of an image x (3, H, W) in [-1, 1]:

        (C, h, w) float32 on the CPU, of 8-bit values k / 127.5 - 1.

        generator: a CPU generator; one draw of y's shape is taken, also where sigma_y is 0.
        """
        operator = self.operator(tuple(x.shape))
        noise = torch.randn(operator.y_shape, generator=generator)
        y = operator.A(x.detach().cpu().float()) + operator.sigma_y * noise
        return self._as_file(y)

    def read_y(self, path: str | Path) -> Tensor:
        """The y in an image file:

        (C, h, w). The unknown pixels of inpainting are 0, whatever the file shows.

        Raises InputError when the file is no image, or one that cannot be a y of this task.
        """
        pixels = read_pixels(path)
        y = from_uint8(pixels)
        try:
            self.image_shape(tuple(y.shape))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return self._as_file(y)

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` gives the same y.

        Unknown pixels are written as mid grey.
        """
        self.image_shape(tuple(y.shape))
        write_png(path, y)

    def image_of(self, y: Tensor) -> Tensor:
        """y as an RGB image (3, h, w) in [-1, 1], for encoders, for adapting to y, and for the eye.

        Super-resolution: the small image. Colorization: grey in the three channels. Inpainting: mid
        grey in the hole.
        """
        self.image_shape(tuple(y.shape))
        return y.expand(3, -1, -1).clone() if y.shape[0] == 1 else y.clone()

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """(1, D): what neighbours are looked for with, the encoder's vector of y as an image (3, h,
        w).
        """
        return encoder.image(image[None])

    def _as_file(self, y: Tensor) -> Tensor:
        """y rounded to 8 bits and clipped; 0, which no 8-bit value gives, where A lets nothing
        through.
        """
        rounded = from_uint8(to_uint8(y))
        operator = self.operator(self.degradation.image_shape(tuple(y.shape)))
        return torch.where(operator.known(), rounded, 0.0)
