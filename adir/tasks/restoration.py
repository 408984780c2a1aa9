"""Restoration tasks: an operator, a noise level, and the file format of measurements."""

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
    """Restoration task y = A(x) + e with e ~ N(0, sigma_y^2 I), rounded to 8 bits and clipped.

    A user's image file is rounded and clipped in the same way.

    Args:
        name: name in paths and tables.
        version: part of a cell's identity. Raise it when a change alters what the task measures.
        operator: builds A for an image shape (a `Degradation`).
        sigma_y: standard deviation of the noise in grey levels of 255, before clipping. A sigma_y
            of 10 measures about 9.96 after clipping.
        guidance_scale: the sampler's s for this task. It is tuned for each task because its useful
            size depends on ||A||.

    Raises:
        InputError: if a value is invalid.
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
        """Whether A is the same wherever an image is cut.

        `adir restore` pads and tiles images only if this is true.
        """
        return self.degradation.shift_invariant

    def bound(self, data: object, image_id: str) -> "RestorationTask":
        """Return the task itself, because all images of a test set have the same task.

        An editing task, in contrast, has a mask and a prompt for each image.
        """
        return self

    def operator(self, image_shape: Shape) -> Operator:
        """Return A for images of this shape, cached.

        Raises:
            InputError: if A is undefined for this shape.
        """
        return self._build(tuple(image_shape))

    def _operator(self, image_shape: Shape) -> Operator:
        return dataclasses.replace(self.degradation(image_shape), sigma_y=self.sigma_y / 127.5)

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape (3, H, W) of the images whose y has shape (C, h, w).

        Raises:
            InputError: if no y of this task has this shape.
        """
        image_shape = self.degradation.image_shape(tuple(y_shape))
        # Building the operator raises InputError if the image is too small for it.
        return self.operator(image_shape).image_shape

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the y of an image x.

        Args:
            x: (3, H, W) in [-1, 1].
            generator: on the CPU. One draw of y's shape is taken, even if sigma_y is 0.

        Returns:
            (C, h, w) float32 on the CPU, with 8-bit levels k / 127.5 - 1.
        """
        operator = self.operator(tuple(x.shape))
        noise = torch.randn(operator.y_shape, generator=generator)
        y = operator.A(x.detach().cpu().float()) + operator.sigma_y * noise
        return self._as_file(y)

    def read_y(self, path: str | Path) -> Tensor:
        """Return the y (C, h, w) in an image file.

        The unknown pixels of inpainting are 0, whatever the file shows.

        Raises:
            InputError: if the file is no image or cannot be a y of this task.
        """
        pixels = read_pixels(path)
        y = from_uint8(pixels)
        try:
            self.image_shape(tuple(y.shape))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return self._as_file(y)

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` returns the same y.

        Unknown pixels are mid grey in the file.
        """
        self.image_shape(tuple(y.shape))
        write_png(path, y)

    def image_of(self, y: Tensor) -> Tensor:
        """Return y as an RGB image (3, h, w) in [-1, 1].

        The image is used to encode y, to adapt to y, and to show y. For super-resolution it is the
        small image, for colorization it has the grey level in all channels, and for inpainting it
        has mid grey in the hole.
        """
        self.image_shape(tuple(y.shape))
        return y.expand(3, -1, -1).clone() if y.shape[0] == 1 else y.clone()

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """Return the (1, D) vector by which neighbours are searched.

        It is the encoder's vector of `image`, which is y as an image (3, h, w).
        """
        return encoder.image(image[None])

    def _as_file(self, y: Tensor) -> Tensor:
        """Return y (C, h, w) in [-1, 1], rounded to 8 bits and clipped, as read from its file.

        Entries that do not depend on x, such as the hole of inpainting, are 0. The value 0 marks
        them: 8-bit levels are k / 127.5 - 1 for whole numbers k, and are therefore never exactly 0.
        """
        rounded = from_uint8(to_uint8(y))
        operator = self.operator(self.degradation.image_shape(tuple(y.shape)))
        return torch.where(operator.known(), rounded, 0.0)
