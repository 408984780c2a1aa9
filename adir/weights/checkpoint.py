"""Read checkpoints safely: tensors only; no code in the file runs."""

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

from adir.errors import InputError


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch.save file by name, mapped from disk where the
    format allows.

    No code in the file runs. {"state_dict": {...}} is unwrapped, and the prefix `module.` of
    networks trained in parallel is removed. Raises InputError for anything but tensors, and for
    damaged files.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch_load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused: it is damaged, or holds more than tensors "
            f"({first_sentence(error)}); fetch it again from "
            "a source you trust"
        ) from error
    except OSError as error:
        if (
            error.filename is not None
        ):  # from the file system; torch's own errors about the content name no file
            raise
        raise InputError(
            f"{path}: damaged, or no checkpoint ({first_sentence(error)}); fetch it again"
        ) from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{path}: a TorchScript archive, which is code (OpenAI publishes its weights "
                "so); take the same weights as "
                "safetensors, or save what torch.jit.load(FILE).state_dict() gives with torch.save"
            ) from error
        raise InputError(
            f"{path}: damaged, or no checkpoint ({first_sentence(error)}); fetch it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: no tensors in it: it holds a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: {name!r} in it is a {type(value).__name__}: a checkpoint of tensors "
                "only is needed"
            )
    prefixed = all(name.startswith("module.") for name in content)
    return {
        name.removeprefix("module.") if prefixed else name: tensor
        for name, tensor in content.items()
    }


def torch_load(path: Path) -> Any:
    """Run torch.load with weights_only=True on the CPU.

    Files of torch before 1.6 are not zip archives and cannot be mapped.

    NumPy scalars of NumPy 1 and 2 are allowed: an optimiser's learning rate beside the weights may
    be one.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    numbers = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    # hides torch's warning about TorchScript archives: `read_checkpoint` refuses them and says what
    # to do
    with (
        torch.serialization.safe_globals([*numbers, np.dtype, type(np.dtype(np.float64))]),
        warnings.catch_warnings(action="ignore"),
    ):
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )


def first_sentence(error: Exception) -> str:
    """Return the part of torch's message that says what happened, without its advice to disable the
    check.
    """
    _, _, found = str(error).partition("WeightsUnpickler error: ")
    paragraph = (
        (found or str(error)).strip().partition("\n\n")[0]
    )  # the advice follows a blank line
    return " ".join(paragraph.split()).partition(". ")[0][:200].strip(" .") or type(error).__name__
