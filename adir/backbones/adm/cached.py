"""Cache of guided-diffusion checkpoints that were converted to diffusers folders."""

import dataclasses
import fcntl
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from adir.backbones.adm.architecture import Flags
from adir.backbones.adm.conversion import convert
from adir.errors import InputError
from adir.files import (
    read_json,
    set_aside,
    sha256_of_bytes,
    sha256_of_file,
    warn_in_one_line,
    write_json,
)
from adir.weights.cache import cache_dir, known_sha256, remember_sha256
from adir.weights.checkpoint import read_checkpoint
from adir.weights.download import require_room

VERSION = 1
"""The version of the conversion, part of the cache key.

Raise it if a change of the code converts the same checkpoint to other tensors.
"""

CONFIG, WEIGHTS, NOTE = "config.json", "diffusion_pytorch_model.safetensors", "source.json"


def converted(source: Path, flags: Flags) -> tuple[Path, str]:
    """Return the converted folder of a checkpoint file, converting the file if it is not cached.

    The cache key is a hash of the source's hash, the flags and VERSION. Another process that needs
    the same conversion waits. If a cached folder has been changed, it is renamed and the checkpoint
    is converted again.

    Args:
        source: checkpoint file of guided-diffusion.
        flags: flags of its network.

    Returns:
        (folder with config.json and safetensors, SHA-256 of the source)

    Raises:
        InputError: if the source is missing or is not a checkpoint that fits the flags.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    sha256 = known_sha256(source)
    what = {"source": sha256, "flags": dataclasses.asdict(flags), "version": VERSION}
    key = sha256_of_bytes(json.dumps(what, sort_keys=True).encode())[:32]
    folder = cache_dir() / "converted" / key
    if is_whole(folder):
        return folder, sha256
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(folder):  # checked again: another process may have converted it meanwhile
            if folder.exists():
                warn_in_one_line(
                    f"{folder}: has changed since its conversion; {set_aside(folder)}, and the "
                    "checkpoint is converted again"
                )
            try:
                configuration, tensors = convert(read_checkpoint(source), flags)
            except InputError as error:
                raise InputError(
                    str(error) if str(source) in str(error) else f"{source}: {error}"
                ) from error
            write_folder(folder, configuration, tensors, {"file": source.name, "sha256": sha256})
    return folder, sha256


def is_whole(folder: Path) -> bool:
    """Check whether the folder contains unchanged files, by the hashes in its note."""
    try:
        note = read_json(folder / NOTE)
        return all(
            known_sha256(folder / name) == note["written"][name] for name in (CONFIG, WEIGHTS)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_folder(
    folder: Path, configuration: dict[str, Any], tensors: dict[str, Tensor], source: dict[str, str]
) -> None:
    """Write config.json, the weights, and a note with their hashes, atomically.

    Args:
        folder: new folder, which appears with all its files or not at all.
        configuration: content of config.json.
        tensors: weights.
        source: {"file": name, "sha256": hash} of the checkpoint, for the note.
    """
    require_room(folder.parent, sum(tensor.nbytes for tensor in tensors.values()))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        write_json(temporary / CONFIG, configuration)
        save_file(tensors, temporary / WEIGHTS)
        with open(temporary / WEIGHTS, "rb+") as file:
            os.fsync(file.fileno())
        written = {name: sha256_of_file(temporary / name) for name in (CONFIG, WEIGHTS)}
        write_json(temporary / NOTE, {"source": source, "version": VERSION, "written": written})
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    remember_sha256(folder / WEIGHTS, written[WEIGHTS], own=True)
