"""Text-guided editing: repaint the part of an image that a mask marks, as a prompt says."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.images import from_uint8, read_pixels, to_uint8, write_png
from adir.tasks.base import EditImages, TextEncoder
from adir.tasks.operators import Operator, Shape, keeping

By = Literal["prompt", "image"]


@dataclass(frozen=True, eq=False)
class EditOperator(Operator):
    """A of an edit: the image outside the mask, 0 inside; and what a sampler needs besides y."""

    name: ClassVar[str] = "hole"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    hole: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """(H, W) bool, true where the image is to be repainted."""
    prompt: str = ""


class EditTask:
    """y is the image outside the mask, exactly, and 0 inside it; what is to be seen there is the
    prompt.

    by: how neighbours are looked for: by the `prompt` (the encoder's text side) or by the `image`,
        y with its hole in mid
    grey. (The control `pixel` compares pixels, so it always goes by the image.)

    A test set brings a mask and a prompt for each image: `bound` gives the task of one, `with_mask`
    that of a user's own. Raises InputError on values that make no task.
    """

    sigma_y = 0.0
    shift_invariant: ClassVar[bool] = False
    edits: ClassVar[bool] = True

    def __init__(self, name: str = "edit", version: int = 1, by: By = "prompt") -> None:
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InputError(f"task {name}: version {version!r}; give a whole number from 1 up")
        if by not in get_args(By):
            raise InputError(
                f"task {name}: unknown by={by!r}; choose one of {', '.join(get_args(By))}"
            )
        self.name, self.version, self.by = name, version, by
        self._mask: Tensor | None = None
        self._prompt: str | None = None
        self._operator: Callable[[Shape], EditOperator] = functools.lru_cache(maxsize=1)(
            self._build
        )

    def with_mask(self, mask: Tensor, prompt: str) -> "EditTask":
        """The task of one image. mask:

        (H, W) bool, true where it is to be repainted. Raises InputError for a mask that leaves
        nothing to do or nothing to go by, and for an empty prompt.
        """
        if mask.ndim != 2 or mask.dtype != torch.bool:
            raise ValueError(f"a mask is (H, W) bool, got {tuple(mask.shape)} {mask.dtype}")
        if not mask.any():
            raise InputError(
                "the mask is all black: nothing is to be repainted; paint that part white"
            )
        if mask.all():
            raise InputError(
                "the mask is all white: nothing is left of the image; leave the part to keep black"
            )
        if not prompt.strip():
            raise InputError("the prompt is empty: say what is to be seen in the hole")
        bound = copy.copy(self)
        bound._mask, bound._prompt = mask, prompt
        bound._operator = functools.lru_cache(maxsize=1)(bound._build)
        return bound

    def bound(self, data: EditImages, image_id: str) -> "EditTask":
        """The task with the mask and prompt of a test image.

        Raises InputError where the test set has none.
        """
        mask, prompt = data.mask(image_id), data.prompt(image_id)
        if mask is None or prompt is None:
            raise InputError(
                f"task {self.name}: test set {data.name} has no masks and prompts; use "
                "data=edit data.path=FOLDER"
            )
        try:
            return self.with_mask(mask, prompt)
        except InputError as error:
            raise InputError(f"test image {image_id}: {error}") from error

    @property
    def mask(self) -> Tensor:
        """(H, W) bool, true where the image is to be repainted.

        Raises InputError for a task that is not bound.
        """
        if self._mask is None:
            raise InputError(
                f"task {self.name} needs a mask and a prompt: `adir edit`, or data=edit for a "
                "test set"
            )
        return self._mask

    @property
    def prompt(self) -> str | None:
        """What is to be seen in the hole; None for a task that is not bound."""
        return self._prompt

    def operator(self, image_shape: Shape) -> EditOperator | Operator:
        """A for the image. Raises InputError for another size than the mask's.

        Of a task that is not bound, an operator that keeps all: a stand-in to ask for shapes.
        """
        return self._operator(tuple(image_shape))

    def _build(self, image_shape: Shape) -> EditOperator:
        self.image_shape(image_shape)
        hole = torch.zeros(image_shape[1:], dtype=torch.bool) if self._mask is None else self._mask
        known = (~hole).expand(3, -1, -1)
        prompt = self._prompt or ""
        return EditOperator(
            lambda dtype: keeping(known.to(dtype)),
            image_shape,
            image_shape,
            norm=1.0,
            hole=hole,
            prompt=prompt,
        )

    def image_shape(self, y_shape: Shape) -> Shape:
        """y is as large as the image.

        Raises InputError for one that is not RGB or not as large as the mask.
        """
        if len(y_shape) != 3 or y_shape[0] != 3:
            raise InputError(
                f"editing needs an RGB image (3, H, W), got {tuple(y_shape)}: convert it to RGB"
            )
        if self._mask is not None and tuple(self._mask.shape) != tuple(y_shape[1:]):
            height, width = self._mask.shape
            raise InputError(
                f"the mask is {width}x{height}, the image {y_shape[2]}x{y_shape[1]}: make them "
                "one size"
            )
        return tuple(y_shape)

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The y of an image x (3, H, W) in [-1, 1]: 8-bit values outside the mask, 0 inside.

        Nothing is drawn.
        """
        return self._as_file(x.detach().cpu().float())

    def read_y(self, path: str | Path) -> Tensor:
        """The y in an image file: 0 inside the mask, whatever the file shows there."""
        pixels = read_pixels(path)
        try:
            return self._as_file(from_uint8(pixels))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write_y(self, path: str | Path, y: Tensor) -> None:
        """Write y as an 8-bit PNG, from which `read_y` gives the same y.

        The hole is written as mid grey.
        """
        self.image_shape(tuple(y.shape))
        write_png(path, y)

    def image_of(self, y: Tensor) -> Tensor:
        """y as an image: mid grey in the hole."""
        self.image_shape(tuple(y.shape))
        return y.clone()

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """(1, D): what neighbours are looked for with, the prompt or y as an image (3, H, W).

        Raises InputError where the encoder has no text side.
        """
        if (
            self.by == "image" or encoder.metric == "euclidean"
        ):  # the pixel control: its space has no prompts
            return encoder.image(image[None])
        if self._prompt is None:
            raise InputError(
                f"task {self.name} needs a prompt: `adir edit`, or data=edit for a test set"
            )
        try:
            return encoder.text([self._prompt])
        except InputError as error:
            raise InputError(
                f"{error}; or look for neighbours by the image: task.by=image"
            ) from error

    def _as_file(self, y: Tensor) -> Tensor:
        self.image_shape(tuple(y.shape))
        return torch.where(self.mask, 0.0, from_uint8(to_uint8(y)))


def read_mask(path: str | Path) -> Tensor:
    """(H, W) bool of a mask file: true where it is white, which is to be repainted; grey counts
    from the middle up.

    Raises InputError as `adir.images.read_pixels` does.
    """
    pixels = torch.from_numpy(read_pixels(path)).float()
    return pixels.mean(2) >= 127.5


def edit_id(name: str, mask: Tensor, prompt: str) -> str:
    """An id of a test image that changes with its mask and prompt:

    `0879-3f9a2c51`. What is made under it (records, adapters, noise) belongs to this edit and no
    other.
    """
    height, width = mask.shape
    digest = sha256_of_bytes(
        f"{width}x{height} {prompt}\x00".encode() + mask.to(torch.uint8).numpy().tobytes()
    )
    return f"{name}-{digest[:8]}"
