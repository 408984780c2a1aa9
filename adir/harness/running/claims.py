"""Claims: which worker is at which piece of work, in files alone, so that no two do the same and a dead one's is taken over.

A piece of work (a picture of a cell, an adapter) is claimed by creating `NAME.0.claim` exclusively, which one process of
all that share the folder can do, on NFS too. To take over from a dead holder is to create `NAME.1.claim`, exclusively
again, and so on: the highest number holds, and nothing is deleted while anybody may still look at it. A holder removes
all of them once its product is in place; whoever claims must therefore look for the product again after claiming.
"""

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from adir.harness.records.layout import file_name

HEARTBEAT = 5.0
"""Seconds between signs of life of a holder."""

PATIENCE = 60.0
"""Seconds without one after which a holder on another machine counts as dead, by the watcher's own steady clock: the
clocks of two machines, or one that is set back, play no part."""


def machine() -> str:
    """Where process numbers mean the same: host, boot and, in containers, the process namespace."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:  # no Linux: the host name has to do
            continue
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """When a process of this machine started, in ticks since boot; None when it is gone. Tells a process from a later one
    with its number. Without /proc, `alive` for any process of that number."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "alive"
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]  # a zombie does no work


_seen: dict[Path, tuple[int, float]] = {}
"""Claim of another machine: its time stamp as last seen, and when that was by our steady clock; of the process, as one cell
after another asks."""


@dataclass
class Claims:
    """The claims of one process in one folder. Safe to use from one thread beside the heartbeat's own."""

    folder: Path
    patience: float = field(default_factory=lambda: PATIENCE)
    _held: dict[str, list[Path]] = field(default_factory=dict)

    def take(self, name: str) -> bool:
        """Claim a piece of work; False where a living worker has it. Raises OSError where the folder cannot be written."""
        assert name not in self._held, f"{name} is claimed by this process already"
        self.folder.mkdir(parents=True, exist_ok=True)
        there = self._existing(name)
        if any(not self._dead(path) for path in there):
            return False
        number = int(there[-1].name.split(".")[-2]) + 1 if there else 0
        path = self.folder / f"{file_name(name)}.{number}.claim"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:  # another was first
            return False
        try:
            with open(descriptor, "w") as file:
                json.dump({"machine": machine(), "pid": os.getpid(), "start": start_of(os.getpid())}, file)
        except BaseException:  # a full disk: an empty claim would hold others up
            path.unlink(missing_ok=True)
            raise
        self._held[name] = [*there, path]
        Heart.beat_for(path)
        if any(not self._dead(other) for other in self._existing(name) if other != path):
            self._held[name] = [path]  # the lower ones are not ours to remove
            self.release(name)  # what looked dead was done, and claimed anew, while we looked: two would have it
            return False
        return True

    def release(self, name: str) -> None:
        """Give the work back, done or not. A claim that cannot be removed (read-only folder) is dead when this process is."""
        *dead, own = self._held.pop(name)
        Heart.stop_for(own)
        for path in (*dead, own):
            with suppress(OSError):
                path.unlink()

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """`take`, and `release` at the end; the value tells whether it was to be had."""
        taken = self.take(name)
        try:
            yield taken
        finally:
            if taken:
                self.release(name)

    def held_by_others(self, name: str) -> bool:
        """Whether a living worker has it now."""
        return name not in self._held and any(not self._dead(path) for path in self._existing(name))

    def any_there(self) -> bool:
        """Whether anybody is at work in this folder, or was when it died."""
        return any(self.folder.glob("*.claim"))

    def clear_dead(self) -> None:
        """Remove what dead holders left of work that is done or will be claimed anew, where the folder can be written."""
        for path in self.folder.glob("*.claim"):
            if self._dead(path):
                with suppress(OSError):
                    path.unlink()

    def _existing(self, name: str) -> list[Path]:
        """The claims on one piece of work, the holder's last."""
        filed = file_name(name)
        found = [p for p in self.folder.iterdir() if is_claim_on(p.name, filed)] if self.folder.is_dir() else []
        return sorted(found, key=lambda path: int(path.name.split(".")[-2]))

    def _dead(self, path: Path) -> bool:
        """Whether its holder is gone: at once on this machine, by missing signs of life on another."""
        try:
            stamp = path.stat().st_mtime_ns
            holder = json.loads(path.read_text())
            if holder["machine"] == machine():
                return start_of(holder["pid"]) != holder["start"]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # the latter is NFS's word for the same
                raise
            return False  # released just now: look again rather than take over what may be done
        except (ValueError, KeyError, TypeError):
            pass  # being written, or cut off by a full disk: go by its signs of life
        now = time.monotonic()
        last, since = _seen.setdefault(path, (stamp, now))
        if stamp != last:
            _seen[path] = (stamp, now)
            return False
        return now - since > self.patience


def is_claim_on(filename: str, filed: str) -> bool:
    """Whether a file name is `FILED.NUMBER.claim`."""
    parts = filename.rsplit(".", 2)
    return len(parts) == 3 and parts[0] == filed and parts[1].isdigit() and parts[2] == "claim"


class Heart:
    """One thread per process that touches its claims, so that other machines see they are alive."""

    _claims: set[Path] = set()  # noqa: RUF012 - of the process, like the thread
    _lock = threading.Lock()
    _thread: threading.Thread | None = None
    _pid: int | None = None

    @classmethod
    def beat_for(cls, path: Path) -> None:
        """Touch this claim from now on."""
        with cls._lock:
            if cls._pid != os.getpid():  # after a fork the thread and its claims are the parent's
                cls._claims, cls._thread, cls._pid = set(), None, os.getpid()
            cls._claims.add(path)
            if cls._thread is None:
                cls._thread = threading.Thread(target=cls._beat, name="adir claims", daemon=True)
                cls._thread.start()

    @classmethod
    def stop_for(cls, path: Path) -> None:
        """No longer."""
        with cls._lock:
            cls._claims.discard(path)

    @classmethod
    def _beat(cls) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with cls._lock:
                paths = list(cls._claims)
            for path in paths:
                try:
                    os.utime(path)
                except OSError:  # the folder is gone or read-only: others will take over, rightly
                    continue
