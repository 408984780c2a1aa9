"""Claims: files that state which worker does which piece of work, so that no two do the same and a
dead worker's is taken over.

A worker claims a piece of work (an image of a cell, an adapter) by creating `NAME.0.claim`
exclusively. Only one of the processes that share the folder succeeds, also on NFS. To take over
from a dead holder, a worker creates `NAME.1.claim` exclusively, and so on: the highest number is
valid, and no file is deleted while others may still read it. A holder removes all of them once its
result is stored, so a worker must look for the result again after claiming.
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
"""Seconds between heartbeats of a holder."""

PATIENCE = 60.0
"""Seconds without a heartbeat after which a holder on another machine counts as dead.

Measured by the observer's monotonic clock, so that clocks that disagree or are set back do not
matter.
"""


def machine() -> str:
    """Return where a process number is unique: host, boot and, in containers, process namespace."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(
                os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip()
            )
        except OSError:  # not Linux: only the host name is known
            continue
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks since boot; None if it has ended.

    This distinguishes it from a later process of the same number. Without /proc, returns `alive`
    for any running process.
    """
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
    return None if after_name[0] in "ZX" else after_name[19]  # a zombie works no more


_seen: dict[Path, tuple[int, float]] = {}
"""{claim of another machine:

(last seen time stamp, our monotonic time when it changed)}. Shared by all cells of a process.
"""


@dataclass
class Claims:
    """The claims of one process in one folder.

    Safe to use from one thread beside the heartbeat's own.
    """

    folder: Path
    patience: float = field(default_factory=lambda: PATIENCE)
    _held: dict[str, list[Path]] = field(default_factory=dict)

    def take(self, name: str) -> bool:
        """Claim a piece of work; return False if a living worker has it.

        Raises OSError if the folder cannot be written to.
        """
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
                json.dump(
                    {"machine": machine(), "pid": os.getpid(), "start": start_of(os.getpid())}, file
                )
        except BaseException:  # on a full disk, an empty claim would block others
            path.unlink(missing_ok=True)
            raise
        self._held[name] = [*there, path]
        Heart.beat_for(path)
        if any(not self._dead(other) for other in self._existing(name) if other != path):
            self._held[name] = [path]  # the lower ones belong to others
            self.release(
                name
            )  # meanwhile the work was finished and claimed again: two workers would have it
            return False
        return True

    def release(self, name: str) -> None:
        """Release the work, done or not.

        A claim that cannot be removed (read-only folder) is dead once this process ends.
        """
        *dead, own = self._held.pop(name)
        Heart.stop_for(own)
        for path in (*dead, own):
            with suppress(OSError):
                path.unlink()

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Take a claim for the block and release it at the end. Yields whether it was taken."""
        taken = self.take(name)
        try:
            yield taken
        finally:
            if taken:
                self.release(name)

    def held_by_others(self, name: str) -> bool:
        """Return whether another living worker has it now."""
        return name not in self._held and any(not self._dead(path) for path in self._existing(name))

    def any_there(self) -> bool:
        """Return whether a worker is active in this folder, or died while it was."""
        return any(self.folder.glob("*.claim"))

    def clear_dead(self) -> None:
        """Remove the claims of dead holders, if the folder can be written to."""
        for path in self.folder.glob("*.claim"):
            if self._dead(path):
                with suppress(OSError):
                    path.unlink()

    def _existing(self, name: str) -> list[Path]:
        """Return the claims on one piece of work; the last one is the holder's."""
        filed = file_name(name)
        found = (
            [p for p in self.folder.iterdir() if is_claim_on(p.name, filed)]
            if self.folder.is_dir()
            else []
        )
        return sorted(found, key=lambda path: int(path.name.split(".")[-2]))

    def _dead(self, path: Path) -> bool:
        """Return whether its holder has ended: known at once on this machine, by missing heartbeats
        on another.
        """
        try:
            stamp = path.stat().st_mtime_ns
            holder = json.loads(path.read_text())
            if holder["machine"] == machine():
                return start_of(holder["pid"]) != holder["start"]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # the latter means the same on NFS
                raise
            return False  # just released: the work may be done, so it must not be taken over
        except (ValueError, KeyError, TypeError):
            pass  # being written, or truncated by a full disk: decide by its heartbeats
        now = time.monotonic()
        last, since = _seen.setdefault(path, (stamp, now))
        if stamp != last:
            _seen[path] = (stamp, now)
            return False
        return now - since > self.patience


def is_claim_on(filename: str, filed: str) -> bool:
    """Return whether a file name is `FILED.NUMBER.claim`."""
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
        """Start to touch this claim."""
        with cls._lock:
            if cls._pid != os.getpid():  # after a fork the thread and its claims are the parent's
                cls._claims, cls._thread, cls._pid = set(), None, os.getpid()
            cls._claims.add(path)
            if cls._thread is None:
                cls._thread = threading.Thread(target=cls._beat, name="adir claims", daemon=True)
                cls._thread.start()

    @classmethod
    def stop_for(cls, path: Path) -> None:
        """Stop to touch this claim."""
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
                except OSError:  # the folder is gone or read-only: others should take over
                    continue
