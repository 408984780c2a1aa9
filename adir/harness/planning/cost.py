"""What one picture of a cell will cost on this machine: seconds by stage, memory, disk. Measured on a few steps, not guessed.

A call of the network is most of any cell, so it is timed once for each network, size of its input, and execution. What a
sampler does beside its calls, and how many it makes, shows in a few of its steps with the network's answer at hand
(`StandIn`). Iterations of adaptation are timed as they are. It all happens on the cell's own largest picture, with its
operator, sampler and adapter; nothing is written or fetched.
"""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adir.adaptation.base import adapted
from adir.data.base import Corpus
from adir.data.selection import Part
from adir.files import hash_of
from adir.harness.cells.cell import Cell
from adir.harness.planning.calibration import (
    Call,
    Line,
    StandIn,
    Stopwatch,
    forget_peak_memory,
    line_of_iterations,
    line_through,
    timed,
)
from adir.harness.records.layout import Layout
from adir.harness.running.neighbours import is_embedded
from adir.harness.running.provenance import process_peak_memory_mb
from adir.harness.running.worker import picture_shapes
from adir.images import generator, png_bytes, to_uint8
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import copies
from adir.samplers.base import Steering
from adir.scoring.metrics import data_consistency_residual

RECORD_MB = 0.03
"""A record with its configuration, and the note of its measurement."""


@dataclass(frozen=True)
class Cost:
    """Of one picture of a cell, the mean of its test set."""

    seconds_per_picture: dict[str, float]
    """By stage: measure, retrieve, adapt (where one is trained), sample, score."""
    memory_mb: float
    """Peak of the process for the largest picture: of the GPU where there is one, else resident."""
    picture_disk_mb: float
    adapter_disk_mb: float = 0.0
    seconds_once: dict[str, float] = field(default_factory=dict)
    """What the first picture waits for and the others find done, by what it is: cells of a grid share equal ones."""

    @property
    def disk_mb_per_picture(self) -> float:
        """All that a picture leaves, its adapter included."""
        return self.picture_disk_mb + self.adapter_disk_mb


@dataclass(frozen=True)
class Adapting:
    """Calibrated adaptation: its line, and what it made, trained hardly at all."""

    line: Line
    disk_mb: float
    tensors: dict[str, Tensor] | None
    """Of LoRA, which takes time while it stands in the network; other adapters take none, and their tensors are big."""


@dataclass(frozen=True)
class Retrieving:
    """Seconds of looking for one picture's neighbours; of embedding the corpus, and of its fingerprints, both once."""

    one: float
    embeddings: float
    fingerprints: float
    peak_mb: float


@dataclass(frozen=True)
class Scored:
    """Seconds of scoring a picture, and of loading the metrics first."""

    one: float
    loading: float
    peak_mb: float


FEW = 32
"""Pictures of a corpus that are embedded to see how long one takes."""
_calibrations: dict[str, Any] = {}
"""What was measured in this process, by what it depends on: the cells of a grid share most of it."""


