"""What the program asks of a task and of its degradation, and what tasks ask of others."""

from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from adir.tasks.operators import Operator, Shape


class LinearOperator(Protocol):
    """A of y = A x + e for one image shape, as samplers and scores ask for it.

    Algorithm 1 needs image_shape, norm, A and A_adjoint alone. `Operator` is one around a physics
    of deepinv or a module like it, which the samplers of that library ask for besides.
    """

    @property
    def image_shape(self) -> Shape:
        """(3, H, W) of x."""

    @property
    def y_shape(self) -> Shape:
        """(C, h, w) of y."""

    @property
    def norm(self) -> float:
        """The largest singular value of A."""

    @property
    def sigma_y(self) -> float:
        """Standard deviation of e, for images in [-1, 1]."""

    def A(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, h, w), or without the batch axis."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The transpose of A, applied to y."""

    def A_dagger(self, y: Tensor) -> Tensor:
        """The pseudo-inverse of A, applied to y."""

    def known(self) -> Tensor:
        """(C, h, w) bool: the entries of y that depend on x at all."""


class Degradation(Protocol):
    """What a task file names under `operator`: builds A for one image shape, and inverts the
    shapes.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Of the class, with `name` and the parameters part of a cell's identity: raised when a change
    changes its result.
    """
    shift_invariant: ClassVar[bool]
    """Whether A is the same wherever an image is cut: then large images can be restored in tiles.
    """

    def __call__(self, image_shape: Shape) -> Operator:
        """A for images (3, H, W). Raises InputError for shapes that it cannot take."""

    def image_shape(self, y_shape: Shape) -> Shape:
        """Shape (3, H, W) of the images whose y is (C, h, w).

        Raises InputError for a y that cannot be.
        """


class TextEncoder(Protocol):
    """What a task asks of an encoder to find neighbours with."""

    metric: str

    def image(self, batch: Tensor) -> Tensor:
        """(B, D) vectors of (B, 3, H, W) images in [-1, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """(B, D) unit vectors. Raises InputError where there is no text side."""


class Task(Protocol):
    """What is done to an image x, and how the y that is left is read, shown and looked up."""

    name: str
    version: int
    """Raise it when a change alters what the task measures; it is part of a cell's identity."""
    sigma_y: float
    """Standard deviation of the noise in grey levels of 255."""
    edits: ClassVar[bool]
    """Whether an image is repainted as a prompt says, where a mask says, instead of restored."""

    @property
    def prompt(self) -> str | None:
        """What is to be seen in the result.

        None for a task of restoration, and for an edit without its image.
        """

    @property
    def shift_invariant(self) -> bool:
        """As of the degradation."""

    def bound(self, data: Any, image_id: str) -> "Task":
        """The task for one image of a test set: with its mask and prompt where it has them."""

    def operator(self, image_shape: Shape) -> Operator:
        """A for images of this shape. Raises InputError for shapes that it cannot take."""

    def image_shape(self, y_shape: Shape) -> Shape:
        """Shape (3, H, W) of the images whose y is (C, h, w).

        Raises InputError for a y that the task cannot have.
        """

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The y of an image x (3, H, W) in [-1, 1]:

        (C, h, w) float32 on the CPU, of 8-bit values.
        """

    def read_y(self, path: str | Path) -> Tensor:
        """The y in an image file. Raises InputError for a file that cannot be a y of this task."""

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` gives the same y."""

    def image_of(self, y: Tensor) -> Tensor:
        """y as an RGB image (3, h, w) in [-1, 1], for encoders, for adapting to y, and for the eye."""

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """(1, D): the encoder's vector of what neighbours are looked for with, the image of y or a
        prompt.
        """


class EditImages(Protocol):
    """What a task of edits asks of a test set (adir.data.base.Corpus); both are None in a set that
    is not one of edits.
    """

    name: str

    def mask(self, image_id: str) -> Tensor | None:
        """(H, W) bool, true where the image is to be repainted."""

    def prompt(self, image_id: str) -> str | None:
        """What is to be seen there."""
