"""Functions that load the parts of a diffusers pipeline from a local folder.

A part is a model, tokenizer or scheduler in a subfolder of its own: unet/, vae/, text_encoder/,
tokenizer/ or scheduler/. adir.weights.model_folder loads the models. Nothing is downloaded.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from transformers import CLIPTokenizer

from adir.errors import InputError
from adir.files import sha256_of_bytes, sha256_of_file
from adir.weights.cache import known_sha256
from adir.weights.checkpoint import read_config
from adir.weights.model_folder import quiet

# scheduling_utils lists the schedulers that Stable Diffusion's pipelines take. Two are excluded:
# EDM's has noise levels but no betas, and the scheduler of DPM-Solver SDE draws noise that an
# image's generator does not determine.
SCHEDULERS = sorted(
    {scheduler.name for scheduler in KarrasDiffusionSchedulers}
    - {"EDMEulerScheduler", "DPMSolverSDEScheduler"}
)


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
