"""What one picture of a cell will cost on this machine: seconds by stage, memory, disk. Measured on a few steps, not guessed.

Adaptation and sampling are linear in their steps, so two short runs of each give what it costs once and what a step costs.
They run on the cell's own largest picture, with its operator, sampler, adapter and sizes; nothing is written or fetched.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adir.adaptation.adapters import Lora, adapted
from adir.adaptation.denoising_module import Adapted
from adir.harness.cell import Cell
from adir.harness.identity import WITH_NEIGHBOURS, hash_of
from adir.harness.provenance import process_peak_memory_mb
from adir.harness.run import picture_shapes
from adir.images import generator, png_bytes, to_uint8
from adir.scoring.metrics import data_consistency_residual

LONG_ENOUGH = 1.5
"""Seconds: the longer of two calibration runs takes about this, or one step where a step takes more."""
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
    """What the first picture waits for and the others find done: `embed`, the corpus."""

    @property
    def disk_mb_per_picture(self) -> float:
        """All that a picture leaves, its adapter included."""
        return self.picture_disk_mb + self.adapter_disk_mb


@dataclass(frozen=True)
class Line:
    """Seconds of a run of n steps: `fixed + per_step * n`. peak_mb: the most memory of the runs it was drawn from."""

    fixed: float
    per_step: float
    peak_mb: float

    def seconds(self, n_steps: int) -> float:
        """Of a run of n steps."""
        return self.fixed + self.per_step * n_steps


@dataclass(frozen=True)
class Adapting:
    """Calibrated adaptation: its line, and an adapter of its making, trained hardly at all."""

    line: Line
    made: Adapted


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
    adapting = None
    peaks = []
    if cell.mode in WITH_NEIGHBOURS:
        seconds["retrieve"] = 0.0
        if cell.encoder is not None:
            seconds["retrieve"], once["embed"] = retrieval_seconds(cell, task.picture_of(y))
    if cell.mode != "none":
        adapting = calibrated("adapt", cell, adaptation_key(cell, task, y), lambda: adaptation_line(cell, task, y))
        seconds["adapt"] = adapting.line.seconds(cell.fine_tuning.n_iterations)
        peaks.append(adapting.line.peak_mb)
    line: Line = calibrated("sample", cell, sampling_key(cell, x), lambda: sampling_line(cell, task, x, y, adapting))
    seconds["sample"] = line.seconds(cell.sampler.n_steps) * scale
    peaks.append(line.peak_mb)
    score = calibrated("score", cell, {"shape": list(x.shape)}, lambda: scoring_seconds(cell, task, x, y))
    seconds["score"] = score * scale
    picture_mb = (
        3 * len(png_bytes(to_uint8(x))) + y.numel()
    ) / 1e6 * scale + RECORD_MB  # x_hat, x and a thumbnail of it
    adapter_mb = sum(tensor.nbytes for tensor in adapting.made.tensors.values()) / 1e6 if adapting is not None else 0.0
    return Cost(seconds, max(peaks), picture_mb, adapter_mb, once)


def calibrated(stage: str, cell: Cell, depends_on: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What `measure` gave for the same stage, backbone, execution, threads and `depends_on`; measured the first time."""
    backbone = cell.backbone
    execution = dataclasses.asdict(backbone.execution)
    model = [backbone.name, backbone.weights_sha256, backbone.config_sha256, execution, torch.get_num_threads()]
    key = hash_of([stage, model, depends_on])
    if key not in _calibrations:
        _calibrations[key] = measure()
    return _calibrations[key]


def adaptation_key(cell: Cell, task: Any, y: Tensor) -> dict[str, Any]:
    """What the time of an iteration depends on: adapter, batch, and the sizes of the pictures that crops are cut from."""
    settings = dataclasses.asdict(cell.fine_tuning) | {"n_iterations": None, "learning_rate": None}
    sizes = sorted({tuple(picture.shape) for picture in training_pictures(cell, task, y)})
    return {"adapter": repr(cell.adapter), "fine_tuning": settings, "sizes": sizes, "task": cell.task.name}


def sampling_key(cell: Cell, x: Tensor) -> dict[str, Any]:
    """What the time of a step depends on: sampler, operator and size, and whether LoRA stands in the network."""
    sampler = {key: str(value) for key, value in vars(cell.sampler).items() if key not in ("n_steps", "guidance_scale")}
    lora = repr(cell.adapter) if cell.mode != "none" and isinstance(cell.adapter, Lora) else None
    few = cell.sampler.n_steps if cell.sampler.n_steps < 2 else None
    return {"sampler": sampler, "task": cell.task.name, "shape": list(x.shape), "lora": lora, "few": few}


