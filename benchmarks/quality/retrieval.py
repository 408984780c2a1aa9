"""How many of the 20 nearest corpus pictures of a degraded picture show what it shows (precision@20)?

    python benchmarks/quality/retrieval.py --parquet caltech101_128.parquet

Categories that no training of the encoder has seen: the splits `test` (queries, degraded by a task) and `corpus`.
Prints a table and writes it to results/embedded/retrieval.md. One minute on one CPU core.
"""

import argparse
import datetime
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from adir.files import write_bytes
from adir.images import generator
from adir.retrieval.corpus import ParquetCorpus
from adir.retrieval.duplicates import near_duplicates
from adir.retrieval.encoders import EmbeddedEncoder, Encoder, PixelEncoder
from adir.retrieval.index import Index

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = """# Retrieval: precision@{k}

Share of the {k} nearest corpus pictures that are of the query's category; mean over {n} queries and its standard error.
Queries: the split `test` of `{parquet}`, degraded (clean: not). Corpus: the split `corpus`, {size} pictures,
{categories} categories, none of which the encoder was trained on. `copies left out`: near-duplicates of the clean query
are not found ({copies} pictures, for {affected} queries; most are mirrored Leopards, which Caltech-101 holds);
`copies kept`: they may be.
Chance: the share of the query's category in the corpus.

{date}, seed {seed}, encoder weights {weights}:

    {command}

| query | encoder | copies left out | copies kept |
|---|---|---|---|
"""


def precisions(corpus: ParquetCorpus, queries: ParquetCorpus, found: list[list[str]]) -> np.ndarray:
    """(Q,) share of each query's neighbours that have its category."""
    wanted = [queries.categories[image_id] for image_id in queries.ids]
    return np.array([np.mean([corpus.categories[i] == w for i in row]) for w, row in zip(wanted, found, strict=True)])


def cell(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", required=True, help="caltech101_128.parquet: image, category, split, source_file")
    parser.add_argument("--tasks", nargs="+", default=["sr4", "deblur"], help="files of conf/task")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--weights", type=Path, default=None, help="folder of other weights of the embedded encoder")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "embedded" / "retrieval.md")
    args = parser.parse_args()
    torch.set_num_threads(1)

    corpus, test = ParquetCorpus(args.parquet, "split", "corpus"), ParquetCorpus(args.parquet, "split", "test")
    clean = [test.image(image_id) for image_id in test.ids]
    copies = [near_duplicates(x, corpus) for x in clean]
    queries = {"clean": clean}
    for name in args.tasks:
        task = instantiate(OmegaConf.load(REPOSITORY / "conf" / "task" / f"{name}.yaml"))
        noise = [generator(args.seed, image_id, "y") for image_id in test.ids]
        ys = [task.degrade(x, g) for x, g in zip(clean, noise, strict=True)]
        queries[name] = [task.picture_of(y) for y in ys]

    encoders: list[Encoder] = [EmbeddedEncoder(args.weights), PixelEncoder()]
    lines = []
    for encoder in encoders:
        index = Index.build(corpus, encoder)
        for name, pictures in queries.items():
            vectors = encoder.image(torch.stack(pictures))
            without, kept = (index.search(vectors, args.k, exclude)[0] for exclude in (copies, None))
            row = [cell(precisions(corpus, test, found)) for found in (without, kept)]
            lines.append(f"| {name} | {encoder.name} | {row[0]} | {row[1]} |")
    share = Counter(corpus.categories.values())
    chance = np.array([share[test.categories[image_id]] / len(corpus) for image_id in test.ids])
    lines.append(f"| any | chance | {chance.mean():.3f} | {chance.mean():.3f} |")

    head = HEAD.format(
        k=args.k, n=len(test), parquet=Path(args.parquet).name, size=len(corpus), categories=len(share),
        copies=sum(map(len, copies)), affected=sum(map(bool, copies)), date=datetime.date.today().isoformat(),
        seed=args.seed, weights=encoders[0].weights_sha256[:12],
        command="python benchmarks/quality/retrieval.py " + " ".join(
            Path(word).name if word == args.parquet else word for word in sys.argv[1:]
        ),
    )  # fmt: skip
    text = head + "\n".join(lines) + "\n"
    write_bytes(args.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
