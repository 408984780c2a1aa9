"""kill -9 at random moments: at most one picture is lost each time, and the end is that of an undisturbed run."""

import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adir.cli import main
from adir.files import read_json, sha256_of_file
from adir.harness.running.stores import hash_of_tensors

RECORDS = "cells/**/records/*.json"
PICTURES = "cells/**/pictures/*.png"


def ids(folder: Path, pattern: str) -> set[str]:
    """Cell and picture of the records or restored pictures: none-adir-s0-1234/0.png."""
    return {f"{path.parent.parent.name}/{path.stem}" for path in folder.glob(pattern)}


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    """{file: SHA-256}; of an adapter's tensors alone, as its file also tells how long the training took."""

    def sha256(path: Path) -> str:
        return hash_of_tensors(load_file(path)) if path.suffix == ".safetensors" else sha256_of_file(path)

    return {str(path.relative_to(folder)): sha256(path) for path in folder.glob(pattern)}


def kill_after(folder: Path, wanted: int, delay: float, alive: Callable[[], bool], kill: Callable[[], None]) -> None:
    """Kill when `wanted` records are there and `delay` seconds have passed, if it still runs then."""
    deadline = time.monotonic() + 120
    while len(ids(folder, RECORDS)) < wanted and alive():
        assert time.monotonic() < deadline, "the run does nothing"
        time.sleep(0.01)
    time.sleep(delay)
    kill()


def still_runs(process: subprocess.Popen) -> bool:
    return process.poll() is None


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(adir, tiny: list[str], tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    killed.mkdir()
    grid = ["run", "-m", *tiny, "task=sr4,deblur", "adaptation=none,self,knn"]  # 18 pictures
    assert adir(*grid, f"results={undisturbed}").status == 0
    assert adir("leaderboard", undisturbed).status == 0
    command = [*grid, f"results={killed}"]

    # Importing torch takes seconds, so all but one of the processes are forked from a server that has done so.
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["adir.harness.running.grid"])
    dice = random.Random(0)
    landed = 0
    for attempt in range(20):
        before = ids(killed, RECORDS)
        wanted, delay = len(before) + dice.randint(0, 1), dice.uniform(0, 0.5)
        if attempt == 0:
            process = subprocess.Popen([sys.executable, "-m", "adir", *command], stdout=subprocess.DEVNULL)
            kill_after(killed, 1, delay, partial(still_runs, process), process.kill)
            landed += process.wait() == -9
        else:
            fork = forks.Process(target=main, args=(command,))
            fork.start()
            kill_after(killed, wanted, delay, fork.is_alive, fork.kill)
            fork.join()
            landed += fork.exitcode == -9
        after = ids(killed, RECORDS)
        assert before <= after
        assert all(read_json(path)["status"] == "done" for path in killed.glob(RECORDS))  # each one whole
        assert len(ids(killed, PICTURES) - after) <= 1  # restored, but its record was not yet written
    assert landed >= 10, "too few of the kills met a running process"

    finished = adir(*command)
    assert (
        finished.status == 0 and f"{18 - len(after)} pictures done, {len(after)} were there, 0 failed" in finished.out
    )
    assert adir("leaderboard", killed).status == 0
    assert (killed / "leaderboard.csv").read_bytes() == (undisturbed / "leaderboard.csv").read_bytes()
    for pattern in (PICTURES, "measurements/*/*.png", "adapters/*.safetensors"):
        assert hashes(killed, pattern) == hashes(undisturbed, pattern)
    assert ids(killed, RECORDS) == ids(undisturbed, RECORDS)  # no .part file counted
