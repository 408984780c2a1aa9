"""Where everything lies below a results folder."""

import json
import re
from pathlib import Path
from typing import Any, TypeGuard

from adir.files import read_json


def is_hash(text: Any) -> TypeGuard[str]:
    """Whether this is a SHA-256, of which file names are made."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def stored_pictures(sha256: str | None) -> list[str]:
    """Where the results may keep the picture with this hash (`hash_of_picture`), the larger one first."""
    return [f"pictures/{sha256}.png", f"pictures/{sha256}-thumbnail.png"] if is_hash(sha256) else []


MOST_HEADER_BYTES = 100_000_000  # what the safetensors library itself allows


def losses_of(results: Path, key: str) -> list[float] | None:
    """The losses of an adapter of a results folder: beside its tensors, or as `adir merge` brings them, which
    leaves the tensors where they are."""
    losses = read_losses(results / "adapters" / f"{key}.safetensors")
    if losses is None:
        try:
            losses = [float(loss) for loss in read_json(results / merged_losses(key))["losses"]] or None
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return losses


def merged_losses(key: str) -> str:
    """The name of an adapter's losses without its tensors."""
    return f"losses/{key}.json"


def read_losses(path: Path) -> list[float] | None:
    """The loss of every iteration of an adapter's training, or None where the file is not there, is damaged or has none.

    Reads the header alone: the tensors of a full adapter are of the size of the network.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER_BYTES:
                return None
            metadata = json.loads(file.read(size)).get("__metadata__", {})
        losses = json.loads(metadata["facts"])["losses"]
        return [float(loss) for loss in losses] or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
