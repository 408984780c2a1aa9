"""Measure speed and memory of the paper's backbones: sampling step, adaptation iteration, image.

The weights are random. Each time is compared with a bare call of the network and with a floor. The
floor is the time of the network's operations at the rate of a large matrix product on the same
device. Each figure is saved as soon as it is measured, so an interrupted run can resume.

    python benchmarks/speed/backbones.py --what step --networks gd512     one of step, adapt, switch, total
    python benchmarks/speed/backbones.py --what report                    all figures of this device as Markdown
    python benchmarks/speed/backbones.py --size small                     everything on a CPU, with an eighth of the channels
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1" if (os.cpu_count() or 1) <= 4 else str(os.cpu_count()))

import torch
from torch.utils.flop_counter import FlopCounterMode

from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.backbones.execution import DTYPES, Execution
from adir.files import write_bytes
from adir.harness.running.provenance import process_peak_memory_mb, reset_peak_memory
from adir.samplers.adir import ADIR
from adir.samplers.base import StepCounter
from adir.samplers.latent import sample_latent
from adir.tasks.operators import SuperResolution
from benchmarks.common import parser_of
from benchmarks.speed.figures import Figures, Row, device_name, report
from benchmarks.speed.made_networks import (
    NETWORKS,
    PIXEL,
    LatentParts,
    empty_network,
    example_inputs,
    pixel_backbone,
)

WHAT = ("step", "adapt", "switch", "total")
SIDES = {
    "real": {"gd256": 256, "gd512": 512, "sd_x4": 256},
    "small": {"gd256": 64, "gd512": 64, "sd_x4": 32},
}
"""Side of the network's input during sampling, in pixels or latent positions.

