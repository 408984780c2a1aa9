"""Train, resume, evaluate, count or ship the embedded prior: a small ADM-type denoiser.

    prior="python benchmarks/train_prior.py"
    $prior train --parquet caltech101_128.parquet --init adir/embedded/prior --out runs/prior --steps 4000
    $prior train --parquet caltech101_128.parquet --blocks 64,96,128 --out runs/new --seconds 360 --batch 64 --lr 5e-4
    $prior evaluate --parquet caltech101_128.parquet adir/embedded/prior runs/new
    $prior count --out results/speed/prior_training.md
    $prior ship runs/new adir/embedded/prior

Training runs on a CPU or a GPU, with images and crops on the device. The same `train` command again
resumes from the last checkpoint in --out. With --steps, a resumed run ends like an uninterrupted
one, because images, noise and t of a step come from a generator seeded by (seed, step). --out is a
diffusers folder (the averaged weights, float32) with a card. Of a Parquet file, only the split
`train` is trained on. --blocks makes a fresh network that starts with a pixel_unshuffle by 2.
`ship` rounds to float16, which halves the file.
"""

import argparse
import copy
import io
import math
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from adir.backbones.adm.cached import CONFIG, WEIGHTS
from adir.backbones.adm.conversion import build_network
from adir.backbones.guided_diffusion import EMBEDDED_PRIOR, load_network
from adir.diffusion.posterior import diffuse
from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError
from adir.files import read_json, sha256_of_file, walk, write_bytes, write_json
from benchmarks.common import publish

SIDE = 128  # pixels of a training image, after reducing its short side and cropping the centre
# (crop side, crops per unit of --batch, scale), used in turn; a step has 16,384 pixels per unit.
# Whole images are scale 1. Most of the smaller crops have scale 0.5, at which images are sharpest
# and the error at low noise is largest.
CYCLE = ((64, 4, 0.5), (128, 1, 1.0), (64, 4, 0.75), (64, 4, 0.5))
EVALUATION_TIMESTEPS = (10, 50, 100, 200, 400, 700)
ALPHA_BAR = linear_schedule(1000).alpha_bar
UNSHUFFLED = ((32, 64, 128), (64, 96, 128), (64, 128, 192))
"""Channels of the networks with pixel_unshuffle that were timed on a CPU."""


def decode_image(source) -> np.ndarray:
    """Return (3, 128, 128) uint8 RGB of a file or a byte stream.

    The short side is reduced to 128 (Lanczos), then the centre is cropped.
    """
    image = Image.open(source).convert("RGB")
    if min(image.size) < SIDE:
        raise InputError(
            f"{source}: {image.size[0]}x{image.size[1]} pixels; the short side must be {SIDE} or more"
        )
    scale = SIDE / min(image.size)
    if scale < 1:
        image = image.resize(
            [max(SIDE, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS
        )
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE))).transpose(2, 0, 1)


def read_parquet(path: Path, split: str, limit: int | None = None) -> torch.Tensor:
    """Return (N, 3, 128, 128) uint8 images of one split, in the file's order.

    Images of other splits are not decoded.
    """
    rows = pq.read_table(path, columns=["image"], filters=[("split", "=", split)]).column("image")[
        :limit
    ]
    if len(rows) == 0:
        raise InputError(
            f"{path} holds no image of the split {split!r}: it needs the columns image and split"
        )
    return torch.from_numpy(
        np.stack([decode_image(io.BytesIO(row["bytes"].as_py())) for row in rows])
    )


def read_folder(path: Path) -> torch.Tensor:
    """Return (N, 3, 128, 128) uint8 of every JPEG, PNG and WebP image at or below `path`, by name."""
    files = sorted(walk(path, (".jpg", ".jpeg", ".png", ".webp")))
    if not files:
        raise InputError(f"no .jpg, .jpeg, .png or .webp file at or below {path}")
    return torch.from_numpy(np.stack([decode_image(f) for f in files]))


