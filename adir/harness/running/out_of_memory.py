"""Out of memory: what was being done, and what to try, as one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adir.errors import InputError
from adir.harness.cells.cell import Cell


class OutOfMemory(InputError):
    """Memory is used up: ends a run, as the next image would fare no better."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether this exception, or one that it was raised from, says that memory is used up,
    on a GPU or a CPU.
    """
    while error is not None:
        # The CPU's allocator raises a plain RuntimeError, "DefaultCPUAllocator: can't allocate
        # memory".
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
            error
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def out_of_memory_explained(
    cell: Cell,
    image_shape: tuple[int, ...],
    batch_size: int = 1,
    kept: str = "what is done is kept, run the same command again",
    tile: int | None = None,
) -> Iterator[None]:
    """Raise OutOfMemory in place of an error that says that memory is used up.

    Args:
        cell: whose image is adapted to or sampled.
        image_shape: of that image, (..., H, W).
        batch_size: images sampled at once.
        kept: what to say of what was done so far.
        tile: of `adir restore`, which can be lowered; None elsewhere.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tuning, (height, width) = cell.fine_tuning, image_shape[-2:]
        if any(frame.name == "fit" for frame in traceback.extract_tb(error.__traceback__)):
            doing = (
                f"adapting with batch_size={tuning.batch_size} crops of "
                f"{tuning.crop_size}x{tuning.crop_size}"
            )
            settings = (
                "execution.gradient_checkpointing=true, then a smaller "
                "adaptation.fine_tuning.batch_size or .crop_size"
            )
        else:
            doing = f"sampling {batch_size} image{'s' * (batch_size > 1)} of {width}x{height}"
            doing += (
                f" in tiles of {tile}" if tile is not None and tile < max(height, width) else ""
            )
            settings = (
                "a smaller --tile"
                if tile is not None
                else "batch_size=1, execution=small_gpu or smaller images"
            )
        raise OutOfMemory(
            f"out of memory on {cell.backbone.device} while {doing}: try {settings}; {kept}"
        ) from error
