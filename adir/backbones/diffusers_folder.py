"""Parts of a pipeline read from a local folder in diffusers' layout: unet/, vae/, text_encoder/,
tokenizer/, scheduler/.

One path for downloaded checkpoints and for the tiny ones that tests make. Nothing is fetched,
pickles may hold tensors only, and a tensor that is missing, left over or of another shape is an
error: diffusers itself fills a gap with random numbers and only warns.
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

# scheduling_utils lists the schedulers that Stable Diffusion's pipelines take. EDM's has noise
# levels, but no betas; that of DPM-Solver SDE draws noise that an image's generator does not
# determine.
SCHEDULERS = sorted(
    {scheduler.name for scheduler in KarrasDiffusionSchedulers}
    - {"EDMEulerScheduler", "DPMSolverSDEScheduler"}
)

WEIGHTS = (  # of diffusers and of transformers, the better ones first: (file, variant)
    ("diffusion_pytorch_model.safetensors", None),
    ("model.safetensors", None),
    ("diffusion_pytorch_model.bin", None),
    ("pytorch_model.bin", None),
    ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
    ("model.fp16.safetensors", "fp16"),
)
OLD_BUFFERS = (
    "position_ids",
)  # earlier transformers stored a CLIP's 0, 1, 2, ... beside its weights


def require_folder(folder: Path, parts: tuple[str, ...]) -> None:
    """Raise InputError unless `folder` has these parts."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; a Stable Diffusion folder holds {', '.join(parts)}"
        )
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: not this kind of Stable Diffusion: it has no {', no '.join(missing)} "
            "folder; "
            f"a diffusers folder with {', '.join(parts)} is needed"
        )


def weights_file(part: Path) -> tuple[Path, str | None]:
    """(the weights of a part, their variant): full precision before half, safetensors before
    pickles of tensors.
    """
    for name, variant in WEIGHTS:
        if (part / name).is_file():
            return part / name, variant
    raise InputError(
        f"{part}: no weights; one of {', '.join(name for name, _ in WEIGHTS)} is needed"
    )


def load_part(part: Path, kind: type[Any]) -> Any:
    """A model of diffusers or transformers from part/config.json and its weights: float32, on the
    CPU, eval mode, frozen.

    Raises InputError for a missing or damaged file, another class of model, or the first tensor
    that does not fit.
    """
    weights, variant = weights_file(part)
    require_class(part / "config.json", kind.__name__)
    try:
        with quiet():
            model, info = kind.from_pretrained(
                part,
                local_files_only=True,
                use_safetensors=weights.suffix
                == ".safetensors",  # else torch.load with weights_only=True
                variant=variant,
                torch_dtype=torch.float32,
                output_loading_info=True,
                # so that they are listed in `info` and said in our words
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
            f"{part}: damaged or unfit {kind.__name__} ({reason}); fetch it again"
        ) from error
    require_all_tensors(weights, info)
    return model.eval().requires_grad_(False)


def require_class(config: Path, name: str) -> None:
    """Raise InputError unless the JSON file says that it configures a `name`."""
    settings = read_config(config)
    found = settings.get("_class_name") or (settings.get("architectures") or ["nothing"])[0]
    if found != name:
        raise InputError(f"{config}: describes a {found}, a {name} is needed")


def require_all_tensors(weights: Path, info: dict[str, Any]) -> None:
    """Raise InputError, naming the first tensor, where file and network differ."""
    wrong: list[tuple[str, Any, Any]] = [
        (key, tuple(f), tuple(e)) for key, f, e in info["mismatched_keys"]
    ]
    wrong += [(key, "missing", "there") for key in info["missing_keys"]]
    wrong += [
        (key, "there", "no such tensor")
        for key in info["unexpected_keys"]
        if not key.endswith(OLD_BUFFERS)
    ]
    if wrong:
        key, found, expected = min(wrong, key=lambda item: item[0])
        raise InputError(
            f"{weights}: does not fit config.json: {key} is {found} in the file, {expected} in "
            "the network" + (f" ({len(wrong)} tensors differ)" if len(wrong) > 1 else "")
        )


def load_scheduler(part: Path) -> Any:
    """The scheduler that part/scheduler_config.json names.

    Raises InputError for one that is not in SCHEDULERS.
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
            f"{path}: {name} does not take these settings ({' '.join(str(error).split())})"
        ) from error


def load_tokenizer(part: Path) -> CLIPTokenizer:
    """The CLIP tokenizer of a folder.

    Raises InputError where its vocabulary is missing or damaged.
    """
    if not (part / "tokenizer.json").is_file() and not (part / "vocab.json").is_file():
        raise InputError(
            f"{part}: no vocabulary; tokenizer.json, or vocab.json with merges.txt, is needed"
        )
    try:
        with quiet():
            return CLIPTokenizer.from_pretrained(part, local_files_only=True)
    except Exception as error:  # the Rust library behind it raises plain Exception
        raise InputError(
            f"{part}: damaged tokenizer ({' '.join(str(error).split())[:300]}); fetch it again"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError where the file is missing or holds something else."""
    try:
        settings = read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; fetch the whole folder") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); fetch it again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no JSON object; fetch it again")
    return settings


def hash_of_files(folder: Path, files: list[Path]) -> str:
    """SHA-256 of (SHA-256, path below the folder) lines, sorted by path."""
    lines = [
        f"{known_sha256(file)} {file.relative_to(folder).as_posix()}\n" for file in sorted(files)
    ]
    return sha256_of_bytes("".join(lines).encode())


def hash_of_settings(folder: Path, parts: tuple[str, ...]) -> str:
    """SHA-256 of the parts' JSON and text files, less what differs between equal models: versions
    and names of places.
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
    """Without the progress bars and warnings of the hubs; what matters in them is raised as an
    error here.
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
