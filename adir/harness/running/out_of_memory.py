"""Out of memory: what was being done, and the setting under which it would fit, as one line."""

import dataclasses
import gc
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adir.backbones.execution import DTYPES, Execution, recompute
from adir.backbones.memory import call_bytes, weight_bytes
from adir.errors import InputError
from adir.harness.cells.cell import Cell

OVERHEAD = 1.15
"""What a device takes beyond the tensors that live at one time: workspaces of kernels, gaps between allocations."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this exception, or one that it was raised from, says that memory is used up, on a GPU or a CPU."""
    while error is not None:
        # The CPU's allocator raises a plain RuntimeError, "DefaultCPUAllocator: can't allocate memory".
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def out_of_memory_explained(
    cell: Cell, image_shape: tuple[int, ...], kept: str, tile: int | None = None
) -> Iterator[None]:
    """For one picture of a cell: InputError in place of an error that says that memory is used up. As below."""
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exhausted = error
    raise explain_out_of_memory(exhausted, cell, image_shape, 1, kept, tile)


def explain_out_of_memory(
    error: BaseException,
    cell: Cell,
    image_shape: tuple[int, ...],
    batch_size: int,
    kept: str = "what is done is kept, run the same command again",
    tile: int | None = None,
) -> InputError:
    """The one-line error for a cell that ran out of memory, whichever stage it was in.

    image_shape: of the picture at hand.  batch_size: pictures sampled at once.  kept: what to say of what was done so
    far.  tile: of `adir restore`, which can be lowered; None elsewhere. Call it outside of the `except` block, when the
    memory of what failed is free again: it asks how much there is. Raise what it returns: the run stops, with the
    records done so far in place.
    """
    adapting = _in_adaptation(error)
    failed: BaseException | None = error
    while failed is not None:  # the frames hold what filled the memory
        traceback.clear_frames(failed.__traceback__)
        failed = failed.__cause__ or failed.__context__
    gc.collect()
    batch, side = sizes(cell, image_shape, adapting, batch_size)
    doing = (
        f"adapting with batch_size={batch} crops of {side[1]}x{side[0]}"
        if adapting
        else f"sampling {batch} picture{'s' * (batch > 1)} of {side[1]}x{side[0]}"
    )
    if tile is not None and not adapting and max(side) > tile:
        side, doing = (min(side[0], tile), min(side[1], tile)), f"{doing} in tiles of {tile}"
    device, free = cell.backbone.device, free_bytes(cell.backbone.device)
    return InputError(
        f"out of memory on {device} while {doing} ({free / 1e9:.1f} GB are free for it): "
        f"{remedy(cell, adapting, batch, side, free, tile)}; {kept}"
    )


def _in_adaptation(error: BaseException) -> bool:
    """Whether the traceback goes through fine-tuning."""
    frame = error.__traceback__
    while frame is not None:
        if Path(frame.tb_frame.f_code.co_filename).name == "fine_tuning.py":
            return True
        frame = frame.tb_next
    return False


def sizes(cell: Cell, image_shape: tuple[int, ...], adapting: bool, batch_size: int) -> tuple[int, tuple[int, int]]:
    """(batch, (height, width) in pixels) of what the network was given."""
    if not adapting:
        return batch_size, (image_shape[-2], image_shape[-1])
    crop = cell.fine_tuning.crop_size
    return cell.fine_tuning.batch_size, (crop, crop)


def remedy(cell: Cell, adapting: bool, batch: int, side: tuple[int, int], free: int, tile: int | None = None) -> str:
    """The first setting that fits into `free` bytes by count, the ones that change no result first; else the least one."""
    execution: Execution = cell.backbone.execution
    least: tuple[str, int] | None = None
    for change, words in candidates(execution, adapting, batch, smaller_tiles(cell.backbone.stride, max(side), tile)):
        batch_then, side_then = change.pop("batch", batch), change.pop("side", side)
        n_bytes = needed_bytes(cell, adapting, batch_then, side_then, dataclasses.replace(execution, **change))
        if n_bytes <= free:
            return f"{words} would fit ({n_bytes / 1e9:.1f} GB)"
        if least is None or n_bytes < least[1]:
            least = words, n_bytes
    if adapting:
        smaller = "a smaller adaptation.fine_tuning.crop_size"
    elif cell.backbone.kind == "latent":
        smaller = "smaller pictures, or a smaller backbone.vae_tile"
    else:
        smaller = "smaller pictures" if tile is not None else "smaller pictures, or `adir restore` with tiles"
    if least is None:
        return f"use {smaller}"
    return f"even {least[0]} would take {least[1] / 1e9:.1f} GB: use {smaller} with it"


