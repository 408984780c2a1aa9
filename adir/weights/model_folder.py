"""Functions that load a model of diffusers or transformers from a local folder.

Nothing is downloaded, and pickles may contain only tensors. A missing tensor, an unexpected tensor
or a tensor of another shape is an error. (The libraries only warn, and initialise missing tensors
at random.)
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from adir.errors import InputError, one_line
from adir.weights.checkpoint import read_config

# (file name, variant) of weights in diffusers and transformers, in order of preference.
WEIGHTS = (
    ("diffusion_pytorch_model.safetensors", None),
    ("model.safetensors", None),
    ("diffusion_pytorch_model.bin", None),
    ("pytorch_model.bin", None),
    ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ("model.fp16.safetensors", "fp16"),
)
# Earlier versions of transformers stored position ids 0, 1, 2, ... with the weights of CLIP and
# BLIP.
OLD_BUFFERS = ("position_ids",)


def weights_file(folder: Path) -> tuple[Path, str | None]:
    """Return (weights file in a folder, the file's variant).

    The variant is "fp16" for a float16 file, and None for a full-precision file. If there are
    several files, full precision is preferred to float16, and then safetensors to pickles.

    Raises InputError if the folder contains no weights file.
    """
    for name, variant in WEIGHTS:
        if (folder / name).is_file():
            return folder / name, variant
    raise InputError(
        f"{folder}: no weights; the folder must contain one of "
        f"{', '.join(name for name, _ in WEIGHTS)}"
    )


def load_model(folder: Path, kind: type[Any]) -> Any:
    """Load a model from the config.json and the weights file in a folder.

    The model is float32, on the CPU, in eval mode and frozen.

    Args:
        folder: folder of one model, such as the subfolder unet/ of a pipeline.
        kind: class of the model, from diffusers or transformers.

    Raises:
        InputError: if a file is missing or damaged, if config.json describes another class, or if
            a tensor is missing, unexpected or of another shape.
    """
    weights, variant = weights_file(folder)
    require_class(folder / "config.json", kind.__name__)
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                local_files_only=True,
                # If False, diffusers calls torch.load with weights_only=True.
                use_safetensors=weights.suffix == ".safetensors",
                variant=variant,
                torch_dtype=torch.float32,
                output_loading_info=True,
                # Mismatched tensors are then listed in `info`, and require_all_tensors raises.
                ignore_mismatched_sizes=True,
            )
    # diffusers, transformers, safetensors and torch share no class of errors for damaged files.
    except Exception as error:
        raise InputError(
            f"{folder}: damaged or unsuitable {kind.__name__} ({one_line(error)[:300]}); "
            "download the folder again"
        ) from error
    require_all_tensors(weights, info)
    return model.eval().requires_grad_(False)


def require_class(config: Path, name: str) -> None:
    """Raise InputError unless a config.json names this class of model."""
    settings = read_config(config)
    # diffusers writes "_class_name", transformers a list "architectures".
    if settings.get("_class_name") != name and settings.get("architectures") != [name]:
        found = settings.get("_class_name") or settings.get("architectures") or "model of no class"
        named = ", ".join(map(str, found)) if isinstance(found, list) else found
        raise InputError(f"{config}: describes a {named}; give a folder with a {name}")


def require_all_tensors(weights: Path, info: dict[str, Any]) -> None:
    """Raise InputError unless a weights file and its network have the same tensors and shapes.

    The message names the first tensor that differs.

    Args:
        weights: path of the weights file, for the message.
        info: the loading info of diffusers' or transformers' `from_pretrained`.
    """
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith(OLD_BUFFERS)]
    wrong: list[tuple[str, Any, Any]] = [
        *((key, tuple(found), tuple(wanted)) for key, found, wanted in info["mismatched_keys"]),
        *((key, "missing", "present") for key in info["missing_keys"]),
        *((key, "present", "missing") for key in unexpected),
    ]
    if wrong:
        key, found, expected = min(wrong, key=lambda item: item[0])
        raise InputError(
            f"{weights}: the tensors do not fit config.json ({key} is {found} in the file, but "
            f"{expected} in the network"
            + (f"; {len(wrong)} tensors differ)" if len(wrong) > 1 else ")")
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Return a context in which libraries print no progress bars and log no warnings.

    The warnings are not needed, because the callers raise errors instead.
    """
    before = logging.root.manager.disable
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()
