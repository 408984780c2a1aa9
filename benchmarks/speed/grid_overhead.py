"""Measure the harness's overhead: a grid's wall-clock seconds over the seconds of its stages.

    python benchmarks/speed/grid_overhead.py

The grid has 2 tasks x 4 modes x 3 K x 3 seeds on the demo's images: 72 combinations, 48 cells, 144
images. A distinct stage is a y, a search for neighbours, the training of an adapter, a sampling or
a scoring that no other cell could have shared. The script prints a table and writes it to
results/speed/grid_overhead.md. It takes about 10 minutes on one core.
"""

import json
import tempfile
from pathlib import Path

from adir.files import safetensors_metadata
from benchmarks.common import (
    REPOSITORY,
    adir,
    finished_records,
    made_on,
    parser_of,
    publish,
    seconds_of,
)

GRID = [
    "data=demo",
    "task=sr4,deblur",
    "adaptation=none,self,knn,random",
    "k=5,10,20",
    "seed=0,1,2",
]


def distinct_seconds(results: Path) -> dict[str, float]:
    """Return the seconds by stage, with each distinct stage counted once.

    Trainings are read from the adapters, the other stages from the records.
    """
    seconds = dict.fromkeys(("measure", "retrieve", "train", "sample", "score"), 0.0)
    seen: set[tuple[str, str]] = set()
    for record in finished_records(results):
        stages, file = record.seconds, str(record.y_file)
        if ("y", file) not in seen:
            seconds["measure"] += stages["measure"]
        if record.neighbours:
            key = json.dumps([file, record.axes.adaptation, record.axes.k, record.seed])
            if ("neighbours", key) not in seen:
                seconds["retrieve"] += stages["retrieve"]
            seen.add(("neighbours", key))
        seen.add(("y", file))
        seconds["sample"] += stages["sample"]
        seconds["score"] += stages["score"]
    for path in results.glob("adapters/*.safetensors"):
        seconds["train"] += json.loads(safetensors_metadata(path.read_bytes())["facts"])["seconds"]
    return seconds


def main() -> None:
    parser = parser_of(__doc__, REPOSITORY / "results" / "speed" / "grid_overhead.md")
    parser.add_argument("overrides", nargs="*", help="such as sampler.n_steps=5, for a short test")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "grid"
        words = ["run", "-m", *GRID, *args.overrides, f"results={results}"]
        wall = seconds_of(lambda: adir(*words))
        seconds = distinct_seconds(results)
        n_records = len(list(results.glob("cells/**/records/*.json")))
        n_adapters = len(list(results.glob("adapters/*.safetensors")))
        again = seconds_of(lambda: adir(*words))
    total = sum(seconds.values())
    lines = [
        "# What the harness costs",
        "",
        f"{n_records} records, {n_adapters} adapters; one worker, one thread; start of Python "
        "and check of the grid included.",
        f"{made_on()}:",
        "",
        "    python benchmarks/speed/grid_overhead.py " + " ".join(args.overrides),
        "",
        "| | seconds |",
        "|---|---|",
        *(f"| {stage} | {value:.1f} |" for stage, value in seconds.items()),
        f"| sum of distinct stages | {total:.1f} |",
        f"| wall clock of the grid | {wall:.1f} |",
        f"| **wall / sum** | **{wall / total:.3f}** (goal: below 1.05) |",
        f"| wall clock of the same command again, all images finished | {again:.1f} |",
    ]
    publish("\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
