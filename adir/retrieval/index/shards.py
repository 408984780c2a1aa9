"""One shard of an index: a safetensors file, written atomically and read by mapping it into memory.

Texts (ids, attributions) are UTF-8 in one tensor, with the offsets of their ends in another.
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
    """What a shard stores about one image."""

    id: str
    sha256: str
    """Of its file's bytes, 64 hex digits."""
    n_bytes: int
    size: tuple[int, int]
    """Height and width in pixels."""
    fingerprint: np.ndarray
    """(16, 16) int8 (adir.data.fingerprints)."""
    attribution: Mapping[str, str]
    """Licence, author and source, as far as they are known."""


def packed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return all texts as UTF-8, concatenated, and the offset at which each ends."""
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
    """Write a shard atomically, rows in the order of their ids.

    Args:
        path: of the shard.
        images: N images, in any order.
        embeddings: (N, D), rounded to float16.
        rejects: reason of each rejected id.
        facts: JSON values for the header, such as the encoder.

    Raises:
        ValueError: a vector is not finite: the encoder gave NaN, or float16 cannot hold it.
    """
    order = sorted(range(len(images)), key=lambda row: images[row].id)
    rows = [images[row] for row in order]
    half = embeddings[torch.tensor(order, dtype=torch.long)].half().contiguous()
    if not torch.isfinite(half).all():
        raise ValueError("the encoder gave vectors with NaN or Inf, or too large for float16")
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
    # One entry: safetensors writes several in a random order.
    metadata = {"adir": json.dumps(about, sort_keys=True)}
    write_bytes(
        path,
        save({name: np.ascontiguousarray(column) for name, column in columns.items()}, metadata),
    )


def columns_sha256(columns: Mapping[str, np.ndarray]) -> str:
    """Return SHA-256 of the shard's data, column by column."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        digest.update(f"{name} {columns[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """A shard on disk. Its columns are mapped into memory, so only what is used is read."""

    path: Path
    columns: Mapping[str, np.ndarray]
    sha256: str
    """Of its data, from its header."""
    facts: Mapping[str, Any]
    """Encoder and plan, from its header."""
    rejects: Mapping[str, str]
    """Reason of each rejected id."""

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Open a shard.

        Raises InputError if the file is missing, truncated, or no shard. Only `damage` checks its
        hash.
        """
        if not os.access(path, os.R_OK):  # safetensors calls every unreadable file missing
            raise InputError(
                f"{path}: this shard is missing or not readable; copy it here again, or {REBUILD}"
            )
        try:
            with safe_open(path, "pt") as file:  # maps it
                about = json.loads(file.metadata()["adir"])
                if about["schema"] != SCHEMA:
                    raise InputError(
                        f"{path}: shard of schema {about['schema']}, this version reads "
                        f"{SCHEMA}; build it anew"
                    )
                columns = {name: file.get_tensor(name).numpy() for name in COLUMNS}
            rows = {len(column) for name, column in columns.items() if name not in ("ids", "notes")}
            if len(rows) > 1:
                raise ValueError("its columns differ in length")
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
                f"{path}: not a shard of an index, or cut short; remove it and {REBUILD}"
            ) from error

    def __len__(self) -> int:
        return len(self.columns["embeddings"])

    @cached_property
    def part(self) -> Part:
        """Its vectors, as a search needs them."""
        columns = self.columns
        return Part(
            torch.from_numpy(columns["embeddings"]), torch.from_numpy(columns["half_squares"])
        )

    def id(self, row: int) -> str:
        """Return the id of a row."""
        return self._text("ids", row)

    def ids(self) -> list[str]:
        """Return all ids, sorted."""
        return [self.id(row) for row in range(len(self))]

    def image_sha256(self, row: int) -> str:
        """Return SHA-256 of an image file's bytes."""
        return self.columns["sha256"][row].tobytes().hex()

    def attribution(self, row: int) -> dict[str, str]:
        """Return licence, author and source, as far as they are known."""
        text = self._text("notes", row)
        return json.loads(text) if text else {}

    def licences(self) -> Counter[str]:
        """Return the number of images of each licence; 'unknown' counts those without one."""
        return Counter(self.attribution(row).get("licence", "unknown") for row in range(len(self)))

    def _text(self, column: str, row: int) -> str:
        ends = self.columns[f"{column}_end"]
        try:
            return self.columns[column][ends[row - 1] if row else 0 : ends[row]].tobytes().decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: damaged data (no text in {column}); remove it and {REBUILD}"
            ) from error

    def row(self, image_id: str) -> int | None:
        """Return the row of an image, by bisection; None if it is not here."""
        row = bisect_left(range(len(self)), image_id, key=self.id)
        return row if row < len(self) and self.id(row) == image_id else None

    def damage(self) -> str | None:
        """Read and hash all data. Returns None if the hash is right, else the problem."""
        return (
            None
            if columns_sha256(self.columns) == self.sha256
            else "its data do not have the checksum in its header"
        )


REBUILD = "run `adir index build` again, which makes what is missing"
