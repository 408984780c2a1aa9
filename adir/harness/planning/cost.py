"""What an image of a cell costs on this machine, from short runs of the pipeline itself: seconds by
stage, memory, disk.

One image, the largest, is restored in a temporary folder: with two steps and iterations to warm up,
with two again, and with some more. What grows with their numbers is extrapolated to the cell's own
numbers in a straight line.
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
from adir.harness.running.neighbours import corpus_index, is_embedded, left_out
from adir.harness.running.pipeline import finish, prepare, sample
from adir.harness.running.provenance import forget_peak_memory
from adir.harness.running.worker import image_shapes

FEW = 2
"""Steps and iterations of the shorter run. One is too few for some samplers."""
LONGER = 2.0
"""Seconds that steps, and iterations, take in the longer run beyond those in the shorter."""
EMBEDDED = 32
"""Images of a corpus that are embedded to see how long all of it takes; more where K needs them."""


@dataclass(frozen=True)
class Cost:
    """Of one image of a cell, the mean of its test set."""

    seconds_per_image: dict[str, float]
    """By stage of the pipeline."""
    seconds_once: float
    """What the first image waits for and the others find done: embeddings of the corpus, metrics
    loaded, a network compiled.
    """
    memory_mb: float
    """Peak of the process for the largest image: of the GPU where there is one, else resident."""
    image_disk_mb: float
    adapter_disk_mb: float


def estimate(cell: Cell, folder: Path) -> Cost:
    """Return the cost of one image of a cell whose parts are built; seconds on the embedded prior.

    Raises what the stages raise, such as out of memory: then the cell would too.

    Args:
        cell: nothing is written to its results or fetched for it. A metric whose weights are not
            here is not counted.
        folder: for the embeddings of a part of the corpus, once for all cells, and for what the
            short runs write meanwhile.
    """
    shapes = image_shapes(cell.data)
    pixels = {image_id: math.prod(shape) for image_id, shape in shapes.items()}
    image_id = max(pixels, key=pixels.__getitem__)
    scale = sum(pixels.values()) / len(pixels) / pixels[image_id]
    corpus, embedding = part_of_corpus(
        cell, cell.data.image(image_id), cell.data.cluster(image_id), folder
    )
    probe = dataclasses.replace(cell, corpus=corpus, scoring=cell.scoring.of_what_is_here())
    n_steps, n_iterations = cell.sampler.n_steps, cell.fine_tuning.n_iterations
    # Where the network is tuned while it samples, the shorter run holds the steps that are always
    # tuned, and the longer others.
    lowest = cell.mode.lowest if isinstance(cell.mode, SteerableConditional) else 0
    few_steps, few_iterations = min(n_steps, max(FEW, lowest)), min(n_iterations, FEW)

    forget_peak_memory(cell.backbone.device)
    first = short_run(probe, folder, image_id, few_steps, few_iterations)[0].seconds
    few = short_run(probe, folder, image_id, few_steps, few_iterations)[0].seconds
    more_steps = longer(few_steps, n_steps, few["sample"])
    more_iterations = longer(few_iterations, n_iterations, few["adapt"])
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
    """Return (some images of the corpus, seconds to embed all of it once); all, and 0, of one that
    has an index on disk.

    Fingerprints are no part of the seconds: they are made where a grid is checked.
    """
    corpus, encoder = cell.corpus, cell.encoder
    if corpus is None or encoder is None or corpus.own_index(encoder) is not None:
        return corpus, 0.0
    hidden = corpus.repeats.union(left_out(corpus, x), corpus.withheld(cluster))
    part = Part(
        corpus, [name for name in corpus.ids if name not in hidden][: max(EMBEDDED, 2 * cell.k)]
    )
    left_out(part, x)
    if not cell.mode.follows_y:
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
    """Restore and score an image with so many steps and iterations, where only embeddings are found
    done.

    Returns:
        (its record, MB that it takes on the disk, MB of its adapter besides)
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
        # A few steps may end in NaN, which nothing can score.
        restored = dataclasses.replace(
            sample(cell, [prepared]), x_hat=prepared.x[None], errors=[None]
        )
        record = finish(cell, prepared, restored, 0, bool(cell.configuration["oracle"]))
        cell.ledger.write(image_id, record)
        adapter_mb = size_mb(layout.adapters)
        return record, size_mb(layout.folder) - adapter_mb, adapter_mb


def longer(few: int, most: int, seconds: float) -> int:
    """Return the number, at most `most`, that takes about `LONGER` seconds more than `few` did."""
    return min(most, few + math.ceil(LONGER * few / max(seconds, 1e-3)))


Work = tuple[float, float]
"""What the seconds of a run are linear in."""


def steps_work(cell: Cell, n: int) -> Work:
    """Return the work of n steps:

    (1, n); (calls of the network, steps at which it is tuned) where that is while it samples.

    From the first of these steps on, the last by number, the tuned network is called besides the
    untuned one.
    """
    if not isinstance(cell.mode, SteerableConditional):
        return 1, n
    tuned = [i for i in range(n) if cell.mode.is_due(i)]
    return n + max(tuned) + 1, len(tuned)


def iterations_work(cell: Cell, n: int) -> Work:
    """Return the work of n iterations: (1, n with the held-out work)."""
    return 1, n * (1 + dataclasses.replace(cell.fine_tuning, n_iterations=n).held_out_share)


def extrapolated(work: list[Work], few: float, more: float) -> float:
    """Return the seconds of the third work, from those of the first two; never less than these
    took.
    """
    # Where both are the same, as of a cell of two steps, least squares has the solution of least
    # norm.
    per_work = np.linalg.lstsq(np.array(work[:2], float), np.array([few, more]))[0]
    return max(few, more, float(np.array(work[2]) @ per_work))


def size_mb(folder: Path) -> float:
    """Return the size of all files below a folder, without those that it links to."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
