"""`adir restore`: degraded pictures of a user's own, restored into PNGs, each beside a JSON of what was done."""

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adir.errors import InputError
from adir.files import read_json, shortened, walk, write_json
from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose, is_override
from adir.harness.cells.paths import quoted
from adir.harness.records.layout import Layout, file_name
from adir.harness.running.grid import options_of, say
from adir.harness.running.neighbours import find_neighbours
from adir.harness.running.out_of_memory import out_of_memory_explained
from adir.harness.running.pipeline import Busy, adapter_of, find_or_train_adapter, in_place
from adir.harness.running.provenance import commit, versions
from adir.harness.running.stores import StoredAdapter
from adir.images import NOT_TAKEN, PICTURE_SUFFIXES, from_uint8, hash_of_picture, read_png, to_uint8, write_png
from adir.samplers.base import Steering
from adir.samplers.tiling import needed_tile, require_restorable, restore_any_size, sampled_shape
from adir.scoring.metrics import data_consistency_residual


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. Returns the exit status."""
    return restore_pictures(args.inputs, args.out, args.overwrite, args.tile)


def restore_pictures(inputs: list[str], out: Path, overwrite: bool, tile: int) -> int:
    """Restore files and folders of pictures with the cell that the KEY=VALUE inputs describe. Returns the exit status.

    Everything is read and checked before the first picture is restored. Raises InputError.
    """
    overrides = [item for item in inputs if not Path(item).exists() and is_override(item)]
    named = [item for item in inputs if item not in overrides]
    if any(Path(item).is_dir() and Path(item).resolve() == out.resolve() for item in named):
        raise InputError(f"--out {out}: is the folder of the pictures, which would be restored again; name another one")
    paths = picture_files(named)
    cfg = compose([*overrides, f"results={quoted(str(out / 'stages'))}"])
    cell, options = resolve_cell(cfg), options_of(cfg)
    torch.set_num_threads(cfg.threads)
    measurements = {path: cell.task.read_y(path) for path in paths}
    for path, y in measurements.items():
        try:
            require_restorable(cell.backbone, cell.task, y, tile)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    targets = targets_of(measurements, cell, out)
    fresh = [path for path in paths if overwrite or not is_done(targets[path], cell, measurements[path], tile)]
    todo = {targets[path]: path for path in fresh}
    for path in paths:
        say(f"{path} -> {targets[path]}" + ("" if targets[path] in todo else "  (was there)"))
    Layout(out).mark()
    for number, path in enumerate(todo.values()):
        kept = f"{number} of {len(todo)} pictures are restored and kept, run the same command again"
        shape = sampled_shape(cell.backbone, cell.task, measurements[path])
        with out_of_memory_explained(cell, shape, kept, tile if cell.backbone.kind == "pixel" else None):
            restore_one(cell, path, measurements[path], targets[path], tile, options)
    return 0


def targets_of(measurements: dict[Path, Tensor], cell: Cell, out: Path) -> dict[Path, Path]:
    """Return where each restored picture goes. Those of one name, from two folders or of two suffixes, are told apart by a hash
    of their content; the same picture twice goes to one place."""
    stems = {path: shortened(path.stem) for path in measurements}
    times = Counter(stem.casefold() for stem in stems.values())
    made_by = f"{file_name(cell.task.name, most=40)}-{file_name(cell.mode.name, most=40)}"
    targets = {}
    for path, y in measurements.items():
        stem = stems[path]
        which = stem if times[stem.casefold()] == 1 else f"{stem}-{hash_of_picture(y)[:10]}"
        targets[path] = out / f"{which}-{made_by}.png"
    return targets


def picture_files(inputs: list[str]) -> list[Path]:
    """The files named, and the picture files directly in the folders named. InputError when there are none."""
    if not inputs:
        raise InputError("no pictures given: adir restore PICTURE... task=sr4")
    paths: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            found = list(walk(item, PICTURE_SUFFIXES + NOT_TAKEN, below=False))
            if not found:
                raise InputError(f"{item}: no pictures in this folder ({', '.join(PICTURE_SUFFIXES)})")
            paths += found
        elif item.is_file():
            paths.append(item)
        else:
            no_key = ", and no setting has this key (adir list)" if "=" in str(item) else ""
            raise InputError(f"{item}: no such file or folder{no_key}")
    return list(dict.fromkeys(paths))


def is_done(target: Path, cell: Cell, y: Tensor, tile: int) -> bool:
    """Whether this very restoration is there. InputError when something else has its name.

    The note is written first: one of this restoration without its picture is what a kill leaves, or a deleted picture.
    """
    note = target.with_suffix(".json")
    if not target.exists() and not note.exists():
        return False
    try:
        known = read_json(note)
        made_of = (cell.identity.sha256, hash_of_picture(y), needed_tile(cell.backbone, cell.task, y, tile))
        if (known["cell"], known["y_sha256"], known["tile"]) == made_of:
            if not target.exists():
                return False
            if known["picture_sha256"] == hash_of_picture(read_png(target)):
                return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not ours, or damaged: the question is the same
    there = target if target.exists() else note
    raise InputError(f"{there}: exists and was made otherwise; use --overwrite, or another --out")


def restore_one(cell: Cell, path: Path, y: Tensor, target: Path, tile: int, options: Any) -> None:
    """Retrieve, adapt, restore and write one picture."""
    started = time.perf_counter()
    image_id = hash_of_picture(y)  # of the content: the same picture under another name is restored alike
    neighbours, _ = find_neighbours(cell, image_id, None, y) if cell.corpus is not None else ([], [])
    adapter = awaited_adapter(cell, image_id, y, [n.id for n in neighbours], options.progress)
    with in_place(cell, adapter):
        try:
            steering = cell.mode if isinstance(cell.mode, Steering) else None
            result = restore_any_size(cell.sampler, cell.backbone, cell.task, y, cell.seed, image_id, tile, steering)
        except FloatingPointError as error:
            raise InputError(f"{path}: {error}") from error
    operator = cell.task.operator(tuple(result.x_hat.shape))
    residual = float(data_consistency_residual(operator, result.x_hat[None].clamp(-1, 1), y[None]))
    note = {
        "cell": cell.identity.sha256,
        "axes": cell.identity.axes.model_dump(),
        "configuration": cell.configuration,
        "input": path.name,
        "y_sha256": image_id,
        "picture_sha256": hash_of_picture(from_uint8(to_uint8(result.x_hat))),
        "residual": residual,
        "sigma_y": cell.task.sigma_y,
        "tile": needed_tile(cell.backbone, cell.task, y, tile),
        "tiles": result.n_tiles,
        "sampler": {"capped_steps": result.capped_steps, "n_steps": cell.sampler.n_steps},
        "neighbours": [{"id": n.id, "distance": n.distance} for n in neighbours],
        "adapter": None if adapter is None else adapter_of(adapter).model_dump(mode="json"),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(target.with_suffix(".json"), note)
    write_png(target, result.x_hat)  # last: what is_done goes by
    say(
        f"{target}: {y.shape[2]}x{y.shape[1]} to {result.x_hat.shape[2]}x{result.x_hat.shape[1]}, residual {residual:.1f} grey "
        f"levels (noise {cell.task.sigma_y:g}), {note['seconds']} s"
    )


def awaited_adapter(cell: Cell, image_id: str, y: Tensor, chosen: list[str], progress: bool) -> StoredAdapter | None:
    """The adapter, also where another `adir restore` is training it just now."""
    while True:
        try:
            return find_or_train_adapter(cell, image_id, cell.task, y, chosen, progress, say)
        except Busy:
            time.sleep(0.5)
