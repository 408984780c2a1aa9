"""Interfaces of tasks, degradations, linear operators, encoders and editing test sets."""

from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from adir.tasks.operators import Operator, Shape


class LinearOperator(Protocol):
    """Linear operator A of y = A x + e for one image shape, as samplers and scores use it.

    Algorithm 1 needs only image_shape, norm, A and A_adjoint. `Operator` implements this interface.
    It also has a deepinv physics, or a similar module, for the samplers that call deepinv.
    """

    @property
    def image_shape(self) -> Shape:
        """The shape (3, H, W) of x."""

    @property
    def y_shape(self) -> Shape:
        """The shape (C, h, w) of y."""

    @property
    def norm(self) -> float:
        """The largest singular value of A."""

    @property
    def sigma_y(self) -> float:
        """The standard deviation of e, for images in [-1, 1]."""

    def A(self, x: Tensor) -> Tensor:
        """Return A x: (B, 3, H, W) to (B, C, h, w), or without the batch axis."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the transpose of A, applied to y."""

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return the pseudo-inverse of A, applied to y."""

    def known(self) -> Tensor:
        """Return a (C, h, w) bool mask of the entries of y that depend on x at all."""


class Degradation(Protocol):
    """Degradation, such as a box blur, that defines one operator A for each image shape.

    Calling a degradation with an image shape builds A. The key `operator` of a task file names a
    degradation.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """The version of the class, to be raised when a change of the class changes its result.

    A cell's identity contains the version, the name and the parameters of the degradation.
    """
    shift_invariant: ClassVar[bool]
    """Whether A is the same wherever an image is cut, so that large images can be tiled."""

    def __call__(self, image_shape: Shape) -> Operator:
        """Return A for images (3, H, W).

        Raises:
            InputError: if A is undefined for this shape.
        """

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape (3, H, W) of the images whose y has shape (C, h, w).

        Raises:
            InputError: if no y has this shape.
        """


class TextEncoder(Protocol):
    """Encoder whose vectors are used to search for neighbours."""

    metric: str

    def image(self, batch: Tensor) -> Tensor:
        """Return (B, D) vectors of (B, 3, H, W) images in [-1, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of B prompts.

        Raises:
            InputError: if the encoder has no text side.
        """


class Task(Protocol):
    """Restoration or editing task, which makes a measurement y from an image x.

    It also reads and writes files of y, converts y to an RGB image, and makes the vector by which
    neighbours are searched.
    """

    name: str
    version: int
    """A cell's identity contains this version. Raise it if the measured quantity changes."""
    sigma_y: float
    """The standard deviation of the noise in grey levels of 255."""
    edits: ClassVar[bool]
    """Whether the task repaints a masked part of an image by a prompt, instead of restoring it."""

    @property
    def prompt(self) -> str | None:
        """A description of the desired result.

        It is None for a restoration task, and for an editing task without an image.
        """

    @property
    def shift_invariant(self) -> bool:
        """Whether A is the same wherever an image is cut; see `Degradation.shift_invariant`."""

    def bound(self, data: Any, image_id: str) -> "Task":
        """Return the task for one image of a test set, with the image's mask and prompt if any."""

    def operator(self, image_shape: Shape) -> Operator:
        """Return A for images of this shape.

        Raises:
            InputError: if A is undefined for this shape.
        """

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape (3, H, W) of the images whose y has shape (C, h, w).

        Raises:
            InputError: if no y of this task has this shape.
        """

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the y of an image x (3, H, W) in [-1, 1].

        y is (C, h, w) float32 on the CPU. Its known values are 8-bit levels k / 127.5 - 1.
        """

    def read_y(self, path: str | Path) -> Tensor:
        """Return the y in an image file.

        Raises:
            InputError: if the file cannot be a y of this task.
        """

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` returns the same y."""

    def image_of(self, y: Tensor) -> Tensor:
        """Return y as an RGB image (3, h, w) in [-1, 1].

        The image is used to encode y, to adapt to y, and to show y.
        """

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """Return the (1, D) vector by which neighbours are searched.

        It is the encoder's vector of `image`, which is y as an image, or of the prompt.
        """


class EditImages(Protocol):
    """Test set of an editing task, such as adir.data.base.Corpus.

    In a test set without edits, `mask` and `prompt` return None.
    """

    name: str

    def mask(self, image_id: str) -> Tensor | None:
        """Return a (H, W) bool mask, true in the part to repaint."""

    def prompt(self, image_id: str) -> str | None:
        """Return the description of the content to paint into the mask."""
