"""Compare the preparations of y for an encoder: precision@K of category per task.

    python benchmarks/quality/query_preparation.py --parquet FILE

adir/retrieval/query.py lists the preparations. The script takes a few minutes on one core. To test
another encoder, run it again with --clip CHECKPOINT, --architecture and --tag.
"""

import sys
from datetime import date

import torch

from adir.retrieval.encoders.base import Encoder
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.index.memory import Index
from adir.retrieval.query import QUERIES
from benchmarks.common import REPOSITORY, add_parquet, command, parser_of, publish
from benchmarks.quality.retrieval import TASKS, Study, add_clip_options, clip_of, mean_and_error

HEAD = """# How y is shown to the encoder: precision@{k}

Share of the {k} nearest corpus images that are of the query's category; mean over {n} queries and its standard error.
Data, categories and omitted copies are as in `retrieval.md`. Each row is a task whose y is shown to the encoder in each way:

{choices}

The images are square. For an encoder that crops (CLIP), `resized` and `as_is` therefore differ in the order of rounding only;
for `imagenet` they are equal. The highest value of each row is bold. Last column: the better of the two inverses minus `as_is`,
mean over the same queries.

{date}, seed {seed}:

    {command}

"""


def main() -> None:
    parser = parser_of(__doc__, REPOSITORY / "results" / "embedded" / "query_preparation.md")
    add_parquet(parser)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="files of conf/task")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    add_clip_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    study = Study(args.parquet, args.k)
    encoder: Encoder = ImagenetEncoder() if args.clip is None else clip_of(args)
    index = Index.build(study.corpus, encoder)
    lines = [
        f"| task ({encoder.name}) | {' | '.join(QUERIES)} | better inverse - as_is |",
        "|---" * 6 + "|",
    ]
    for name in args.tasks:
        ys = study.degraded(name, args.seed)
        found = {}
        for how in QUERIES:
            images = study.shown(name, ys, how, encoder.input_size)
            vectors = torch.cat([encoder.image(image[None]) for image in images])
            found[how] = study.precisions(index.search(vectors, args.k, study.copies)[0])
        best = max(found, key=lambda how: found[how].mean())
        cells = [
            f"**{mean_and_error(v)}**" if how == best else mean_and_error(v)
            for how, v in found.items()
        ]
        others = {
            how: found[how] - found["as_is"] for how in QUERIES if how not in ("as_is", "resized")
        }
        other = max(others, key=lambda how: others[how].mean())
        lines.append(
            f"| {name} | {' | '.join(cells)} | {other}: "
            f"{mean_and_error(others[other], sign=True)} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    head = HEAD.format(
        k=args.k, n=len(study.test), date=date.today(), seed=args.seed,
        command=command(__file__, (args.parquet, args.clip)),
        choices="\n".join(f"- `{how}`: {text};" for how, text in QUERIES.items()),
    )  # fmt: skip
    publish(head + "\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
