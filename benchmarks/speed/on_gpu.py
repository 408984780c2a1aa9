"""Measure a GPU that is available for minutes only: figures of backbones.py and tests marked gpu.

The most important figures come first. Each is saved as soon as it is measured, so a stopped run
resumes with the same --out.

    bash benchmarks/speed/on_gpu.sh --out FOLDER            installs missing packages, then runs this script
    python benchmarks/speed/on_gpu.py --out FOLDER --small  rehearsal on a CPU: an eighth of the channels, nothing compiled
    python benchmarks/speed/on_gpu.py --out FOLDER --report compares saved figures with the targets, measures nothing
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(min(os.cpu_count() or 1, 16)))  # before torch reads it

import torch

from adir.files import write_bytes
from benchmarks.speed.backbones import measure
from benchmarks.speed.figures import Figures, Row, device_name, report, shown

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "deepinv",
    "hydra-core",
    "numpy",
    "safetensors",
    "pytorch-lightning",
)


@dataclass(frozen=True)
class Entry:
    """Arguments of one call of `measure`, or of pytest if `what` is tests."""

    what: str
    network: str = "gd512"
    mode: str = "eager"
    dtype: str = "bfloat16"
    batch: int = 1
    checkpointing: bool = False


PLAN = (
    Entry("step"),
    Entry("total"),
    Entry("adapt", batch=6, checkpointing=True),
    Entry("switch"),
    Entry("tests"),
    Entry("step", "sd_x4"),
    Entry("adapt", "sd_x4", batch=6),
    Entry("switch", "sd_x4"),
    Entry("step", mode="compiled"),
    Entry("total", mode="compiled"),
    Entry("step", "sd_x4", mode="compiled"),
    Entry("adapt", batch=6),
    Entry("adapt", "sd_x4", mode="compiled", batch=6),
    Entry("adapt", mode="compiled", batch=6, checkpointing=True),
    Entry("step", dtype="float32"),
    Entry("adapt", "gd256", batch=6),
)


def run_tests() -> Row:
    """Return the counts of the tests marked gpu, and the last lines of pytest's output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "tests/test_gpu.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = {
        word: int(n)
        for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)
    }
    return {"status": done.returncode, **counts, "said": done.stdout[-2000:] + done.stderr[-1000:]}


def versions(device: str) -> Row:
    """Return the versions that the figures depend on, for the report's last line."""
    found: Row = {"python": platform.python_version(), "device": device_name(device)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    if device != "cpu":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        ).stdout.strip()
    return found


def against_targets(rows: dict[str, Row]) -> list[str]:
    """Return a table of the issue's targets, each with the best measured figure."""
    of = lambda what, network, **more: [  # noqa: E731
        row
        for row in rows.values()
        if row["what"] == what
        and row.get("network") == network
        and "error" not in row
        and all(row.get(key) == value for key, value in more.items())
    ]
    targets = [
        ("step over a bare call, gd512", [r["over_bare"] for r in of("step", "gd512")], 1.03),
        ("gd512, 100 + 100, s", [r["total_s"] for r in of("total", "gd512")], 12),
        ("gd512, 400 + 1000, s, extrapolated", [r["paper_s"] for r in of("total", "gd512")], 60),
        *(
            (
                f"LoRA, batch 6, crops of {c}, GB",
                [r["peak_mb"] / 1e3 for r in of("adapt", "gd512", batch=6, crop=c)],
                m,
            )
            for c, m in ((256, 24), (512, 40))
        ),
    ]
    lines = ["| target | at most | best measured | met |", "|---|---|---|---|"]
    for name, values, most in targets:
        best = min(values, default=None)
        met = "not measured" if best is None else "yes" if best <= most else "no"
        lines.append(
            f"| {name} | {most:g} | {'–' if best is None else shown(float(best))} | {met} |"
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Measure the missing figures in the order of PLAN; write the report after each figure.

    Returns the exit status.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of figures; saved figures are not redone"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="step,total,adapt,switch,tests"
    )
    parser.add_argument(
        "--weights", type=Path, default=Path(tempfile.gettempdir()) / "adir-made-weights"
    )
    arguments = parser.parse_args(argv)
    device, size = ("cpu", "small") if arguments.small else ("cuda", "real")
    if not (arguments.small or arguments.report or torch.cuda.is_available()):
        parser.error("torch sees no GPU here; --small rehearses on a CPU")
    flags = " --small" if arguments.small else ""
    figures = Figures(
        arguments.out / "on_gpu.json", f"bash benchmarks/speed/on_gpu.sh --out FOLDER{flags}"
    )
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    failures = []
    for entry in () if arguments.report else PLAN:
        wanted = arguments.only is None or entry.what in arguments.only
        if not wanted or (entry.mode == "compiled" and arguments.small):
            continue
        settings = argparse.Namespace(
            size=size, device=device, weights=arguments.weights, networks=[entry.network], modes=[entry.mode],
            dtypes=["float32" if arguments.small else entry.dtype],  # a CPU's bfloat16 may be slow
            batches=[entry.batch], checkpointing=entry.checkpointing, channels_last=True,
        )  # fmt: skip
        try:
            if entry.what == "tests":
                figures.add("tests", {"marked": "gpu"}, run_tests)
            else:
                measure(settings, figures, entry.what)
        # The other entries still run. The next call tries this one again.
        except Exception:
            failures.append(f"{entry}\n{traceback.format_exc()}")
            print(failures[-1], flush=True)
        write_report(arguments.out, figures, device, size)
    write_report(arguments.out, figures, device, size)
    return 1 if failures else 0


def write_report(out: Path, figures: Figures, device: str, size: str) -> None:
    """Write on_gpu.md: the targets, every figure, and the versions of the present machine."""
    lines = ["", "## Against the targets", "", *against_targets(figures.rows)]
    tests = [
        f"{key} {row[key]}"
        for row in figures.rows.values()
        for key in ("passed", "failed", "skipped")
        if key in row
    ]
    lines += ["", f"Tests marked gpu: {', '.join(tests) or 'not run'}."]
    found = versions(device if torch.cuda.is_available() else "cpu")
    lines += [
        "",
        f"Written with {', '.join(f'{name} {version}' for name, version in found.items())}.",
    ]
    write_bytes(
        out / "on_gpu.md",
        (report(figures, found["device"], size) + "\n".join(lines) + "\n").encode(),
    )


if __name__ == "__main__":
    sys.exit(main())
