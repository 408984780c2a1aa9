"""Several workers, several grids, interruptions: the end is that of one undisturbed run, and no
image is done twice.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, start

from adir.adaptation.denoising_module import DenoisingModule
from adir.cli import main
from adir.errors import count_of
from adir.files import read_json, sha256_of_file
from adir.harness.running import claims
from adir.harness.running.interruption import new_stop_file

RECORDS = "cells/**/records/*.json"
IMAGES = "cells/**/images/*.png"
GRID = ["task=sr4,deblur", "adaptation=none,self,random"]
N_IMAGES = 2 * 3 * 3
N_ADAPTERS = (
    2 * 3 + 3
)  # `self` adapts to the y of each task; `random` draws the same images for both


def from_a_shell(*words: object, log: Path) -> subprocess.Popen[bytes]:
    """`adir` in a process group of its own, as a shell starts it; its workers are new processes
    too.
    """
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "adir", *map(str, words)]
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for_records(results: Path, count: int, process: subprocess.Popen[bytes] | Forked) -> None:
    deadline = time.monotonic() + 300
    while len(list(results.glob(RECORDS))) < count and process.poll() is None:
        assert time.monotonic() < deadline, "the grid does nothing"
        time.sleep(0.02)


def table(results: Path) -> dict[str, str]:
    """{leaderboard.csv and every restored image: SHA-256}."""
    assert main(["leaderboard", str(results)]) == 0
    files = [*results.glob(IMAGES), results / "leaderboard.csv"]
    return {str(path.relative_to(results)): sha256_of_file(path) for path in files}


def a_holder(results: Path) -> int:
    """A process that holds an image now: claims come and go, and are empty for a moment."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for claim in results.glob("cells/**/claims/*.claim"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(read_json(claim)["pid"])
    raise AssertionError("no worker holds an image")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> dict[str, str]:
    """The table and the images of the grid, by one worker."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert main(["run", "-m", *tiny, *GRID, f"results={results}"]) == 0
    assert len(list(results.glob("adapters/*.safetensors"))) == N_ADAPTERS
    return table(results)


def claim_from_elsewhere(results: Path, cell: str, image: str, done: bool = False) -> Path:
    """A claim as another machine's worker leaves it, and no record unless `done`. cell: how its
    folder begins.
    """
    (record,) = results.glob(f"cells/*/*/{cell}*/records/{image}.json")
    if not done:
        record.unlink()
    path = record.parent.parent / "claims" / f"{image}.0.claim"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "start": "1"}))
    return path


def leftovers(results: Path) -> list[str]:
    """Claims, stop files and half-written files, of which nothing may stay."""
    return [str(path) for path in results.rglob("*") if path.suffix in (".claim", ".stop", ".part")]


def test_the_silent_claim_of_another_machine_is_waited_out_and_its_image_done(
    adir, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*tiny, "adaptation=none", f"results={tmp_path}"]
    assert adir("run", *words).status == 0
    monkeypatch.setattr(claims, "HEARTBEAT_TIMEOUT", 0.5)
    for existing, done, there in (("skip", 1, 2), ("redo", 3, 0)):
        claim_from_elsewhere(tmp_path, "none", "1.png", done=existing == "redo")
        finished = adir("run", *words, f"existing={existing}")
        assert (
            finished.status == 0
            and f"{count_of(done, 'image')} done, {there} already done, 0 failed" in finished.out
        )
        assert len(list(tmp_path.glob(RECORDS))) == 3 and leftovers(tmp_path) == []


