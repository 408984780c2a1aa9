"""Train, continue, evaluate or ship the embedded prior: a small ADM-type denoiser, on a CPU.

    prior="python benchmarks/train_prior.py"
    $prior train --parquet caltech101_128.parquet --init adir/embedded/prior --out runs/prior --steps 4000
    $prior train --folder my_pictures --config adir/embedded/prior/config.json --out runs/new --steps 40000
    $prior evaluate --parquet caltech101_128.parquet adir/embedded/prior runs/prior
    $prior ship runs/prior adir/embedded/prior

`train` repeated with the same arguments resumes from the last checkpoint in --out and ends as an unbroken run does: a
step's pictures, noise and t come from a generator seeded by (seed, step). --out is a diffusers folder (the averaged
weights, float32). Of a parquet only the split `train` is trained on. `ship` rounds to float16, which halves the file.
"""

import argparse
import copy
import io
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import save
from torch.utils.data import DataLoader

from adir.diffusion.posterior import diffuse
from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError
from adir.files import read_json, sha256_of_file, walk, write_bytes, write_json

SIDE = 128  # pixels of a training picture, after reducing its short side and cropping the centre
# (crop side, crops a step, scales to draw from), one step each in turn; 32,768 pixels a step. Whole pictures stand for
# scale 1; most of the smaller crops are at scale 0.5, where pictures are sharpest and the error at low noise is largest.
REDUCED = (64, 8, (0.75, 0.5, 0.5))
CYCLE = (REDUCED, (128, 2, (1.0,)), REDUCED, REDUCED)
EVALUATION_TIMESTEPS = (10, 50, 100, 200, 400, 700)
ALPHA_BAR = linear_schedule(1000).alpha_bar


def decode_picture(source) -> np.ndarray:
    """(3, 128, 128) uint8 RGB of a file or a byte stream: short side reduced to 128 (Lanczos), centre crop."""
    image = Image.open(source).convert("RGB")
    if min(image.size) < SIDE:
        raise InputError(f"{source}: {image.size[0]}x{image.size[1]} pixels; the short side needs {SIDE} or more")
    scale = SIDE / min(image.size)
    if scale < 1:
        image = image.resize([max(SIDE, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE))).transpose(2, 0, 1)


def read_parquet(path: Path, split: str, limit: int | None = None) -> torch.Tensor:
    """(N, 3, 128, 128) uint8: one split's pictures, in the file's order. No other split's pictures are decoded."""
    rows = pq.read_table(path, columns=["image"], filters=[("split", "=", split)]).column("image")[:limit]
    if len(rows) == 0:
        raise InputError(f"{path} holds no picture of the split {split!r}: it needs the columns image and split")
    return torch.from_numpy(np.stack([decode_picture(io.BytesIO(row["bytes"].as_py())) for row in rows]))


def read_folder(path: Path) -> torch.Tensor:
    """(N, 3, 128, 128) uint8: every JPEG, PNG and WebP picture at or below `path`, in the order of their names."""
    files = sorted(walk(path, (".jpg", ".jpeg", ".png", ".webp")))
    if not files:
        raise InputError(f"no .jpg, .jpeg, .png or .webp file at or below {path}")
    return torch.from_numpy(np.stack([decode_picture(f) for f in files]))


def resize(x: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, side, side) of a (B, 3, H, W) in [-1, 1]: bicubic, antialiased, clipped to [-1, 1]."""
    return F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def draw_crops(pictures, side: int, count: int, scales: tuple, generator: torch.Generator) -> torch.Tensor:
    """(count, 3, side, side) float32 in [-1, 1]: random pictures, reduced by a random scale, cropped, half flipped."""

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    crops = []
    for _ in range(count):
        x = pictures[below(len(pictures))][None].float() / 127.5 - 1
        reduced = round(SIDE * scales[below(len(scales))])
        x = resize(x, reduced) if reduced < SIDE else x
        top, left = below(reduced - side + 1), below(reduced - side + 1)
        x = x[..., top : top + side, left : left + side]
        crops.append(x.flip(-1) if below(2) else x)
    return torch.cat(crops)


def draw_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int64, one t in each of `count` equal parts of [0, 1000): uniform each, with less variance together."""
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return ((torch.arange(count) + u) / count * len(ALPHA_BAR)).long()


