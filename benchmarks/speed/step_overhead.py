"""Compare a step of ADIR with the bare network and with a step of deepinv's DPS.

ADIR's guidance applies A and its transpose once and does not differentiate through the network.
A step should therefore cost what the network costs; the goal is at most 1.05 times. All runs of a
comparison alternate, and a ratio is the median over rounds of the ratio in each round, so that load
affects both times. Processor seconds of the (single) thread are shown beside wall-clock seconds,
because other processes can lengthen them only through shared caches. The most stable ratio is that
of an ADIR run to the network calls inside it.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/step_overhead.py [--repeats 9] [--out
    results/speed/step_overhead.md]
"""

import statistics
import time
from collections.abc import Callable

import deepinv
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.samplers.adir import ADIR
from adir.samplers.svd import as_physics
from adir.tasks.operators import BoxBlur, Operator, SuperResolution
from benchmarks.common import command, made_on, parser_of, publish, set_threads

SIDE, STEPS = 128, 3
Seconds = tuple[float, float]  # wall clock, processor


class ForDeepinv(deepinv.models.Denoiser):
    """Denoiser for deepinv's samplers: returns x0 in [0, 1] from x0 + sigma n."""

    def __init__(self, backbone: GuidedDiffusion) -> None:
        super().__init__()
        self.backbone = backbone
        alpha_bar = backbone.schedule.alpha_bar
        self.sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = 2 * float(torch.as_tensor(sigma).flatten()[0])  # for images in [-1, 1]
        t = int((self.sigmas - sigma).abs().argmin())
        z = (2 * x - 1).float()
        eps = self.backbone.network(
            z / (1 + sigma**2) ** 0.5, torch.tensor([t]), return_dict=False
        )[0]
        return (z - sigma * eps + 1) / 2


class Stopwatch:
    """Backbone that sums the wall-clock and processor seconds of its predictions since `reset`."""

    def __init__(self, backbone: GuidedDiffusion) -> None:
        self.backbone, self.schedule = backbone, backbone.schedule
        self.reset()

    def reset(self) -> None:
        self.wall = self.processor = 0.0

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        wall, processor = time.perf_counter(), time.process_time()
        prediction = self.backbone.predict(x_t, t)
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor
        return prediction


