"""Read checkpoints and config files. Only tensors are loaded, and no code in a file runs."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adir.errors import InputError, one_line
from adir.files import read_json


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch.save file, by name.

    No code in the file runs. The tensors are memory-mapped if the format allows it. If the file has
    an entry "state_dict" that is a dict, the tensors in this dict are returned. If all names start
    with `module.`, a prefix that parallel training adds, the prefix is removed.

    Raises:
        InputError: if the file is missing or damaged, if it contains code, or if a value to be
            returned is not a tensor.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch_load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: the file is refused, because it is damaged or holds more than tensors "
            f"({first_sentence(error)}); download it again from a source that you trust"
        ) from error
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        # An error of the file system has a file name; torch's errors about the content have none.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if "TorchScript" in str(error):
            raise InputError(
                f"{path}: the file is a TorchScript archive, which contains code (OpenAI publishes "
                "its weights in this format); use these weights in safetensors format, or save "
                "torch.jit.load(FILE).state_dict() with torch.save"
            ) from error
        raise InputError(
            f"{path}: damaged, or not a checkpoint ({first_sentence(error)}); download the file "
            "again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path}: the file holds a {type(content).__name__} without tensors; use a checkpoint"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: the entry {name!r} is a {type(value).__name__}, not a tensor; use a "
                "checkpoint that holds only tensors"
            )
    prefixed = all(name.startswith("module.") for name in content)
    return {
        name.removeprefix("module.") if prefixed else name: tensor
        for name, tensor in content.items()
    }


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file as a dictionary.

    Raises InputError if the file is missing or damaged, or if it contains no JSON object.
    """
    try:
        settings = read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; download the whole folder") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); download the file again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: contains no JSON object; download the file again")
    return settings


def torch_load(path: Path) -> Any:
    """Run torch.load with weights_only=True on the CPU.

    The file is memory-mapped if it is a zip archive, the default format since torch 1.6.
    Besides tensors, scalars of NumPy 1 and 2 are accepted, because the learning rate in an
    optimiser's state may be one.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    numbers = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    # Hides torch's warning about TorchScript archives, which `read_checkpoint` refuses anyway.
    with (
        torch.serialization.safe_globals([*numbers, np.dtype, type(np.dtype(np.float64))]),
        warnings.catch_warnings(action="ignore"),
    ):
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's message, of at most 200 characters.

    The rest is dropped, such as torch's advice to disable the safety check. If the message is
    empty, the name of the error's class is returned.
    """
    _, _, found = str(error).partition("WeightsUnpickler error: ")
    # The advice follows a blank line.
    paragraph = (found or str(error)).strip().partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0][:200].strip(" .") or type(error).__name__