def add_noise(x: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """x_t of x_0 at original timesteps t (B,), int64 on the CPU; x, eps: (B, 3, H, W). The type of x is kept."""
    return diffuse(x, eps, ALPHA_BAR[t].view(-1, 1, 1, 1).to(x.device)).to(x.dtype)


class PriorModule(pl.LightningModule):
    """Minimises L_simple of DDPM (eq. 14) and keeps an exponential average of the weights, `average`.

    `pictures` (N, 3, 128, 128) uint8 are held here, not in a loader: a step draws from the generator of (seed, step),
    so a resumed run continues exactly. Warm-up over `n_warmup` steps, then a cosine down to 0 at `n_steps`.
    """

    def __init__(self, network: UNet2DModel, pictures: torch.Tensor, n_steps: int, n_warmup: int, lr: float, seed: int):
        super().__init__()
        self.network, self.average = network, copy.deepcopy(network).requires_grad_(False)
        self.pictures, self.n_steps, self.n_warmup, self.lr, self.seed = pictures, n_steps, n_warmup, lr, seed

    def training_step(self, _, batch_idx):
        step = self.global_step
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        x = draw_crops(self.pictures, *CYCLE[step % len(CYCLE)], generator)
        t = draw_timesteps(len(x), generator)
        eps = torch.randn(x.shape, generator=generator)
        x, eps = x.to(self.device), eps.to(self.device)  # drawn on the CPU: the same numbers on any device
        loss = F.mse_loss(self.network(add_noise(x, t, eps), t.to(self.device)).sample.float(), eps)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), self.lr, weight_decay=0.0)

        def factor(step):
            if step < self.n_warmup:
                return (step + 1) / self.n_warmup
            return 0.5 * (1 + math.cos(math.pi * (step - self.n_warmup) / (self.n_steps - self.n_warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class AverageAndSave(pl.Callback):
    """Averages after each step; each `every` steps and at the end writes `out` (the average) and `out`/last.ckpt (all).

    Both here: a callback runs before the module's own hook, and would save an average that lags one step.
    """

    def __init__(self, out: Path, every: int):
        self.out, self.every, self.losses = out, every, []

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        step = trainer.global_step
        decay = min(0.999, (1 + step) / (10 + step))  # it grows, so that early weights are soon forgotten
        for mean, new in zip(module.average.parameters(), module.network.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        if step % 50 == 0:
            print(f"step {step} of {module.n_steps}: mean loss {np.mean(self.losses[-200:]):.4f}", flush=True)
        if step % self.every == 0 or step == module.n_steps:
            module.average.save_pretrained(self.out)
            trainer.save_checkpoint(self.out / "last.ckpt", weights_only=False)


def train(args: argparse.Namespace) -> None:
    """Runs or resumes a training; see the head of this file."""
    pl.seed_everything(args.seed)  # a fresh network's weights; all else has its own generators
    pictures = read_parquet(args.parquet, "train") if args.parquet else read_folder(args.folder)
    if args.init:
        network = UNet2DModel.from_pretrained(args.init, torch_dtype=torch.float32)
    else:
        network = UNet2DModel.from_config(read_json(args.config))
    module = PriorModule(network.train(), pictures, args.steps, args.warmup, args.lr, args.seed)
    trainer = pl.Trainer(
        accelerator=args.accelerator, devices=1, precision=args.precision,
        max_steps=args.steps, max_epochs=-1, gradient_clip_val=1.0,
        callbacks=[AverageAndSave(args.out, args.save_every)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = args.out / "last.ckpt"
    steps = DataLoader(range(args.steps), batch_size=None)
    trainer.fit(module, steps, ckpt_path=last if last.exists() else None, weights_only=True)


@torch.no_grad()
def eps_error(network: UNet2DModel, x: torch.Tensor, t: int) -> float:
    """Mean squared error of the noise predicted on x (B, 3, H, W) at one t; the noise is that of seed t."""
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
    errors = []
    for x_0, e in zip(x.split(8), eps.split(8), strict=True):
        times = torch.full((len(x_0),), t)
        errors.append((network(add_noise(x_0, times, e), times).sample - e).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).mean().item()


def evaluate(args: argparse.Namespace) -> None:
    """Prints a Markdown table: the noise error by split, side and t of each folder."""
    print("| prior | split, side |" + "".join(f" t={t} |" for t in EVALUATION_TIMESTEPS))
    print("|---|---|" + "---|" * len(EVALUATION_TIMESTEPS))
    for split in ("val", "test"):
        pictures = read_parquet(args.parquet, split, limit=144).float() / 127.5 - 1
        for side in (64, 128):
            x = pictures if side == SIDE else resize(pictures, side)
            for folder in args.networks:
                network = UNet2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
                errors = [eps_error(network, x, t) for t in EVALUATION_TIMESTEPS]
                print(f"| {folder} | {split} {side} |" + "".join(f" {e:.5f} |" for e in errors), flush=True)


def ship(args: argparse.Namespace) -> None:
    """Writes a network as float16 safetensors, its config without the path it came from; prints the SHA-256."""
    network = UNet2DModel.from_pretrained(args.network, torch_dtype=torch.float32)
    half = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    weights = args.out / "diffusion_pytorch_model.safetensors"
    config = read_json(args.network / "config.json")
    config.pop("_name_or_path", None)
    write_bytes(weights, save(half, metadata={"format": "pt"}))
    write_json(args.out / "config.json", config)
    print(f"{sha256_of_file(weights)}  {weights}")


def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("train", help="train a fresh network, or continue one")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--parquet", type=Path, help="file with columns image and split; only the split train is used")
    source.add_argument("--folder", type=Path, help="folder of pictures, all used")
    start = p.add_mutually_exclusive_group(required=True)
    start.add_argument("--init", type=Path, help="diffusers folder to continue from")
    start.add_argument("--config", type=Path, help="config.json of a fresh network")
    p.add_argument("--out", type=Path, required=True, help="diffusers folder to write, with last.ckpt in it")
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--warmup", type=int, default=100, help="steps (default: %(default)s)")
    p.add_argument("--lr", type=float, default=1e-4, help="peak learning rate (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--accelerator", default="auto", help="Lightning's name of it (default: %(default)s)")
    p.add_argument("--precision", default="bf16-mixed", help="Lightning's name of it (default: %(default)s)")
    p.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    p.set_defaults(run=train)
    p = commands.add_parser("evaluate", help="noise error on the first pictures of the splits val and test")
    p.add_argument("--parquet", type=Path, required=True)
    p.add_argument("networks", nargs="+", help="diffusers folders")
    p.set_defaults(run=evaluate)
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
