"""Seconds of `adir leaderboard` over many records, from the command to the table, Python's start and imports included.

The records are made up, of the size that real ones have (6 kB: identity, configuration, 20 neighbours), in a temporary
folder: 50 pictures, 2 seeds, 4 tasks, and as many modes as the number of records asks for; half of the time is reading them.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/leaderboard.py [--repeats 5] [--out results/speed/leaderboard.md]
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from adir.files import hash_of, write_bytes
from adir.harness.running.provenance import commit

PICTURES, SEEDS, TASKS = 50, 2, 4
METRICS = {"psnr": "higher", "ssim": "higher", "lpips-alex": "lower", "piqe": "lower", "residual": "none"}


def write_records(folder: Path, n_records: int) -> int:
    """Write about n_records records below `folder`; their number. Plain writes: they need not outlive a power cut."""
    draw = random.Random(0)
    n_modes = max(2, round(n_records / (PICTURES * SEEDS * TASKS)))
    neighbours = [
        {"id": f"corpus-picture-s1-y{i:03}-x000", "distance": 1 + i / 100, "picture": "0" * 64} for i in range(20)
    ]
    for task in (f"task{n}" for n in range(TASKS)):
        for mode in range(n_modes):
            for seed in range(SEEDS):
                record = cell_fields(task, mode, seed) | {"neighbours": neighbours if mode else []}
                place = folder / "cells" / "made-up" / task / f"{mode}-s{seed}-{record['cell'][:10]}" / "records"
                place.mkdir(parents=True)
                for picture in range(PICTURES):
                    scores = {
                        m: {"value": draw.gauss(25, 1), "direction": way, "version": "1"} for m, way in METRICS.items()
                    }
                    record["image"] = {"id": f"picture-{picture:03}", "sha256": f"{picture:064}", "data": "made-up"}
                    record["y"] = {
                        "sha256": f"{task}{picture}",
                        "file": f"measurements/{task}/picture-{picture:03}.png",
                    }
                    record["scores"] = scores
                    (place / f"picture-{picture:03}.json").write_text(json.dumps(record, indent=1))
    return n_modes * PICTURES * SEEDS * TASKS


def cell_fields(task: str, mode: int, seed: int) -> dict[str, Any]:
    """What the records of one cell share. Mode 0 is `none`, the others neighbours with K = mode."""
    adaptation: dict[str, Any] = {"name": "none"}
    if mode:
        fine_tuning = {"n_iterations": 400, "batch_size": 6, "learning_rate": 1e-4, "crop_size": 256, "flip": True}
        adaptation = {"name": "knn", "k": mode, "adapter": {"name": "lora", "rank": 16}, "fine_tuning": fine_tuning}
    identity = {
        "backbone": {"_target_": "made.up", "name": "made-up", "weights_sha256": "0" * 64, "config_sha256": "1" * 64},
        "task": {"_target_": "made.up", "name": task, "version": 1, "operator": {"factor": 4}, "sigma_y": 0},
        "sampler": {"_target_": "made.up", "name": "adir", "n_steps": 50, "guidance_scale": 100, "variance": "small"},
        "adaptation": adaptation,
        "seed": seed,
        "noise_seed": 0,
    }
    axes = {
        "backbone": "made-up",
        "task": task,
        "adaptation": "knn" if mode else "none",
        "k": mode or None,
        "seed": seed,
    }
    return {
        "schema": 1,
        "status": "done",
        "cell": hash_of(identity),
        "axes": axes | {"adapter": "lora" if mode else None, "sampler": "adir"},
        "identity": identity,
        "configuration": {str(n): identity for n in range(2)},
        "seed": seed,
        "unavailable": {},
        "seconds": {"sample": 6.6},
    }


def time_command(folder: Path) -> tuple[float, float]:
    """(wall clock, processor) seconds of one `adir leaderboard`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "adir", "leaderboard", str(folder)], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Make the records, time the command, and print or write what came out."""
    arguments = argparse.ArgumentParser(description="Seconds of `adir leaderboard` over many records.")
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
        f"| seconds, processor | {processor[0]:.2f} | {processor[len(processor) // 2]:.2f} | {processor[-1]:.2f} |\n\n"
        f"Wanted: under 3. {given.repeats} runs, one thread, files in the page cache, the four files written; "
        f"{date.today().isoformat()}, commit {commit()}, "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}.\n"
    )
    if given.out is not None:
        write_bytes(given.out, text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
