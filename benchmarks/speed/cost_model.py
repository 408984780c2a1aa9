"""Compare the cost model of `adir plan` with measurements: seconds by stage, and memory.

The cells use the embedded prior. Each cell is estimated in one process and run in another, as a
user would. The first image of a run is not counted, because it includes loading. Run the script on
a quiet machine: load distorts both the estimate and the measurement.

Run: OMP_NUM_THREADS=1 python benchmarks/speed/cost_model.py [--out results/speed/cost_model.md]
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from benchmarks.common import command, made_on, parser_of, publish

CELLS = (
    ["task=sr4", "adaptation=none", "sampler.n_steps=50"],
    ["task=deblur", "adaptation=none", "sampler.n_steps=150"],
    ["task=sr4", "adaptation=self", "adaptation.fine_tuning.n_iterations=40"],
    ["task=deblur", "adaptation=knn", "adaptation.fine_tuning.n_iterations=80"],
    ["task=sr4", "adaptation=knn", "adaptation/adapter=lora", "sampler.n_steps=100"],
    ["task=inpaint_box", "adaptation=random", "adaptation.fine_tuning.batch_size=2"],
    # DPS differentiates through the network.
    ["task=deblur", "sampler=dps", "sampler.n_steps=100"],
)
WANTED = 0.3
STAGES = ("retrieve", "adapt", "sample", "score")


def one_cell(overrides: list[str], what: str) -> dict[str, Any]:
    """Return {seconds: {stage: s}, memory_mb} of a cell, estimated or measured in this process."""
    import torch

    from adir.harness.cells.cell import resolve_cell
    from adir.harness.cells.compose import compose

    cell = resolve_cell(compose(overrides))
    torch.set_num_threads(cell.configuration["threads"])
    if what == "estimate":
        from adir.harness.planning.cost import estimate

        with tempfile.TemporaryDirectory() as folder:
            cost = estimate(cell, Path(folder))
        return {"seconds": cost.seconds_per_image, "memory_mb": cost.memory_mb}
    from adir.harness.running.worker import Options, run_cell

    run_cell(cell, Options(existing="skip"), tell=lambda line: print(line, file=sys.stderr))
    records = [cell.ledger.read(image_id, cell.identity.sha256) for image_id in cell.data.ids]
    later = [record for record in records if record is not None and record.status == "done"][1:]
    seconds = {
        stage: sum(r.seconds.get(stage, 0.0) for r in later) / len(later) for stage in STAGES
    }
    return {
        "seconds": seconds,
        "memory_mb": max(record.process_peak_memory_mb or 0.0 for record in later),
    }


def in_a_process(overrides: list[str], what: str) -> dict[str, Any]:
    """Call `one_cell` in a new process, so that its memory can be measured."""
    command = [sys.executable, __file__, "--cell", json.dumps(overrides), "--one", what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{what} of {' '.join(overrides)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(overrides: list[str], results: str) -> tuple[str, float]:
    """Return (row of the table, the larger of the relative errors of seconds and memory)."""
    full = ["data=demo", f"results={results}", *overrides]
    estimated, measured = in_a_process(full, "estimate"), in_a_process(full, "run")
    totals = [
        sum(one["seconds"].get(stage, 0.0) for stage in STAGES) for one in (estimated, measured)
    ]
    errors = [totals[0] / totals[1] - 1, estimated["memory_mb"] / measured["memory_mb"] - 1]
    stages = " | ".join(
        f"{estimated['seconds'].get(stage, 0.0):.1f} / {measured['seconds'].get(stage, 0.0):.1f}"
        for stage in STAGES
    )
    memory = f"{estimated['memory_mb']:.0f} / {measured['memory_mb']:.0f}"
    together = f"{totals[0]:.1f} / {totals[1]:.1f} | {errors[0]:+.0%}"
    line = f"| {' '.join(overrides)} | {stages} | {together} | {memory} | {errors[1]:+.0%} |"
    return line, max(map(abs, errors))


def main() -> None:
    """Compare all cells, print, and write the table if --out is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="number of cells to compare")
    parser.add_argument("--cell", help=SUPPRESS)  # for the processes of single cells
    parser.add_argument("--one", choices=("estimate", "run"), help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell is not None:
        print(json.dumps(one_cell(json.loads(arguments.cell), arguments.one)))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes of single cells
    rows, worst = [], 0.0
    for overrides in CELLS[: arguments.cells]:
        with tempfile.TemporaryDirectory() as results:
            line, error = row(overrides, results)
        print(line, flush=True)
        rows.append(line)
        worst = max(worst, error)
    text = f"""# The cost model against what is measured

Embedded prior, the three demo images (128x128), one thread: estimated / measured. Seconds are per image,
the mean of all but the first; memory is the process's peak, in MB. The largest error is {worst:.0%}; the goal is at most {WANTED:.0%}.

| cell | retrieve, s | adapt, s | sample, s | score, s | together, s | error | memory, MB | error |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{made_on()}.
Command: `OMP_NUM_THREADS=1 {command(__file__)}`
"""
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
