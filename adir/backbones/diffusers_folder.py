"""Functions that load the parts of a diffusers pipeline from a local folder.

A part is a model, tokenizer or scheduler in a subfolder of its own: unet/, vae/, text_encoder/,
tokenizer/ or scheduler/. Nothing is downloaded, and pickles may contain only tensors. A missing
tensor, an unexpected tensor or a tensor of another shape is an error. (diffusers only warns, and
initialises missing tensors at random.)
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
import torch
import transformers
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from safetensors import SafetensorError
from transformers import CLIPTokenizer

from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes, sha256_of_file
from adir.weights.cache import known_sha256

# scheduling_utils lists the schedulers that Stable Diffusion's pipelines take. Two are excluded:
# EDM's has noise levels but no betas, and the scheduler of DPM-Solver SDE draws noise that an
# image's generator does not determine.
SCHEDULERS = sorted(
    {scheduler.name for scheduler in KarrasDiffusionSchedulers}
    - {"EDMEulerScheduler", "DPMSolverSDEScheduler"}
)

# (file name, variant) of weights in diffusers and transformers, in order of preference.
WEIGHTS = (
    ("diffusion_pytorch_model.safetensors", None),
    ("model.safetensors", None),
    ("diffusion_pytorch_model.bin", None),
    ("pytorch_model.bin", None),
    ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ("model.fp16.safetensors", "fp16"),
)
# Earlier versions of transformers stored CLIP's position ids 0, 1, 2, ... with its weights.
OLD_BUFFERS = ("position_ids",)


def require_folder(folder: Path, parts: tuple[str, ...]) -> None:
    """Raise InputError unless a folder exists and has a subfolder for each of `parts`."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give a Stable Diffusion folder with {', '.join(parts)}"
        )
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: the folder has no {', no '.join(missing)}; "
            f"give a diffusers folder with {', '.join(parts)}"
        )


def weights_file(part: Path) -> tuple[Path, str | None]:
    """Return (weights file in the subfolder `part`, the file's variant).

    The variant is "fp16" for a float16 file, and None for a full-precision file. If there are
    several files, full precision is preferred to float16, and then safetensors to pickles.

    Raises InputError if the subfolder contains no weights file.
    """
    for name, variant in WEIGHTS:
        if (part / name).is_file():
            return part / name, variant
    raise InputError(
        f"{part}: no weights; the folder must contain one of "
        f"{', '.join(name for name, _ in WEIGHTS)}"
    )


def load_part(part: Path, kind: type[Any]) -> Any:
    """Load a model from the config.json and the weights file in the subfolder `part`.

    The model is float32, on the CPU, in eval mode and frozen.

    Args:
        part: subfolder of a pipeline's folder, such as unet/.
        kind: class of the model, from diffusers or transformers.

    Raises:
        InputError: if a file is missing or damaged, if config.json describes another class, or if
            a tensor is missing, unexpected or of another shape.
    """
    weights, variant = weights_file(part)
    require_class(part / "config.json", kind.__name__)
    try:
        with quiet():
            model, info = kind.from_pretrained(
                part,
                local_files_only=True,
                # If False, diffusers calls torch.load with weights_only=True.
                use_safetensors=weights.suffix == ".safetensors",
                variant=variant,
                torch_dtype=torch.float32,
                output_loading_info=True,
                # Mismatched tensors are then listed in `info`, and require_all_tensors raises.
                ignore_mismatched_sizes=True,
            )
    except (
        SafetensorError,
        UnpicklingError,
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{part}: damaged or unsuitable {kind.__name__} ({reason}); download the folder again"
        ) from error
    require_all_tensors(weights, info)
    return model.eval().requires_grad_(False)


def require_class(config: Path, name: str) -> None:
    """Raise InputError unless a config.json describes a model of the class with this name."""
    settings = read_config(config)
    classes = settings.get("architectures") or ["model of unknown class"]
    found = settings.get("_class_name") or classes[0]
    if found != name:
        raise InputError(f"{config}: describes a {found}; give a folder with a {name}")