def estimate(cell: Cell) -> Cost:
    """The cost of one picture of a cell whose parts are built. Takes seconds on the embedded prior; equal parts of cells
    are calibrated once per process. Raises what the stages raise, such as out of memory: then the cell would too."""
    shapes = picture_shapes(cell.data)
    image_id = max(shapes, key=lambda name: math.prod(shapes[name]))
    pixels = {name: math.prod(shape) for name, shape in shapes.items()}
    scale = sum(pixels.values()) / len(pixels) / pixels[image_id]
    x = cell.data.image(image_id)
    task = cell.task.bound(cell.data, image_id)
    y, measure = timed(lambda: task.degrade(x, generator(cell.noise_seed, image_id, "cost")))
    seconds = {"measure": measure * scale}
    once: dict[str, float] = {}
    peaks = []
    adapting = None
    if cell.mode.encoder is not None:
        assert cell.corpus is not None and cell.encoder is not None
        corpus, encoder = cell.corpus, cell.encoder
        retrieving: Retrieving = calibrated(
            "retrieve",
            cell,
            {"encoder": encoder.weights_sha256, "corpus": corpus.sha256, "shape": list(x.shape)},
            lambda: retrieval_seconds(corpus, encoder, x, task.picture_of(y)),
        )
        seconds["retrieve"] = retrieving.one
        peaks.append(retrieving.peak_mb)
        if not is_embedded(corpus, encoder, Layout(cell.results).embeddings):
            once[f"embeddings {corpus.sha256} {encoder.weights_sha256}"] = retrieving.embeddings
        once[f"fingerprints {corpus.sha256}"] = retrieving.fingerprints
    if cell.mode.trains:
        adapting = calibrated("adapt", cell, adaptation_key(cell, task, y), lambda: adaptation(cell, task, y))
        n_iterations = cell.fine_tuning.n_iterations
        judging = adapting.line.per_step * n_iterations * cell.fine_tuning.held_out_share
        seconds["adapt"] = adapting.line.seconds(n_iterations) + judging
        peaks.append(adapting.line.peak_mb)
    line: Line = calibrated("sample", cell, sampling_key(cell, x), lambda: sampling_line(cell, task, x, y, adapting))
    seconds["sample"] = line.seconds(cell.sampler.n_steps) * scale
    peaks.append(line.peak_mb)
    metrics = cell.configuration["scoring"]
    scored: Scored = calibrated(
        "score", cell, {"shape": list(x.shape), "metrics": metrics}, lambda: scoring_seconds(cell, task, x, y)
    )
    seconds["score"] = scored.one * scale
    once[f"metrics {hash_of(metrics)}"] = scored.loading
    peaks.append(scored.peak_mb)
    picture_mb = (
        3 * len(png_bytes(to_uint8(x))) + y.numel()
    ) / 1e6 * scale + RECORD_MB  # x_hat, x and a thumbnail of it
    return Cost(seconds, max(peaks), picture_mb, adapting.disk_mb if adapting is not None else 0.0, once)


