"""Building an index: how much of the time the encoder works, and whether memory grows with the corpus.

Made JPEG pictures (512x384, smooth fields with noise, quality 90), the encoder of conf/encoder that is named, and the code of
`adir index build`, in a fresh process for each size of the corpus. "busy" is the encoder's share of encoding and waiting for
pictures; decoding runs beside it in `--loaders` threads, which on a processor without an accelerator take their time from it.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/index_build.py --sizes 2000 8000 --out results/speed/index_build.md
     (10 minutes; a look: --sizes 100 400)
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image

from adir.files import write_bytes
from adir.harness.launch import compose
from adir.retrieval.builder import build_shard, extend_plan, finish, missing_shards, require_same_index
from adir.retrieval.sources import FolderSource

SIZE = (512, 384)


def make_pictures(folder: Path, first: int, last: int) -> None:
    """JPEG files first.jpg ... of made pictures."""
    folder.mkdir(exist_ok=True)
    for number in range(first, last):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(small, np.int16) + draw.integers(-12, 13, (SIZE[1], SIZE[0], 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:06d}.jpg", quality=90)


def build(pictures: Path, folder: Path, words: list[str], shard_size: int, loaders: int) -> None:
    """Build the index and print what it took: pictures, seconds, encoding, waiting, peak MB, MB at the start."""
    encoder = instantiate(compose(words, "index").encoder)
    source = FolderSource(pictures)
    encoder.image(torch.zeros(2, 3, 64, 64))
    before = resident("VmRSS")
    started = time.perf_counter()
    require_same_index(folder, source, encoder)
    extend_plan(folder, source, shard_size)
    done = [build_shard(folder, number, source, encoder, 64, loaders) for number in missing_shards(folder)]
    finish(folder)
    encoding, waiting = sum(d.encoding for d in done), sum(d.waiting for d in done)
    print(sum(d.pictures for d in done), time.perf_counter() - started, encoding, waiting, resident("VmHWM"), before)


def resident(name: str) -> float:
    """MB, of /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--encoder", nargs="+", default=["encoder=embedded"], help="as to adir index build")
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the table to write")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        build(*args.child, args.encoder, args.shard_size, args.loaders)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        pictures, made = Path(temporary) / "pictures", 0
        for size in sorted(args.sizes):
            make_pictures(pictures, made, size)
            made = size
            words = ["--encoder", *args.encoder, "--shard-size", str(args.shard_size), "--loaders", str(args.loaders)]
            child = [sys.executable, __file__, *words, "--child", str(pictures), f"{temporary}/index-{size}"]
            out = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
            n, seconds, encoding, waiting, peak, before = map(float, out.split())
            rows.append(
                f"| {n:.0f} | {n / seconds:.1f} | {encoding:.1f} | {waiting:.1f} | {encoding / (encoding + waiting):.0%} | "
                f"{seconds - encoding - waiting:.1f} | {peak:.0f} | {peak - before:.0f} |"
            )
    lines = [
        "# Building an index",
        "",
        f"{SIZE[0]}x{SIZE[1]} JPEG pictures, {' '.join(args.encoder)}, {args.loaders} loader threads, "
        f"{torch.get_num_threads()} thread for the encoder, shards of {args.shard_size}.",
        "",
        "| pictures | pictures/s | encoding, s | waiting, s | encoder busy | rest, s | peak MB | above the start, MB |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "The last column must not grow with the number of pictures. Rest: listing, writing shards, the manifest.",
        "",
        f"{datetime.date.today()}; {platform.processor() or platform.machine()}, {os.cpu_count()} processors, load average "
        f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}. Command: `OMP_NUM_THREADS={torch.get_num_threads()} python "
        f"benchmarks/speed/index_build.py {' '.join(sys.argv[1:])}`",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        write_bytes(args.out, text.encode())


if __name__ == "__main__":
    main()