256 latent positions are an image of 1024 pixels.
"""
CROPS = {
    "real": {"gd256": (256,), "gd512": (256, 512), "sd_x4": (64, 128)},
    "small": dict.fromkeys(NETWORKS, (64,)),
}
"""Sides of the network's input during adaptation, in the same units."""
PAPER, FAST = (400, 1000), (100, 100)
"""(iterations, steps) of the paper and of a documented fast setting; small networks use 1/20."""


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Return the wall-clock seconds of one call, including its work on the device."""
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def matmul_rate(device: str, dtype: str) -> float:
    """Return the operations per second of a large matrix product, by which `floor` divides.

    TF32 is off, as in float32 networks.
    """
    n = 8192 if device != "cpu" else 1024
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in "ab")
    a @ b
    return 2 * n**3 * 5 / seconds_of(lambda: [a @ b for _ in range(5)], device)


def operations(network: str, size: str, batch: int, side: int, train: bool) -> int:
    """Return the multiplications and additions of one call.

    With `train`, those of a forward and backward pass with LoRA. They are counted on meta tensors.
    """
    net = empty_network(network, size)
    if train:
        Lora().attach(net)
    with torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter:
        output = net(**example_inputs(net, batch, side, side, "meta"), return_dict=False)[0]
        if train:
            output.square().mean().backward()
    return counter.get_total_flops()


# --- a sampling step


@torch.no_grad()
def ancestral_loop(backbone: Any, x_t: torch.Tensor, n_steps: int) -> torch.Tensor:
    """Return x_0 of guided-diffusion's unguided sampling, written as a bare loop.

    DDPM (Ho et al., 2020), eq. 7, with x_0 clipped to [-1, 1], and the learned variance of Nichol
    and Dhariwal (2021), eq. 15. Tables and noise are on the device.
    """
    p = backbone.schedule.respaced(n_steps)
    tables = (
        p.alpha_bar,
        p.posterior_mean_coef1,
        p.posterior_mean_coef2,
        p.posterior_log_variance,
        p.betas.log(),
    )
    alpha_bar, coef1, coef2, log_small, log_large = (
        table.float().to(x_t.device) for table in tables
    )
    timesteps = p.timesteps.to(x_t.device)
    for i in reversed(range(n_steps)):
        with backbone.execution.autocast():
            output = backbone.network(x_t, timesteps[i].expand(len(x_t)), return_dict=False)[0]
        eps, v = output.float().chunk(2, dim=1)
        x_0 = ((x_t - (1 - alpha_bar[i]).sqrt() * eps) / alpha_bar[i].sqrt()).clamp(-1, 1)
        share = (v + 1) / 2
        x_t = coef1[i] * x_0 + coef2[i] * x_t
        if i > 0:
            x_t = x_t + (
                (share * log_large[i] + (1 - share) * log_small[i]) / 2
            ).exp() * torch.randn_like(x_t)
    return x_t


def step_row(
    network: str,
    size: str,
    weights: Path,
    batch: int,
    execution: Execution,
    n_steps: int,
    rounds: int,
) -> Row:
    """Return the figures of a sampling step and of a bare network call, with peak memory.

    Pixel networks take a step of ADIR, sd_x4 takes one of the latent sampler. The two are measured
    in turn.
    """
    device, side = execution.device, SIDES[size][network]
    generators = [torch.Generator().manual_seed(b) for b in range(batch)]
    if (network, size) in PIXEL:
        backbone: Any = pixel_backbone(network, size, weights, execution)
        operator = SuperResolution(4)((3, side, side))
        y = operator.A(torch.rand(batch, 3, side, side) * 2 - 1).to(device)
        sampler = ADIR(n_steps=n_steps, guidance_scale=1.0, variance="learned")
        run = lambda: sampler.restore(backbone, operator, y, generators)  # noqa: E731
    else:
        backbone = LatentParts(size, execution)
        noise, condition = (
            torch.randn(batch, 4, side, side, device=device),
            backbone.condition(batch, side),
        )
        run = lambda: sample_latent(  # noqa: E731
            backbone, noise, condition, None, 1.0, n_steps, 0.0, generators[0], StepCounter(noise)
        )
    inputs = example_inputs(backbone.network, batch, side, side, device)

    @torch.no_grad()
    def bare() -> None:
        with execution.autocast():
            for _ in range(n_steps):
                backbone.network(**inputs, return_dict=False)

    first = seconds_of(bare, device)
    run()
    reset_peak_memory(torch.device(device))
    contestants = {"step": run, "bare": bare}
    if (network, size) in PIXEL:
        contestants["loop"] = lambda: ancestral_loop(backbone, inputs["sample"], n_steps)
        contestants["loop"]()
    times = [
        {name: seconds_of(call, device) / n_steps for name, call in contestants.items()}
        for _ in range(rounds)
    ]
    n_operations = operations(network, size, batch, side, train=False)
    floor = n_operations / matmul_rate(device, execution.dtype)
    return {
        **{
            f"{name}_ms": 1e3 * statistics.median(one[name] for one in times)
            for name in contestants
        },
        **{
            f"over_{name}": statistics.median(one["step"] / one[name] for one in times)
            for name in [*contestants][1:]
        },
        "over_floor": statistics.median(one["step"] for one in times) / floor,
        "floor_ms": 1e3 * floor,
        "tera_operations": n_operations / 1e12,
        "peak_mb": process_peak_memory_mb(torch.device(device)),
        "first_s": first,
    }


# --- an adaptation iteration


def adapt_row(
    network: str, size: str, weights: Path, batch: int, crop: int, execution: Execution, n: int
) -> Row:
    """Return the figures of a LoRA iteration (rank 16, every convolution), with peak memory.

    Its seconds are the difference between runs of 2 and 2 + n iterations, over n.
    """
    device = execution.device
    if (network, size) in PIXEL:
        backbone: Any = pixel_backbone(network, size, weights, execution)
        images = [torch.rand(3, crop, crop) * 2 - 1 for _ in range(2)]

        def run(n_iterations: int) -> None:
            tuning = FineTuning(n_iterations, batch, 1e-4, crop)
            tuning.fit(backbone, Lora(), images, torch.Generator().manual_seed(0))
    else:
        backbone = LatentParts(size, execution)

        def run(n_iterations: int) -> None:
            latent_iterations(backbone, batch, crop, n_iterations)

    first = seconds_of(lambda: run(2), device)
    reset_peak_memory(torch.device(device))
    short, long = seconds_of(lambda: run(2), device), seconds_of(lambda: run(2 + n), device)
    n_operations = operations(network, size, batch, crop, train=True)
    attached = Lora().attach(backbone.network)
    n_parameters, n_layers = sum(p.numel() for p in attached.parameters()), len(attached.layers)
    attached.remove()
    floor = n_operations / matmul_rate(device, execution.dtype)
    return {
        "iteration_ms": 1e3 * (long - short) / n,
        "over_floor": (long - short) / n / floor,
        "floor_ms": 1e3 * floor,
        "tera_operations": n_operations / 1e12,
        "peak_mb": process_peak_memory_mb(torch.device(device)),
        "first_s": first,
        "n_parameters": n_parameters,
        "n_layers": n_layers,
    }


def latent_iterations(backbone: LatentParts, batch: int, side: int, n_iterations: int) -> None:
    """Run iterations of the upscaler's loss on given latents, as fine-tuning does after the VAE."""
    attached = Lora().attach(backbone.network)
    try:
        optimizer = torch.optim.Adam(attached.parameters(), 1e-4)
        z, condition = (
            torch.randn(batch, 4, side, side, device=backbone.device),
            backbone.condition(batch, side),
        )
        t = torch.full((batch,), 500, device=backbone.device)
        for _ in range(n_iterations):
            loss = (backbone.output(z, t, condition) - z).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
    finally:
        attached.remove()


