"""Cost of one image of a cell on this machine: seconds per stage, memory and disk space.

The pipeline restores the largest test image three times in a temporary folder. The first two runs
usually have two sampling steps and two training iterations, and the third run has more of both. The
first run warms up. From the second and the third run, the seconds for the cell's own numbers of
steps and iterations are extrapolated linearly.
"""

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from adir.adaptation.steering import SteerableConditional
from adir.data.base import Corpus
from adir.data.selection import Part
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.records.record import Record
from adir.harness.running.neighbours import copies_of, corpus_index, is_embedded
from adir.harness.running.pipeline import finish, prepare, sample
from adir.harness.running.provenance import reset_peak_memory
from adir.harness.running.worker import image_shapes

FEW = 2
"""Number of steps and of iterations in the shorter runs. One is too few for some samplers."""
LONGER = 2.0
"""Seconds that the additional steps, and the additional iterations, take in the longer run."""
EMBEDDED = 32
"""Number of corpus images that are embedded to estimate the time for the whole corpus.

More are embedded if K needs them.
"""


@dataclass(frozen=True)
class Cost:
    """Mean cost of one image of a cell's test set."""

    seconds_per_image: dict[str, float]
    """{pipeline stage: seconds}"""
    seconds_once: float
    """Seconds that only the first image needs.

    They are spent on embeddings of the corpus, on loading metrics and on compiling a network.
    """
    memory_mb: float
    """Peak memory of the process for the largest image, on the GPU if there is one."""
    image_disk_mb: float
    adapter_disk_mb: float


def estimate(cell: Cell, folder: Path) -> Cost:
    """Return the cost of one image of a cell.

    With the embedded prior, the small network in the package, the estimate takes seconds.

    Args:
        cell: the cell. Its results folder is not changed, and nothing is downloaded. A metric whose
            weights are not on this machine is left out.
        folder: folder for the temporary files of the short runs, and for embeddings of images of
            the corpus, which all cells share.

    Raises:
        Exception: any error of a pipeline stage, such as out of memory. The cell itself would fail
            in the same way.
    """
    shapes = image_shapes(cell.data)
    pixels = {image_id: math.prod(shape) for image_id, shape in shapes.items()}
    image_id = max(pixels, key=pixels.__getitem__)
    scale = sum(pixels.values()) / len(pixels) / pixels[image_id]
    corpus, embedding = part_of_corpus(
        cell, cell.data.image(image_id), cell.data.cluster(image_id), folder
    )
    probe = dataclasses.replace(cell, corpus=corpus, scoring=cell.scoring.with_local_weights())
    n_steps, n_iterations = cell.sampler.n_steps, cell.fine_tuning.n_iterations
    # If the mode tunes the network while sampling, the shorter run has only steps that always
    # tune, and the longer run has others too.
    lowest = cell.mode.lowest if isinstance(cell.mode, SteerableConditional) else 0
    few_steps, few_iterations = min(n_steps, max(FEW, lowest)), min(n_iterations, FEW)

    reset_peak_memory(cell.backbone.device)
    first = short_run(probe, folder, image_id, few_steps, few_iterations)[0].seconds
    few = short_run(probe, folder, image_id, few_steps, few_iterations)[0].seconds
    more_steps = longer_run_length(few_steps, n_steps, few["sample"])
    more_iterations = longer_run_length(few_iterations, n_iterations, few["adapt"])
    record, disk_mb, adapter_mb = short_run(probe, folder, image_id, more_steps, more_iterations)
    more = record.seconds

    seconds = {stage: min(few[stage], more[stage]) for stage in few}
    work = [steps_work(cell, n) for n in (few_steps, more_steps, n_steps)]
    seconds["sample"] = extrapolated(work, few["sample"], more["sample"])
    if cell.mode.trains:
        work = [iterations_work(cell, n) for n in (few_iterations, more_iterations, n_iterations)]
        seconds["adapt"] = extrapolated(work, few["adapt"], more["adapt"])
    return Cost(
        seconds_per_image={
            stage: value * (1 if stage in ("retrieve", "adapt") else scale)
            for stage, value in seconds.items()
        },
        seconds_once=embedding + sum(max(0.0, first[stage] - few[stage]) for stage in few),
        memory_mb=record.process_peak_memory_mb or 0.0,
        image_disk_mb=disk_mb * scale,
        adapter_disk_mb=adapter_mb,
    )