def timed(run: Callable[[], object]) -> Seconds:
    """Return the wall-clock and processor seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def contestants(
    stopwatch: Stopwatch, operator: Operator, batch: int
) -> dict[str, Callable[[], object]]:
    """Return functions to time: network calls, calls of `predict`, steps of ADIR and of DPS.

    Each makes STEPS calls or steps. DPS is included for batch 1 only.
    """
    backbone = stopwatch.backbone
    x_t = torch.randn(batch, 3, SIDE, SIDE)
    y = operator.A(torch.rand(batch, 3, SIDE, SIDE) * 2 - 1)
    t = torch.full((batch,), 500)
    sampler = ADIR(n_steps=STEPS, guidance_scale=1.0, variance="small")

    @torch.no_grad()
    def bare() -> None:
        for _ in range(STEPS):
            backbone.network(x_t, t, return_dict=False)

    def predict() -> None:
        for _ in range(STEPS):
            backbone.predict(x_t, t)

    def adir() -> None:
        stopwatch.reset()
        sampler.restore(
            stopwatch, operator, y, [torch.Generator().manual_seed(b) for b in range(batch)]
        )

    runs: dict[str, Callable[[], object]] = {"bare": bare, "predict": predict, "adir": adir}
    if batch == 1:
        dps = deepinv.sampling.DPS(ForDeepinv(backbone), num_steps=STEPS + 1)

        def one_dps() -> None:
            dps(
                (y + 1) / 2,
                as_physics(operator.physics),
                x_init=(1, 3, SIDE, SIDE),
                denoise_output=False,
            )

        runs["dps"] = one_dps
    return runs


def measure(
    runs: dict[str, Callable[[], object]], stopwatch: Stopwatch, repeats: int
) -> dict[str, list[Seconds]]:
    """Return the seconds per step of each function in each round.

    `inside` has the seconds of ADIR's predictions. The order of the functions rotates, and the
    first round is not counted.
    """
    names = list(runs)
    times: dict[str, list[Seconds]] = {name: [] for name in [*names, "inside"]}
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, processor = timed(runs[name])
            if turn > 0:
                times[name].append((wall / STEPS, processor / STEPS))
            if turn > 0 and name == "adir":
                times["inside"].append((stopwatch.wall / STEPS, stopwatch.processor / STEPS))
    return times


def ratio(times: dict[str, list[Seconds]], above: str, below: str, clock: int) -> str:
    """Return the median over rounds of above / below, with its quartiles."""
    ratios = [a[clock] / b[clock] for a, b in zip(times[above], times[below], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


class Free:
    """Backbone without cost, so that a step's time is the sampler's own."""

    def __init__(self, backbone: GuidedDiffusion) -> None:
        self.schedule = backbone.schedule

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(x_t, None)


def own_milliseconds(
    backbone: GuidedDiffusion, operator: Operator, batch: int, repeats: int
) -> float:
    """Return the processor milliseconds of a step of ADIR without its network.

    This is the median of `repeats` runs of 50 steps.
    """
    y = operator.A(torch.rand(batch, 3, SIDE, SIDE) * 2 - 1)
    sampler = ADIR(n_steps=50, guidance_scale=1.0, variance="small")
    generators = [torch.Generator().manual_seed(b) for b in range(batch)]

    def run() -> None:
        sampler.restore(Free(backbone), operator, y, generators)

    run()
    return statistics.median(timed(run)[1] for _ in range(repeats)) / 50 * 1000


def report(repeats: int) -> str:
    """Measure everything and return it as Markdown."""
    threads = set_threads()
    backbone = GuidedDiffusion()
    stopwatch = Stopwatch(backbone)
    rows, dps_rows = [], []
    for task, degradation in (("sr4", SuperResolution(4)), ("deblur", BoxBlur(5))):
        operator = degradation((3, SIDE, SIDE))
        for batch in (1, 4):
            times = measure(contestants(stopwatch, operator, batch), stopwatch, repeats)
            bare, adir = (
                1000 * statistics.median(wall for wall, _ in times[name])
                for name in ("bare", "adir")
            )
            own = own_milliseconds(backbone, operator, batch, repeats)
            rows.append(
                f"| {task} | {batch} | {bare:.0f} | {adir:.0f} | {own:.1f} | "
                f"{ratio(times, 'adir', 'inside', 0)} "
                f"| {ratio(times, 'adir', 'bare', 0)} | {ratio(times, 'adir', 'bare', 1)} "
                f"| {ratio(times, 'predict', 'bare', 1)} |"
            )
            print(rows[-1], flush=True)
            if "dps" in times:
                dps = 1000 * statistics.median(wall for wall, _ in times["dps"])
                dps_rows.append(
                    f"| {task} | {adir:.0f} | {dps:.0f} | {ratio(times, 'adir', 'dps', 0)} "
                    f"| {ratio(times, 'adir', 'dps', 1)} |"
                )
                print(dps_rows[-1], flush=True)
    return f"""# Time of a step of ADIR

The embedded prior at {SIDE}x{SIDE}, {threads} thread, {repeats} rounds of {STEPS} steps, interleaved.
Ratios are medians over rounds, quartiles in brackets. Lower is better. Target for ADIR over the bare network: 1.05.

| task | batch | bare network, ms | ADIR step, ms | sampler's own, ms | ADIR / network inside | ADIR / bare network | the same, processor time | `predict` / bare network, processor time |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

"Bare network" is one call on the whole batch. ADIR calls `GuidedDiffusion.predict`, which on a CPU processes one image at
a time so that results do not depend on the batch; its own cost is the last column. "ADIR / network inside" divides the
time of a run by the time of the predictions in the same run. It is the most stable ratio, because the others compare runs
that other processes disturb differently. The sampler's own part is measured separately, with a network that costs nothing.
Milliseconds are wall clock, except the sampler's own, which are processor time.

| task, batch 1 | ADIR step, ms | deepinv DPS step, ms | ADIR / DPS, wall clock | ADIR / DPS, processor time |
|---|---|---|---|---|
{chr(10).join(dps_rows)}

deepinv's DPS also calls the network once per step, and differentiates through it with respect to x_t.

{made_on("diffusers", "deepinv")}.
Command: `OMP_NUM_THREADS={threads} {command(__file__)}`
"""


def main() -> None:
    """Measure, print, and write the report if --out is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    publish(report(arguments.repeats), arguments.out)


if __name__ == "__main__":
    main()