def smaller_tiles(stride: int, side: int, tile: int | None) -> list[int]:
    """What --tile can be lowered to: halves of the side at hand, as far as the network takes them; none where tile is None."""
    found = []
    while tile is not None and (side := side // 2 // stride * stride) >= 4 * stride:
        found.append(side)
    return found


def candidates(
    execution: Execution, adapting: bool, batch: int, tiles: Sequence[int] = ()
) -> list[tuple[dict[str, Any], str]]:
    """(changes, how to say them on the command line), from what changes nothing to what changes results."""
    found: list[tuple[dict[str, Any], str]] = []
    change: dict[str, Any] = {}
    words: list[str] = []

    def add(what: dict[str, Any], said: str) -> None:
        change.update(what)
        words.append(said)
        found.append((dict(change), " ".join(words)))

    if not adapting and batch > 1:
        add({"batch": 1}, "batch_size=1")
    if adapting and not execution.gradient_checkpointing:
        add({"gradient_checkpointing": True}, "execution.gradient_checkpointing=true")
    if not adapting and execution.device != "cpu" and not execution.offload and not execution.compile:
        add({"offload": True}, "execution.offload=true")
    if execution.dtype == "float32" and execution.device != "cpu":
        add({"dtype": "bfloat16"}, "execution.dtype=bfloat16")
    smaller = batch // 2 if adapting else 0
    while smaller >= 1:
        found.append(({**change, "batch": smaller}, " ".join([*words, f"adaptation.fine_tuning.batch_size={smaller}"])))
        smaller //= 2
    for tile in () if adapting else tiles:
        found.append(({**change, "side": (tile, tile)}, " ".join([*words, f"--tile {tile}"])))
    return found


def needed_bytes(cell: Cell, adapting: bool, batch: int, side: tuple[int, int], execution: Execution) -> int:
    """Bytes beside what is resident: of one call or iteration under these settings, with the trained weights' share."""
    backbone: Any = cell.backbone
    scale = backbone.stride if backbone.kind == "latent" else 1  # a latent place stands for stride x stride pixels
    height, width = side[0] // scale, side[1] // scale
    dtype = DTYPES[execution.dtype]
    if not adapting:
        resident = weight_bytes(backbone.network) if not execution.offload else 0
        gained = weight_bytes(backbone.network) - resident
        batch = calls_at_once(cell, batch)
        beside = call_bytes(backbone.network, batch, height, width, dtype, train=False, device=execution.device)
        return int(beside * OVERHEAD) - gained
    every = cell.adapter.trains_every_weight
    attached = AllOf(backbone.network) if every else cell.adapter.attach(backbone.network)
    checkpointing = execution.gradient_checkpointing and not backbone.execution.gradient_checkpointing
    try:
        if checkpointing:
            backbone.network.enable_gradient_checkpointing(recompute)
        beside = call_bytes(backbone.network, batch, height, width, dtype, train=True, device=execution.device)
        trained = sum(parameter.nbytes for parameter in attached.parameters())
    finally:
        if checkpointing:
            backbone.network.disable_gradient_checkpointing()
        attached.remove()
    return int(beside * OVERHEAD) + 3 * trained  # themselves and Adam's two moments; the call has their gradients


def calls_at_once(cell: Cell, batch: int) -> int:
    """Rows of one call of the network: pictures sampled at once; of a latent backbone one picture, under both prompts where
    classifier-free guidance tells them apart."""
    if cell.backbone.kind == "pixel":
        return batch
    from adir.samplers.latent import without_effect  # here: it brings Stable Diffusion's networks, 6 s of imports

    sampler: Any = cell.sampler
    prompt = getattr(sampler, "prompt", None)  # an edit's is the task's, and not empty
    return 1 if without_effect(prompt, sampler.negative_prompt, sampler.guidance_scale) else 2


class AllOf:
    """Every weight made trainable to count what that takes: as `Full.attach`, whose copy of the weights may not fit now."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._former = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        network.requires_grad_(True)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights."""
        return [parameter for parameter, _ in self._former]

    def remove(self) -> None:
        """Those train again that did."""
        for parameter, required in self._former:
            parameter.requires_grad_(required)


def free_bytes(device: torch.device) -> int:
    """Memory that this process could still take, its caches given back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0
