"""Measure index building: is the encoder's throughput the limit, and does memory grow?

The corpus consists of synthetic JPEG images (512x384, smooth with noise, quality 90). The code of
`adir index build` runs in a fresh process for each corpus size. Before each build, the same process
measures two parts alone on the same images: the encoder on prepared images, and one thread that
loads images (reading, hashing, decoding, fingerprints, preparation).

"reached" is the throughput of the build, from the first listing to the manifest, over that of the
encoder alone. Let loading an image take l seconds of a processor, and encoding it e. c processors
process at most c / (l + e) images per second, n loader threads n / l, and the encoder alone 1 / e.
A build therefore reaches at most min(1, c e / (l + e), n e / l), the column "possible".

Run: OMP_NUM_THREADS=1 python benchmarks/speed/index_build.py --sizes 2000 8000 \\
         --out results/speed/index_build.md
     OMP_NUM_THREADS=1 python benchmarks/speed/index_build.py --random-clip ViT-B-32 \\
         --sizes 300 900 --out results/speed/index_build_clip.md
     (5 minutes each on two idle processors; for a short test: --sizes 100 400)
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image

from adir.data.sources.folder import FolderSource
from adir.harness.cells.compose import compose
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.encoders.clip import random_clip
from adir.retrieval.index.builder import (
    build_shard,
    extend_plan,
    finish,
    load,
    missing_shards,
    require_same_index,
)
from benchmarks.common import command, made_on, parser_of, publish, resident, seconds_of

SIZE = (512, 384)
ALONE = 64
"""Number of images for measuring the encoder and loading alone."""


def make_images(folder: Path, first: int, last: int) -> None:
    """Write synthetic images as JPEG files with the numbers first to last - 1."""
    folder.mkdir(exist_ok=True)
    for number in range(first, last):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(small, np.int16) + draw.integers(
            -12, 13, (SIZE[1], SIZE[0], 3), dtype=np.int16
        )
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:06d}.jpg", quality=90
        )


def alone(source: FolderSource, encoder: Encoder) -> tuple[float, float]:
    """Return the seconds per image of loading and of encoding, each measured alone.

    Loading is processor time of one thread, encoding is wall-clock time.
    """
    keys = [key for key, _ in source.listing()][:ALONE]
    for _ in range(2):  # the first warms up
        started = time.thread_time()
        loaded = [load(item, encoder) for item in source.items(keys)]
        loading = (time.thread_time() - started) / len(keys)
    inputs = torch.stack([one[1] for one in loaded if not isinstance(one, str)])
    encoder.vectors(inputs[:4])
    return loading, seconds_of(lambda: encoder.vectors(inputs)) / len(inputs)


def build(images: Path, folder: Path, encoder: Encoder, shard_size: int, loaders: int) -> None:
    """Build the index and print its measurements as one line of numbers.

    They are the images, the seconds, the seconds of encoding and of waiting, the peak MB, the MB at
    the start, and the two values of `alone`.
    """
    source = FolderSource(images)
    loading, encoding = alone(source, encoder)
    before = resident("VmRSS") / 1e6
    started = time.perf_counter()
    require_same_index(folder, source, encoder)
    extend_plan(folder, source, shard_size)
    done = [
        build_shard(folder, number, source, encoder, 64, loaders)
        for number in missing_shards(folder)
    ]
    finish(folder)
    seconds = time.perf_counter() - started
    spent = sum(d.encoding for d in done), sum(d.waiting for d in done)
    peak = resident("VmHWM") / 1e6
    print(sum(d.images for d in done), seconds, *spent, peak, before, loading, encoding)


def row_of(numbers: list[float], processors: int, loaders: int) -> str:
    """Return the table's row for the numbers that `build` printed."""
    n, seconds, encoding, waiting, peak, before, load_s, encode_s = numbers
    possible = min(1, processors * encode_s / (load_s + encode_s), loaders * encode_s / load_s)
    cells = [
        f"{n:.0f}",
        f"{load_s * 1e3:.2f}",
        f"{encode_s * 1e3:.2f}",
        f"{1 / encode_s:.1f}",
        f"{n / seconds:.1f}",
    ]
    cells += [f"**{n / seconds * encode_s:.0%}**", f"{possible:.0%}"]
    cells += [f"{encoding:.1f}", f"{waiting:.1f}", f"{seconds - encoding - waiting:.1f}"]
    return f"| {' | '.join([*cells, f'{peak:.0f}', f'{peak - before:.0f}'])} |"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument(
        "--encoder", nargs="+", default=["encoder=imagenet"], help="as for adir index build"
    )
    parser.add_argument(
        "--random-clip",
        metavar="ARCHITECTURE",
        help="use CLIP with random weights instead of --encoder",
    )
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--child", nargs=2, type=Path, help=SUPPRESS)
    args = parser.parse_args()
    if args.child:
        clip = args.random_clip
        encoder = (
            random_clip(clip, 0) if clip else instantiate(compose(args.encoder, "index").encoder)
        )
        build(*args.child, encoder, args.shard_size, args.loaders)
        return
    rows, processors = [], len(os.sched_getaffinity(0))
    which = (
        ["--random-clip", args.random_clip] if args.random_clip else ["--encoder", *args.encoder]
    )
    made = made_on()  # with the load before the builds
    with tempfile.TemporaryDirectory() as temporary:
        images, n_made = Path(temporary) / "images", 0
        for size in sorted(args.sizes):
            make_images(images, n_made, size)
            n_made = size
            words = [*which, "--shard-size", str(args.shard_size), "--loaders", str(args.loaders)]
            child = [
                sys.executable,
                __file__,
                *words,
                "--child",
                str(images),
                f"{temporary}/index-{size}",
            ]
            out = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows.append(row_of(list(map(float, out.split())), processors, args.loaders))
    lines = [
        "# Building an index",
        "",
        f"{SIZE[0]}x{SIZE[1]} JPEG images, {' '.join(which[1:])}, {args.loaders} loader threads, "
        f"{torch.get_num_threads()} thread for the encoder, {processors} processors, shards of "
        f"{args.shard_size}.",
        "",
        "| images | load one, ms | encode one, ms | encoder alone, /s | build, /s | reached | "
        "possible | encoding, s | "
        "waiting, s | rest, s | peak MB | above the start, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "Reached: the build's images/s over those of the encoder alone. Possible: the limit that "
        "the seconds of loading and",
        "encoding set on these processors. Rest: listing, writing shards, the manifest. The last "
        "column must not grow with the",
        "number of images.",
        "",
        f"{made}. Command: `OMP_NUM_THREADS={torch.get_num_threads()} {command(__file__)}`",
    ]
    publish("\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
