"""Measure the start-up of short commands: processor seconds, in comparison with `import torch`.

    python benchmarks/speed/startup.py --before FOLDER --out results/speed/startup.md

FOLDER is another checkout (`git worktree add FOLDER COMMIT`); its runs alternate with those of this
one. Each command runs in its own process with one thread. A figure is the median over --rounds of
user and system time, including child processes.
"""

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import REPOSITORY, command, made_on, parser_of, publish, seconds_of_children

RUN = "run task=sr4 sampler=bicubic data=folder data.path=images scoring.metrics=[ssim]"
# {label: (words after `adir`, the goal in multiples of `import torch` or in seconds)}
COMMANDS = {
    "list": ("list", "1.5 s"),
    "errors": ("run bogus=1", "1.5 s"),
    "unknown choice": ("run task=nosuch", "1.5 s"),
    "unknown word": ("run existing=nosuch", "1.5 s"),
    "bicubic": ("restore y.png task=sr4 sampler=bicubic --out restored --overwrite", "2.2 x"),
    "SSIM": (f"{RUN} existing=redo", "3.0 x"),
    "leaderboard": ("leaderboard runs", "1.5 s"),
    "one step of the prior": (
        "restore y.png task=sr4 sampler=adir sampler.n_steps=1 --out stepped --overwrite",
        "4.0 x",
    ),
}


def seconds(arguments: list[str], checkout: Path, folder: Path) -> float:
    """Return the processor time of one process; exit statuses 0 and 2 are accepted."""
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = seconds_of_children()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
    taken = seconds_of_children() - before
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise SystemExit(f"{shlex.join(arguments)}: {done.stderr}")
    return taken


def commit(checkout: Path) -> str:
    """Return the short hash of a checkout's commit."""
    git = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure, and print or write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "after": REPOSITORY}
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw = np.random.default_rng(0)
        (folder / "images").mkdir()
        for path in ("y.png", "images/a.png", "images/b.png"):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / path)
        for _ in range(arguments.rounds):
            taken = seconds(["-c", "import torch"], REPOSITORY, folder)
            found.setdefault(("torch", ""), []).append(taken)
            for which, checkout in checkouts.items():
                for label, (words, _) in COMMANDS.items():
                    taken = seconds(["-m", "adir", *shlex.split(words)], checkout, folder)
                    found.setdefault((label, which), []).append(taken)
    median = {key: statistics.median(values) for key, values in found.items()}
    torch_seconds = median["torch", ""]
    lines = [
        "# Start-up\n",
        f"Processor seconds, medians of {arguments.rounds} processes of one thread; `import "
        f"torch` {torch_seconds:.2f}.\n",
        f"| command | before ({commit(checkouts['before'])}) | after ({commit(REPOSITORY)}) | after / "
        "`import torch` | at most |",
        "|---|---|---|---|---|",
    ]
    for label, (words, most) in COMMANDS.items():
        before, after = median[label, "before"], median[label, "after"]
        lines.append(
            f"| {label}: `adir {words}` | {before:.2f} | {after:.2f} | "
            f"{after / torch_seconds:.2f} | {most} |"
        )
    lines += [
        "\nOne image of 32x32, or two; the prior sees 128x128.\n",
        f"{made_on('diffusers', 'deepinv', 'pyiqa')}.\n",
        f"    {command(__file__, [arguments.before])}",
    ]
    publish("\n".join(lines) + "\n", arguments.out)


if __name__ == "__main__":
    main()
