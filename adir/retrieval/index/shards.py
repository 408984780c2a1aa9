"""One shard of an index: a safetensors file that is written atomically and memory-mapped to read.

The ids of all images are concatenated as UTF-8 in one tensor, and another tensor holds the offset
at which each id ends. The attributions are stored in the same way.
"""

import hashlib
import json
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from adir.data.fingerprints import SIDE
from adir.errors import InputError
from adir.files import write_bytes
from adir.retrieval.index.search import Part, part_of

SCHEMA = 3
COLUMNS = (
    "embeddings",
    "half_squares",
    "sha256",
    "n_bytes",
    "size",
    "fingerprint",
    "ids",
    "ids_end",
    "notes",
    "notes_end",
)


class IndexedImage(NamedTuple):
    """What a shard stores about one image, apart from its embedding.

    Attributes:
        id: id of the image, unique in the index.
        sha256: SHA-256 of the file's bytes, 64 hex digits.
        n_bytes: size of the file in bytes.
        size: height and width in pixels.
        fingerprint: (16, 16) int8 (adir.data.fingerprints).
        attribution: licence, author and source; the dict omits what is unknown.
    """

    id: str
    sha256: str
    n_bytes: int
    size: tuple[int, int]
    fingerprint: np.ndarray
    attribution: Mapping[str, str]


def packed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts concatenated as UTF-8 bytes, and the offset at which each text ends."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), np.asarray(ends, np.int64)


def write_shard(
    path: Path,
    images: Sequence[IndexedImage],
    embeddings: Tensor,
    rejects: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write a shard atomically, with rows sorted by id.

    Args:
        path: path of the shard.
        images: N images in any order.
        embeddings: (N, D), in the order of the images; stored as float16.
        rejects: reason for each rejected image, by id.
        facts: JSON values for the header, such as the encoder.

    Raises:
        ValueError: if a vector is not finite as float16.
    """
    order = sorted(range(len(images)), key=lambda row: images[row].id)
    rows = [images[row] for row in order]
    half = embeddings[torch.tensor(order, dtype=torch.long)].half().contiguous()
    if not torch.isfinite(half).all():
        raise ValueError(
            "the encoder returned vectors with NaN, Inf or values too large for float16; check "
            "its weights"
        )
    ids, ids_end = packed([image.id for image in rows])
    notes, notes_end = packed(
        [
            json.dumps(dict(p.attribution), sort_keys=True, ensure_ascii=False)
            if p.attribution
            else ""
            for p in rows
        ]
    )
    columns = {
        "embeddings": half.numpy(),
        "half_squares": part_of(half).half_squares.numpy(),
        "sha256": np.frombuffer(b"".join(bytes.fromhex(p.sha256) for p in rows), np.uint8).reshape(
            -1, 32
        ),
        "n_bytes": np.array([p.n_bytes for p in rows], np.int64),
        "size": np.array([p.size for p in rows], np.int32).reshape(-1, 2),
        "fingerprint": np.array([p.fingerprint for p in rows], np.int8).reshape(-1, SIDE, SIDE),
        "ids": ids,
        "ids_end": ids_end,
        "notes": notes,
        "notes_end": notes_end,
    }
    about = {
        "schema": SCHEMA,
        "rejects": dict(rejects),
        "facts": dict(facts),
        "sha256": columns_sha256(columns),
    }
    # A single entry, because safetensors writes several entries in random order.
    metadata = {"adir": json.dumps(about, sort_keys=True)}
    write_bytes(
        path,
        save({name: np.ascontiguousarray(column) for name, column in columns.items()}, metadata),
    )


def columns_sha256(columns: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the data in all columns of a shard."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        digest.update(f"{name} {columns[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """Shard on disk, whose columns are mapped into memory and read when needed.

    Attributes:
        path: path of the file.
        columns: arrays, by the names in COLUMNS. They have one row per image, except for `ids` and
            `notes`, which hold the concatenated ids and attributions.
        sha256: hash of the data, from the header.
        facts: encoder of the index and SHA-256 of the shard's plan file, from the header.
        rejects: reason for each rejected image, by id.
    """

    path: Path
    columns: Mapping[str, np.ndarray]
    sha256: str
    facts: Mapping[str, Any]
    rejects: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Open a shard and check its header.

        Raises InputError if the file is missing, unreadable, truncated, of another schema, or not a
        shard. The hash of the data is checked only by `damage`.
        """
        if not os.access(path, os.R_OK):  # safetensors calls every unreadable file missing
            raise InputError(
                f"{path}: this shard is missing or not readable; copy it here again, or {REBUILD}"
            )
        try:
            with safe_open(path, "pt") as file:  # maps the file into memory
                about = json.loads(file.metadata()["adir"])
                if about["schema"] != SCHEMA:
                    raise InputError(
                        f"{path}: the shard has schema {about['schema']}, but this version of "
                        f"adir reads schema {SCHEMA}; build the index again"
                    )
                columns = {name: file.get_tensor(name).numpy() for name in COLUMNS}
            rows = {len(column) for name, column in columns.items() if name not in ("ids", "notes")}
            if len(rows) > 1:
                raise ValueError("the columns differ in length")
            return cls(path, columns, about["sha256"], about["facts"], about["rejects"])
        except InputError:
            raise
        except (
            SafetensorError,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise InputError(
                f"{path}: not a shard of an index, or truncated; remove the file and {REBUILD}"
            ) from error

    def __len__(self) -> int:
        return len(self.columns["embeddings"])

    @cached_property
    def part(self) -> Part:
        """The vectors of the shard as a `Part`, the form that a search uses."""
        columns = self.columns
        return Part(
            torch.from_numpy(columns["embeddings"]), torch.from_numpy(columns["half_squares"])
        )

    def id(self, row: int) -> str:
        """Return the id of the image in a row."""
        return self._text("ids", row)

    def ids(self) -> list[str]:
        """Return all ids, sorted."""
        return [self.id(row) for row in range(len(self))]

    def image_sha256(self, row: int) -> str:
        """Return SHA-256 of the bytes of the image file in a row."""
        return self.columns["sha256"][row].tobytes().hex()

    def attribution(self, row: int) -> dict[str, str]:
        """Return licence, author and source of the image in a row, as far as they are known."""
        text = self._text("notes", row)
        return json.loads(text) if text else {}

    def licences(self) -> Counter[str]:
        """Return {licence: number of images}; the key 'unknown' is for images without a licence."""
        return Counter(self.attribution(row).get("licence", "unknown") for row in range(len(self)))

    def _text(self, column: str, row: int) -> str:
        ends = self.columns[f"{column}_end"]
        try:
            return self.columns[column][ends[row - 1] if row else 0 : ends[row]].tobytes().decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: damaged data (column {column} is not UTF-8); remove the file and "
                f"{REBUILD}"
            ) from error

    def row(self, image_id: str) -> int | None:
        """Return the row number of an image; None if the image is not in this shard."""
        row = bisect_left(range(len(self)), image_id, key=self.id)
        return row if row < len(self) and self.id(row) == image_id else None

    def damage(self) -> str | None:
        """Read and hash all data; return None if the hash is right, else a message."""
        return (
            None
            if columns_sha256(self.columns) == self.sha256
            else "the checksum of the data differs from the header"
        )


REBUILD = "run `adir index build` again, which builds missing shards"
