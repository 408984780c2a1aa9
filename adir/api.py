"""Functions of the Python interface, which `import adir` offers; docs/python.md has examples."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adir.adaptation.base import in_place
from adir.adaptation.fine_tuning import Adapted
from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.images import generator, hash_of_image, read_image as read_image, write_png
from adir.samplers.base import Steering
from adir.samplers.tiling import restore_any_size

if TYPE_CHECKING:
    import pandas as pd


def setup(*overrides: str) -> Cell:
    """Build a cell: a backbone, task, sampler, adapter and data set, as in `adir run`.

    Args:
        overrides: settings in the form that `adir run` takes, such as "task=sr4" or
            "sampler.n_steps=20". `adir list` prints the axes, such as task, and their values.

    Raises:
        InputError: if a value does not exist, or if two settings cannot be combined.
    """
    return resolve_cell(compose(list(overrides)))


def write_image(path: str | Path, x: Tensor) -> None:
    """Write an image (3, H, W) in [-1, 1] as an 8-bit PNG; other values are clipped."""
    write_png(path, x)


def adapt(cell: Cell, images: Sequence[Tensor], seed: int = 0, progress: bool = False) -> Adapted:
    """Fine-tune an adapter of the cell's backbone on images, and return the trained adapter.

    Args:
        cell: a cell from `setup`. Its `adaptation` settings, such as adaptation.adapter=lora and
            adaptation.fine_tuning.n_iterations=200, control the training.
        images: one or more images (3, H, W) in [-1, 1]. If a side of one is shorter than
            adaptation.fine_tuning.crop_size, all training crops are made smaller.
        seed: seed of crops, timesteps and noise.
        progress: whether to show a progress bar.

    Raises:
        InputError: if an image is too small for any crop.
        FloatingPointError: if the loss is NaN or Inf.
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
    """Return a context manager that applies a trained adapter to the cell's backbone.

    At the end of the context, the backbone's weights are restored bit for bit.

    Args:
        cell: the cell for which the adapter was trained.
        trained: trained adapter, from `adapt`.
    """
    return in_place(cell.backbone, cell.adapter, trained.tensors, trained.gated_strata)


def restore(cell: Cell, y: Tensor, seed: int = 0, tile: int = 256) -> Tensor:
    """Restore a degraded image and return x_hat (3, H, W), approximately in [-1, 1].

    Args:
        cell: a cell from `setup`.
        y: (C, h, w) in [-1, 1]. `cell.task.read_y` reads such a tensor from a file.
        seed: seed of the sampler's noise, which also depends on the content of y.
        tile: side in pixels of the tiles into which a larger image is split for the network. A
            latent backbone takes the whole image at once.

    Raises:
        InputError: if y is too small, or if the backbone does not support its size or `tile`.
        FloatingPointError: if the sampler diverges.
    """
    steering = cell.mode if isinstance(cell.mode, Steering) else None
    return restore_any_size(
        cell.sampler, cell.backbone, cell.task, y, seed, hash_of_image(y), tile, steering
    ).x_hat


def records(*folders: str | Path) -> "pd.DataFrame":
    """Return a data frame with one row per record (one image) of the results folders.

    The columns include the axes (task, sampler and so on), image, status, scores, and the seconds
    of each stage. A missing score is NaN.

    Raises InputError if a folder does not exist, or if the folders contain no records.
    """
    # Imported here because pandas takes time to load, and restoring does not need it.
    from adir.harness.tables.frames import records_frame

    return records_frame(*folders)
