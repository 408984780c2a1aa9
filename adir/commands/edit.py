"""`adir edit`: repaint a part of your own image as a prompt describes it.

The part is white in a mask image. The command writes a PNG, and a JSON file with settings, scores
and versions.
"""

import dataclasses
import time
from pathlib import Path

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import Tensor

from adir.commands.restore import awaited_adapter
from adir.errors import InputError
from adir.files import hash_of, read_json, shortened, write_json
from adir.harness.cells.cell import Cell, build, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.cells.paths import quoted
from adir.harness.records.layout import Layout, file_name
from adir.harness.running.grid import options_of, say
from adir.harness.running.neighbours import find_neighbours
from adir.harness.running.out_of_memory import out_of_memory_explained
from adir.harness.running.pipeline import adapter_of, in_place
from adir.harness.running.provenance import commit, versions
from adir.images import from_uint8, generator, hash_of_image, read_png, to_uint8, write_png
from adir.scoring.metrics import data_consistency_residual
from adir.tasks.editing import EditTask, read_mask

DEFAULTS = (
    "backbone=sd_inpaint",
    "task=edit",
    "sampler=sd_inpaint",
    "adaptation/fine_tuning=sd_inpaint",
    "scoring=edit",
    # The data set is not used, because the image comes from the command line. Without this line,
    # backbone=sd_inpaint would set data=edit, which needs a folder.
    "data=embedded",
)
SHORT = {"by": "task.by", "paste": "sampler.paste"}
"""{short name: key of a setting}, for settings that are often given to `adir edit`."""


def main(image: Path, mask: Path, prompt: str, overrides: list[str], out: Path) -> int:
    """Repaint one image and return the exit status.

    Image, mask and prompt are checked before a network is loaded. The name of the result contains a
    hash of image, mask, prompt and settings. A result that already exists is not computed again.

    Args:
        image: image file.
        mask: image file of the same size; its white part is repainted.
        prompt: description of the repainted part.
        overrides: KEY=VALUE settings, such as adaptation=knn.
        out: folder for the PNG and the JSON file.

    Raises:
        InputError: if an input or a setting cannot be used.
    """
    hole = read_mask(mask)
    try:
        y = EditTask().with_mask(hole, prompt).read_y(image)
    except InputError as error:
        raise InputError(f"{image} with mask {mask}: {error}") from error
    cfg = compose([*edit_overrides(overrides), f"results={quoted(str(out / 'stages'))}"])
    require_editing(cfg)
    cell, options = resolve_cell(cfg), options_of(cfg)
    torch.set_num_threads(cfg.threads)
    _, height, width = y.shape
    if height % cell.backbone.stride or width % cell.backbone.stride:
        raise InputError(
            f"{image}: {width}x{height} pixels, but this backbone needs sides that are "
            f"multiples of {cell.backbone.stride}; crop the image"
        )
    # Name the result after everything that determines it, and skip an existing one.
    cell = dataclasses.replace(cell, task=cell.task.with_mask(hole, prompt))
    edit = hash_of({"cell": cell.identity.sha256, "y": hash_of_image(y), "prompt": prompt})
    target = out / f"{shortened(image.stem)}-{file_name(cell.mode.name, most=40)}-{edit[:8]}.png"
    if is_done(target, edit):
        say(f"{image} -> {target}  (already done)")
        return 0
    say(f"{image} -> {target}")
    Layout(out).mark()
    with out_of_memory_explained(cell, tuple(y.shape)):
        edit_one(cell, image, y, target, edit, options.progress)
    return 0


def require_editing(cfg: DictConfig) -> None:
    """Raise InputError unless the configured task and backbone support editing.

    No network is loaded.
    """
    task = build(cfg.task, "task")
    if not task.edits:
        raise InputError(
            f"`adir edit` supports only task=edit; use `adir restore` for task={task.name}"
        )
    if get_class(cfg.backbone._target_).family != "inpainting":
        raise InputError(
            f"backbone {cfg.backbone.name} is not an inpainting model; use backbone=sd_inpaint"
        )