def calibrated(stage: str, cell: Cell, depends_on: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` gave for the same stage, backbone, execution, threads and `depends_on`; measured the first time."""
    backbone = cell.backbone
    execution = dataclasses.asdict(backbone.execution)
    model = [backbone.name, backbone.weights_sha256, backbone.config_sha256, execution, torch.get_num_threads()]
    key = hash_of([stage, model, depends_on])
    if key not in _calibrations:
        _calibrations[key] = measure()
    return _calibrations[key]


def adaptation_key(cell: Cell, task: Any, y: Tensor) -> dict[str, Any]:
    """What the time of an iteration depends on: adapter, batch, crop; and of a latent model, what it makes of the task."""
    settings = dataclasses.asdict(cell.fine_tuning) | {"n_iterations": None, "learning_rate": None}
    smallest = min(min(picture.shape[-2:]) for picture in training_pictures(cell, task, y))
    settings["crop_size"] = min(cell.fine_tuning.crop_size, smallest) // cell.backbone.stride
    seen = None if cell.backbone.kind == "pixel" else cell.identity.configuration["task"]
    return {"adapter": repr(cell.adapter), "fine_tuning": settings, "task": seen}


def sampling_key(cell: Cell, x: Tensor) -> dict[str, Any]:
    """What the time of a step depends on: sampler, task and size, and whether LoRA stands in the network."""
    sampler = {key: str(value) for key, value in vars(cell.sampler).items() if key != "n_steps"}
    few = cell.sampler.n_steps if cell.sampler.n_steps < 2 else None
    task = cell.identity.configuration["task"]
    key = {"sampler": sampler, "task": task, "shape": list(x.shape), "lora": standing(cell), "few": few}
    if isinstance(cell.mode, Steering):
        key |= {"steering": repr(cell.mode), "n_steps": cell.sampler.n_steps}
    return key


def standing(cell: Cell) -> str | None:
    """What stands in the network while it samples and takes time there."""
    stands = cell.mode.trains or isinstance(cell.mode, Steering)
    return repr(cell.adapter) if stands and not cell.adapter.trains_every_weight else None


def training_pictures(cell: Cell, task: Any, y: Tensor) -> list[Tensor]:
    """Pictures of the sizes that adaptation would be given; any will do, as only their size takes time."""
    some = cell.corpus.ids[: min(cell.k, 4)] if cell.corpus is not None else []
    corpus = [cell.corpus.image(image_id) for image_id in some] if cell.corpus is not None else []
    return cell.mode.pictures(task.picture_of(y), corpus)


def adaptation(cell: Cell, task: Any, y: Tensor) -> Adapting:
    """Seconds of adaptation by iterations, without held-out work."""
    tried = []
    pictures = training_pictures(cell, task, y)
    device = cell.backbone.device

    def run(n_iterations: int) -> tuple[Any, Stopwatch]:
        watch, short = Stopwatch(), dataclasses.replace(cell.fine_tuning, n_iterations=n_iterations)
        tried.append(short)
        noise = generator(cell.seed, "cost", "adaptation")
        return short.fit(
            cell.backbone, cell.adapter, pictures, noise, callbacks=[watch], task=task, variants=cell.mode.variants
        ), watch

    line, made = line_of_iterations(run, cell.fine_tuning.n_iterations, device)
    judging = line.per_step * tried[-1].n_iterations * tried[-1].held_out_share
    line = dataclasses.replace(line, fixed=max(0.0, line.fixed - judging))  # of more iterations it is another share
    disk_mb = sum(tensor.nbytes for tensor in made.tensors.values()) / 1e6
    return Adapting(line, disk_mb, made.tensors if standing(cell) is not None else None)


def sampling_line(cell: Cell, task: Any, x: Tensor, y: Tensor, adapting: Adapting | None) -> Line:
    """Seconds of sampling by steps, with LoRA in place where the cell has it."""
    operator = task.operator(tuple(x.shape))
    sampler, n_steps = cell.sampler, cell.sampler.n_steps
    stepwise = any(f.name == "n_steps" for f in dataclasses.fields(sampler))
    backbone, device = copy.copy(cell.backbone), cell.backbone.device

    def known(kind: Any, make: Callable[[], Call]) -> Call:
        call: Call = calibrated("call", cell, [standing(cell), kind], make)
        return call

    network = backbone.network = StandIn(cell.backbone.network, device, known)
    calls: dict[int, Counter[Any]] = {}

    def run(n: int) -> None:
        network.calls.clear()
        short = dataclasses.replace(sampler, n_steps=n) if stepwise else sampler
        noise, batch = [generator(cell.seed, "cost", "sampler")], y[None].to(device)
        if isinstance(cell.mode, Steering):
            steering = [cell.mode.steered(cell.backbone.network, generator(cell.seed, "cost", "adaptation"))]
            short.restore_steered(backbone, operator, batch, noise, steering)
        else:
            short.restore(backbone, operator, batch, noise)
        calls[n] = network.calls.copy()

    place: AbstractContextManager[Any] = nullcontext()
    if adapting is not None and adapting.tensors is not None:
        place = adapted(cell.backbone.network, cell.adapter, adapting.tensors)
    with place:
        run(min(n_steps, 2))  # meets the network
        line = line_through(run, n_steps, device)
        if isinstance(cell.mode, Steering):
            run(n_steps)  # what it tunes is not spread evenly over the steps: all of its calls are counted
    few, many = min(calls), max(calls)
    fixed, per_step = line.fixed, line.per_step
    for kind, call in network.met.items():
        grows = (calls[many][kind] - calls[few][kind]) / (many - few) if many > few else 0.0
        per_step += call.seconds * grows
        fixed += call.seconds * (calls[few][kind] - few * grows)
    return Line(fixed, per_step, max([line.peak_mb, *(call.peak_mb for call in network.met.values())]))


def retrieval_seconds(corpus: Corpus, encoder: Encoder, x: Tensor, query: Tensor) -> Retrieving:
    """As `find_neighbours` does it, on the first few pictures of the corpus; with an index on disk, on all of it."""
    device = torch.device("cpu")
    forget_peak_memory(device)
    few = Part(corpus, corpus.ids[:FEW])
    share = len(corpus) / len(few)
    index, embeddings = timed(lambda: Index.build(few, encoder))
    own = corpus.own_index(encoder)
    fingerprints = timed(lambda: few.fingerprints)[1] if own is None else 0.0
    looked_in = few if own is None else corpus
    searched = index if own is None or own.approximate else own

    def run() -> None:
        copies(x, looked_in)
        searched.search(encoder.image(query[None]), 1)

    run()
    return Retrieving(timed(run)[1], embeddings * share, fingerprints * share, process_peak_memory_mb(device))


def scoring_seconds(cell: Cell, task: Any, x: Tensor, y: Tensor) -> Scored:
    """A metric whose weights are not here is not counted: fetching them is the run's affair."""
    scoring = cell.scoring.of_what_is_here()

    def run() -> None:
        scoring.score(x, x)
        data_consistency_residual(task.operator(tuple(x.shape)), x[None], y[None])
        png_bytes(to_uint8(x))

    device = cell.backbone.device
    forget_peak_memory(device)
    _, first = timed(run)
    one = min(timed(run)[1] for _ in range(2))
    return Scored(one, max(0.0, first - one), process_peak_memory_mb(device))