# --- switching, whole images


def switch_row(network: str, size: str, weights: Path, execution: Execution, rounds: int) -> Row:
    """Return the seconds to attach and detach a trained adapter.

    The row also says whether the network's weights are bit-equal afterwards.
    """
    device = execution.device
    if (network, size) in PIXEL:
        backbone: Any = pixel_backbone(network, size, weights, execution)
    else:
        backbone = LatentParts(size, execution)
    net = backbone.network
    base = {name: tensor.cpu().clone() for name, tensor in net.state_dict().items()}
    row: Row = {}
    for adapter in (Lora(), Full()):
        attached = adapter.attach(net)
        tensors = attached.tensors()
        attached.remove()
        tensors = {name: tensor + 1e-3 for name, tensor in tensors.items()}

        def enter_and_leave(adapter: Any = adapter, tensors: Any = tensors) -> None:
            with adapted(net, adapter, tensors):
                pass

        times = [seconds_of(enter_and_leave, device) for _ in range(rounds + 1)][1:]
        row[f"{adapter.name}_s"] = statistics.median(times)
        row[f"{adapter.name}_slowest_s"] = max(times)
        same = all(
            torch.equal(tensor.cpu(), base[name]) for name, tensor in net.state_dict().items()
        )
        row[f"{adapter.name}_base_bit_equal"] = same and list(net.state_dict()) == list(base)
    return row | {"million_parameters": sum(p.numel() for p in net.parameters()) / 1e6}