def test_a_grid_does_its_other_cells_before_it_waits_for_another_worker(
    adir, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-m", *tiny, "adaptation=none,self", f"results={tmp_path}"]
    assert adir("run", *words).status == 0
    monkeypatch.setattr(claims, "HEARTBEAT_TIMEOUT", 0.5)
    claim_from_elsewhere(tmp_path, "none", "1.png")
    for path in tmp_path.glob("cells/*/*/self*/records/*.json"):
        path.unlink()
    finished = adir("run", *words)
    assert (
        finished.status == 0
        and "4 images done, 2 already done" in finished.out
        and "no record" not in finished.out
    )
    last = max(tmp_path.glob(RECORDS), key=lambda path: path.stat().st_mtime_ns)
    assert last.parent.parent.name.startswith("none") and last.stem == "1.png"
    assert leftovers(tmp_path) == []


def test_a_living_worker_of_another_machine_is_waited_for_and_its_image_left_to_it(
    adir, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*tiny, "adaptation=none", f"results={tmp_path}"]
    assert adir("run", *words).status == 0
    record = next(tmp_path.glob("cells/*/*/none*/records/1.png.json"))
    content = record.read_bytes()
    monkeypatch.setattr(claims, "HEARTBEAT_TIMEOUT", 0.5)
    claim = claim_from_elsewhere(tmp_path, "none", "1.png")

    take, met = claims.Claims.take, threading.Event()

    def watched(self: claims.Claims, name: str) -> bool:
        taken = take(self, name)
        if not taken:
            met.set()
        return taken

    monkeypatch.setattr(claims.Claims, "take", watched)

    def work() -> None:
        beats = itertools.count()
        while not met.wait(0.05):  # the run starts as slowly as the machine
            os.utime(claim, (next(beats),) * 2)
        for _ in range(30):  # three times the patience
            os.utime(claim, (next(beats),) * 2)
            time.sleep(0.05)
        record.write_bytes(content)
        claim.unlink()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        finished = adir("run", *words)
    finally:
        met.set()
        worker.join()
    assert finished.status == 0 and "0 images done, 2 already done, 0 failed" in finished.out
    assert "no record" not in finished.out and record.read_bytes() == content


@pytest.fixture
def no_signal_ends_the_tests() -> Iterator[None]:
    """Where the program under test does not handle them."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_during_adaptation_ends_the_record_at_hand_and_counts_it(
    adir,
    tiny: list[str],
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    no_signal_ends_the_tests: None,
) -> None:
    # Lightning takes SIGTERM for itself during a fit, and would end it midway
    words = [
        *tiny,
        "adaptation=self",
        "adaptation.fine_tuning.n_iterations=5",
        f"results={tmp_path}",
    ]
    step = DenoisingModule.training_step

    def interrupted(self: DenoisingModule, batch: object, batch_index: int) -> object:
        if batch_index == 3:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingModule, "training_step", interrupted)
        finished = adir("run", *words)
    assert finished.status == 130, finished
    assert (
        "1 image done, 0 already done, 0 failed" in finished.out
        and "ended early" not in finished.out
    )
    assert (
        "2 images left; to continue, run" in finished.out
        and f"adir run {shlex.join(words)}" in finished.out
    )
    assert [read_json(path)["status"] for path in tmp_path.glob(RECORDS)] == ["done"]
    assert len(list(tmp_path.glob("adapters/*.safetensors"))) == 1 and leftovers(tmp_path) == []
    assert "2 images done, 1 already done" in adir("run", *words).out


def test_a_second_ctrl_c_stops_at_once_leaves_no_half_file_and_claims_no_counts(
    adir,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_signal_ends_the_tests: None,
) -> None:
    words = [
        *tiny,
        "adaptation=self",
        "adaptation.fine_tuning.n_iterations=5",
        f"results={tmp_path}",
    ]
    step = DenoisingModule.training_step

    def interrupted(self: DenoisingModule, batch: object, batch_index: int) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingModule, "training_step", interrupted)
        finished = adir("run", *words)
    assert finished.status == 130 and "Traceback" not in finished.out + finished.err
    assert "0 of 3 images are done, 0 failed" in finished.out and "3 images left" in finished.out
    assert (
        list(tmp_path.glob(RECORDS))
        == list(tmp_path.glob("adapters/*"))
        == leftovers(tmp_path)
        == []
    )
    assert adir("run", *words).status == 0  # the network is as it was before the fit


def test_who_waits_for_another_worker_can_be_interrupted(
    adir,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_signal_ends_the_tests: None,
) -> None:
    words = [*tiny, "adaptation=none", f"results={tmp_path}"]
    assert adir("run", *words).status == 0
    claim = claim_from_elsewhere(tmp_path, "none", "1.png")
    sleep = time.sleep

    def interrupted(seconds: float) -> None:
        if seconds == 0.8:  # which only a worker that waits sleeps
            os.kill(os.getpid(), signal.SIGINT)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupted)
    finished = adir("run", *words)
    assert finished.status == 130 and "1 image left" in finished.out
    assert claim.exists()  # perhaps of a living one


def test_the_stop_file_of_one_run_does_not_stop_another_run_of_the_same_grid(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    words = ["-m", *tiny, "adaptation=none", f"results={tmp_path}"]
    assert adir("run", *words).status == 0
    (plan,) = tmp_path.glob("grids/*.json")
    for path in tmp_path.glob(RECORDS):
        path.unlink()
    of_another = new_stop_file(plan)
    of_another.touch()
    assert new_stop_file(plan) not in (of_another, new_stop_file(plan))
    finished = adir("run", *words)
    assert finished.status == 0 and "3 images done" in finished.out
    assert leftovers(tmp_path) == [str(of_another)]  # the other run's workers may still look for it


@pytest.mark.slow
def test_two_grids_in_one_folder_do_each_image_once(
    tiny: list[str], tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    results = tmp_path / "results"
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    processes = [start("run", "-m", *tiny, *GRID, f"results={results}", log=log) for log in logs]
    assert [process.wait(timeout=300) for process in processes] == [0, 0], [
        log.read_text() for log in logs
    ]
    done = [int(re.search(r"(\d+) images done", log.read_text())[1]) for log in logs]  # type: ignore[index]
    assert sum(done) == N_IMAGES and min(done) > 0
    assert len(list(results.glob("adapters/*.safetensors"))) == N_ADAPTERS
    assert table(results) == undisturbed
    assert leftovers(results) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, begin", [(signal.SIGINT, from_a_shell), (signal.SIGTERM, start)], ids=["INT", "TERM"]
)
def test_a_signal_to_all_processes_ends_the_records_at_hand_and_says_how_to_go_on(
    adir,
    tiny: list[str],
    tmp_path: Path,
    undisturbed: dict[str, str],
    number: int,
    begin: Callable[..., Any],
) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    words = [*tiny, *GRID, f"results={results}", "hydra/launcher=two_processes"]
    process = begin("run", "-m", *words, log=log)
    wait_for_records(results, 2, process)
    os.killpg(process.pid, number)  # a terminal's Ctrl-C goes to the whole group
    assert process.wait(timeout=120) == 130, log.read_text()
    text = log.read_text()
    assert "Traceback" not in text and f"adir run -m {shlex.join(words)}" in text
    records = [read_json(path) for path in results.glob(RECORDS)]
    assert 2 <= len(records) < N_IMAGES and all(record["status"] == "done" for record in records)
    assert len(list(results.glob(IMAGES))) == len(records)  # none restored without its record
    assert leftovers(results) == []
    assert adir("run", "-m", *words, "hydra/launcher=basic").status == 0  # starts none
    assert table(results) == undisturbed


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_one_image_and_the_grid_goes_on_when_started_again(
    adir, tiny: list[str], tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    words = [*tiny, *GRID, f"results={results}", "hydra/launcher=two_processes"]
    process = start("run", "-m", *words, log=log)
    wait_for_records(results, 4, process)
    killed = a_holder(results)
    os.kill(killed, signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    assert all(read_json(path)["status"] == "done" for path in results.glob(RECORDS))
    assert adir("run", "-m", *words, "hydra/launcher=basic").status == 0  # starts none
    assert table(results) == undisturbed
    # What it was writing just then may stay, half written, under a name that nothing reads.
    assert [path for path in leftovers(results) if f".{killed}-" not in path] == []


@pytest.mark.slow
def test_the_cluster_launcher_gives_the_table_of_one_worker(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    """submitit's local executor: the launcher of SLURM, with processes of this machine in place of
    jobs.
    """
    words = [*tiny, "task=sr4", "adaptation=none,random"]
    assert (
        adir(
            "run", "-m", *words, "hydra/launcher=submitit_local", f"results={tmp_path / 'jobs'}"
        ).status
        == 0
    )
    assert adir("run", "-m", *words, f"results={tmp_path / 'one'}").status == 0
    assert table(tmp_path / "jobs") == table(tmp_path / "one")


def test_the_slurm_launcher_asks_for_a_gpu_and_is_configured_as_documented() -> None:
    from hydra.types import RunMode

    from adir.harness.cells.compose import main_hydra

    with main_hydra() as hydra:
        cfg = hydra.compose_config(
            "run",
            ["hydra/launcher=slurm"],
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
        )
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.gpus_per_node == 1
