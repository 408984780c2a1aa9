"""Workers of one node take one GPU each; no GPU is needed to see that, as locks in files decide."""

import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from forked import FORKS


def take(folder: Path, end: Connection) -> None:
    """Take a GPU, say which, and hold it until the other end closes."""
    from adir.harness.cells.devices import use_own_gpu

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    tempfile.tempdir = str(folder)
    with pytest.MonkeyPatch.context() as patch:
        pretend_gpus(patch, 2)
        end.send(use_own_gpu(in_parallel_worker=True))
    end.poll(60)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let torch count GPUs that are not there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)


class Worker:
    """A process with a GPU of its own."""

    def __init__(self, folder: Path) -> None:
        self.end, theirs = FORKS.Pipe()
        self.process = FORKS.Process(target=take, args=(folder, theirs))
        self.process.start()
        theirs.close()
        self.gpu = self.end.recv()

    def finish(self) -> None:
        self.end.close()
        self.process.join()


def test_each_worker_takes_another_gpu_and_gives_it_back_when_it_ends(tmp_path: Path) -> None:
    first, second = Worker(tmp_path), Worker(tmp_path)
    assert [first.gpu, second.gpu] == [0, 1]
    first.finish()
    third = Worker(tmp_path)
    assert third.gpu == 0
    second.finish()
    third.finish()


def test_a_worker_alone_and_a_machine_of_one_gpu_choose_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adir.harness.cells.devices import use_own_gpu

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pretend_gpus(monkeypatch, 4)
    assert use_own_gpu(in_parallel_worker=False) is None
    pretend_gpus(monkeypatch, 1)
    assert use_own_gpu(in_parallel_worker=True) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "visible, lock",
    [
        ("", "0"),
        ("1", "1"),
        (" 3 , 2", "3"),
        ("MIG-GPU-5a/1/0,MIG-GPU-5a/2/0", "MIG-GPU-5a%2F1%2F0"),
        (",", "0"),
    ],
)
def test_the_lock_of_a_gpu_has_its_name_in_the_environment_whatever_that_is(
    visible: str, lock: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adir.harness.cells import devices

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pretend_gpus(monkeypatch, 2)
    assert devices.use_own_gpu(in_parallel_worker=True) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(f"-gpu-{lock}.lock")


CUDA = {
    "backbone": {"device": "cuda", "execution": "${execution}"},
    "execution": {"device": "${oc.select:backbone.device,cpu}", "offload": True},
    "parts": [{"device": "cuda:1", "offload": False}, None, "cuda"],
}


def test_what_another_machine_will_run_is_checked_on_the_cpu() -> None:
    from adir.harness.cells.devices import on_the_cpu

    assert on_the_cpu(CUDA, lacking=None) == {
        "backbone": {"device": "cpu", "execution": "${execution}"},
        "execution": {
            "device": "${oc.select:backbone.device,cpu}",
            "offload": False,
        },  # a CPU has no other place
        "parts": [{"device": "cpu", "offload": False}, None, "cuda"],
    }
    assert CUDA["backbone"]["device"] == "cuda"


def test_a_device_that_there_is_not_is_named_with_the_part_that_asks_for_it() -> None:
    from adir.errors import InputError
    from adir.harness.cells.devices import on_the_cpu

    with pytest.raises(InputError, match=r"encoder.device='gpu'.*cpu, cuda"):
        on_the_cpu({"encoder": {"device": "gpu"}}, lacking=None)
    lacking: list[str] = []
    on_the_cpu({"encoder": {"device": "cuda:99"}}, lacking)
    (line,) = lacking
    assert line.startswith("encoder.device=cuda:99: torch finds")
