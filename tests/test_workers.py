"""Several workers, several grids, interruptions: the end is that of one undisturbed run, and no picture is done twice."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adir.files import read_json, sha256_of_file

RECORDS = "cells/**/records/*.json"
PICTURES = "cells/**/pictures/*.png"
GRID = ["task=sr4,deblur", "adaptation=none,self,random"]
N_PICTURES = 2 * 3 * 3


def start(*words: object, log: Path) -> subprocess.Popen[bytes]:
    """`adir run -m` in a process group of its own, as a shell starts it."""
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "adir", "run", "-m", *map(str, words)]
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for_records(results: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(list(results.glob(RECORDS))) < count and process.poll() is None:
        assert time.monotonic() < deadline, "the grid does nothing"
        time.sleep(0.02)


def table(adir, results: Path) -> dict[str, str]:
    """{leaderboard.csv and every restored picture: SHA-256}."""
    assert adir("leaderboard", results).status == 0
    files = [*results.glob(PICTURES), results / "leaderboard.csv"]
    return {str(path.relative_to(results)): sha256_of_file(path) for path in files}


def a_holder(results: Path) -> int:
    """A process that holds a picture now: claims come and go, and are empty for a moment."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for claim in results.glob("cells/**/claims/*.claim"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(read_json(claim)["pid"])
    raise AssertionError("no worker holds a picture")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The grid's results, by one worker."""
    from adir.cli import main

    results = tmp_path_factory.mktemp("undisturbed")
    assert main(["run", "-m", *tiny, *GRID, f"results={results}"]) == 0
    return results


def leftovers(results: Path) -> list[str]:
    """Claims, stop files and half-written files, of which nothing may stay."""
    return [str(path) for path in results.rglob("*") if path.suffix in (".claim", ".stop", ".part")]


@pytest.mark.slow
def test_two_grids_in_one_folder_do_each_picture_once(adir, tiny: list[str], tmp_path: Path, undisturbed: Path) -> None:
    results = tmp_path / "results"
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    processes = [start(*tiny, *GRID, f"results={results}", log=log) for log in logs]
    assert [process.wait(timeout=300) for process in processes] == [0, 0], [log.read_text() for log in logs]
    done = [int(re.search(r"(\d+) pictures done", log.read_text())[1]) for log in logs]  # type: ignore[index]
    assert sum(done) == N_PICTURES and min(done) > 0
    assert len(list(results.glob("adapters/*.safetensors"))) == len(list(undisturbed.glob("adapters/*.safetensors")))
    assert table(adir, results) == table(adir, undisturbed)
    assert leftovers(results) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "two_processes"])
def test_ctrl_c_ends_the_record_at_hand_and_says_how_to_go_on(
    adir, tiny: list[str], tmp_path: Path, undisturbed: Path, launcher: str
) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    words = [*tiny, *GRID, f"results={results}", f"hydra/launcher={launcher}"]
    process = start(*words, log=log)
    wait_for_records(results, 2, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole group
    assert process.wait(timeout=120) == 130, log.read_text()
    text = log.read_text()
    assert "Traceback" not in text and f"adir run -m {' '.join(words)}" in text
    records = [read_json(path) for path in results.glob(RECORDS)]
    assert 2 <= len(records) < N_PICTURES and all(record["status"] == "done" for record in records)
    assert len(list(results.glob(PICTURES))) == len(records)  # none restored without its record
    assert leftovers(results) == []
    assert adir("run", "-m", *words).status == 0
    assert table(adir, results) == table(adir, undisturbed)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_one_picture_and_the_grid_goes_on_when_started_again(
    adir, tiny: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    words = [*tiny, *GRID, f"results={results}", "hydra/launcher=two_processes"]
    process = start(*words, log=log)
    wait_for_records(results, 4, process)
    os.kill(a_holder(results), signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    assert all(read_json(path)["status"] == "done" for path in results.glob(RECORDS))
    assert adir("run", "-m", *words).status == 0
    assert table(adir, results) == table(adir, undisturbed)
    assert leftovers(results) == []


@pytest.mark.slow
def test_the_cluster_launcher_gives_the_table_of_one_worker(adir, tiny: list[str], tmp_path: Path) -> None:
    """submitit's local executor: the launcher of SLURM, with processes of this machine in place of jobs."""
    words = [*tiny, "task=sr4", "adaptation=none,random"]
    assert adir("run", "-m", *words, "hydra/launcher=submitit_local", f"results={tmp_path / 'jobs'}").status == 0
    assert adir("run", "-m", *words, f"results={tmp_path / 'one'}").status == 0
    assert table(adir, tmp_path / "jobs") == table(adir, tmp_path / "one")


def test_the_slurm_launcher_asks_for_a_gpu_and_is_configured_as_documented() -> None:
    from adir.harness.launch import compose

    launcher = compose(["hydra/launcher=slurm"], with_hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.gpus_per_node == 1
