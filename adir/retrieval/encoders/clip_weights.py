"""CLIP's weights: find the file of a tag, and load it into a network of open_clip, every tensor
accounted for.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.convert import convert_state_dict
from open_clip.pretrained import get_pretrained_cfg
from torch import nn

from adir.errors import InputError
from adir.retrieval.encoders.base import require_finite
from adir.weights.checkpoint import read_checkpoint
from adir.weights.registry import entry

OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that only OpenAI's own archives hold among the weights."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""File names that open_clip looks for in a repository of the Hugging Face hub, the preferred one
first.
"""

ENTRIES = {("ViT-B-32", "laion2b_s34b_b79k"): "clip"}
"""Tags whose weights `adir weights get` fetches: names in conf/weights/."""


def published_weights(architecture: str, tag: str | None) -> dict[str, Any]:
    """Return open_clip's settings for a tag's weights; {} without a tag.

    Raises InputError for an unsuitable tag.
    """
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise InputError(
            f"unknown CLIP architecture {architecture!r}; open_clip has "
            f"{', '.join(open_clip.list_models())}"
        )
    if tag is None:
        return {}
    published: dict[str, Any] = get_pretrained_cfg(architecture, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise InputError(
            f"CLIP {architecture}: unknown tag {tag!r}; choose one of {', '.join([*tags, 'null'])}"
        )
    if published.get("quick_gelu", False) != config.get("quick_gelu", False):
        stem = architecture.removesuffix("-quickgelu")
        other = stem if stem != architecture else f"{architecture}-quickgelu"
        raise InputError(
            f"CLIP {architecture}: the weights {tag!r} were trained with the other activation; "
            f"take architecture={other}"
        )
    return published


def find_checkpoint(
    architecture: str, tag: str | None, published: Mapping[str, Any], checkpoint: str | Path | None
) -> Path:
    """Return the path of the weights:

    `checkpoint`, or the tag's file where `adir weights` or the hub's cache keeps it.

    Raises InputError, which says where to get the file and where to put it.
    """
    repository, name = os.path.split(published.get("hf_hub", ""))
    address = (
        f"{name or HUB_FILES[0]} of https://huggingface.co/{repository}"
        if repository
        else published.get("url")
    )
    source = f"; get {address}" if published else ""
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            raise InputError(
                f"CLIP {architecture}: no file {path}: put the weights there, or name "
                f"another{source}"
            )
        return path
    if tag is None:
        raise InputError(
            f"CLIP {architecture}: no weights named; give checkpoint=FILE{source or ', or a tag'}"
        )
    fetched = entry(ENTRIES[architecture, tag]) if (architecture, tag) in ENTRIES else None
    if fetched is not None and fetched.path.is_file():
        return fetched.path
    for candidate in (name,) if name else HUB_FILES:
        found = try_to_load_from_cache(repository, candidate) if repository else None
        if isinstance(found, str):
            return Path(found)
    missing = f"the weights {tag!r} are not here{source}" if fetched is None else fetched.missing()
    raise InputError(
        f"CLIP {architecture}: {missing}; or give another file's path as checkpoint=FILE"
    )


def load_weights(network: nn.Module, path: Path, architecture: str) -> None:
    """Load a checkpoint into the network.

    `open_clip.load_checkpoint` would silently resize the position embeddings of another input size.
    Raises InputError when the file is damaged, an archive of code, or of another architecture.
    """
    found = read_checkpoint(path)
    if OPENAI_MARKS & found.keys() and not architecture.endswith("-quickgelu"):
        raise InputError(
            f"{path}: weights of OpenAI's, trained with QuickGELU; take "
            f"architecture={architecture}-quickgelu"
        )
    found = {name: value for name, value in found.items() if name not in OPENAI_MARKS}
    found = convert_state_dict(network, found)  # checkpoints of other projects that open_clip knows
    require_finite(found, path)
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: not the weights of {architecture}: {reason}") from error
