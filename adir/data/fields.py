"""Fields: 128x128 windows of the photographs in adir/data/photographs.py, and image sets of fields.

A field is cut from a photograph that was downsampled by an integer factor s. The field
`chelsea-s1-y040-x275` is cut from `chelsea` at s = 1. Its top-left corner is at y = 40, x = 275 in
pixels of the downsampled photograph.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from adir.data.base import Corpus
from adir.data.photographs import ORIGINS, reduced
from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.images import from_uint8

SIZE = 128  # side of a field in pixels
FLAT = 4.0  # grey levels; see `is_flat`


class Field(NamedTuple):
    """Position of a 128x128 window in a photograph that was downsampled by `scale`.

    (y, x) is the top-left corner in pixels of the downsampled photograph.
    """

    photograph: str
    scale: int
    y: int
    x: int

    @property
    def id(self) -> str:
        return f"{self.photograph}-s{self.scale}-y{self.y:03d}-x{self.x:03d}"

    def footprint(self) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right) of the original pixels on which the field depends.

        `bottom` and `right` are exclusive. Edges may lie outside the photograph. A downsampled
        pixel depends on original pixels up to 2 * scale from its centre, the support of the bicubic
        kernel. The result has a margin of 3 * scale original pixels around the field, to be safe.
        """
        margin = 3 * self.scale
        top, left = self.scale * self.y - margin, self.scale * self.x - margin
        return (
            top,
            left,
            top + self.scale * SIZE + 2 * margin,
            left + self.scale * SIZE + 2 * margin,
        )


FIELD_ID = re.compile(r"(\w+)-s([1-9])-y(\d+)-x(\d+)")


def field_named(image_id: str) -> Field | None:
    """Return the field with this id; None if the id does not name a field of a known photograph."""
    match = FIELD_ID.fullmatch(image_id)
    if match is None or match[1] not in ORIGINS:
        return None
    field = Field(match[1], *map(int, match.groups()[1:]))
    height, width = reduced(field.photograph, field.scale).shape[:2]
    inside = field.y + SIZE <= height and field.x + SIZE <= width
    return field if inside and field.id == image_id else None


def is_flat(pixels: np.ndarray) -> bool:
    """Return whether a field is flat; flat fields are left out, as there is little to restore.

    A field is flat if more than half of its tiles of 16x16 pixels have a standard deviation below
    FLAT grey levels.
    """
    grey = pixels.astype(np.float64).mean(2).reshape(SIZE // 16, 16, SIZE // 16, 16)
    return bool((grey.std(axis=(1, 3)) < FLAT).mean() > 0.5)


def cut(field: Field) -> np.ndarray:
    """Return the (128, 128, 3) uint8 pixels of a field, cut out of its photograph."""
    pixels = reduced(field.photograph, field.scale)[
        field.y : field.y + SIZE, field.x : field.x + SIZE
    ]
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"{field.id} extends beyond the edge of its photograph")
    return pixels


def overlap(a: Field, b: Field) -> bool:
    """Return whether two fields depend on a common pixel of a photograph."""
    if a.photograph != b.photograph:
        return False
    top, left, bottom, right = a.footprint()
    other_top, other_left, other_bottom, other_right = b.footprint()
    return top < other_bottom and other_top < bottom and left < other_right and other_left < right


def lattice(photograph: str, strides: Mapping[int, int]) -> list[Field]:
    """Return the fields of a photograph on a regular grid, without flat fields.

    Args:
        photograph: name of the photograph.
        strides: {scale: grid spacing in y and x, in downsampled pixels}.
    """
    fields = []
    for scale, stride in strides.items():
        height, width = reduced(photograph, scale).shape[:2]
        corners = (
            (y, x)
            for y in range(0, height - SIZE + 1, stride)
            for x in range(0, width - SIZE + 1, stride)
        )
        fields += [
            field for y, x in corners if not is_flat(cut(field := Field(photograph, scale, y, x)))
        ]
    return fields


def clear_of(fields: Iterable[Field], tests: Sequence[Field]) -> list[Field]:
    """Return the fields that share no pixel of their photograph with a test field, sorted by id."""
    kept = [field for field in fields if not any(overlap(field, test) for test in tests)]
    return sorted(kept, key=lambda field: field.id)


class Fields(Corpus):
    """Image set of fields.

    The photograph of a field is both its category and its cluster (see `Corpus.cluster`). The
    manifest has the hashes of the pixels after downsampling, so they change if Pillow's resampling
    changes.

    Args:
        name: label for tables and messages.
        fields: distinct fields in any order.
        only: ids to keep, in any order; None keeps all.

    Raises:
        InputError: if an id in `only` is unknown.
    """

    def __init__(
        self, name: str, fields: Sequence[Field], only: Collection[str] | None = None
    ) -> None:
        known = {field.id: field for field in fields}
        for image_id in only or []:
            if image_id not in known:
                raise InputError(f"unknown test field {image_id!r}; choose from {', '.join(known)}")
        self._fields = {
            image_id: field for image_id, field in known.items() if only is None or image_id in only
        }
        manifest = {
            image_id: sha256_of_bytes(cut(field).tobytes())
            for image_id, field in self._fields.items()
        }
        categories = {image_id: field.photograph for image_id, field in self._fields.items()}
        super().__init__(name, manifest, {}, categories)

    def attribution(self, image_id: str) -> dict[str, str]:
        return ORIGINS[self._fields[image_id].photograph]

    def cluster(self, image_id: str) -> str:
        return self._fields[image_id].photograph

    def image(self, image_id: str) -> Tensor:
        return from_uint8(cut(self._fields[image_id]))