def part_of_corpus(
    cell: Cell, x: Tensor, cluster: str, folder: Path
) -> tuple[Corpus | None, float]:
    """Return (part of the corpus, seconds to embed the whole corpus once).

    The part has at most max(`EMBEDDED`, 2 K) images. A corpus with an index on disk is returned
    whole, with 0 seconds. The seconds are also 0 if the mode needs no embeddings or if these are
    cached. Computing the fingerprints that find copies of x is not timed, because the check of a
    grid has already done this.

    Args:
        cell: the cell; if its corpus is None, so is the part.
        x: (3, H, W) test image in [-1, 1]; its copies are left out of the part.
        cluster: cluster of x; images that the corpus withholds from this cluster are left out.
        folder: stores the embeddings of the part.
    """
    corpus, encoder = cell.corpus, cell.encoder
    if corpus is None or encoder is None or corpus.own_index(encoder) is not None:
        return corpus, 0.0
    hidden = corpus.repeats.union(copies_of(corpus, x), corpus.withheld(cluster))
    part = Part(
        corpus, [name for name in corpus.ids if name not in hidden][: max(EMBEDDED, 2 * cell.k)]
    )
    copies_of(part, x)
    if not cell.mode.depends_on_y:
        return part, 0.0
    embeddings = Layout(folder).embeddings
    there = is_embedded(corpus, encoder, Layout(cell.results).embeddings) or is_embedded(
        part, encoder, embeddings
    )
    started = time.perf_counter()
    corpus_index(part, encoder, embeddings)
    seconds = (time.perf_counter() - started) * len(corpus) / len(part)
    return part, 0.0 if there else seconds


def short_run(
    cell: Cell, folder: Path, image_id: str, n_steps: int, n_iterations: int
) -> tuple[Record, float, float]:
    """Restore and score an image with the given numbers of steps and iterations.

    The ground truth x is scored instead of the restored image, which may be NaN after few steps.
    Embeddings may come from the cache of an earlier run; everything else is computed.

    Returns:
        (the record, MB on disk without the adapter, MB on disk of the adapter)
    """
    fine_tuning = dataclasses.replace(cell.fine_tuning, n_iterations=n_iterations)
    cell = dataclasses.replace(cell, mode=dataclasses.replace(cell.mode, fine_tuning=fine_tuning))
    if any(field.name == "n_steps" for field in dataclasses.fields(cell.sampler)):
        cell = dataclasses.replace(cell, sampler=dataclasses.replace(cell.sampler, n_steps=n_steps))
    with tempfile.TemporaryDirectory(dir=folder) as results:
        layout = Layout(Path(results))
        layout.embeddings.symlink_to(Layout(folder).embeddings)
        cell = dataclasses.replace(cell, results=layout.folder)
        prepared = prepare(cell, image_id, tell=lambda _: None, progress=False)
        # Few steps may end in NaN, which has no score, so x itself is scored.
        restored = dataclasses.replace(
            sample(cell, [prepared]), x_hat=prepared.x[None], errors=[None]
        )
        record = finish(cell, prepared, restored, 0, bool(cell.configuration["oracle"]))
        cell.ledger.write(image_id, record)
        adapter_mb = size_mb(layout.adapters)
        return record, size_mb(layout.folder) - adapter_mb, adapter_mb


def longer_run_length(few: int, most: int, seconds: float) -> int:
    """Return the number of steps or iterations for the longer run, at most `most`.

    The longer run takes about `LONGER` seconds more than the shorter run.

    Args:
        few: number of steps or iterations in the shorter run.
        most: number of steps or iterations in the cell.
        seconds: time of the shorter run.
    """
    return min(most, few + math.ceil(LONGER * few / max(seconds, 1e-3)))


Work = tuple[float, float]
"""Two regressors of a linear model for the seconds of a run, such as (1, number of steps)."""


def steps_work(cell: Cell, n: int) -> Work:
    """Return the two regressors of a linear model for the seconds of n sampling steps.

    For most modes, the regressors are 1 and n. For a mode that tunes the network while sampling,
    they are the number of network calls and the number of steps that tune. Steps are numbered down
    to 0, the cleanest. From the first step that tunes, the one of highest number, down to step 0,
    the tuned network is called in addition to the untuned one.
    """
    if not isinstance(cell.mode, SteerableConditional):
        return 1, n
    tuned = [i for i in range(n) if cell.mode.is_due(i)]
    return n + max(tuned) + 1, len(tuned)


def iterations_work(cell: Cell, n: int) -> Work:
    """Return the regressors (1, n (1 + e)) of a linear model for the seconds of n iterations.

    e is the time of the held-out evaluations divided by the time of the training alone.
    """
    return 1, n * (1 + dataclasses.replace(cell.fine_tuning, n_iterations=n).held_out_share)


def extrapolated(work: list[Work], few: float, more: float) -> float:
    """Return the seconds of the cell, extrapolated linearly from a shorter and a longer run.

    The result is at least the time of the slower run.

    Args:
        work: regressors (`Work`) of the shorter run, of the longer run, and of the cell.
        few: seconds of the shorter run.
        more: seconds of the longer run.
    """
    # If both runs did the same work, as for a cell of two steps, lstsq returns the solution of
    # least norm.
    per_work = np.linalg.lstsq(np.array(work[:2], float), np.array([few, more]))[0]
    return max(few, more, float(np.array(work[2]) @ per_work))


def size_mb(folder: Path) -> float:
    """Return the size in MB of all files below a folder; links to folders are not followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
