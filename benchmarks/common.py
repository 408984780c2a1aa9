"""What the scripts share: options, times, the machine that a page was made on, and its writing."""

import argparse
import functools
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.records.ledger import DamagedFile, all_records
from adir.harness.records.record import Record
from adir.harness.running.provenance import commit
from adir.tasks.restoration import RestorationTask

REPOSITORY = Path(__file__).resolve().parents[1]


def parser_of(
    text: str | None, out: Path | None = None, what: str = "file for the page, in Markdown"
) -> argparse.ArgumentParser:
    """Return a parser with the option --out.

    Args:
        text: docstring of the script, shown by --help.
        out: default of --out; None: the page is only printed.
        what: help for --out.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=out, help=what)
    return parser


def add_parquet(parser: argparse.ArgumentParser) -> None:
    """Add the option --parquet for the file of Caltech-101."""
    parser.add_argument(
        "--parquet",
        required=True,
        help="caltech101_128.parquet: image, category, split, source_file",
    )


def set_threads() -> int:
    """Let torch use OMP_NUM_THREADS threads, one if it is not set; return their number."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.get_num_threads()


def adir(*words: object) -> None:
    """Run `adir` with these words in a new process, without its output.

    Raises CalledProcessError if the command fails.
    """
    command = [sys.executable, "-m", "adir", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def seconds_of(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def seconds_of_children() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(field: str, status: str | None = None) -> float:
    """Return the value of a field of /proc/self/status, in bytes.

    Args:
        field: VmHWM, the largest resident set, VmRSS, the present one, or RssAnon, its pages that
            are not mapped from files.
        status: content of the file, for another process; None reads that of this process.
    """
    text = Path("/proc/self/status").read_text() if status is None else status
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1])


@functools.cache
def task_named(name: str) -> RestorationTask:
    """Return the task of a file in conf/task; tasks are cached with their operators."""
    return instantiate(OmegaConf.load(REPOSITORY / "conf" / "task" / f"{name}.yaml"))


def finished_records(results: Path) -> Iterator[Record]:
    """Yield the records of a results folder.

    Raises InputError if one of them is damaged or failed.
    """
    for record in all_records(results):
        if isinstance(record, DamagedFile):
            raise InputError(str(record))
        if record.status != "done":
            raise InputError(
                f"{results}: {record.axes} failed on {record.image.id}: {record.error}"
            )
        yield record


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def made_on(*packages: str) -> str:
    """Return the date, the commit, the machine, its load, and the versions of Python and packages."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    return (
        f"{date.today()}, commit {commit()}; {processor()}, {os.cpu_count()} processors, load "
        f"average {os.getloadavg()[1]:.1f}; Python {platform.python_version()}, {versions}"
    )


def command(script: str, shortened: Iterable[object] = ()) -> str:
    """Return the command line of this process, `python benchmarks/...`.

    Args:
        script: path of the script.
        shortened: paths among the arguments; only their file names are shown. The command is committed, so it
            must not name folders of one machine.
    """
    hidden = set(map(str, shortened))
    words = [Path(word).name if word in hidden else word for word in sys.argv[1:]]
    return shlex.join(["python", str(Path(script).resolve().relative_to(REPOSITORY)), *words])


def publish(text: str, out: Path | None) -> None:
    """Print a page, and write it to the file `out` if there is one."""
    print(text, end="")
    if out is not None:
        write_bytes(out, text.encode())
