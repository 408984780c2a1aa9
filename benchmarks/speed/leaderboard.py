"""Measure the seconds of `adir leaderboard` over many records, Python's start included.

The records are synthetic and as large as real ones (6 kB: identity, configuration, 20 neighbours).
They are in a temporary folder, for 50 images, 2 seeds and 4 tasks; the number of modes follows from
the number of records. Reading the records takes half of the time.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/leaderboard.py [--repeats 5] [--out
    results/speed/leaderboard.md]
"""

import argparse
import itertools
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from adir.files import write_bytes
from adir.harness.records.record import Neighbour, Record
from adir.harness.running.provenance import commit

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
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
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "adir", "leaderboard", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    """Make the records, time the command, and print or write the result.

    Returns 1 if the command is slower than WANTED.
    """
    arguments = argparse.ArgumentParser(
        description="Seconds of `adir leaderboard` over many records."
    )
    arguments.add_argument("--records", type=int, default=10_000)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        n = write_records(Path(folder), given.records)
        times = [time_command(Path(folder)) for _ in range(given.repeats)]
    wall, processor = sorted(t[0] for t in times), sorted(t[1] for t in times)
    text = (
        f"# `adir leaderboard` over {n:,} records\n\n"
        f"    OMP_NUM_THREADS=1 python benchmarks/speed/leaderboard.py {' '.join(sys.argv[1:])}\n\n"
        "| | fastest | median | slowest |\n|---|---|---|---|\n"
        f"| seconds, wall clock | {wall[0]:.2f} | {wall[len(wall) // 2]:.2f} | {wall[-1]:.2f} |\n"
        f"| seconds, processor | {processor[0]:.2f} | {processor[len(processor) // 2]:.2f} | "
        f"{processor[-1]:.2f} |\n\n"
        f"Goal: under {WANTED:g} processor seconds for 10,000. {given.repeats} runs, one "
        "thread, files in the page cache, "
        "the four files written; "
        f"{date.today().isoformat()}, commit {commit()}, "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}.\n"
    )
    if given.out is not None:
        write_bytes(given.out, text.encode())
    print(text, end="")
    return 1 if processor[0] > WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
