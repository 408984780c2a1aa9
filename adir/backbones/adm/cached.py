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

Increase it whenever a change of the code changes the tensors of a converted checkpoint.
"""

CONFIG, WEIGHTS, NOTE = "config.json", "diffusion_pytorch_model.safetensors", "source.json"


def converted(source: Path, flags: Flags) -> tuple[Path, str]:
    """Return the cached diffusers folder of a checkpoint, after converting it if necessary.

    The cache key is a hash of the checkpoint's hash, the flags and VERSION, the version of the
    conversion. If another process is making the same conversion, this function waits for it. If the
    files of a cached folder have changed, the folder is renamed and the checkpoint is converted
    again.

    Args:
        source: checkpoint file of guided-diffusion.
        flags: flags of its network.

    Returns:
        (folder with config.json and safetensors, SHA-256 of the checkpoint file)

    Raises:
        InputError: if the file is missing, is not a checkpoint of an ADM, or does not fit the
            flags.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    sha256 = known_sha256(source)
    what = {"source": sha256, "flags": dataclasses.asdict(flags), "version": VERSION}
    key = sha256_of_bytes(json.dumps(what, sort_keys=True).encode())[:32]
    folder = cache_dir() / "converted" / key
    if is_intact(folder):
        return folder, sha256
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_intact(folder):  # checked again: another process may have converted it meanwhile
            if folder.exists():
                warn_in_one_line(
                    f"{folder}: the converted checkpoint in this folder has changed; "
                    f"{set_aside(folder)}, and the checkpoint is converted again"
                )
            try:
                configuration, tensors = convert(read_checkpoint(source), flags)
            except InputError as error:
                raise InputError(
                    str(error) if str(source) in str(error) else f"{source}: {error}"
                ) from error
            write_folder(folder, configuration, tensors, {"file": source.name, "sha256": sha256})
    return folder, sha256


def is_intact(folder: Path) -> bool:
    """Return whether a folder's config.json and weights have the hashes in its source.json."""
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
    """Write a converted folder atomically: it appears with all its files or not at all.

    The files are config.json, the weights, and source.json, which contains `source` and the hashes
    of the other two files.

    Args:
        folder: new folder.
        configuration: content of config.json.
        tensors: weights.
        source: {"file": name, "sha256": hash} of the checkpoint.
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
