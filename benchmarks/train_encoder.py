"""Train the embedded encoder: a small CNN whose vector of a degraded picture lies near that of the clean one.

    python benchmarks/train_encoder.py --parquet caltech101_128.parquet --steps 5000 --out adir/embedded/encoder

Two views of each picture, one clean and one degraded (crops of their own), must find the picture's category by cosine
similarity (normalised softmax) and each other among the pictures of the batch (InfoNCE, van den Oord et al., 2018).
Only the split `train` is seen; `val` is what the log shows. About 45 minutes on one CPU core.
"""

import argparse
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytorch_lightning as lightning
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from adir.retrieval.encoders.embedded_network import INPUT_SIZE, EncoderNetwork, save_network

CANVAS = 80  # pictures are kept at this size: windows of it are resampled to INPUT_SIZE
NO_CATEGORY = "BACKGROUND_Google"  # pictures of anything: only the pair of views counts there
CHUNK = 8  # pictures of a batch that share one kind of degradation


def load(path: str, split: str, size: int) -> tuple[Tensor, list[str]]:
    """(N, 3, size, size) uint8 pictures of one split, antialiased bicubic, and their categories."""
    table = parquet.read_table(path, columns=["image", "category"], filters=[("split", "=", split)])
    pictures = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"].to_pylist()]
    pixels = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), table["category"].to_pylist()


def uniform(low: float, high: float, shape: int | tuple[int, ...] = ()) -> Tensor:
    return low + (high - low) * torch.rand(shape)


def crop(pictures: Tensor) -> Tensor:
    """A random window of each picture (0.3 to 1 of its area, turned up to 10 degrees, maybe flipped), resampled."""
    n = len(pictures)
    scale, aspect, angle = uniform(0.3, 1.0, n).sqrt(), uniform(-0.14, 0.14, n).exp(), uniform(-0.17, 0.17, n)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    width, height = (scale * aspect).clamp(max=1), (scale / aspect).clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * width * angle.cos(), -height * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = flip * width * angle.sin(), height * angle.cos()
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1, n) * (1 - width), uniform(-1, 1, n) * (1 - height)
    grid = functional.affine_grid(theta, [n, 3, INPUT_SIZE, INPUT_SIZE], align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter(x: Tensor) -> Tensor:
    """Brightness, contrast, saturation and channel balance, each picture its own, in [-1, 1]."""
    n = len(x)
    mean, grey = x.mean((1, 2, 3), keepdim=True), x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.6, 1.4, (n, 1, 1, 1))
    x = mean + (x - mean) * uniform(0.7, 1.3, (n, 1, 1, 1)) + uniform(-0.2, 0.2, (n, 1, 1, 1))
    return (x + uniform(-0.08, 0.08, (n, 3, 1, 1))).clamp(-1, 1)


def quantise_blocks(x: Tensor, step: float) -> Tensor:
    """JPEG's loss in RGB: 8x8 cosine transform, coefficients (i, j) rounded to multiples of step (1 + i + j)."""
    k = torch.arange(8.0)
    basis = (math.pi * (2 * k[None] + 1) * k[:, None] / 16).cos() / 2
    basis[0] /= math.sqrt(2)
    steps = step * (1 + k[:, None] + k[None])
    n, side = len(x), x.shape[-1] // 8
    blocks = x.reshape(n, 3, side, 8, side, 8).transpose(3, 4)
    blocks = basis.T @ ((basis @ blocks @ basis.T / steps).round() * steps) @ basis
    return blocks.transpose(3, 4).reshape(x.shape)


def degrade(x: Tensor) -> Tensor:
    """(n, 3, S, S) in [-1, 1] through one random chain: low resolution, blur, noise, JPEG-like blocks, grey, a hole."""
    size = x.shape[-1]
    chance = torch.rand(6)
    if chance[0] < 0.45:
        small = int(uniform(12, 44))
        mode = "bicubic" if torch.rand(()) < 0.6 else "area"
        x = functional.interpolate(x, (small, small), mode=mode, antialias=True if mode == "bicubic" else False)
        x = functional.interpolate(x, (size, size), mode="bicubic" if torch.rand(()) < 0.8 else "bilinear")
    if chance[1] < 0.4:
        sigma = uniform(0.4, 1.8)
        taps = torch.arange(-4.0, 5.0)
        box = (taps.abs() <= int(uniform(1, 3))).float()
        taps = (-(taps**2) / (2 * sigma**2)).exp() if torch.rand(()) < 0.5 else box
        taps = (taps / taps.sum()).expand(3, 1, 1, -1)
        x = functional.pad(x, (4, 4, 4, 4), mode="reflect")
        x = functional.conv2d(functional.conv2d(x, taps, groups=3), taps.transpose(2, 3), groups=3)
    if chance[2] < 0.5:
        x = x + torch.randn_like(x) * uniform(0, 15) / 127.5
    if chance[3] < 0.1:
        x = quantise_blocks(x, float(uniform(0.03, 0.15)))
    if chance[4] < 0.1:
        x = x.mean(1, keepdim=True).expand_as(x)
    if chance[5] < 0.12:
        side, top, left = int(uniform(12, 32)), int(uniform(0, 40)), int(uniform(0, 40))
        x = x.clone()
        x[:, :, top : top + side, left : left + side] = 0
    return x.clamp(-1, 1)


