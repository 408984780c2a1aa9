"""Turn out-of-memory errors into one line that says what was running and what to try."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adir.errors import InputError, count_of
from adir.harness.cells.cell import Cell


class OutOfMemory(InputError):
    """Error that ends a run because memory is exhausted; the next image would fail as well."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Check whether an exception says that memory is exhausted, on a GPU or a CPU.

    The exceptions that it was raised from are checked too.
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
    kept: str = "finished work is saved, and the next run does only the rest",
    tile: int | None = None,
) -> Iterator[None]:
    """Raise OutOfMemory in place of an error which says that memory is exhausted.

    Args:
        cell: the cell whose image is being adapted to or sampled.
        image_shape: shape of that image, (..., H, W).
        batch_size: number of images sampled at once.
        kept: the end of the message, which says what happens to finished work.
        tile: tile size of `adir restore` in pixels, which the user can lower; None in other
            commands.
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
                "execution.gradient_checkpointing=true first, then a smaller "
                "adaptation.fine_tuning.batch_size or adaptation.fine_tuning.crop_size"
            )
        else:
            doing = f"sampling {count_of(batch_size, 'image')} of {width}x{height}"
            doing += (
                f" in tiles of {tile}" if tile is not None and tile < max(height, width) else ""
            )
            settings = (
                "a smaller --tile"
                if tile is not None
                else "batch_size=1, execution=small_gpu or smaller images"
            )
        raise OutOfMemory(
            f"out of memory on {cell.backbone.device} while {doing}; try {settings}; {kept}"
        ) from error