def training_pictures(cell: Cell, task: Any, y: Tensor) -> list[Tensor]:
    """Pictures of the sizes that adaptation would be given; any will do, as only their size takes time."""
    if cell.mode == "self":
        return [task.picture_of(y)]
    assert cell.corpus is not None
    return [cell.corpus.image(image_id) for image_id in cell.corpus.ids[: min(cell.k, 4)]]


def adaptation_line(cell: Cell, task: Any, y: Tensor) -> Adapting:
    """Seconds of adaptation by iterations."""
    pictures = training_pictures(cell, task, y)
    made: list[Adapted] = []

    def run(n_iterations: int) -> None:
        short = dataclasses.replace(cell.fine_tuning, n_iterations=n_iterations)
        noise = generator(cell.seed, "cost", "adaptation")
        made[:] = [short.fit(cell.backbone, cell.adapter, pictures, noise, task=task)]

    line = line_through(run, cell.fine_tuning.n_iterations, cell.backbone.device)
    return Adapting(line, made[0])


def sampling_line(cell: Cell, task: Any, x: Tensor, y: Tensor, adapting: Adapting | None) -> Line:
    """Seconds of sampling by steps, with the adapter in place where the cell has one."""
    operator = task.operator(tuple(x.shape))
    sampler, backbone = cell.sampler, cell.backbone
    stepwise = any(f.name == "n_steps" for f in dataclasses.fields(sampler))

    def run(n_steps: int) -> None:
        short = dataclasses.replace(sampler, n_steps=n_steps) if stepwise else sampler
        noise = [generator(cell.seed, "cost", "sampler")]
        short.restore(backbone, operator, y[None].to(backbone.device), noise)

    place: AbstractContextManager[Any] = nullcontext()
    if adapting is not None:
        place = adapted(backbone.network, cell.adapter, adapting.made.tensors)
    with place:
        return line_through(run, sampler.n_steps, backbone.device)


def line_through(run: Callable[[int], None], n_steps: int, device: torch.device) -> Line:
    """The line through a run of two steps and one about LONG_ENOUGH seconds long, after a short one to warm up.

    n_steps: of the real run, which is never exceeded; where it takes no more than two, it is run itself. Two is the least:
    some samplers need one step to start.
    """
    forget_peak_memory(device)
    few = min(n_steps, 2)
    _, warm_up = timed(lambda: run(few), device)
    if warm_up > 10 * LONG_ENOUGH:  # steps of many seconds: what a warm-up adds is small beside them
        return Line(0.0, warm_up / max(few, 1), process_peak_memory_mb(device))
    short = least_seconds(lambda: run(few), device)
    many = min(n_steps, few + math.ceil(LONG_ENOUGH * max(few, 1) / max(short, 1e-6)))
    per_step = 0.0
    if many > few:
        per_step = max(0.0, (least_seconds(lambda: run(many), device) - short) / (many - few))
    return Line(max(0.0, short - few * per_step), per_step, process_peak_memory_mb(device))


def least_seconds(run: Callable[[], None], device: torch.device) -> float:
    """Of two runs the faster: another process that wakes up spoils one of them."""
    return min(timed(run, device)[1] for _ in range(2))


def forget_peak_memory(device: torch.device) -> None:
    """Let the peak memory of this process start anew from what it holds now. Where the system does not allow it, the peak
    stays that of all that went before: an upper bound."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM, and with it getrusage's ru_maxrss
    except OSError:
        pass


def retrieval_seconds(cell: Cell, query: Tensor) -> tuple[float, float]:
    """(of a query's embedding, of the corpus's embeddings). The search itself is small beside the former."""
    assert cell.corpus is not None and cell.encoder is not None
    encoder, corpus = cell.encoder, cell.corpus

    def measure() -> tuple[float, float]:
        encoder.image(query[None])
        _, one = timed(lambda: encoder.image(query[None]))
        _, of_corpus = timed(lambda: encoder.image(corpus.image(corpus.ids[0])[None]))
        return one, of_corpus * len(corpus)

    key = {"encoder": encoder.weights_sha256, "corpus": corpus.sha256, "shape": list(query.shape)}
    result: tuple[float, float] = calibrated("retrieve", cell, key, measure)
    return result


def scoring_seconds(cell: Cell, task: Any, x: Tensor, y: Tensor) -> float:
    """Of one picture. A metric whose weights are missing costs nothing, as in the run."""

    def run() -> None:
        cell.scoring.score(x, x)
        data_consistency_residual(task.operator(tuple(x.shape)), x[None], y[None])
        png_bytes(to_uint8(x))

    run()
    return timed(run)[1]


def timed(run: Callable[[], Any], device: torch.device | None = None) -> tuple[Any, float]:
    """(its result, seconds), everything that it started on the device included."""
    started = time.perf_counter()
    result = run()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started