class Views(IterableDataset):
    """Endless batches (clean views, degraded views, category or -1); rare categories are drawn more often (n^-1/2)."""

    def __init__(self, pictures: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self.pictures, self.labels, self.batch, self.seed = pictures, labels, batch, seed
        counts = torch.bincount(labels + 1).double()
        self.weights = counts[labels + 1] ** -0.5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        torch.manual_seed(self.seed)  # in the loader's own process
        torch.set_num_threads(1)
        while True:
            chosen = torch.multinomial(self.weights, self.batch, replacement=False)
            pictures = self.pictures[chosen].float() / 127.5 - 1
            degraded = torch.cat([degrade(chunk) for chunk in jitter(crop(pictures)).split(CHUNK)])
            yield jitter(crop(pictures)), degraded, self.labels[chosen]


class EncoderModule(lightning.LightningModule):
    """Normalised softmax over categories plus InfoNCE between views; `average` is the mean of the weights over time."""

    def __init__(
        self, network: EncoderNetwork, n_categories: int, n_steps: int, minutes: float, learning_rate: float
    ) -> None:
        super().__init__()
        self.network = network
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True)
        self.average.requires_grad_(False)
        self.prototypes = nn.Parameter(torch.randn(n_categories, network.head.out_features))
        self.n_steps, self.seconds, self.learning_rate = n_steps, 60 * minutes, learning_rate
        self.start = time.monotonic()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        clean, degraded, labels = batch
        views = torch.cat([clean, degraded]).contiguous(memory_format=torch.channels_last)
        z = self.network(views)
        with torch.autocast("cpu", enabled=False):
            logits = 16 * z @ functional.normalize(self.prototypes, dim=1).T
            category = functional.cross_entropy(logits, labels.repeat(2), ignore_index=-1, label_smoothing=0.1)
            a, b = z.chunk(2)
            similarity = a @ b.T / 0.1
            same = (labels[:, None] == labels[None]) & (labels[:, None] >= 0)
            same.fill_diagonal_(False)  # others of its category are no counter-examples
            similarity = similarity.masked_fill(same, -math.inf)
            target = torch.arange(len(a))
            pair = (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)) / 2
        self.log_dict({"category": category, "pair": pair}, prog_bar=True)
        return category + 0.5 * pair

    def on_train_batch_end(self, *_: object) -> None:
        self.average.update_parameters(self.network)

    def configure_optimizers(self) -> dict:
        trained = [*self.network.parameters(), self.prototypes]
        optimiser = torch.optim.AdamW(trained, self.learning_rate, weight_decay=0.05)

        def rate(step: int) -> float:
            """Warm-up over 4 %, then a cosine to zero, by steps or by the clock, whichever is further."""
            done = min(1.0, max(step / self.n_steps, (time.monotonic() - self.start) / self.seconds))
            return min(1.0, (step + 1) / (0.04 * self.n_steps)) * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(lightning.Callback):
    """Every `every` steps: mean average precision on `val`, degraded pictures against clean ones, and a checkpoint."""

    def __init__(self, pictures: Tensor, categories: list[str], out: Path, every: int) -> None:
        keep = [i for i, category in enumerate(categories) if category != NO_CATEGORY]
        self.pictures = pictures[keep].float() / 127.5 - 1
        names = [categories[i] for i in keep]
        self.same = torch.tensor([[a == b for a in names] for b in names]).fill_diagonal_(False)
        self.out, self.every = out, every

    def on_train_batch_end(self, trainer: lightning.Trainer, module: EncoderModule, *_: object) -> None:
        if trainer.global_step % self.every and trainer.global_step < module.n_steps:
            return
        network = module.average.module.eval()
        with torch.no_grad():
            low = functional.interpolate(self.pictures, scale_factor=0.5, mode="bicubic", antialias=True)
            low = functional.interpolate(low, scale_factor=2, mode="bicubic")
            similarity = network(low) @ network(self.pictures).T
        similarity.fill_diagonal_(-2)
        hits = self.same.gather(1, similarity.argsort(1, descending=True)).double()
        precision = (hits * hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)).sum(1) / hits.sum(1).clamp(min=1)
        score = precision[hits.sum(1) > 0].mean().item()
        losses = {k: round(float(v), 3) for k, v in trainer.callback_metrics.items()}
        minutes = (time.monotonic() - module.start) / 60
        print(f"step {trainer.global_step} {minutes:.1f} min {losses} val mAP {score:.4f}", flush=True)
        save_network(network, self.out)


class Deadline(lightning.Callback):
    """Stop when the clock has run out."""

    def on_train_batch_end(self, trainer: lightning.Trainer, module: EncoderModule, *_: object) -> None:
        if time.monotonic() - module.start > module.seconds:
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, module: EncoderModule) -> None:
        module.n_steps = trainer.global_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", required=True, help="caltech101_128.parquet: columns image, category, split")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=600.0, help="ends by then, with the learning rate at zero")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--batch", type=int, default=64, help="pictures of a step; each gives two views")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lightning.seed_everything(args.seed)
    pictures, names = load(args.parquet, "train", CANVAS)
    val = load(args.parquet, "val", INPUT_SIZE)
    categories = sorted(set(names) - {NO_CATEGORY})
    labels = torch.tensor([categories.index(name) if name != NO_CATEGORY else -1 for name in names])
    network = EncoderNetwork().to(memory_format=torch.channels_last)
    module = EncoderModule(network, len(categories), args.steps, args.minutes, args.learning_rate)
    views = Views(pictures, labels, args.batch, args.seed)
    loader = DataLoader(views, batch_size=None, num_workers=1, prefetch_factor=4)
    trainer = lightning.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=args.steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, gradient_clip_val=5.0, callbacks=[Watch(*val, args.out, 200), Deadline()],
    )  # fmt: skip
    trainer.fit(module, loader)
    save_network(module.average.module.eval(), args.out)


if __name__ == "__main__":
    main()
