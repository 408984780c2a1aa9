"""Text-guided editing, which repaints the masked part of an image as a prompt describes."""

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
from adir.images import from_uint8, read_pixels, to_uint8
from adir.tasks.base import EditImages, FileTask, TextEncoder
from adir.tasks.operators import Operator, Shape, keeping

By = Literal["prompt", "image"]


@dataclass(frozen=True, eq=False)
class EditOperator(Operator):
    """Operator A of an edit, which keeps the image outside the mask and gives 0 inside.

    The operator also stores the mask and the prompt, because a sampler needs them besides y.
    """

    name: ClassVar[str] = "hole"
    version: ClassVar[int] = 1
    """The version of the class. Raise it when a change of the class alters its results.

    The identity of a cell (one configuration of the benchmark) contains it.
    """
    hole: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """(H, W) bool, true in the part to repaint."""
    prompt: str = ""


class EditTask(FileTask):
    """Editing task, whose y equals the image outside the mask and 0 inside.

    Each image has a mask and a prompt, which describes the content of the masked part. `bound`
    returns the task for an image of a test set, and `with_mask` for a user's own image.

    Args:
        name: name in paths and tables.
        version: raise it when a change alters what the task measures.
        by: what the encoder encodes to search for similar images: `prompt`, or `image`, which is
            y with mid grey in the masked part. With a euclidean encoder, such as `pixel`, it is
            always the image.

    Raises:
        InputError: if a value is invalid.
    """

    sigma_y = 0.0
    shift_invariant: ClassVar[bool] = False
    edits: ClassVar[bool] = True

    def __init__(self, name: str = "edit", version: int = 1, by: By = "prompt") -> None:
        super().__init__(name, version)
        if by not in get_args(By):
            raise InputError(
                f"task {name}: unknown by={by!r}; choose one of {', '.join(get_args(By))}"
            )
        self.by = by
        self._mask: Tensor | None = None
        self._prompt: str | None = None
        self._operator: Callable[[Shape], EditOperator] = functools.lru_cache(maxsize=1)(
            self._build
        )

    def with_mask(self, mask: Tensor, prompt: str) -> "EditTask":
        """Return the task bound to one image by a mask and a prompt.

        Args:
            mask: (H, W) bool, true in the part to repaint.
            prompt: description of the content of that part.

        Raises:
            InputError: if the mask covers nothing or the whole image, or if the prompt is empty.
            ValueError: if the mask has another shape or dtype.
        """
        if mask.ndim != 2 or mask.dtype != torch.bool:
            raise ValueError(f"a mask is (H, W) bool, got {tuple(mask.shape)} {mask.dtype}")
        if not mask.any():
            raise InputError(
                "the mask is all black, so nothing would be repainted; use white for the part to "
                "repaint"
            )
        if mask.all():
            raise InputError(
                "the mask is all white, so nothing of the image would be kept; use black for the "
                "part to keep"
            )
        if not prompt.strip():
            raise InputError("the prompt is empty; describe the content of the part to repaint")
        bound = copy.copy(self)
        bound._mask, bound._prompt = mask, prompt
        bound._operator = functools.lru_cache(maxsize=1)(bound._build)
        return bound

    def bound(self, data: EditImages, image_id: str) -> "EditTask":
        """Return the task bound to an image of the test set `data`.

        Raises:
            InputError: if the test set has no masks and prompts, or if the mask or the prompt of
                this image is invalid.
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
        """The (H, W) bool mask, true in the part to repaint.

        Raises:
            InputError: if the task is not bound to an image.
        """
        if self._mask is None:
            raise InputError(
                f"task {self.name} needs a mask and a prompt: use `adir edit`, or data=edit for "
                "a test set"
            )
        return self._mask

    @property
    def prompt(self) -> str | None:
        """The description of the content to paint; None if the task is not bound to an image."""
        return self._prompt

    def operator(self, image_shape: Shape) -> EditOperator | Operator:
        """Return A for an image of shape image_shape, which is (3, H, W).

        If the task is not bound to an image, A keeps every pixel, and only its shapes are
        meaningful.

        Raises:
            InputError: if the shape is not RGB, or if image and mask differ in size.
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
        """Return y_shape, because y is as large as the image.

        Raises:
            InputError: if the shape is not RGB, or if its height or width is not the mask's.
        """
        if len(y_shape) != 3 or y_shape[0] != 3:
            raise InputError(
                f"editing needs an RGB image (3, H, W), got {tuple(y_shape)}; convert it to RGB"
            )
        if self._mask is not None and tuple(self._mask.shape) != tuple(y_shape[1:]):
            height, width = self._mask.shape
            raise InputError(
                f"the mask is {width}x{height}, the image {y_shape[2]}x{y_shape[1]}; make them "
                "the same size"
            )
        return tuple(y_shape)

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return y, which is the image x rounded to 8 bits outside the mask, and 0 inside.

        Args:
            x: (3, H, W) in [-1, 1].
            generator: not used, because y has no noise.

        Raises:
            InputError: if image and mask differ in size, or if the task is not bound to an image.
        """
        return self.as_file(x.detach().cpu().float())

    def query(self, encoder: TextEncoder, image: Tensor) -> Tensor:
        """Return the (1, D) vector whose nearest neighbours are searched in a corpus.

        It is the encoder's vector of the prompt or of `image`. The constructor's argument `by`
        chooses between them.

        Args:
            encoder: the encoder of the corpus.
            image: (3, h, w) image made from y by adir.retrieval.query.query_image.

        Raises:
            InputError: if the prompt is to be encoded, but the task is not bound to an image or the
                encoder cannot encode text.
        """
        # The encoder `pixel` has the euclidean metric and cannot encode text.
        if self.by == "image" or encoder.metric == "euclidean":
            return encoder.image(image[None])
        if self._prompt is None:
            raise InputError(
                f"task {self.name} needs a prompt: use `adir edit`, or data=edit for a test set"
            )
        try:
            return encoder.text([self._prompt])
        except InputError as error:
            raise InputError(
                f"{error}, or set task.by=image to search with the image instead of the prompt"
            ) from error

    def as_file(self, y: Tensor) -> Tensor:
        """Return y (3, H, W) rounded to 8 bits outside the mask, and 0 inside.

        Raises:
            InputError: if image and mask differ in size, or if the task is not bound to an image.
        """
        self.image_shape(tuple(y.shape))
        return torch.where(self.mask, 0.0, from_uint8(to_uint8(y)))


def read_mask(path: str | Path) -> Tensor:
    """Return the (H, W) bool mask in an image file, true at white pixels, which are repainted.

    A pixel counts as white if the mean of its channels is at least 127.5 of 255.

    Raises:
        InputError: if the file is missing or cannot be read as an image.
    """
    pixels = torch.from_numpy(read_pixels(path)).float()
    return pixels.mean(2) >= 127.5


def edit_id(name: str, mask: Tensor, prompt: str) -> str:
    """Return an id for one edit of a test image, such as `0879-3f9a2c51`.

    The id is the image's name and a hash of the mask and the prompt. Two edits of an image
    therefore have separate results, fine-tuned weights and random numbers.
    """
    height, width = mask.shape
    digest = sha256_of_bytes(
        f"{width}x{height} {prompt}\x00".encode() + mask.to(torch.uint8).numpy().tobytes()
    )
    return f"{name}-{digest[:8]}"
