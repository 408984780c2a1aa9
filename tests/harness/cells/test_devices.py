"""Workers of one node take one GPU each; no GPU is needed to see that, as locks in files decide."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TAKE = (
    "import sys; from adir.harness.cells.devices import use_own_gpu; "
    "print(use_own_gpu(beside_others=True, count=2), flush=True); sys.stdin.read()"
)


def worker(environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that takes a GPU, says which, and holds it until its stdin closes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", TAKE], env=environment, **pipes)


def test_each_worker_takes_another_gpu_and_gives_it_back_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    workers = [worker(environment) for _ in range(2)]
    taken = [process.stdout.readline().strip() for process in workers]  # type: ignore[union-attr]
    assert sorted(taken) == ["0", "1"]
    workers[taken.index("0")].communicate("")
    third = worker(environment)
    assert third.stdout.readline().strip() == "0"  # type: ignore[union-attr]
    for process in (third, workers[taken.index("1")]):
        process.communicate("")


def test_a_worker_alone_and_a_machine_of_one_gpu_choose_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adir.harness.cells.devices import use_own_gpu

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert use_own_gpu(beside_others=False, count=4) is None
    assert use_own_gpu(beside_others=True, count=1) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "visible, lock",
    [("", "0"), ("1", "1"), (" 3 , 2", "3"), ("MIG-GPU-5a/1/0,MIG-GPU-5a/2/0", "MIG-GPU-5a%2F1%2F0"), (",", "0")],
)
def test_the_lock_of_a_gpu_has_its_name_in_the_environment_whatever_that_is(
    visible: str, lock: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adir.harness.cells import devices

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.use_own_gpu(beside_others=True, count=2) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(f"-gpu-{lock}.lock")


CUDA = {
    "backbone": {"device": "cuda", "execution": "${execution}"},
    "execution": {"device": "${oc.select:backbone.device,cpu}", "offload": True},
    "parts": [{"device": "cuda:1", "offload": False}, None, "cuda"],
}


def test_what_another_machine_will_run_is_checked_on_the_cpu() -> None:
    from adir.harness.cells.devices import on_the_cpu

    assert on_the_cpu(CUDA, here=False) == {
        "backbone": {"device": "cpu", "execution": "${execution}"},
        "execution": {"device": "${oc.select:backbone.device,cpu}", "offload": False},  # a CPU has no other place
        "parts": [{"device": "cpu", "offload": False}, None, "cuda"],
    }
    assert CUDA["backbone"]["device"] == "cuda"


@pytest.mark.parametrize(
    "device, here, words",
    [("gpu", False, "encoder.device='gpu'.*cpu, cuda"), ("cuda:99", True, "encoder.device=cuda:99: torch finds")],
)
def test_a_device_that_there_is_not_is_named_with_the_part_that_asks_for_it(
    device: str, here: bool, words: str
) -> None:
    from adir.errors import InputError
    from adir.harness.cells.devices import on_the_cpu

    with pytest.raises(InputError, match=words):
        on_the_cpu({"encoder": {"device": device}}, here)
