"""Measure loading gd256: converting its checkpoint, loading the result, and diffusers' own loader.

    python benchmarks/speed/loading.py --out results/speed/loading.md

Random weights of the real architecture (552 814 086 parameters, 2.2 GB) are written to a scratch
folder (--folder; 4.5 GB) and removed again. The script takes about a minute. --small uses a network
of 2 M parameters to try the script. Each step runs in its own process. Importing torch and diffusers
is not part of a step's time.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch

from adir.backbones.adm.architecture import Architecture, Flags
from adir.backbones.adm.conversion import tensors_of
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.weights.download import readable_size
from benchmarks.common import command, made_on, parser_of, publish, resident

GD256 = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "learn_sigma": True,
    "attention_resolutions": (32, 16, 8),
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
SMALL = GD256 | {
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 1, 2),
    "num_head_channels": 32,
}
# Every value is replaced, because the flags are complete.
ANY = Architecture(32, (32,), 1, (False,), 6, True, True, -1, -1, -1, False)
STEPS = {
    "import": "imports only",
    "convert": "first load: hash, convert, write",
    "load": "load again",
    "use": "load again, and one call at 32x32, which reads every weight",
    "diffusers": "diffusers: UNet2DModel.from_pretrained of the converted folder",
}
HEAD = """# Loading gd256

Random weights of gd256's architecture: {parameters} parameters, {size} in float32. Median of {repeats} (conversion: one),
each in its own process, the file cache warm. Memory is the process's largest resident set, including {baseline} for
imports. Pages mapped from the file count, though processes that load the same network share them. Goal for loading
again: 3 s, and no second copy.

| step | seconds | largest resident set | of that, above imports | the process's own at the end (not mapped from files) |
|---|---|---|---|---|
"""


def flags_of(small: bool) -> Flags:
    """Return the flags of the network."""
    return Flags(**(SMALL if small else GD256))


def make(path: Path, flags: Flags) -> int:
    """Write the checkpoint; return the number of parameters."""
    torch.manual_seed(0)
    shapes = {name: shape for name, shape, _ in tensors_of(flags.resolve(ANY))}
    torch.save(
        {name: torch.empty(shape).uniform_(-0.01, 0.01) for name, shape in shapes.items()}, path
    )
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def step(name: str, folder: Path, flags: Flags) -> dict[str, float]:
    """Do one step in this process; return its seconds and memory in bytes."""
    converted = next(
        (path for path in (folder / "cache" / "converted").glob("*/") if path.is_dir()), None
    )
    actions: dict[str, Callable[[], object]] = {
        "import": lambda: None,
        "convert": lambda: GuidedDiffusion(folder=folder / "made.pt", architecture=flags).network,
        "load": lambda: GuidedDiffusion(folder=folder / "made.pt", architecture=flags).network,
        "use": lambda: GuidedDiffusion(folder=folder / "made.pt", architecture=flags).predict(
            torch.zeros(1, 3, 32, 32), torch.tensor([0])
        ),
        "diffusers": lambda: diffusers.UNet2DModel.from_pretrained(str(converted)),
    }
    started = time.perf_counter()
    kept = actions[name]()  # so that its memory still counts
    seconds = time.perf_counter() - started
    memory = {"peak": resident("VmHWM"), "own": resident("RssAnon")}
    del kept
    return {"seconds": seconds, **memory}


def in_a_process(name: str, folder: Path, small: bool) -> dict[str, float]:
    """Call `step` in a new process."""
    words = [
        sys.executable,
        __file__,
        "--step",
        name,
        "--folder",
        str(folder),
        *(["--small"] if small else []),
    ]
    environment = os.environ | {"ADIR_CACHE": str(folder / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(folder: Path, small: bool, repeats: int) -> str:
    """Measure all steps and return the report as Markdown."""
    parameters = make(folder / "made.pt", flags_of(small))
    os.sync()
    time.sleep(3)  # adir.weights.cache hashes a file again if it has just changed
    runs: dict[str, list[dict[str, float]]] = {}
    for name in STEPS:
        runs[name] = [
            in_a_process(name, folder, small) for _ in range(1 if name == "convert" else repeats)
        ]
        print(name, runs[name], flush=True)
    median = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    baseline = median["import"]["peak"]
    rows = [
        f"| {text} | {median[name]['seconds']:.2f} | {readable_size(int(median[name]['peak']))} "
        f"| {readable_size(max(0, int(median[name]['peak'] - baseline)))} | "
        f"{readable_size(int(median[name]['own']))} |"
        for name, text in STEPS.items()
    ]
    head = HEAD.format(
        parameters=f"{parameters:,}".replace(",", " "),
        size=readable_size(4 * parameters),
        repeats=repeats,
        baseline=readable_size(int(baseline)),
    )
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    made = f"{made_on('diffusers')}; {threads} thread(s)."
    return head + "\n".join(rows) + f"\n\n{made}\n\n    {command(__file__)}\n"


def main() -> None:
    """Measure, print, and write the report if --out is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="scratch folder (default: a temporary one)")
    parser.add_argument("--step", choices=list(STEPS), help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        print(json.dumps(step(arguments.step, arguments.folder, flags_of(arguments.small))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        publish(report(Path(folder), arguments.small, arguments.repeats), arguments.out)


if __name__ == "__main__":
    main()