def total_row(
    network: str, size: str, weights: Path, execution: Execution, crop: int, rounds: int
) -> Row:
    """Return the seconds to adapt (batch 6) and then to sample one image with the adapter.

    A warm-up compiles both first. Times of FAST are measured. Those of PAPER are extrapolated along
    the line through a fifth of FAST and FAST; their standard error is over rounds.
    """
    device, side = execution.device, SIDES[size][network]
    backbone = pixel_backbone(network, size, weights, execution)
    operator = SuperResolution(4)((3, side, side))
    y = operator.A(torch.rand(1, 3, side, side) * 2 - 1).to(device)
    images = [torch.rand(3, side, side) * 2 - 1 for _ in range(4)]
    share = 20 if size == "small" else 1
    (iterations, steps), (paper_iterations, paper_steps) = (
        (a // share, b // share) for a, b in (FAST, PAPER)
    )

    def one_image(n_iterations: int, n_steps: int) -> tuple[float, float]:
        tuning = FineTuning(n_iterations, 6, 1e-4, crop)

        def adapt() -> None:
            made.append(tuning.fit(backbone, Lora(), images, torch.Generator().manual_seed(0)))

        made: list[Any] = []
        adapting = seconds_of(adapt, device)
        sampler = ADIR(n_steps=n_steps, guidance_scale=1.0, variance="learned")

        def sample() -> None:
            with adapted(backbone.network, Lora(), made[0].tensors):
                sampler.restore(backbone, operator, y, [torch.Generator().manual_seed(0)])

        return adapting, seconds_of(sample, device)

    warm_up = seconds_of(lambda: one_image(2, 2), device)
    reset_peak_memory(torch.device(device))
    fast, paper = [], []
    for _ in range(rounds):
        few, many = (
            one_image(max(1, iterations // 5), max(1, steps // 5)),
            one_image(iterations, steps),
        )
        fast.append(many)
        lines = zip(few, many, (iterations, steps), (paper_iterations, paper_steps), strict=True)
        paper.append(
            sum(b + (b - a) / (n - max(1, n // 5)) * (wanted - n) for a, b, n, wanted in lines)
        )
    iteration = operations(network, size, 6, crop, train=True)
    step = operations(network, size, 1, side, train=False)
    rate = matmul_rate(device, execution.dtype)
    return {
        "adapt_s": statistics.median(adapting for adapting, _ in fast),
        "sample_s": statistics.median(sampling for _, sampling in fast),
        "total_s": statistics.median(map(sum, fast)),
        "over_floor": statistics.median(map(sum, fast))
        / ((iterations * iteration + steps * step) / rate),
        "paper_s": statistics.mean(paper),
        "paper_error_s": statistics.stdev(paper) / len(paper) ** 0.5,
        "paper_floor_s": (paper_iterations * iteration + paper_steps * step) / rate,
        "peak_mb": process_peak_memory_mb(torch.device(device)),
        "warm_up_s": warm_up,
    }


# --- the command


def measure(arguments: argparse.Namespace, figures: Figures, what: str) -> None:
    """Measure all rows of one kind."""
    size, device, weights = arguments.size, arguments.device, arguments.weights
    real = size == "real" and device != "cpu"
    n_steps, rounds, n_iterations = (20, 5, 10) if real else (3, 2, 3)
    variants = list(itertools.product(arguments.dtypes, arguments.modes))
    for network in arguments.networks:
        for dtype, mode in variants if what in ("step", "adapt") else []:
            fast = Execution(
                device, dtype, channels_last=arguments.channels_last, compile=mode == "compiled"
            )
            for batch in arguments.batches:
                key = {"network": network, "batch": batch, "dtype": dtype, "mode": mode}
                if what == "step":
                    figures.add(
                        what,
                        key,
                        partial(step_row, network, size, weights, batch, fast, n_steps, rounds),
                    )
                for crop in CROPS[size][network] if what == "adapt" else ():
                    execution = Execution(
                        **{**vars(fast), "gradient_checkpointing": arguments.checkpointing}
                    )
                    row = key | {"crop": crop, "checkpointing": arguments.checkpointing}
                    args = (network, size, weights, batch, crop, execution, n_iterations)
                    figures.add(what, row, partial(adapt_row, *args))
                torch._dynamo.reset()
        if what == "switch":
            for dtype in arguments.dtypes:
                # On a CPU, `full` reads the weights in place unless their layout differs.
                execution = Execution(
                    device, dtype, channels_last=arguments.channels_last and device != "cpu"
                )
                key = {"network": network, "dtype": dtype}
                figures.add(
                    what, key, partial(switch_row, network, size, weights, execution, rounds)
                )
        if what == "total" and (network, size) in PIXEL:
            for dtype, mode in variants:
                execution = Execution(
                    device,
                    dtype,
                    arguments.channels_last,
                    arguments.checkpointing,
                    compile=mode == "compiled",
                )
                key = {
                    "network": network,
                    "fast": "+".join(map(str, FAST)),
                    "dtype": dtype,
                    "mode": mode,
                }
                crop, n_rounds = CROPS[size][network][0], max(2, min(rounds, 3))
                figures.add(
                    what, key, partial(total_row, network, size, weights, execution, crop, n_rounds)
                )
                torch._dynamo.reset()


def main() -> None:
    """Measure the requested figures that are missing, then write the report."""
    parser = parser_of(__doc__, Path("results/speed"), "folder for the figures")
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--what", choices=(*WHAT, "report", "all"), default="all")
    parser.add_argument("--networks", type=words, default=list(NETWORKS))
    parser.add_argument("--size", choices=("real", "small"), default="real")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batches", type=lambda text: [int(b) for b in text.split(",")], default=[1, 4, 6]
    )
    parser.add_argument("--dtypes", type=words, default=["float32", "bfloat16"])
    parser.add_argument("--modes", type=words, default=["eager", "compiled"])
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument(
        "--weights", type=Path, default=Path(tempfile.gettempdir()) / "adir-made-weights"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    name = device_name(arguments.device)
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.split(",")[0].lower()).split())
    slug += "-small" if arguments.size == "small" else ""
    said = [
        f"--what {arguments.what}",
        f"--size {arguments.size}",
        f"--networks {','.join(arguments.networks)}",
    ]
    figures = Figures(
        arguments.out / f"backbones-{slug}.json",
        f"python benchmarks/speed/backbones.py {' '.join(said)}",
    )
    for what in WHAT if arguments.what == "all" else [w for w in WHAT if w == arguments.what]:
        measure(arguments, figures, what)
    target = arguments.out / f"backbones-{slug}.md"
    write_bytes(target, report(figures, name, arguments.size).encode())
    print(f"{target} has all figures of this device")


if __name__ == "__main__":
    main()
