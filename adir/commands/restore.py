"""`adir restore`: restore your own degraded images.

It writes a PNG for each image, and a JSON file with settings and versions.
"""

import time
from collections import Counter
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from adir.errors import InputError
from adir.files import read_json, shortened, walk, write_json
from adir.harness.cells.cell import Cell, NotApplicable, resolve_cell
from adir.harness.cells.compose import compose, is_override
from adir.harness.cells.paths import quoted
from adir.harness.records.layout import Layout, file_name
from adir.harness.running.grid import options_of, say
from adir.harness.running.neighbours import find_neighbours
from adir.harness.running.out_of_memory import out_of_memory_explained
from adir.harness.running.pipeline import Busy, adapter_of, find_or_train_adapter, in_place
from adir.harness.running.provenance import commit, versions
from adir.harness.running.stores import StoredAdapter
from adir.images import (
    IMAGE_SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    from_uint8,
    hash_of_image,
    read_png,
    to_uint8,
    write_png,
)
from adir.samplers.base import Steering
from adir.samplers.tiling import needed_tile, require_restorable, restore_any_size, sampled_shape
from adir.scoring.metrics import data_consistency_residual

SAMPLERS = ("ddrm", "adir_clean")
"""Default samplers: `adir restore` uses the first one that is applicable.

With the same network, their images are closer to the ground truth and less noisy than those of
sampler=adir, the paper's Algorithm 1 (results/embedded/adir_settings.md and baselines.md).
"""
STD_FACTOR = 5
"""The factor by which standard deviations are multiplied in the PNG of their map.

White therefore means a standard deviation of 51 grey levels or more.
"""


def main(inputs: list[str], out: Path, overwrite: bool, tile: int, samples: int) -> int:
    """Restore images with the settings among the inputs, and return the exit status.

    All inputs are read and checked before the first image is restored.

    Args:
        inputs: image files, folders of images, and KEY=VALUE settings.
        out: folder for PNG and JSON files.
        overwrite: whether existing results are replaced.
        tile: side in pixels of the tiles into which larger images are split for the network.
        samples: number of restorations of each image. If there are 2 or more, the result is their
            mean, and each restoration and a map of their standard deviation are written too.

    Raises:
        InputError: if an input or a setting cannot be used, or if sampling fails.
    """
    if samples < 1:
        raise InputError(f"--samples {samples} must be at least 1")
    overrides = [item for item in inputs if not Path(item).exists() and is_override(item)]
    named = [item for item in inputs if item not in overrides]
    if any(Path(item).is_dir() and Path(item).resolve() == out.resolve() for item in named):
        raise InputError(
            f"--out {out}: this folder is an input too, so its results would be restored again; "
            "give another folder"
        )
    paths = image_files(named)
    cfg, cell = chosen_cell([*overrides, f"results={quoted(str(out / 'stages'))}"])
    progress = options_of(cfg).progress
    if samples > 1 and cell.sampler.n_steps == 0:
        raise InputError(
            f"--samples {samples}: sampler {cell.sampler.name} is not random, so all samples would "
            "be equal; omit --samples"
        )
    torch.set_num_threads(cfg.threads)
    # Read all images, and find out which still have to be restored.
    measurements = {path: cell.task.read_y(path) for path in paths}
    for path, y in measurements.items():
        try:
            require_restorable(cell.backbone, cell.task, y, tile)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    targets = targets_of(measurements, cell, out)
    fresh = [
        path
        for path in paths
        if overwrite or not is_done(targets[path], cell, measurements[path], tile, samples)
    ]
    todo = {targets[path]: path for path in fresh}
    for path in paths:
        say(f"{path} -> {targets[path]}" + ("" if targets[path] in todo else "  (already done)"))
    Layout(out).mark()
    for number, path in enumerate(todo.values()):
        kept = f"{number} of {len(todo)} images are restored, and the next run does only the rest"
        shape = sampled_shape(cell.backbone, cell.task, measurements[path])
        lowered = tile if cell.backbone.kind == "pixel" else None
        with out_of_memory_explained(cell, shape, kept=kept, tile=lowered):
            restore_one(cell, path, measurements[path], targets[path], tile, samples, progress)
    return 0


