"""kill -9 at random moments: at most one image is lost each time, and the end is that of an
undisturbed run.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked, start
from safetensors.torch import load_file

from adir.errors import count_of
from adir.files import read_json, sha256_of_file
from adir.harness.running.stores import hash_of_tensors

RECORDS = "cells/**/records/*.json"
IMAGES = "cells/**/images/*.png"


def ids(folder: Path, pattern: str) -> set[str]:
    """Cell and image of the records or restored images: none-adir-s0-1234/0.png."""
    return {f"{path.parent.parent.name}/{path.stem}" for path in folder.glob(pattern)}


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    """{file:

    SHA-256}; of an adapter's tensors alone, as its file also tells how long the training took.
    """

    def sha256(path: Path) -> str:
        return (
            hash_of_tensors(load_file(path))
            if path.suffix == ".safetensors"
            else sha256_of_file(path)
        )

    return {str(path.relative_to(folder)): sha256(path) for path in folder.glob(pattern)}


def kill_after(folder: Path, wanted: int, delay: float, process: subprocess.Popen | Forked) -> bool:
    """Kill when `wanted` records are there and `delay` seconds have passed; whether it still ran
    then.
    """
    deadline = time.monotonic() + 120
    while len(ids(folder, RECORDS)) < wanted and process.poll() is None:
        assert time.monotonic() < deadline, "the run does nothing"
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    return process.wait() == -9


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    adir, tiny: list[str], six_photographs: Path, tmp_path: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    killed.mkdir()
    # One task: what starts again composes each cell, and that is most of what it does.
    words = [*tiny, f"data.path={six_photographs}", "task=sr4", "adaptation=none,self,knn"]
    grid = ["run", "-m", *words]  # 18 images
    assert adir(*grid, f"results={undisturbed}").status == 0
    assert adir("leaderboard", undisturbed).status == 0
    command = [*grid, f"results={killed}"]

    dice = random.Random(0)
    landed = 0
    for attempt in range(20):
        before = ids(killed, RECORDS)
        wanted, delay = len(before) + dice.randint(0, 1), dice.uniform(0, 0.3)
        if (
            attempt == 0
        ):  # the others are forked from a server that has torch imported, which takes seconds
            process = subprocess.Popen(
                [sys.executable, "-m", "adir", *command], stdout=subprocess.DEVNULL
            )
            landed += kill_after(killed, 1, delay, process)
        else:
            landed += kill_after(killed, wanted, delay, start(*command, log=tmp_path / "log"))
        after = ids(killed, RECORDS)
        assert before <= after
        assert all(
            read_json(path)["status"] == "done" for path in killed.glob(RECORDS)
        )  # each one whole
        assert len(ids(killed, IMAGES) - after) <= 1  # restored, but its record was not yet written
        if len(after) == 18:
            break
    assert landed >= 5, "too few of the kills met a running process"

    finished = adir(*command)
    assert (
        finished.status == 0
        and f"{count_of(18 - len(after), 'image')} done, {len(after)} already done, 0 failed"
        in finished.out
    )
    assert adir("leaderboard", killed).status == 0
    assert (killed / "leaderboard.csv").read_bytes() == (
        undisturbed / "leaderboard.csv"
    ).read_bytes()
    for pattern in (IMAGES, "measurements/*/*.png", "adapters/*.safetensors"):
        assert hashes(killed, pattern) == hashes(undisturbed, pattern)
    assert ids(killed, RECORDS) == ids(undisturbed, RECORDS)  # no .part file counted
