"""Workers of one node take one GPU each; no GPU is needed to see that, as locks in files decide."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TAKE = (
    "import sys; from adir.harness.devices import use_own_gpu; "
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
    from adir.harness.devices import use_own_gpu

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert use_own_gpu(beside_others=False, count=4) is None
    assert use_own_gpu(beside_others=True, count=1) is None
    assert list(tmp_path.iterdir()) == []