def require_all_tensors(weights: Path, info: dict[str, Any]) -> None:
    """Raise InputError unless a weights file and its network have the same tensors and shapes.

    The message names the first tensor that differs.

    Args:
        weights: path of the weights file, for the message.
        info: the loading info of diffusers' or transformers' `from_pretrained`.
    """
    wrong: list[tuple[str, Any, Any]] = [
        (key, tuple(f), tuple(e)) for key, f, e in info["mismatched_keys"]
    ]
    wrong += [(key, "missing", "present") for key in info["missing_keys"]]
    wrong += [
        (key, "present", "missing")
        for key in info["unexpected_keys"]
        if not key.endswith(OLD_BUFFERS)
    ]
    if wrong:
        key, found, expected = min(wrong, key=lambda item: item[0])
        raise InputError(
            f"{weights}: the tensors do not fit config.json ({key} is {found} in the file, but "
            f"{expected} in the network"
            + (f"; {len(wrong)} tensors differ)" if len(wrong) > 1 else ")")
        )


def load_scheduler(part: Path) -> Any:
    """Build the diffusers scheduler that scheduler_config.json in the subfolder `part` describes.

    Raises InputError if the scheduler is not in SCHEDULERS or rejects its settings.
    """
    path = part / "scheduler_config.json"
    settings = read_config(path)
    name = str(settings.get("_class_name"))
    if name not in SCHEDULERS:
        raise InputError(
            f"{path}: unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}"
        )
    try:
        with quiet():
            return getattr(diffusers, name).from_config(settings)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise InputError(
            f"{path}: {name} rejects the settings in this file ({' '.join(str(error).split())}); "
            "download the file again"
        ) from error


def load_tokenizer(part: Path) -> CLIPTokenizer:
    """Load the CLIP tokenizer in the subfolder `part`.

    Raises InputError if the tokenizer's vocabulary is missing or damaged.
    """
    if not (part / "tokenizer.json").is_file() and not (part / "vocab.json").is_file():
        raise InputError(
            f"{part}: no vocabulary; the folder must contain tokenizer.json, or vocab.json and "
            "merges.txt"
        )
    try:
        with quiet():
            return CLIPTokenizer.from_pretrained(part, local_files_only=True)
    except Exception as error:  # the Rust library behind it raises plain Exception
        raise InputError(
            f"{part}: damaged tokenizer ({' '.join(str(error).split())[:300]}); "
            "download the folder again"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file as a dictionary.

    Raises InputError if the file is missing or damaged, or if it contains no JSON object.
    """
    try:
        settings = read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; download the whole folder") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); download the file again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: contains no JSON object; download the file again")
    return settings


def hash_of_files(folder: Path, files: list[Path]) -> str:
    """Return one SHA-256 of the contents and paths of several files.

    The hashed text has one line per file, "SHA-256 PATH". PATH is relative to `folder`, and the
    lines are sorted by path.
    """
    lines = [
        f"{known_sha256(file)} {file.relative_to(folder).as_posix()}\n" for file in sorted(files)
    ]
    return sha256_of_bytes("".join(lines).encode())


def hash_of_settings(folder: Path, parts: tuple[str, ...]) -> str:
    """Return one SHA-256 of all JSON and text files in the subfolders `parts` of a folder.

    The JSON entries for library versions and source paths are ignored, because they can differ
    between copies of one model.
    """
    settings: dict[str, Any] = {}
    for part in parts:
        for file in sorted((folder / part).iterdir()):
            if file.suffix == ".json":
                ignored = ("_diffusers_version", "_name_or_path", "transformers_version")
                settings[f"{part}/{file.name}"] = {
                    k: v for k, v in read_config(file).items() if k not in ignored
                }
            elif file.suffix == ".txt":
                settings[f"{part}/{file.name}"] = sha256_of_file(file)
    return sha256_of_bytes(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode())


@contextmanager
def quiet() -> Iterator[None]:
    """Return a context in which diffusers and transformers print no progress bars and warnings.

    The warnings are not needed, because the functions of this module raise errors instead.
    """
    levels = {name: logging.getLogger(name).level for name in ("diffusers", "transformers")}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
