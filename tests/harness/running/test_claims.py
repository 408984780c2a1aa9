"""Claims: one holder at a time, whoever dies, whatever the clocks say."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adir.harness.running import claims as claims_module
from adir.harness.running.claims import Claims, machine, start_of


def take_all(folder: Path, names: list[str], out: Path) -> None:
    """Take what is to be had, as a worker among others; `out` says what."""
    mine = [name for name in names if Claims(folder).take(name)]
    out.write_text(json.dumps(mine))
    time.sleep(1.0)  # alive while the others look


def test_of_several_workers_each_piece_of_work_goes_to_exactly_one(tmp_path: Path) -> None:
    names = [f"image {n}/é.png" for n in range(50)]
    outs = [tmp_path / f"{worker}.json" for worker in range(4)]
    workers = [
        multiprocessing.Process(target=take_all, args=(tmp_path / "claims", names, out))
        for out in outs
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = [name for out in outs for name in json.loads(out.read_text())]
    assert sorted(taken) == sorted(names)


def test_what_is_released_can_be_taken_and_leaves_no_file(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    with mine.claimed("a") as taken:
        assert taken and not other.take("a") and other.held_by_others("a") and other.any_claims()
    assert list(tmp_path.iterdir()) == []
    assert not other.any_claims() and other.take("a")


DIE_HOLDING = (
    "import os, sys; from pathlib import Path; from adir.harness.running.claims import Claims; "
    "assert Claims(Path(sys.argv[1])).take('a'); os.kill(os.getpid(), 9)"
)


def test_the_claim_of_a_killed_worker_is_taken_over_at_once_and_by_one_alone(
    tmp_path: Path,
) -> None:
    assert (
        subprocess.run([sys.executable, "-c", DIE_HOLDING, str(tmp_path)], check=False).returncode
        == -9
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.0.claim"]
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("a") and not second.take("a")
    first.release("a")
    assert list(tmp_path.iterdir()) == []


def claim_of(folder: Path, where: str, pid: int = 1, start: str = "1", number: int = 0) -> Path:
    """A claim on `a` as another process would leave it."""
    path = folder / f"a.{number}.claim"
    path.write_text(json.dumps({"machine": where, "pid": pid, "start": start}))
    return path


def test_a_number_that_was_given_to_a_later_process_does_not_keep_a_claim_alive(
    tmp_path: Path,
) -> None:
    claim_of(tmp_path, machine(), pid=os.getpid(), start="7")  # our own number, but not our start
    assert start_of(os.getpid()) != "7"
    assert Claims(tmp_path).take("a")


def test_another_machines_claim_holds_while_it_gives_signs_of_life_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    path = claim_of(tmp_path, "elsewhere")
    os.utime(path, (1, 1))  # a clock set back by decades
    watcher = Claims(tmp_path, patience=60)
    assert not watcher.take("a")
    now += 59
    assert not watcher.take("a")
    os.utime(path, (2, 2))  # a sign of life
    now += 59
    assert not watcher.take("a")
    now += 59
    assert not watcher.take("a")
    now += 2
    assert watcher.take("a")


def test_a_claim_cut_off_by_a_full_disk_is_waited_for_and_then_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    (tmp_path / "a.0.claim").write_text("{")
    watcher = Claims(tmp_path)
    assert not watcher.take("a")
    now += claims_module.HEARTBEAT_TIMEOUT + 1
    assert watcher.take("a")


def test_of_two_holders_the_one_that_came_back_to_life_keeps_others_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `a.0` was silent for long (its machine slept) and overtaken; now it beats again, and who
    # overtook it has died
    now = 0.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    slept, died = claim_of(tmp_path, "elsewhere"), claim_of(tmp_path, "a third", number=1)
    watcher = Claims(tmp_path)
    assert not watcher.take("a")
    now += claims_module.HEARTBEAT_TIMEOUT + 1
    os.utime(slept, (3, 3))
    assert watcher.held_by_others("a") and not watcher.take("a")
    assert {path.name for path in tmp_path.iterdir()} == {slept.name, died.name}


def test_a_claim_that_nfs_calls_stale_is_one_that_was_released_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    claim_of(tmp_path, "elsewhere")
    monkeypatch.setattr(Path, "read_text", stale)
    assert Claims(tmp_path).held_by_others("a")


def test_who_overtook_a_holder_that_only_looked_dead_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The slow worker saw a dead claim; before it acted, that was released and claimed anew by a
    # living one.
    dead = claim_of(tmp_path, machine(), pid=2**22 + 1)
    slow, quick = Claims(tmp_path), Claims(tmp_path)
    existing, calls = slow._existing, []

    def outdated(name: str) -> list[Path]:
        calls.append(name)
        if len(calls) > 1:
            return existing(name)
        seen = existing(name)
        dead.unlink()
        assert quick.take("a")
        return seen

    monkeypatch.setattr(slow, "_existing", outdated)
    monkeypatch.setattr(
        slow, "_dead", lambda path: (path == dead and len(calls) == 1) or Claims._dead(slow, path)
    )
    assert not slow.take("a")
    assert quick.held_by_others("a") is False and [p.name for p in tmp_path.iterdir()] == [
        "a.0.claim"
    ]


def test_a_held_claim_is_touched_so_that_other_machines_see_it_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(claims_module.HeartbeatThread, "_thread", None)
    claims = Claims(tmp_path)
    with claims.claimed("a"):
        path = tmp_path / "a.0.claim"
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 1:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.01)


def test_a_folder_that_cannot_be_written_is_said_not_taken_for_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Claims(tmp_path / "file" / "claims").take("a")


def test_clearing_removes_the_claims_of_the_dead_alone(tmp_path: Path) -> None:
    dead = claim_of(tmp_path, machine(), pid=2**22 + 1)
    elsewhere = tmp_path / "b.0.claim"
    elsewhere.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "start": "1"}))
    claims = Claims(tmp_path)
    assert claims.take("c")
    claims.clear_dead()
    assert not dead.exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "b.0.claim",
        "c.0.claim",
    ]


def test_dead_claims_in_a_folder_that_cannot_be_written_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    dead = claim_of(tmp_path, machine(), pid=2**22 + 1)
    monkeypatch.setattr(Path, "unlink", read_only)
    Claims(tmp_path).clear_dead()
    assert dead.exists()


def test_a_machine_that_hides_its_boot_id_still_names_the_process_namespace(monkeypatch) -> None:
    def hidden(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", hidden)
    assert machine().split()[-1] == os.readlink("/proc/self/ns/pid")