def resize(x: torch.Tensor, side: int) -> torch.Tensor:
    """Resize (B, 3, H, W) in [-1, 1] to (B, 3, side, side): antialiased bicubic, clipped to [-1, 1]."""
    return F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def draw_crops(
    images: torch.Tensor, side: int, count: int, scale: float, generator: torch.Generator
) -> torch.Tensor:
    """Return (count, 3, side, side) float32 crops in [-1, 1], on the images' device.

    Images are drawn at random, reduced by `scale` and cropped; half of the crops are flipped.
    """

    def below(n: int) -> torch.Tensor:
        return torch.randint(n, (count,), generator=generator, device=images.device)

    x = images[below(len(images))].float() / 127.5 - 1
    reduced = round(SIDE * scale)
    x = resize(x, reduced) if reduced < SIDE else x
    window = torch.arange(side, device=images.device)
    rows, columns = (below(reduced - side + 1)[:, None] + window for _ in range(2))
    each, channel = (torch.arange(n, device=images.device) for n in (count, 3))
    x = x[
        each[:, None, None, None],
        channel[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return torch.where(below(2).bool()[:, None, None, None], x.flip(-1), x)


def draw_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return (count,) int64 timesteps, one in each of `count` equal parts of [0, 1000).

    Each is uniform; together they vary less than independent draws.
    """
    u = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
    return ((torch.arange(count, device=u.device) + u) / count * len(ALPHA_BAR)).long()


def add_noise(x: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return x_t of x_0.

    Args:
        x: (B, 3, H, W) clean images; their dtype is kept.
        t: (B,) int64 original timesteps.
        eps: (B, 3, H, W) noise.
    """
    return diffuse(x, eps, ALPHA_BAR.to(x.device)[t].view(-1, 1, 1, 1)).to(x.dtype)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return config.json of the network to train: from a folder, a file, or --blocks."""
    if args.init:
        return read_json(args.init / CONFIG)
    return read_json(args.config) if args.config else unshuffled(args.blocks)


def unshuffled(blocks: tuple[int, ...]) -> dict[str, Any]:
    """Return config.json of a network like the embedded prior after a pixel_unshuffle by 2.

    The two lowest levels have attention.
    """
    n = len(blocks) - 2
    return read_json(EMBEDDED_PRIOR / CONFIG) | {
        "block_out_channels": list(blocks),
        "down_block_types": n * ["ResnetDownsampleBlock2D"] + 2 * ["AttnDownBlock2D"],
        "up_block_types": 2 * ["AttnUpBlock2D"] + n * ["ResnetUpsampleBlock2D"],
        "unshuffle": 2,
    }


def fresh_network(settings: dict[str, Any]) -> torch.nn.Module:
    """Return the network with initial weights drawn from torch's global generator."""
    network = build_network(settings).to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def write_folder(folder: Path, network: torch.nn.Module, settings: dict[str, Any]) -> None:
    """Write config.json and safetensors of the network's dtype.

    The config is written without the path that it was read from.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(
        folder / CONFIG, {key: value for key, value in settings.items() if key != "_name_or_path"}
    )


class Training:
    """Training run that minimises L_simple of DDPM (eq. 14) with AdamW.

    `average` is an exponential moving average of the weights. The learning rate warms up over
    `--warmup` steps and falls as a cosine to 0 at the end of --steps or --seconds.
    """

    def __init__(self, args: argparse.Namespace, images: torch.Tensor) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.settings = settings_of(args)
        torch.manual_seed(args.seed)  # for a fresh network's weights; the rest has own generators
        network = (
            load_network(args.init / CONFIG, args.init / WEIGHTS)
            if args.init
            else fresh_network(self.settings)
        )
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self.network = network.train().requires_grad_(True).to(self.device, memory_format=layout)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), args.lr, weight_decay=0.0, fused=fused
        )
        compiled = fused if args.compile is None else args.compile
        self.call = torch.compile(self.network, dynamic=False) if compiled else self.network
        self.images = images.to(self.device)
        self.step, self.seconds, self.losses = 0, 0.0, []

    def progress(self) -> float:
        """Return the progress from 0 to 1; training ends at 1."""
        return self.step / self.args.steps if self.args.steps else self.seconds / self.args.seconds

    def one_step(self) -> torch.Tensor:
        """Do one step and return its loss, on the device."""
        generator = torch.Generator(self.device).manual_seed(self.args.seed * 1_000_003 + self.step)
        side, count, scale = CYCLE[self.step % len(CYCLE)]
        x = draw_crops(self.images, side, count * self.args.batch, scale, generator)
        t = draw_timesteps(len(x), generator)
        eps = torch.randn(x.shape, generator=generator, device=self.device)
        half = self.args.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output = self.call(add_noise(x, t, eps), t, return_dict=False)[0]
        loss = F.mse_loss(output.float(), eps)
        warm = min(1.0, (self.step + 1) / self.args.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = (
                self.args.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        # The decay grows, so that early weights are soon forgotten.
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.network.parameters()), 1 - decay
            )
        return loss.detach()

    def run(self) -> None:
        """Train from the last checkpoint to the end.

        Log every 50 steps. Save every `--save-every` steps and at the end.
        """
        last = self.args.out / "last.ckpt"
        if last.exists():
            self.load(last)
        started, before = time.perf_counter(), self.seconds
        pending: list[torch.Tensor] = []
        while self.progress() < 1:
            pending.append(self.one_step())
            ends = self.args.steps is not None and self.step == self.args.steps
            if ends or self.step % min(50, self.args.save_every) == 0 or self.step <= len(CYCLE):
                # This waits for the device, so clocks and losses are right here.
                self.losses += torch.stack(pending).tolist()
                pending = []
            self.seconds = before + time.perf_counter() - started
            if self.step % 50 == 0:
                print(
                    f"step {self.step}, {self.seconds:.0f} s: loss "
                    f"{np.mean(self.losses[-200:]):.4f}",
                    flush=True,
                )
            if self.step % self.args.save_every == 0:
                self.save(last)
        self.losses += torch.stack(pending).tolist() if pending else []
        self.save(last)

    def save(self, path: Path) -> None:
        """Write the averaged network, its card, and the state that a resumed run needs."""
        buffer = io.BytesIO()
        state = {
            name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")
        }
        torch.save(
            state | {name: getattr(self, name) for name in ("step", "seconds", "losses")}, buffer
        )
        write_folder(self.args.out, self.average, self.settings)
        write_bytes(self.args.out / "README.md", card(self).encode())
        write_bytes(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Restore the state of a checkpoint."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]


def card(training: Training) -> str:
    """Return the folder's README.md: data, network, steps, losses, seconds."""
    args, losses = training.args, training.losses
    source = (
        f"{args.parquet.name}, split train alone"
        if args.parquet
        else f"the folder {args.folder.name}"
    )
    start = f"continued from {args.init}" if args.init else "fresh"
    million = sum(p.numel() for p in training.network.parameters()) / 1e6
    device = (
        torch.cuda.get_device_name()
        if training.device.type == "cuda"
        else f"{platform.machine()} processor"
    )
    rate = training.step * args.batch / max(training.seconds, 1e-9)
    return f"""# A prior trained by benchmarks/train_prior.py

| | |
|---|---|
| network | UNet2DModel, {million:.2f} M parameters, channels {training.settings["block_out_channels"]}, pixel_unshuffle {training.settings.get("unshuffle", "none")}, {start} |
| data | {len(training.images)} images of {source}; no other image |
| steps | {training.step} of {args.batch * SIDE * SIDE} pixels: of four, three of crops of 64x64 at scales 0.5 and 0.75, one of whole images |
| optimiser | AdamW, learning rate {args.lr:g} with a cosine, {args.warmup} steps of warm-up, averaged weights, {args.precision} |
| loss | {np.mean(losses[:200]):.4f} over the first {len(losses[:200])} steps, {np.mean(losses[-200:]):.4f} over the last {len(losses[-200:])} |
| seconds | {training.seconds:.0f} on {device}: {rate:.1f} images of 128x128 a second |

{date.today().isoformat()}, torch {torch.__version__}. Attribution of the data's owners goes with the weights.
"""


def train(args: argparse.Namespace) -> None:
    """Start or resume a training; see the top of this file."""
    images = read_parquet(args.parquet, "train") if args.parquet else read_folder(args.folder)
    Training(args, images).run()


@torch.no_grad()
def eps_error(network: Any, x: torch.Tensor, t: int) -> float:
    """Return the mean squared error of predicted noise on x (B, 3, H, W) at one t.

    The noise is drawn with seed t.
    """
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t)).to(x.device)
    errors = []
    for x_0, e in zip(x.split(8), eps.split(8), strict=True):
        times = torch.full((len(x_0),), t, device=x.device)
        output = network(add_noise(x_0, times, e), times, return_dict=False)[0]
        errors.append((output - e).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).mean().item()