def edit_overrides(overrides: list[str]) -> list[str]:
    """Return all settings of an edit as KEY=VALUE: first DEFAULTS, then those of the user.

    Defaults that the user overrides are omitted. Short names of settings (see SHORT) are replaced
    by their full names.
    """
    given = [item.partition("=") for item in overrides]
    full = [f"{SHORT.get(key, key)}{equals}{value}" for key, equals, value in given]
    said = {key for key, _, _ in given}
    return [item for item in DEFAULTS if item.partition("=")[0] not in said] + full


def is_done(target: Path, edit: str) -> bool:
    """Return whether the image and the JSON file of this edit exist and are intact.

    The JSON file is written first, so it may exist without the image if the process was killed.

    Args:
        target: path of the image; the JSON file is beside it.
        edit: hash of image, mask, prompt and settings.
    """
    try:
        known = read_json(target.with_suffix(".json"))
        return bool(
            known["edit"] == edit and known["image_sha256"] == hash_of_image(read_png(target))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing or damaged: computed again


def edit_one(cell: Cell, image: Path, y: Tensor, target: Path, edit: str, progress: bool) -> None:
    """Repaint one image, and write the result and its JSON file.

    If the cell needs them, neighbours are retrieved and an adapter is trained first.

    Args:
        cell: settings and the parts built from them; its task has the mask and the prompt.
        image: path of the input, for the JSON file and for errors.
        y: (3, H, W), the image with zeros in the hole.
        target: path of the PNG.
        edit: hash of image, mask, prompt and settings.
        progress: whether to show a progress bar of the training.

    Raises:
        InputError: if sampling fails.
    """
    started = time.perf_counter()
    # The noise depends on the known pixels and the mask only, because y is 0 in the hole. All modes
    # and prompts therefore get the same noise.
    image_id = hash_of_image(y)
    neighbours, _ = (
        find_neighbours(cell, image_id, None, y) if cell.corpus is not None else ([], [])
    )
    adapter = awaited_adapter(cell, image_id, y, [n.id for n in neighbours], progress)
    # Repaint, score, and write the JSON file and last the image.
    operator = cell.task.operator(tuple(y.shape))
    with in_place(cell, adapter):
        noise = generator(cell.seed, image_id, "sampler")
        restored = cell.sampler.restore(
            cell.backbone, operator, y[None].to(cell.backbone.device), [noise]
        )
    if restored.errors[0] is not None:
        raise InputError(f"{image}: {restored.errors[0]}")
    scores = cell.scoring.score(restored.x_hat[0], prompt=cell.task.prompt)
    x_hat = from_uint8(to_uint8(restored.x_hat[0]))  # rounded as in the file
    residual = float(data_consistency_residual(operator, x_hat[None], y[None]))
    note = {
        "edit": edit,
        "cell": cell.identity.sha256,
        "axes": cell.identity.axes.model_dump(),
        "configuration": cell.configuration,
        "input": image.name,
        "prompt": cell.task.prompt,
        "mask_share": round(float(cell.task.mask.float().mean()), 4),
        "y_sha256": image_id,
        "image_sha256": hash_of_image(x_hat),
        "scores": scores,
        "residual": residual,
        "sampler": {
            "n_steps": cell.sampler.n_steps,
            "network_evaluations": restored.network_evaluations,
        },
        "neighbours": [{"id": n.id, "distance": n.distance} for n in neighbours],
        "adapter": None if adapter is None else adapter_of(adapter).model_dump(mode="json"),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(target.with_suffix(".json"), note)
    write_png(target, x_hat)  # written last, see is_done
    known = "".join(
        f", {name} {score['value']:.3g}"
        for name, score in scores.items()
        if score["value"] is not None
    )
    say(
        f"{target}: {y.shape[2]}x{y.shape[1]}, {note['mask_share']:.0%} repainted, "
        f"residual outside the mask {residual:.1f} grey levels{known}, {note['seconds']} s"
    )
