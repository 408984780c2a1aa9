"""Restoration tasks: an operator, a noise level, and the file format of measurements."""

import dataclasses
import functools
import math
from typing import ClassVar

import torch
from torch import Tensor

from adir.errors import InputError
from adir.images import from_uint8, to_uint8
from adir.tasks.base import Degradation, FileTask, TextEncoder
from adir.tasks.operators import Operator, Shape


class RestorationTask(FileTask):
    """Restoration task y = A x + e with noise e ~ N(0, sigma_y^2 I).

    y is rounded to 8 bits and clipped, as in a user's image file.

    Args:
        name: name in paths and tables.
        version: version of the task. Raise it when a change alters what the task measures. The
            identity of a cell (one configuration of the benchmark) contains it.
        operator: the degradation, which builds A for an image shape.
        sigma_y: standard deviation of e in grey levels of 255, before clipping. Clipping reduces
            it, for example from 10 to about 9.96.
        guidance_scale: scale s of the guidance in Algorithm 1 of ADIR. It is tuned for each task
            because its useful size depends on ||A||.

    Raises:
        InputError: if a value is invalid.
    """

    edits: ClassVar[bool] = False
    prompt: ClassVar[None] = None

    def __init__(
        self, name: str, version: int, operator: Degradation, sigma_y: float, guidance_scale: float
    ) -> None:
        super().__init__(name, version)
        for what, value in (("sigma_y", sigma_y), ("guidance_scale", guidance_scale)):
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(
                    f"task {name}: {what} is {value!r}; give a number that is not negative"
                )
        self.sigma_y = float(sigma_y)
        self.guidance_scale = float(guidance_scale)
        self.degradation = operator
        self._build = functools.lru_cache(maxsize=8)(self._operator)  # a test set has few shapes

    @property
    def shift_invariant(self) -> bool:
        """Whether A acts in the same way on every part of an image.

        `adir restore` pads and tiles images only if this is true.
        """
        return self.degradation.shift_invariant

    def bound(self, data: object, image_id: str) -> "RestorationTask":
        """Return the task itself, which is the same for all images of a test set.

        An editing task, in contrast, has a mask and a prompt for each image.
        """
        return self

    def operator(self, image_shape: Shape) -> Operator:
        """Return A for images of shape image_shape, which is (3, H, W). The result is cached.

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
            generator: generator of the noise, on the CPU. It advances even if sigma_y is 0.

        Returns:
            (C, h, w) float32 on the CPU: 8-bit levels k / 127.5 - 1, and 0 at pixels that
            inpainting loses.
        """
        operator = self.operator(tuple(x.shape))
        noise = torch.randn(operator.y_shape, generator=generator)
        y = operator.A(x.detach().cpu().float()) + operator.sigma_y * noise
        return self.as_file(y)

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """Return the encoder's (1, D) vector of `image`, to search a corpus for neighbours.

        `image` is a (3, h, w) image made from y by adir.retrieval.query.query_image.
        """
        return encoder.image(image[None])

    def as_file(self, y: Tensor) -> Tensor:
        """Return y (C, h, w) as it is read from its file: rounded to 8 bits, clipped to [-1, 1].

        Pixels that inpainting loses are set to 0. The 8-bit levels are k / 127.5 - 1 for k = 0 to
        255, and none of them is 0. Therefore 0 marks exactly the lost pixels.
        """
        rounded = from_uint8(to_uint8(y))
        operator = self.operator(self.degradation.image_shape(tuple(y.shape)))
        return torch.where(operator.known(), rounded, 0.0)
