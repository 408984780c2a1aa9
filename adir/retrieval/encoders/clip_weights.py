"""Find a file of CLIP's weights, and load it into a network of open_clip.

The file must hold exactly the tensors of the network; a missing or an extra tensor is an error. A
tag is open_clip's name of published weights of an architecture.
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
"""Names of scalars that only OpenAI's own checkpoints hold."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""File names of open_clip weights in a Hugging Face repository, the preferred name first."""

ENTRIES = {("ViT-B-32", "laion2b_s34b_b79k"): "clip"}
"""The names in conf/weights/ of the weights that `adir weights get` downloads, by tag."""


def published_weights(architecture: str, tag: str | None) -> dict[str, Any]:
    """Return open_clip's settings for the published weights of a tag; {} if the tag is None.

    The settings include the address and the preprocessing of the weights. Raises InputError if the
    architecture or the tag is unknown, or if the weights were trained with another activation (GELU
    or QuickGELU) than the architecture has.
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
            f"CLIP {architecture}: the weights {tag!r} were trained with another activation; "
            f"set architecture={other}"
        )
    return published


def find_checkpoint(
    architecture: str, tag: str | None, published: Mapping[str, Any], checkpoint: str | Path | None
) -> Path:
    """Return the path of the file with the weights.

    It is `checkpoint` if that is set. Otherwise it is the file of the published weights in the
    cache of `adir weights` or of the Hugging Face hub.

    Args:
        architecture: name of the architecture.
        tag: open_clip's name of published weights, or None.
        published: the settings that `published_weights` returned.
        checkpoint: file of the weights, or None.

    Raises:
        InputError: if `tag` and `checkpoint` are None, or if the file is missing. The message says
            what to download and what to set.
    """
    repository, name = os.path.split(published.get("hf_hub", ""))
    address = (
        f"{name or HUB_FILES[0]} of https://huggingface.co/{repository}"
        if repository
        else published.get("url")
    )
    source = f"; download {address}" if published else ""
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            get = f"download {address} and " if published else ""
            raise InputError(
                f"CLIP {architecture}: no file {path}; {get}put the weights there, or set "
                "checkpoint to another file"
            )
        return path
    if tag is None:
        raise InputError(
            f"CLIP {architecture}: no weights are set; set checkpoint=FILE"
            f"{source or ', or set a tag'}"
        )
    fetched = entry(ENTRIES[architecture, tag]) if (architecture, tag) in ENTRIES else None
    if fetched is not None and fetched.path.is_file():
        return fetched.path
    for candidate in (name,) if name else HUB_FILES:
        found = try_to_load_from_cache(repository, candidate) if repository else None
        if isinstance(found, str):
            return Path(found)
    missing = f"the weights {tag!r} are missing{source}" if fetched is None else fetched.missing()
    raise InputError(f"CLIP {architecture}: {missing}; to use another file, set checkpoint=FILE")


def load_weights(network: nn.Module, path: Path, architecture: str) -> None:
    """Load a checkpoint into a network; names and shapes of all tensors must match.

    `open_clip.load_checkpoint` is not used: if the weights are for another input size, it silently
    resizes their position embeddings.

    Args:
        network: network of open_clip.
        path: the checkpoint.
        architecture: name of the network's architecture.

    Raises:
        InputError: if the file is damaged, holds code (TorchScript), or belongs to another
            architecture.
    """
    found = read_checkpoint(path)
    if OPENAI_MARKS & found.keys() and not architecture.endswith("-quickgelu"):
        raise InputError(
            f"{path}: these are OpenAI's weights, which were trained with QuickGELU; set "
            f"architecture={architecture}-quickgelu"
        )
    found = {name: value for name, value in found.items() if name not in OPENAI_MARKS}
    found = convert_state_dict(network, found)  # for known checkpoints of other projects
    require_finite(found, path)
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: the weights do not match architecture {architecture} ({reason})"
        ) from error
