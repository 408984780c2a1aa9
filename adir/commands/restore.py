"""`adir restore`: restore your own degraded images; write a PNG of each and a JSON of what was
done.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Any

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
    NOT_TAKEN,
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
"""Default samplers; the first that applies is used.

With the same network they come nearer to the ground truth than Algorithm 1 of the paper,
sampler=adir, and their images are cleaner (results/embedded/adir_settings.md, baselines.md).
"""
STD_FACTOR = 5
"""Grey levels of the map per grey level of standard deviation: white is a deviation of 51 or more.
"""


def main(inputs: list[str], out: Path, overwrite: bool, tile: int, samples: int) -> int:
    """Restore files and folders of images with the cell that the KEY=VALUE inputs describe.

    Returns the exit status.

    Args:
        inputs: files, folders and overrides.
        out: folder of PNGs and JSON.
        overwrite: replace results that are already there.
        tile: side in pixels of the tiles of larger images.
        samples: restorations of each image; of 2 or more the result is the mean, and a map shows
            their standard deviation.

    Everything is read and checked before the first image is restored. Raises InputError.
    """
    if samples < 1:
        raise InputError(f"--samples {samples}: 1 or more are needed")
    overrides = [item for item in inputs if not Path(item).exists() and is_override(item)]
    named = [item for item in inputs if item not in overrides]
    if any(Path(item).is_dir() and Path(item).resolve() == out.resolve() for item in named):
        raise InputError(
            f"--out {out}: is the folder of the images, which would be restored again; name "
            "another one"
        )
    paths = image_files(named)
    cfg, cell = chosen_cell([*overrides, f"results={quoted(str(out / 'stages'))}"])
    options = options_of(cfg)
    if samples > 1 and cell.sampler.n_steps == 0:
        raise InputError(
            f"--samples {samples}: sampler {cell.sampler.name} draws nothing, all would be "
            "equal; leave it out"
        )
    torch.set_num_threads(cfg.threads)
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
        say(f"{path} -> {targets[path]}" + ("" if targets[path] in todo else "  (was there)"))
    Layout(out).mark()
    for number, path in enumerate(todo.values()):
        kept = f"{number} of {len(todo)} images are restored and kept, run the same command again"
        shape = sampled_shape(cell.backbone, cell.task, measurements[path])
        lowered = tile if cell.backbone.kind == "pixel" else None
        with out_of_memory_explained(cell, shape, kept=kept, tile=lowered):
            restore_one(cell, path, measurements[path], targets[path], tile, samples, options)
    return 0


def chosen_cell(overrides: list[str]) -> tuple[DictConfig, Cell]:
    """Return the configuration that the overrides describe, and its cell.

    Uses one of SAMPLERS unless the overrides name one.

    An experiment names one too. If the first does not apply (a latent backbone, an operator of
    unknown singular values), a line says why and what is used: the next, or the configuration's own
    if none of SAMPLERS applies. Raises InputError.
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
                f"sampler={cell.sampler.name}, as sampler={SAMPLERS[0]} does not apply: "
                f"{reasons[0]}"
            )
        return cfg, cell
    raise reasons[-1]


def targets_of(measurements: dict[Path, Tensor], cell: Cell, out: Path) -> dict[Path, Path]:
    """Return the output path of each image.

    Files with one stem (in two folders, or with two suffixes) get a hash of their content in their
    names; the same image twice gets one path.
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
    """Return the given files, and the image files directly in the given folders.

    Raises InputError if there are none.
    """
    if not inputs:
        raise InputError("no images given: adir restore IMAGE... task=sr4")
    paths: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            found = list(walk(item, IMAGE_SUFFIXES + NOT_TAKEN, below=False))
            if not found:
                raise InputError(f"{item}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
            paths += found
        elif item.is_file():
            paths.append(item)
        else:
            raise InputError(f"{item}: no such file or folder")
    return list(dict.fromkeys(paths))


def is_done(target: Path, cell: Cell, y: Tensor, tile: int, samples: int) -> bool:
    """Return whether this restoration exists with all its files.

    Raises InputError if another file has its name.

    The note is written first: after a kill, or if images were deleted, it may be there without its
    images.
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
        pass  # of another program, or damaged: handled alike
    there = target if target.exists() else note
    raise InputError(f"{there}: exists and was made otherwise; use --overwrite, or another --out")


def restore_one(
    cell: Cell, path: Path, y: Tensor, target: Path, tile: int, samples: int, options: Any
) -> None:
    """Retrieve, adapt, restore and write one image.

    All samples share the adapter; their noise has consecutive seeds.
    """
    started = time.perf_counter()
    image_id = hash_of_image(
        y
    )  # of the content, so that the same image under another name has the same result
    neighbours, _ = (
        find_neighbours(cell, image_id, None, y) if cell.corpus is not None else ([], [])
    )
    adapter = awaited_adapter(cell, image_id, y, [n.id for n in neighbours], options.progress)
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
        # 8-bit, as in their files, so that mean and map can be recomputed from the files.
        saved = [from_uint8(to_uint8(result.x_hat)) for result in results]
        x_hat, deviation = mean_and_deviation(saved)
        others = {
            sample_file(target, f"sample{seed}"): sample
            for seed, sample in zip(seeds, saved, strict=True)
        }
        others[sample_file(target, "std")] = (
            (STD_FACTOR * deviation / 127.5 - 1).clamp(-1, 1).expand(3, -1, -1)
        )
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
        spread = f", mean of {samples} with standard deviation {note['std']['mean']:.1f}"
    write_json(target.with_suffix(".json"), note)
    for file, image in others.items():
        write_png(file, image)
    write_png(target, x_hat)  # last: what is_done goes by
    say(
        f"{target}: {y.shape[2]}x{y.shape[1]} to {x_hat.shape[2]}x{x_hat.shape[1]}, residual "
        f"{residual:.1f} grey "
        f"levels (noise {cell.task.sigma_y:g}){spread}, {note['seconds']} s"
    )


def sample_file(target: Path, what: str) -> Path:
    """Return the path of a sample or of the map, beside the result."""
    return target.with_name(f"{target.stem}-{what}.png")


def mean_and_deviation(samples: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of samples and a map of their standard deviation (n - 1 in the denominator).

    Args:
        samples: two or more (3, H, W) images in [-1, 1].

    Returns:
        mean: (3, H, W) in [-1, 1].
        deviation: (1, H, W) in grey levels of 255, the root of the variance averaged over the
            channels.
    """
    total = torch.stack(samples).double()
    variance, mean = torch.var_mean(total, dim=0)
    return mean.float(), 127.5 * variance.mean(0, keepdim=True).sqrt().float()


def awaited_adapter(
    cell: Cell, image_id: str, y: Tensor, chosen: list[str], progress: bool
) -> StoredAdapter | None:
    """Return the adapter. Waits if another `adir restore` is training it."""
    while True:
        try:
            return find_or_train_adapter(cell, image_id, cell.task, y, chosen, progress, say)
        except Busy:
            time.sleep(0.5)
