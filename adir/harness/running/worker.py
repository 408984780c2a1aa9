"""Run a cell: restore each test image that has no record and that no other worker claims."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adir.data.base import Corpus
from adir.errors import InputError, count_of
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.records.ledger import DamagedFile
from adir.harness.records.record import Record
from adir.harness.running.claims import Claims
from adir.harness.running.out_of_memory import OutOfMemory, out_of_memory_explained
from adir.harness.running.pipeline import Busy, Prepared, failure_record, finish, prepare, sample
from adir.harness.running.stores import OtherImage
from adir.images import hash_of_image

LONGEST_PAUSE = 2.0
"""The longest pause between two checks of other workers' images, in seconds.

It is long enough to cost nothing and short enough to react to Ctrl-C.
"""


Track = Callable[[Record, Path], None]
"""Function that logs a record. It also receives the path of the restored image."""


@dataclass
class Outcome:
    """Counts of a cell's images by the result of a run."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    left: int = 0
    """The number of images that were not started because the run was interrupted."""

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            self.done + other.done,
            self.skipped + other.skipped,
            self.failed + other.failed,
            self.left + other.left,
        )


@dataclass(frozen=True)
class Options:
    """Options of a run, none of which changes a result.

    Attributes:
        existing: treatment of finished images: `skip`, `redo`, or `report` (run nothing).
        retry_failed: run images again whose record holds an error.
        progress: show a progress bar of the adaptation.
        oracle: also measure the denoiser's error on the ground truth (for studies; the method
            never sees it).
        batch_size: number of images sampled at once, in modes without an adapter per image.
        stop_file: stop after the current image once this file exists.
        wait: wait for the images of other workers, and take over images of workers that die. If
            False, leave out images of other workers.
    """

    existing: Literal["skip", "redo", "report"] = "skip"
    retry_failed: bool = False
    progress: bool = False
    oracle: bool = False
    batch_size: int = 1
    stop_file: Path | None = None
    wait: bool = True


def run_cell(
    cell: Cell, options: Options, tell: Callable[[str], None], track: Track | None = None
) -> Outcome:
    """Restore and score every image of the cell that has no record yet; return the counts.

    A kill loses at most the current images. An image that fails gets a record with its error, and
    the run continues with the other images.

    Raises:
        InputError: if the test set is unsuitable.
        OSError: if the disk is full or read-only.
        OtherImage: if the results folder holds another image with one of the ids.
        OutOfMemory: if memory is exhausted.
    """
    require_test_images(cell)
    outcome = Outcome()
    if options.existing != "report":
        Layout(cell.results).mark()
    claims = Claims(cell.ledger.claims)
    waiting = deque(cell.data.ids)
    batch_size = options.batch_size if not cell.mode.trains else 1
    idle = 0  # number of images postponed since one was last finished
    pause = 0.0  # seconds before the next check of images that other workers hold
    # {image that another worker holds: stamp of its record when we noticed}
    elsewhere: dict[str, tuple[int, int] | None] = {}
    while waiting or elsewhere:
        if options.stop_file is not None and options.stop_file.exists():
            outcome.left += len(waiting)
            break
        batch: list[str] = []
        try:
            while waiting and len(batch) < batch_size:
                image_id = waiting.popleft()
                if settled(cell, image_id, options, tell, outcome):
                    continue
                stamp = cell.ledger.stamp(image_id)
                if not claims.take(image_id):
                    elsewhere[image_id] = stamp
                    continue
                batch.append(image_id)
                # Another worker may have finished it between the check and the claim.
                if options.existing == "skip" and settled(cell, image_id, options, tell, outcome):
                    claims.release(batch.pop())
            postponed = run_batch(cell, batch, options, tell, outcome, track)
        finally:
            for image_id in batch:
                claims.release(image_id)
        waiting.extend(postponed)
        if len(postponed) < len(batch):
            idle, pause = 0, 0.0
        else:
            idle += len(postponed)
        if idle < len(waiting):
            continue
        # All remaining images wait for another worker to finish, to release its claim, or to die.
        free = [image_id for image_id in elsewhere if not claims.held_by_others(image_id)]
        waiting.extend(
            image_id for image_id in free if cell.ledger.stamp(image_id) == elsewhere.pop(image_id)
        )
        if not waiting and not options.wait:
            break
        if waiting or elsewhere:
            if pause < LONGEST_PAUSE <= 2 * pause:
                left = [*waiting, *elsewhere]
                tell(
                    f"{cell.label}: waiting for other workers to finish "
                    f"{count_of(len(left), 'image')}, such as {left[0]}"
                )
            time.sleep(pause)
            idle, pause = 0, min(LONGEST_PAUSE, max(0.1, 2 * pause))
    claims.clear_dead()
    return outcome