def chosen_cell(overrides: list[str]) -> tuple[DictConfig, Cell]:
    """Return the configuration that the overrides describe, and its cell.

    If the overrides name a sampler or an experiment, they determine the sampler. Otherwise the
    sampler is the first of SAMPLERS that is applicable, or the configuration's default if none is.
    If the first of SAMPLERS is not applicable, the chosen sampler and the reason are printed. Some
    samplers are not applicable to latent backbones, or to operators whose singular values are
    unknown.

    Raises InputError if a setting cannot be used, or if no sampler is applicable.
    """
    named = {word.partition("=")[0].lstrip("+~") for word in overrides} & {"sampler", "experiment"}
    choices = [[]] if named else [*([f"sampler={name}"] for name in SAMPLERS), []]
    reasons: list[NotApplicable] = []
    for choice in choices:
        cfg = compose([*choice, *overrides])
        try:
            cell = resolve_cell(cfg)
        except NotApplicable as error:
            reasons.append(error)
            continue
        if reasons:
            say(
                f"sampler={cell.sampler.name} is used, because sampler={SAMPLERS[0]} does not "
                f"apply: {reasons[0]}"
            )
        return cfg, cell
    raise reasons[-1]


def targets_of(measurements: dict[Path, Tensor], cell: Cell, out: Path) -> dict[Path, Path]:
    """Return {path of the input: path of the result}.

    A result is named after its input's stem (the file name without suffix). If several inputs have
    the same stem, a hash of y is added to the names of their results. Inputs that have the same
    stem and equal y share one result.

    Args:
        measurements: {path of the input: y}.
        cell: its task and mode are part of the name.
        out: output folder.
    """
    stems = {path: shortened(path.stem) for path in measurements}
    times = Counter(stem.casefold() for stem in stems.values())
    made_by = f"{file_name(cell.task.name, most=40)}-{file_name(cell.mode.name, most=40)}"
    targets = {}
    for path, y in measurements.items():
        stem = stems[path]
        which = stem if times[stem.casefold()] == 1 else f"{stem}-{hash_of_image(y)[:10]}"
        targets[path] = out / f"{which}-{made_by}.png"
    return targets


def image_files(inputs: list[str]) -> list[Path]:
    """Return the paths of all images in a list of files and folders.

    Images in subfolders are not included.

    Raises InputError if the list is empty, if a path does not exist, or if a folder has no images.
    """
    if not inputs:
        raise InputError(
            "no images given; name at least one, as in `adir restore IMAGE... task=sr4`"
        )
    paths: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            found = list(walk(item, IMAGE_SUFFIXES + UNSUPPORTED_SUFFIXES, below=False))
            if not found:
                raise InputError(
                    f"{item}: the folder contains no images ({', '.join(IMAGE_SUFFIXES)})"
                )
            paths += found
        elif item.is_file():
            paths.append(item)
        else:
            raise InputError(f"{item}: no such file or folder")
    return list(dict.fromkeys(paths))


def is_done(target: Path, cell: Cell, y: Tensor, tile: int, samples: int) -> bool:
    """Return whether the result for an image exists with all its files.

    The JSON file may exist without the images: it is written first, so the process may have been
    killed before it wrote them. Images may also have been deleted.

    Args:
        target: path of the result; the JSON file is beside it.
        cell: settings with which the image would be restored.
        y: the degraded image.
        tile: requested side of the tiles in pixels.
        samples: requested number of samples.

    Raises:
        InputError: if the result exists but was made with other settings, or if a file is damaged
            or does not match the JSON file.
    """
    note = target.with_suffix(".json")
    if not target.exists() and not note.exists():
        return False
    try:
        known = read_json(note)
        made_of = (
            cell.identity.sha256,
            hash_of_image(y),
            needed_tile(cell.backbone, cell.task, y, tile),
        )
        if (known["cell"], known["y_sha256"], known["tile"]) == made_of and len(
            known.get("samples", [0])
        ) == samples:
            files = {target.name: known["image_sha256"]} | known.get("files", {})
            if not all((target.parent / name).exists() for name in files):
                return False
            if all(
                hash_of_image(read_png(target.parent / name)) == sha256
                for name, sha256 in files.items()
            ):
                return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # damaged, or written by another program: handled like a file of other settings
    there = target if target.exists() else note
    raise InputError(
        f"{there} exists and was written with other settings; use --overwrite, or another --out"
    )