def evaluate(args: argparse.Namespace) -> None:
    """Print a Markdown table of the noise error by split, side and t of each folder.

    Its last columns are the ratios to the first folder's error.
    """
    print(
        "| prior | split, side |"
        + "".join(f" t={t} |" for t in EVALUATION_TIMESTEPS)
        + " t >= 50, ratio | t = 10, ratio |"
    )
    print("|---|---|" + "---|" * (len(EVALUATION_TIMESTEPS) + 2))
    networks = {f: load_network(f / CONFIG, f / WEIGHTS).to(args.device) for f in args.networks}
    for split in ("val", "test"):
        images = read_parquet(args.parquet, split, limit=144).float().to(args.device) / 127.5 - 1
        for side in (64, 128):
            x = images if side == SIDE else resize(images, side)
            first: list[float] = []
            for folder, network in networks.items():
                errors = [eps_error(network, x, t) for t in EVALUATION_TIMESTEPS]
                first = first or errors
                ratios = [e / f for e, f in zip(errors, first, strict=True)]
                shown = "".join(f" {e:.5f} |" for e in errors)
                print(
                    f"| {folder} | {split} {side} |{shown} {np.mean(ratios[1:]):.4f} | "
                    f"{ratios[0]:.4f} |",
                    flush=True,
                )


