"""Compare two workers with one: seconds, and whether the table is byte-equal, also after a kill.

    python benchmarks/speed/workers.py

The same grid runs three times: with one worker; with two (joblib, one thread each); and with two of
which one is killed half way, after which the grid is started again. The script prints a table and
writes it to results/speed/workers.md. It takes about 15 minutes on two idle cores.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adir.files import sha256_of_file
from benchmarks.common import REPOSITORY, adir, made_on, parser_of, publish, seconds_of

GRID = ["data=embedded", "task=sr4,deblur", "adaptation=none,self,knn,random"]


def grid(results: Path, launcher: str, overrides: list[str]) -> list[str]:
    """Return the words after `adir` that run the grid."""
    return ["run", "-m", *GRID, f"hydra/launcher={launcher}", f"results={results}", *overrides]


def table_sha256(results: Path) -> str:
    """Return the SHA-256 of leaderboard.csv."""
    adir("leaderboard", results)
    return sha256_of_file(results / "leaderboard.csv")


def count(results: Path) -> int:
    """Return the number of records."""
    return len(list(results.glob("cells/**/records/*.json")))


def worker_of(pid: int) -> int:
    """Return the process below `pid` that has used the most processor time.

    It is a worker, because a resource tracker uses little.
    """
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,cputimes="], capture_output=True, text=True, check=True
    ).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
    below, found = {pid}, []
    for _ in range(4):
        found = [row for row in rows if row[1] in below]
        below |= {row[0] for row in found}
    workers = [row for row in rows if row[0] in below and row[0] != pid]
    return max(workers, key=lambda row: row[2])[0]


def main() -> None:
    parser = parser_of(__doc__, REPOSITORY / "results" / "speed" / "workers.md")
    parser.add_argument("overrides", nargs="*", help="such as sampler.n_steps=5, for a short test")
    args = parser.parse_args()
    seconds: dict[str, float] = {}
    tables: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, launcher in (("one worker", "basic"), ("two workers", "two_processes")):
            results = Path(folder) / launcher
            words = grid(results, launcher, args.overrides)
            seconds[name] = seconds_of(lambda words=words: adir(*words))
            tables[name] = table_sha256(results)
            n_records = count(results)

        results = Path(folder) / "killed"
        name = "two workers, one killed half way, started again"
        words = grid(results, "two_processes", args.overrides)
        started = time.perf_counter()
        run = subprocess.Popen(
            [sys.executable, "-m", "adir", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while count(results) < n_records // 2 and run.poll() is None:
            time.sleep(0.2)
        os.kill(worker_of(run.pid), signal.SIGKILL)
        status, at_kill = run.wait(), count(results)
        adir(*words)
        seconds[name], tables[name] = time.perf_counter() - started, table_sha256(results)
    rows = [
        f"| {name} | {seconds[name]:.0f} | {seconds['one worker'] / seconds[name]:.2f} | "
        f"{'the same' if table == tables['one worker'] else 'ANOTHER'} |"
        for name, table in tables.items()
    ]
    lines = [
        "# One worker and two",
        "",
        f"{n_records} records, one thread per worker. The killed grid ended with status {status} "
        f"and {at_kill} records.",
        f"{made_on()}:",
        "",
        "    python benchmarks/speed/workers.py " + " ".join(args.overrides),
        "",
        "| | seconds | times faster | leaderboard.csv |",
        "|---|---|---|---|",
        *rows,
    ]
    publish("\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
