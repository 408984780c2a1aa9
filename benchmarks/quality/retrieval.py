"""Measure retrieval for degraded images: precision@K of category on splits of a Parquet file.

    python benchmarks/quality/retrieval.py --parquet FILE

The script takes five minutes on one core, four of them for CLIP with random weights (the floor).
For a row of trained CLIP weights, add --clip CHECKPOINT, with --architecture and --tag as in
conf/encoder/clip.yaml.
"""

import argparse
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adir.data.corpus import parquet_corpus
from adir.images import generator
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.encoders.clip import ClipEncoder, random_clip
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.encoders.pixel import PixelEncoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import copies
from adir.retrieval.query import QUERIES, query_image
from benchmarks.common import REPOSITORY, add_parquet, command, parser_of, publish, task_named

TASKS = ("sr4", "sr8", "deblur", "deblur_box4", "deblur_gauss", "colorization", "inpaint_box")
HEAD = """# Retrieval: precision@{k}

Share of the {k} nearest corpus images that are of the query's category; mean over {n} queries and its standard error.
Queries: the split `test` of `{parquet}`, degraded (clean: not degraded), shown to the encoder `{how}` (`query_preparation.md`).
Corpus: the split `corpus`, {size} images of {categories} categories. The prior never saw them; ImageNet has some of them.
`copies left out`: near-duplicates of the clean query cannot be found ({copies} images, for {affected} queries; most are
mirrored Leopards, which Caltech-101 holds). `copies kept`: they can be found.
`pixel`: distance between the images at 32x32. `clip-{architecture}-random`: the network with random initial weights (seed
{random_seed}), the floor for a trained one. Chance: the share of the query's category in the corpus.

{date}, seed {seed}, imagenet encoder {weights}:

    {command}

| query | encoder | copies left out | copies kept |
|---|---|---|---|
"""


class Study:
    """Queries and corpus of a Parquet file, and the corpus copies of each query."""

    def __init__(self, parquet: str, k: int) -> None:
        self.corpus, self.test = (
            parquet_corpus(parquet, "split", "corpus"),
            parquet_corpus(parquet, "split", "test"),
        )
        self.clean = [self.test.image(image_id) for image_id in self.test.ids]
        self.copies = [copies(x, self.corpus) for x in self.clean]
        self.k = k

    def degraded(self, task: str, seed: int) -> list[Tensor]:
        """Return the y of every query."""
        noise = [generator(seed, image_id, "y") for image_id in self.test.ids]
        return [task_named(task).degrade(x, g) for x, g in zip(self.clean, noise, strict=True)]

    def shown(self, task: str, ys: list[Tensor], how: str, input_size: int) -> list[Tensor]:
        """Return the images that an encoder gets for the y of every query."""
        return [query_image(task_named(task), y, how, input_size) for y in ys]

    def precisions(self, found: list[list[str]]) -> np.ndarray:
        """Return (Q,) shares of each query's neighbours that have its category."""
        kinds, wanted = (
            self.corpus.categories,
            [self.test.categories[image_id] for image_id in self.test.ids],
        )
        return np.array(
            [np.mean([kinds[i] == w for i in row]) for w, row in zip(wanted, found, strict=True)]
        )

    def chance(self) -> float:
        """Return the share of a query's category in the corpus, mean over queries."""
        share = Counter(self.corpus.categories.values())
        return float(
            np.mean([share[self.test.categories[i]] / len(self.corpus) for i in self.test.ids])
        )


def mean_and_error(values: np.ndarray, sign: bool = False) -> str:
    """Return the mean and its standard error, such as `0.393 ± 0.024`."""
    return (
        f"{values.mean():{'+' if sign else ''}.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"
    )


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for CLIP weights."""
    parser.add_argument("--clip", type=Path, default=None, help="file of CLIP weights")
    parser.add_argument(
        "--architecture", default="ViT-B-32", help="architecture of --clip and of the random floor"
    )
    parser.add_argument("--tag", default=None, help="tag of --clip, which sets its preprocessing")


def clip_of(args: argparse.Namespace) -> ClipEncoder:
    return ClipEncoder(args.architecture, args.tag, args.clip)


def main() -> None:
    parser = parser_of(__doc__, REPOSITORY / "results" / "embedded" / "retrieval.md")
    add_parquet(parser)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="files of conf/task")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--query", choices=list(QUERIES), default="as_is", help="preparation of y")
    parser.add_argument("--random-seed", type=int, default=0, help="seed of the random CLIP")
    parser.add_argument(
        "--no-floor", action="store_true", help="skip the random CLIP, which takes four minutes"
    )
    add_clip_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    study = Study(args.parquet, args.k)
    ys = {name: study.degraded(name, args.seed) for name in args.tasks}
    imagenet = ImagenetEncoder()
    encoders: list[Encoder] = [imagenet, PixelEncoder()]
    if args.clip is not None:
        encoders.insert(0, clip_of(args))
    if not args.no_floor:
        encoders.append(random_clip(args.architecture, args.random_seed))
    lines: dict[str, list[str]] = {name: [] for name in ("clean", *ys)}
    for encoder in encoders:
        index = Index.build(study.corpus, encoder)
        for name, rows in lines.items():
            size = encoder.input_size
            images = (
                study.clean if name == "clean" else study.shown(name, ys[name], args.query, size)
            )
            vectors = torch.cat([encoder.image(image[None]) for image in images])
            without, kept = (
                index.search(vectors, args.k, exclude)[0] for exclude in (study.copies, None)
            )
            cells = [mean_and_error(study.precisions(found)) for found in (without, kept)]
            rows.append(f"| {name} | {encoder.name} | {cells[0]} | {cells[1]} |")
            print(rows[-1], file=sys.stderr, flush=True)
    chance = f"| any | chance | {study.chance():.3f} | {study.chance():.3f} |"

    head = HEAD.format(
        k=args.k, n=len(study.test), parquet=Path(args.parquet).name, size=len(study.corpus), how=args.query,
        categories=len(set(study.corpus.categories.values())), copies=sum(map(len, study.copies)),
        affected=sum(map(bool, study.copies)), architecture=args.architecture, random_seed=args.random_seed,
        date=date.today(), seed=args.seed, weights=imagenet.weights_sha256[:12],
        command=command(__file__, (args.parquet, args.clip)),
    )  # fmt: skip
    text = head + "\n".join([*(row for rows in lines.values() for row in rows), chance]) + "\n"
    publish(text, args.out)


if __name__ == "__main__":
    main()