class Traffic(TorchDispatchMode):
    """Counter of the bytes that operations read and write without fusion; views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.bytes += sum(
                x.nbytes for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)
            )
        return result


def work_of_an_image(settings: dict[str, Any], side: int) -> dict[str, float]:
    """Return operations and bytes of one image's forward and backward pass in bfloat16.

    Only the part that grows with the batch counts.
    """
    counts = []
    for batch in (4, 8):  # weights are read once per batch, so the difference leaves them out
        with FakeTensorMode():
            network = build_network(settings)  # on the meta device
            for module in network.modules():
                for name, weight in module.named_parameters(recurse=False):
                    setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape)))
            x, t = torch.empty(batch, 3, side, side), torch.zeros(batch, dtype=torch.long)
            with (
                torch.autocast("cpu", torch.bfloat16),
                FlopCounterMode(display=False) as flops,
                Traffic() as traffic,
            ):
                network(x, t, return_dict=False)[0].float().square().mean().backward()
        counts.append((flops.get_total_flops(), traffic.bytes))
    return {name: (b - a) / 4 for name, a, b in zip(("operations", "bytes"), *counts, strict=True)}


def count(args: argparse.Namespace) -> None:
    """Write the images per second that a GPU should train on.

    The limits are its rates of matrix products and of memory copies.
    """
    rows = []
    networks = {"embedded prior": read_json(EMBEDDED_PRIOR / CONFIG)}
    networks |= {
        f"unshuffle 2, {', '.join(map(str, blocks))}": unshuffled(blocks) for blocks in UNSHUFFLED
    }
    for name, settings in networks.items():
        million = sum(p.numel() for p in build_network(settings).parameters()) / 1e6
        # Of four steps, three use 64x64 crops and one whole images. Four crops have the pixels of
        # an image.
        small, whole = work_of_an_image(settings, 64), work_of_an_image(settings, SIDE)
        operations, moved = (
            0.75 * 4 * small[key] + 0.25 * whole[key] for key in ("operations", "bytes")
        )
        by_arithmetic = args.utilisation * args.teraflops * 1e12 / operations
        by_memory, fused = (args.terabytes * 1e12 / (moved / n) for n in (1, args.fusion))
        rows.append(
            f"| {name} | {million:.1f} | {operations / 1e9:.1f} | {moved / 1e9:.2f} | "
            f"{by_arithmetic:,.0f} | {by_memory:,.0f} "
            f"| {fused:,.0f} |"
        )
        print(rows[-1], flush=True)
    share = f"{args.utilisation:.0%}"
    text = f"""# Images a second that an H200 should train the embedded prior on

