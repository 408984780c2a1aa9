"""Measure the seconds of `adir leaderboard` over many records, Python's start included.

The records are synthetic and as large as real ones (6 kB: identity, configuration, 20 neighbours).
They are in a temporary folder, for 50 images, 2 seeds and 4 tasks; the number of modes follows from
the number of records. Reading the records takes half of the time.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/leaderboard.py [--repeats 5] [--out
    results/speed/leaderboard.md]
"""

import itertools
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from adir.harness.records.record import Neighbour, Record
from benchmarks.common import (
    REPOSITORY,
    adir,
    command,
    made_on,
    parser_of,
    publish,
    seconds_of,
    seconds_of_children,
)

sys.path.append(str(REPOSITORY / "tests"))
from made_records import made_record, put, sha256_of

IMAGES, SEEDS, TASKS = 50, 2, 4
METRICS = ("psnr", "ssim", "lpips-alex", "piqe", "residual")
WANTED = 3.0
"""Goal in processor seconds for 10,000 records."""


def write_records(folder: Path, n_records: int) -> int:
    """Write about n_records records below `folder`; return their number."""
    n_modes = max(2, round(n_records / (IMAGES * SEEDS * TASKS)))
    return len(put(folder, records(n_modes)))


def records(n_modes: int) -> Iterator[Record]:
    """Yield the records; mode 0 is `none`, the others are knn with K = mode."""
    draw = random.Random(0)
    neighbours = tuple(
        Neighbour(id=f"corpus-image-s1-y{i:03}-x000", distance=1 + i / 100, image=sha256_of(str(i)))
        for i in range(20)
    )
    for task, mode, seed, image in itertools.product(
        range(TASKS), range(n_modes), range(SEEDS), range(IMAGES)
    ):
        record = made_record(
            f"image-{image:03}",
            task=f"task{task}",
            mode="knn" if mode else "none",
            k=mode or None,
            seed=seed,
            adapter="lora",
            scores={metric: draw.gauss(25, 1) for metric in METRICS},
            settings={
                "task.operator": {"name": "made", "factor": 4},
                "sampler.guidance_scale": 100,
            },
        )
        configuration = {str(n): record.identity for n in range(2)}
        more = {"configuration": configuration, "neighbours": neighbours if mode else ()}
        yield record.model_copy(update=more)


def time_command(folder: Path) -> tuple[float, float]:
    """Return the (wall-clock, processor) seconds of one `adir leaderboard`."""
    before = seconds_of_children()
    wall = seconds_of(lambda: adir("leaderboard", folder))
    return wall, seconds_of_children() - before


def main() -> int:
    """Make the records, time the command, and print or write the result.

    Returns 1 if the command is slower than WANTED.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        n = write_records(Path(folder), given.records)
        times = [time_command(Path(folder)) for _ in range(given.repeats)]
    rows = [
        f"| seconds, {clock} | {min(found):.2f} | {median(found):.2f} | {max(found):.2f} |\n"
        for clock, found in zip(("wall clock", "processor"), zip(*times, strict=True), strict=True)
    ]
    text = (
        f"# `adir leaderboard` over {n:,} records\n\n"
        f"    OMP_NUM_THREADS=1 {command(__file__)}\n\n"
        "| | fastest | median | slowest |\n|---|---|---|---|\n"
        f"{''.join(rows)}\n"
        f"Goal: under {WANTED:g} processor seconds for 10,000. {given.repeats} runs, one "
        f"thread, files in the page cache, the four files written; {made_on()}.\n"
    )
    publish(text, given.out)
    return 1 if min(processor for _, processor in times) > WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