def restore_one(
    cell: Cell, path: Path, y: Tensor, target: Path, tile: int, samples: int, progress: bool
) -> None:
    """Restore one image, and write the result and its JSON file.

    If the cell needs them, neighbours are retrieved and an adapter is trained first. All samples
    share the adapter. The seeds of the samples are cell.seed, cell.seed + 1, and so on.

    Args:
        cell: settings and the parts built from them.
        path: path of the input, for the JSON file and for errors.
        y: the degraded image.
        target: path of the result.
        tile: requested side of the tiles in pixels.
        samples: number of samples.
        progress: whether to show a progress bar of the training.

    Raises:
        InputError: if sampling fails.
    """
    started = time.perf_counter()
    # The id is a hash of the content, so the same image under another name has the same result.
    image_id = hash_of_image(y)
    # Retrieve and adapt.
    neighbours, _ = (
        find_neighbours(cell, image_id, None, y) if cell.corpus is not None else ([], [])
    )
    adapter = awaited_adapter(cell, image_id, y, [n.id for n in neighbours], progress)
    # Restore once per seed.
    seeds = range(cell.seed, cell.seed + samples)
    with in_place(cell, adapter):
        try:
            steering = cell.mode if isinstance(cell.mode, Steering) else None
            results = [
                restore_any_size(
                    cell.sampler, cell.backbone, cell.task, y, seed, image_id, tile, steering
                )
                for seed in seeds
            ]
        except FloatingPointError as error:
            raise InputError(f"{path}: {error}") from error
    x_hat, others = results[0].x_hat, {}
    if samples > 1:
        # Rounded to 8 bits as in the files, so that mean and map can be recomputed from the files.
        saved = [from_uint8(to_uint8(result.x_hat)) for result in results]
        x_hat, deviation = mean_and_deviation(saved)
        others = {
            target.with_name(f"{target.stem}-sample{seed}.png"): sample
            for seed, sample in zip(seeds, saved, strict=True)
        }
        others[target.with_name(f"{target.stem}-std.png")] = (
            (STD_FACTOR * deviation / 127.5 - 1).clamp(-1, 1).expand(3, -1, -1)
        )
    # Write the JSON file, the other samples, and last the result.
    operator = cell.task.operator(tuple(x_hat.shape))
    residual = float(data_consistency_residual(operator, x_hat[None].clamp(-1, 1), y[None]))
    note = {
        "cell": cell.identity.sha256,
        "axes": cell.identity.axes.model_dump(),
        "configuration": cell.configuration,
        "input": path.name,
        "y_sha256": image_id,
        "image_sha256": hash_of_image(from_uint8(to_uint8(x_hat))),
        "residual": residual,
        "sigma_y": cell.task.sigma_y,
        "tile": needed_tile(cell.backbone, cell.task, y, tile),
        "tiles": results[0].n_tiles,
        "sampler": {"capped_steps": results[0].capped_steps, "n_steps": cell.sampler.n_steps},
        "neighbours": [{"id": n.id, "distance": n.distance} for n in neighbours],
        "adapter": None if adapter is None else adapter_of(adapter).model_dump(mode="json"),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "commit": commit(),
    }
    spread = ""
    if samples > 1:
        note |= {
            "samples": [{"sampler_seed": seed} for seed in seeds],
            "files": {
                file.name: hash_of_image(from_uint8(to_uint8(image)))
                for file, image in others.items()
            },
            "std": {"mean": round(float(deviation.mean()), 3), "grey_levels_per_std": STD_FACTOR},
        }
        spread = f", mean of {samples} samples with standard deviation {note['std']['mean']:.1f}"
    write_json(target.with_suffix(".json"), note)
    for file, image in others.items():
        write_png(file, image)
    write_png(target, x_hat)  # written last, see is_done
    say(
        f"{target}: {y.shape[2]}x{y.shape[1]} to {x_hat.shape[2]}x{x_hat.shape[1]}, residual "
        f"{residual:.1f} grey "
        f"levels (noise {cell.task.sigma_y:g}){spread}, {note['seconds']} s"
    )


def mean_and_deviation(samples: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of several samples and a map of their standard deviation.

    Args:
        samples: two or more images (3, H, W) in [-1, 1].

    Returns:
        mean: (3, H, W) in [-1, 1].
        deviation: (1, H, W) in grey levels of 255. It is the square root of the mean variance of
            the three channels. The variance of n samples is computed with denominator n - 1.
    """
    total = torch.stack(samples).double()
    variance, mean = torch.var_mean(total, dim=0)
    return mean.float(), 127.5 * variance.mean(0, keepdim=True).sqrt().float()


def awaited_adapter(
    cell: Cell, image_id: str, y: Tensor, chosen: list[str], progress: bool
) -> StoredAdapter | None:
    """Return the adapter for an image, or None if the cell's mode trains no adapter.

    The adapter is read from the cache. If it is not there, it is trained. If another process is
    training it, this function waits.

    Args:
        cell: settings and the parts built from them.
        image_id: hash of y.
        y: the degraded image.
        chosen: ids of the neighbours, the corpus images to adapt to.
        progress: whether to show a progress bar of the training.
    """
    while True:
        try:
            return find_or_train_adapter(cell, image_id, cell.task, y, chosen, progress, say)
        except Busy:
            time.sleep(0.5)
