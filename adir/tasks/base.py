"""Interfaces of tasks, operators, degradations, encoders and editing test sets; files of y."""

from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from adir.errors import InputError
from adir.images import from_uint8, read_pixels, write_png
from adir.tasks.operators import Operator, Shape


class LinearOperator(Protocol):
    """Linear operator A for images of one shape, with the level of the noise e in y = A x + e.

    Samplers and metrics use this interface. Algorithm 1 of ADIR needs only image_shape, norm, A and
    A_adjoint. The class `Operator` implements the interface and adds a deepinv physics, or a
    similar module, for the samplers that call deepinv.
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
        """Return A^T y: (B, C, h, w) to (B, 3, H, W), or without the batch axis."""

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return A^+ y: (B, C, h, w) to (B, 3, H, W), or without the batch axis.

        A^+ is the pseudo-inverse of A.
        """

    def known(self) -> Tensor:
        """Return a (C, h, w) bool mask, true at the entries of y that depend on x."""


class Degradation(Protocol):
    """Degradation, such as a box blur, which builds the operator A when called with an image shape.

    The key `operator` of a task file (conf/task/) names a degradation.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """The version of the class. Raise it when a change of the class alters its results.

    The identity of a cell (one configuration of the benchmark) contains the version, the name and
    the parameters of the degradation.
    """
    shift_invariant: ClassVar[bool]
    """Whether A acts in the same way on every part of an image, so that images can be tiled."""

    def __call__(self, image_shape: Shape) -> Operator:
        """Return A for images of shape image_shape, which is (3, H, W).

        Raises:
            InputError: if A is undefined for this shape.
        """

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape (3, H, W) of the images whose y has shape (C, h, w).

        Raises:
            InputError: if no y has this shape.
        """


class TextEncoder(Protocol):
    """Encoder of images, and possibly of text, whose vectors are used to find similar images."""

    metric: str
    """The distance of the search: "angular" for unit vectors, else "euclidean"."""

    def image(self, batch: Tensor) -> Tensor:
        """Return (B, D) vectors of (B, 3, H, W) images in [-1, 1]."""

    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of B prompts.

        Raises:
            InputError: if the encoder cannot encode text.
        """


class Task(Protocol):
    """Restoration or editing task, which makes a measurement y from an image x.

    A task also reads and writes files of y, converts y to an RGB image, and makes the vector that
    is used to search a corpus for images similar to y.
    """

    name: str
    version: int
    """The version of the task. Raise it when a change alters what the task measures.

    The identity of a cell (one configuration of the benchmark) contains it.
    """
    sigma_y: float
    """The standard deviation of the noise in grey levels of 255."""
    edits: ClassVar[bool]
    """True for an editing task, which repaints a masked part of an image; False for restoration."""

    @property
    def prompt(self) -> str | None:
        """The description of the content to paint; None for a restoration task.

        It is also None for an editing task that is not bound to an image.
        """

    @property
    def shift_invariant(self) -> bool:
        """Whether A acts in the same way on every part of an image."""

    def bound(self, data: Any, image_id: str) -> "Task":
        """Return the task for one image of the test set `data`.

        An editing task gets the mask and the prompt of this image.
        """

    def operator(self, image_shape: Shape) -> Operator:
        """Return A for images of shape image_shape, which is (3, H, W).

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

        y is (C, h, w) float32 on the CPU. Its entries are 8-bit levels k / 127.5 - 1
        with k = 0 to 255. Entries that the operator masks out are 0.
        """

    def read_y(self, path: str | Path) -> Tensor:
        """Return the y (C, h, w) in an image file.

        Raises:
            InputError: if the file cannot be a y of this task.
        """

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` returns the same y."""

    def image_of(self, y: Tensor) -> Tensor:
        """Return y as an RGB image (3, h, w) in [-1, 1].

        The image is encoded to search for similar images, and it is shown to the user. The
        adaptation mode `self` fine-tunes on it.
        """

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """Return the (1, D) vector whose nearest neighbours are searched in a corpus.

        It is the encoder's vector of `image`, or of the prompt of an editing task.

        Args:
            encoder: the encoder of the corpus.
            image: (3, h, w) image made from y by adir.retrieval.query.query_image.
        """


class FileTask:
    """Base class of tasks: their name and version, and y as an 8-bit image file.

    A subclass defines `image_shape` as in `Task`, and `as_file`.

    Raises:
        InputError: if the version is invalid.
    """

    def __init__(self, name: str, version: int) -> None:
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InputError(f"task {name}: version {version!r}; give a whole number from 1 up")
        self.name, self.version = name, version

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape (3, H, W) of the images whose y has shape (C, h, w)."""
        raise NotImplementedError

    def as_file(self, y: Tensor) -> Tensor:
        """Return y (C, h, w) as it is read from its file; raise InputError if it cannot be a y."""
        raise NotImplementedError

    def read_y(self, path: str | Path) -> Tensor:
        """Return the y (C, h, w) in an image file.

        Pixels that the operator masks out are 0, whatever the file shows.

        Raises:
            InputError: if the file cannot be read as an image, or cannot be a y of this task.
        """
        pixels = read_pixels(path)
        try:
            return self.as_file(from_uint8(pixels))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` returns the same y.

        Pixels that the operator masks out are mid grey in the file.
        """
        self.image_shape(tuple(y.shape))
        write_png(path, y)

    def image_of(self, y: Tensor) -> Tensor:
        """Return y as an RGB image (3, h, w) in [-1, 1].

        For super-resolution this is the small image. For colorization its three channels are equal.
        Pixels that the operator masks out are mid grey.
        """
        self.image_shape(tuple(y.shape))
        return y.expand(3, -1, -1).clone()


class EditImages(Protocol):
    """Test set whose images may have masks and prompts, such as adir.data.base.Corpus.

    `mask` and `prompt` return None if the test set has no masks and prompts.
    """

    name: str

    def mask(self, image_id: str) -> Tensor | None:
        """Return a (H, W) bool mask, true in the part to repaint."""

    def prompt(self, image_id: str) -> str | None:
        """Return the description of the content to paint into the mask."""
