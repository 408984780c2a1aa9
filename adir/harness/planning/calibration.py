"""How long work takes that goes step by step, from a few of its steps; and a network's calls, from one kind of call each."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from adir.harness.running.provenance import process_peak_memory_mb

LONG_ENOUGH = 1.5
"""Seconds that the timed calls of a network take together, and those of an adaptation, unless one takes longer."""
OVERHEAD_LONG_ENOUGH = 0.1
"""Seconds of the longer run of a sampler beside its network."""
TOO_LONG = 15.0
"""Seconds from which on a run is not repeated: what a warm-up adds is small beside it."""


@dataclass(frozen=True)
class Line:
    """Seconds of a run of n steps: `fixed + per_step * n`. peak_mb: the most memory of the runs it was drawn from."""

    fixed: float
    per_step: float
    peak_mb: float

    def seconds(self, n_steps: int) -> float:
        """Of a run of n steps."""
        return self.fixed + self.per_step * n_steps


def line_through(run: Callable[[int], None], n_steps: int, device: torch.device) -> Line:
    """The line through a run of two steps and one about OVERHEAD_LONG_ENOUGH seconds long, after a short one to warm up.

    n_steps: of the real run, which is never exceeded; where it takes no more than two, it is run itself. Two is the least:
    some samplers need one step to start.
    """
    forget_peak_memory(device)
    few = min(n_steps, 2)
    _, short = timed(lambda: run(few), device)
    repeats = 1 if short > TOO_LONG else 3
    if repeats > 1:
        short = least_seconds(lambda: run(few), device, repeats)
    many = min(n_steps, few + math.ceil(OVERHEAD_LONG_ENOUGH * max(few, 1) / max(short, 1e-6)))
    per_step = 0.0
    if many > few:
        per_step = max(0.0, (least_seconds(lambda: run(many), device, repeats) - short) / (many - few))
    return Line(max(0.0, short - few * per_step), per_step, process_peak_memory_mb(device))


def least_seconds(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Of some runs the fastest: another process that wakes up spoils one of them."""
    return min(timed(run, device)[1] for _ in range(repeats))


class Stopwatch(pl.Callback):
    """When each iteration of an adaptation ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """One more."""
        self.ends.append(time.perf_counter())

    def typical(self) -> float:
        """Seconds of an iteration, the first one aside: the median, which another process that wakes up does not move."""
        return statistics.median(later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False))


def line_of_iterations(
    run: Callable[[int], tuple[Any, Stopwatch]], n_iterations: int, device: torch.device
) -> tuple[Line, Any]:
    """(the line of an adaptation's iterations, what the run of some of them made), after two to warm up."""
    forget_peak_memory(device)
    (made, watch), total = timed(lambda: run(min(2, n_iterations)), device)
    per_step = 0.0
    if n_iterations >= 2:
        per_step = watch.typical()
        if total < TOO_LONG:
            enough = min(n_iterations, max(3, math.ceil(LONG_ENOUGH / per_step)))
            (made, watch), total = timed(lambda: run(enough), device)
            per_step = watch.typical()
    between = watch.ends[-1] - watch.ends[0] if watch.ends else 0.0  # of it, the typical iteration counts
    return Line(max(0.0, total - between - per_step), per_step, process_peak_memory_mb(device)), made


@dataclass(frozen=True)
class Call:
    """One kind of call of a network: its answer, its seconds, and the peak of memory it was made at."""

    answer: tuple[Tensor, ...]
    seconds: float
    peak_mb: float


class StandIn:
    """Stands for a backbone's network while a sampler runs: each kind of call is made and timed once, and then answered
    with what that gave. A kind is the shapes of its tensors, and whether gradients flow; their way back is timed with it.

    calibrated: gives what is known of a kind, or makes and keeps it (see `calibrated`).
    """

    def __init__(
        self, network: Any, device: torch.device, calibrated: Callable[[Any, Callable[[], Call]], Call]
    ) -> None:
        self._network, self._device, self._calibrated = network, device, calibrated
        self.met: dict[tuple[Any, ...], Call] = {}
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        tensors = [leaf for leaf in tree_leaves((inputs, options)) if isinstance(leaf, Tensor)]
        back = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        kind = (back, *(tuple(tensor.shape) for tensor in tensors))
        if kind not in self.met:
            self.met[kind] = self._calibrated(kind, lambda: self._made(back, inputs, options))
        self.calls[kind] += 1
        answer = self.met[kind].answer
        return tuple(out + 0 * sum(t.sum() for t in tensors if t.requires_grad) for out in answer) if back else answer

    def _made(self, back: bool, inputs: Any, options: Any) -> Call:
        def leaf(value: Any) -> Any:
            return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

        def call() -> tuple[Tensor, ...]:
            own_inputs, own_options = tree_map(leaf, (inputs, options))
            outputs = self._network(*own_inputs, **own_options)
            if back:
                wanted = [
                    t for t in tree_leaves((own_inputs, own_options)) if isinstance(t, Tensor) and t.requires_grad
                ]
                torch.autograd.grad(sum(output.sum() for output in outputs), wanted)
            return tuple(output.detach() for output in outputs)

        forget_peak_memory(self._device)
        answer, warm_up = timed(call, self._device)
        # Once more also where that took long: it may have been torch.compile.
        repeats = 1 if warm_up > TOO_LONG else max(3, math.ceil(LONG_ENOUGH / warm_up))
        seconds = [timed(call, self._device)[1] for _ in range(repeats)]
        return Call(answer, statistics.median(seconds), process_peak_memory_mb(self._device))


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


def timed(run: Callable[[], Any], device: torch.device | None = None) -> tuple[Any, float]:
    """(its result, seconds), everything that it started on the device included."""
    started = time.perf_counter()
    result = run()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started