Counted, not measured: operations and bytes of one image of 128x128 pixels, forward and backward, in bfloat16 autocast, over
the mix of crops that `benchmarks/train_prior.py train` draws. By arithmetic: {share} of {args.teraflops:g} TFLOP/s, the rate of
a large bfloat16 product measured on such a card. By memory: inputs and outputs of each operation at {args.terabytes:g} TB/s,
the rate of a copy measured there. Eager: all bytes; compiled: fusion is assumed to leave 1/{args.fusion:g} of them. Compare
a run with the lower of arithmetic and compiled memory. If it is far below the eager limit, it waits for the processor: raise
--batch.

| network | parameters, M | Gop an image | GB an image | images/s by arithmetic | by memory, eager | by memory, compiled |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Weights, gradients, optimiser and average are left out: about 50 bytes per parameter and step, 0.1 ms for the largest network.

{date.today().isoformat()}, torch {torch.__version__}. Command: `python benchmarks/train_prior.py count`
"""
    publish(text, args.out)


def ship(args: argparse.Namespace) -> None:
    """Write a network as float16 safetensors and print the SHA-256.

    Its config is written without the path that it was read from.
    """
    network = load_network(args.network / CONFIG, args.network / WEIGHTS).half()
    write_folder(args.out, network, read_json(args.network / CONFIG))
    print(f"{sha256_of_file(args.out / WEIGHTS)}  {args.out / WEIGHTS}")


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("train", help="train a fresh network, or continue one")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--parquet",
        type=Path,
        help="file with columns image and split; only the split train is used",
    )
    source.add_argument("--folder", type=Path, help="folder of images, all used")
    start = p.add_mutually_exclusive_group(required=True)
    start.add_argument("--init", type=Path, help="diffusers folder to continue from")
    start.add_argument("--config", type=Path, help="config.json of a fresh network")
    channels = lambda text: tuple(int(n) for n in text.split(","))  # noqa: E731
    start.add_argument(
        "--blocks",
        type=channels,
        help="channels of a fresh network after a pixel_unshuffle: 64,96,128",
    )
    p.add_argument(
        "--out", type=Path, required=True, help="diffusers folder to write, with last.ckpt in it"
    )
    end = p.add_mutually_exclusive_group(required=True)
    end.add_argument("--steps", type=int)
    end.add_argument("--seconds", type=float, help="training time, without interruptions")
    p.add_argument(
        "--batch",
        type=int,
        default=2,
        help="pixels per step, in images of 128x128 (default: %(default)s)",
    )
    p.add_argument("--warmup", type=int, default=100, help="steps (default: %(default)s)")
    p.add_argument(
        "--lr", type=float, default=1e-4, help="peak learning rate (default: %(default)s)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(default: %(default)s)",
    )
    p.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="(default: %(default)s)",
    )
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    p.add_argument(
        "--save-every",
        type=int,
        default=500,
        help="steps between checkpoints (default: %(default)s)",
    )
    p.set_defaults(run=train)
    p = commands.add_parser(
        "evaluate", help="noise error on the first images of the splits val and test"
    )
    p.add_argument("--parquet", type=Path, required=True)
    p.add_argument("--device", default="cpu")
    p.add_argument("networks", nargs="+", type=Path, help="diffusers folders")
    p.set_defaults(run=evaluate)
    p = commands.add_parser(
        "count", help="images per second that a GPU should train on; trains nothing"
    )
    p.add_argument(
        "--teraflops",
        type=float,
        default=788,
        help="rate of bfloat16 products (default: %(default)s, an H200)",
    )
    p.add_argument(
        "--utilisation", type=float, default=0.4, help="share of the rate (default: %(default)s)"
    )
    p.add_argument(
        "--terabytes",
        type=float,
        default=4.3,
        help="TB/s of memory (default: %(default)s, an H200)",
    )
    p.add_argument(
        "--fusion",
        type=float,
        default=2,
        help="factor by which compiling reduces the bytes (default: %(default)s)",
    )
    p.add_argument("--out", type=Path)
    p.set_defaults(run=count)
    p = commands.add_parser("ship", help="write a network as float16 safetensors")
    p.add_argument("network", type=Path, help="diffusers folder to read")
    p.add_argument("out", type=Path, help="diffusers folder to write")
    p.set_defaults(run=ship)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        args.run(args)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
