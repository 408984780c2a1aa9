"""Measure how much sampling in bfloat16 or float16 differs from float32, with ADIR's whole sampler.

The embedded prior restores the same y with the same noise, so only the network's precision differs.
The script computes the PSNR between the two restored images (not rounded to 8 bits), and between
each and the ground truth. float16 is autocast too. It is slow on a CPU and therefore off by default.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/precision.py [--images 4] [--steps 50] [--side 128]
    [--out FILE]
"""

import time

from torch import Tensor

from adir.backbones.execution import DTYPES, Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.data.embedded import test_fields
from adir.images import generator
from adir.samplers.adir import ADIR
from adir.tasks.restoration import RestorationTask
from benchmarks.common import command, made_on, parser_of, publish, set_threads, task_named

TASKS = ("sr4", "deblur")
ENOUGH = 40.0  # dB


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the PSNR of two images in [-1, 1]; values outside are clipped."""
    return float(-10 * ((a.clamp(-1, 1) - b.clamp(-1, 1)).double() / 2).square().mean().log10())


def restored(
    task: RestorationTask, x: Tensor, name: str, backbone: GuidedDiffusion, steps: int
) -> tuple[Tensor, float]:
    """Return (restored image on the CPU, seconds)."""
    y = task.degrade(x, generator(0, name, "y"))
    sampler = ADIR(n_steps=steps, guidance_scale=task.guidance_scale, variance="small")
    noise = [generator(0, name, "sampler")]
    started = time.perf_counter()
    image = (
        sampler.restore(backbone, task.operator(tuple(x.shape)), y[None].to(backbone.device), noise)
        .x_hat[0]
        .cpu()
    )
    return image, time.perf_counter() - started


def main() -> None:
    """Measure, print, and write the table if --out is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--side", type=int, default=128, help="centre crop; a multiple of 8")
    parser.add_argument(
        "--dtypes", default="bfloat16", help="bfloat16, float16, or bfloat16,float16"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    threads = set_threads()
    dtypes = arguments.dtypes.split(",")
    backbones = {
        dtype: GuidedDiffusion(
            device=arguments.device, execution=Execution(arguments.device, dtype)
        )
        for dtype in DTYPES
        if dtype in ("float32", *dtypes)
    }
    rows, lowest = [], float("inf")
    for name, image in test_fields()[: arguments.images]:
        corner = (image.shape[-1] - arguments.side) // 2
        x = image[:, corner : corner + arguments.side, corner : corner + arguments.side]
        for task in map(task_named, TASKS):
            reference, seconds = restored(task, x, name, backbones["float32"], arguments.steps)
            for dtype in dtypes:
                other, took = restored(task, x, name, backbones[dtype], arguments.steps)
                between = psnr(other, reference)
                lowest = min(lowest, between)
                truth = f"{psnr(reference, x):.3f} | {psnr(other, x):.3f}"
                rows.append(
                    f"| {name} | {task.name} | {dtype} | {between:.1f} | {truth} | "
                    f"{seconds:.1f} | {took:.1f} |"
                )
                print(rows[-1], flush=True)
    text = f"""# Precision of sampling

ADIR on the embedded prior, {arguments.steps} steps, {arguments.side}x{arguments.side}, no adaptation; y and noise are equal. Lowest PSNR between a
precision and float32: {lowest:.1f} dB; goal: {ENOUGH:.0f} dB.

| image | task | precision | PSNR to float32, dB | PSNR of float32, dB | PSNR of this precision, dB | s, float32 | s, this precision |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Device {arguments.device}; {made_on()}. Command:
`OMP_NUM_THREADS={threads} {command(__file__)}`
"""
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
