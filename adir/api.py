"""The Python interface, which `import adir` offers by name; docs/python.md shows it at work."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adir.adaptation.base import in_place
from adir.adaptation.fine_tuning import Adapted
from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.images import from_uint8, generator, hash_of_image, in_colour, read_pixels, write_png
from adir.samplers.base import Steering
from adir.samplers.tiling import restore_any_size

if TYPE_CHECKING:
    import pandas as pd


def setup(*overrides: str) -> Cell:
    """Return backbone, task, sampler, adapter and the rest as the command line would make them.

    Args:
        overrides: settings as `adir run` takes them, such as "task=sr4" or "sampler.n_steps=20".
            `adir list` prints all.

    Raises InputError for a value that does not exist, or parts that do not go together.
    """
    return resolve_cell(compose(list(overrides)))


def read_image(path: str | Path) -> Tensor:
    """Return an image file as (3, H, W) float32 in [-1, 1].

    Raises InputError for what is no image.
    """
    return from_uint8(in_colour(read_pixels(path)))


def write_image(path: str | Path, x: Tensor) -> None:
    """Write an image (3, H, W) in [-1, 1] as an 8-bit PNG, clipped."""
    write_png(path, x)


def adapt(cell: Cell, images: Sequence[Tensor], seed: int = 0, progress: bool = False) -> Adapted:
    """Return an adapter of the cell's backbone, fine-tuned on images as its `adaptation` says.

    Args:
        cell: of `setup`; adaptation.adapter=lora and adaptation.fine_tuning.n_iterations=200 are
            examples of settings.
        images: (3, H, W) in [-1, 1], each at least as large as a crop, in any number from 1 on.
        seed: of crops, timesteps and noise.
        progress: show a bar.

    Raises InputError for images that are too small, FloatingPointError where the loss is NaN or
    Inf.
    """
    return cell.fine_tuning.fit(
        cell.backbone,
        cell.adapter,
        list(images),
        generator(seed, "", "adaptation"),
        progress=progress,
        task=cell.task,
        variants=cell.mode.variants,
    )


def adapted(cell: Cell, trained: Adapted) -> AbstractContextManager[Any]:
    """Return a context in which the cell's backbone is adapted; after it the backbone is as it was,
    to the bit.
    """
    return in_place(cell.backbone, cell.adapter, trained.tensors, trained.gated_strata)


def restore(cell: Cell, y: Tensor, seed: int = 0, tile: int = 256) -> Tensor:
    """Return x_hat (3, H, W), about [-1, 1], of a degraded image.

    Args:
        cell: of `setup`.
        y: (C, h, w) in [-1, 1], of any size, as `cell.task.read_y` reads it from a file.
        seed: of the sampler's noise, which depends on the content of y too.
        tile: side in pixels of the tiles in which the network sees a larger image.

    Raises InputError for a y that is too small, FloatingPointError where the sampler diverges.
    """
    steering = cell.mode if isinstance(cell.mode, Steering) else None
    return restore_any_size(
        cell.sampler, cell.backbone, cell.task, y, seed, hash_of_image(y), tile, steering
    ).x_hat


def records(*folders: str | Path) -> "pd.DataFrame":
    """Return a data frame with a row for each record of results folders: axes, image, status,
    scores, seconds by stage.

    A missing score is NaN. Raises InputError where a folder holds no records.
    """
    from adir.harness.tables.frames import records_frame  # here: restoring needs no pandas

    return records_frame(*folders)