def settled(
    cell: Cell, image_id: str, options: Options, tell: Callable[[str], None], outcome: Outcome
) -> bool:
    """Check whether an image needs no run; if it has a record, count the record in `outcome`.

    An image needs no run if it has a record that `options` does not replace, or if
    `options.existing` is `report`.

    Raises:
        OtherImage: if the record is of another image with this id.
    """
    try:
        record = cell.ledger.read(image_id, cell.identity.sha256)
    except DamagedFile as error:
        tell(f"warning: {error}")
        record = None
    if record is not None and record.status == "done":
        if record.image.sha256 != image_hashes(cell.data)[image_id]:
            raise OtherImage(
                f"{cell.ledger.record_path(image_id)}: this record belongs to another image with "
                f"the id {image_id!r}; use another results folder"
            )
    if record is not None and options.existing != "redo":
        failed_before = record.status == "failed"
        if not (failed_before and options.retry_failed and options.existing == "skip"):
            outcome.skipped += not failed_before
            outcome.failed += failed_before
            return True
    return options.existing == "report"


def run_batch(
    cell: Cell,
    image_ids: list[str],
    options: Options,
    tell: Callable[[str], None],
    outcome: Outcome,
    track: Track | None,
) -> list[str]:
    """Restore test images and write their records; return the ids of postponed images.

    An image is postponed if another worker is computing its adapter or the corpus's embeddings.
    """
    started = time.perf_counter()
    postponed: list[str] = []
    ready: list[Prepared] = []

    # Write a record, then log and count its result.
    def save(image_id: str, record: Record) -> None:
        cell.ledger.write(image_id, record)
        number = cell.data.ids.index(image_id) + 1
        where = f"{cell.label} [{number}/{len(cell.data)}] {image_id}"
        if record.status == "failed":
            outcome.failed += 1
            tell(f"{where}  FAILED: {record.error}")
        else:
            outcome.done += 1
            tell(
                f"{where}  {summary(record)}  "
                f"{(time.perf_counter() - started) / len(image_ids):.1f} s"
            )
        if track is not None:
            track(record, cell.ledger.image_path(image_id))

    # Write records of failure for images whose restoration raises an exception.
    @contextmanager
    def failures_saved(failing: list[str]) -> Iterator[None]:
        try:
            yield
        except (OSError, OtherImage, OutOfMemory):  # these stop the whole run
            raise
        except Exception as error:
            for image_id in failing:
                save(image_id, failure_record(cell, image_id, error))

    # First all stages before sampling, image by image; then sample in batches and score.
    for image_id in image_ids:
        with failures_saved([image_id]):
            try:
                with out_of_memory_explained(cell, image_shapes(cell.data)[image_id]):
                    ready.append(prepare(cell, image_id, tell, options.progress))
            except Busy:
                postponed.append(image_id)
    for batch in split_into_batches(ready):
        restored = None
        with failures_saved([prepared.image_id for prepared in batch]):
            with out_of_memory_explained(cell, batch[0].x.shape, len(batch)):
                restored = sample(cell, batch)
        if restored is None:
            continue
        for place, prepared in enumerate(batch):
            record = None
            with failures_saved([prepared.image_id]):
                record = finish(cell, prepared, restored, place, options.oracle)
            if record is not None:  # saved outside, as a failing tracker is no failed image
                save(prepared.image_id, record)
    return postponed


def split_into_batches(ready: list[Prepared]) -> list[list[Prepared]]:
    """Return the prepared images split into batches for the sampler.

    An image with an adapter is a batch of its own. The images of any other batch have the same
    operator.
    """
    batches: list[list[Prepared]] = []
    for prepared in ready:
        if batches and prepared.adapter is None and batches[-1][0].operator is prepared.operator:
            batches[-1].append(prepared)
        else:
            batches.append([prepared])
    return batches


def require_test_images(cell: Cell) -> None:
    """Raise InputError if a test image cannot be read or has an unsuitable size.

    Task and backbone determine which sizes are suitable. An unreadable image is an error, because
    leaving it out would change the mean.
    """
    for image_id, reason in cell.data.rejects.items():
        raise InputError(
            f"test image {image_id}: {reason}; repair the image, or remove it from the test set"
        )
    stride = cell.backbone.stride
    for image_id, shape in image_shapes(cell.data).items():
        try:
            cell.task.bound(cell.data, image_id).operator(shape)
        except InputError as error:
            raise InputError(f"test image {image_id}: {error}") from error
        _, height, width = shape
        if height % stride or width % stride:
            raise InputError(
                f"test image {image_id}: {width}x{height} pixels, but this backbone needs "
                f"sides that are multiples of {stride}; crop the image, or use `adir restore`, "
                "which takes any size"
            )


@functools.cache
def image_shapes(data: Corpus) -> dict[str, tuple[int, ...]]:
    """Return {image id: (3, H, W)}, cached because every cell of a grid needs the shapes."""
    return {image_id: tuple(data.image(image_id).shape) for image_id in data.ids}


@functools.cache
def image_hashes(data: Corpus) -> dict[str, str]:
    """Return {image id: `hash_of_image`}, cached because every record is checked against it."""
    return {image_id: hash_of_image(data.image(image_id)) for image_id in data.ids}


def summary(record: Record) -> str:
    """Return the scores of a record as one line."""
    return "  ".join(
        f"{name} {score.value:.4g}"
        for name, score in record.scores.items()
        if score.value is not None
    )
