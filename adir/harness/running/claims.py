"""Divide work among workers by claim files, and let a worker take over from a dead one.

A worker is a process that runs cells of a grid; a cell is one combination of settings. A piece of
work is one image of a cell, the training of one adapter, or the embedding of a corpus.

A worker claims a piece of work by creating the file NAME.0.claim exclusively, where NAME stands for
the work. If several workers try at once, only one succeeds, on NFS too. If the holder of a claim
dies, another worker takes over by creating NAME.1.claim exclusively, and so on. The claim with the
highest number is valid. A take-over leaves the old file in place, because other workers may still
read it.

Once the result is stored, the holder removes its claim and those of dead holders. A worker must
therefore search for the result again after claiming.
"""

import errno
import json
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from adir.harness.records.layout import file_name

HEARTBEAT = 5.0
"""The seconds between two heartbeats of a holder."""

HEARTBEAT_TIMEOUT = 60.0
"""The seconds without a heartbeat after which a holder on another machine counts as dead.

The observer measures them with its own monotonic clock, so wrong or changed system clocks do not
matter.
"""


def machine() -> str:
    """Return a text that names the host, its boot and the process namespace.

    Process ids are unique within this scope. Each container has a process namespace of its own. On
    a system other than Linux, the text is the host name alone.
    """
    parts = [platform.node()]
    # Each is read on its own: outside Linux both fail, and some containers hide /proc/sys.
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """Return the start time of a process, in clock ticks since boot; None if it has ended.

    The process runs on this machine. Its start time distinguishes it from a later process with the
    same id. On a system without /proc, the text `alive` is returned for any running process.
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
    return None if after_name[0] in "ZX" else after_name[19]  # zombie or dead


_seen: dict[Path, tuple[int, float]] = {}
"""The heartbeats seen so far of claims from other machines; all cells of a process share them.

{claim: (its last modification time in ns, our monotonic time when we first saw that value)}.
"""


@dataclass
class Claims:
    """Claims that this process holds on pieces of work in one folder.

    Only one thread may use an instance.
    """

    folder: Path
    patience: float = field(default_factory=lambda: HEARTBEAT_TIMEOUT)
    _held: dict[str, list[Path]] = field(default_factory=dict)

    def take(self, name: str) -> bool:
        """Claim a piece of work; return False if a living worker already holds it.

        Raises:
            OSError: if the folder cannot be written to.
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
        except FileExistsError:  # another worker was first
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
        HeartbeatThread.beat_for(path)
        if any(not self._dead(other) for other in self._existing(name) if other != path):
            self._held[name] = [path]  # the lower ones belong to others
            # Meanwhile the work was finished and claimed again, so two workers would hold it.
            self.release(name)
            return False
        return True

    def release(self, name: str) -> None:
        """Remove this process's claim on a piece of work, finished or not.

        Claims of dead holders on the same work are removed too. If a claim cannot be removed,
        because the folder is read-only, it counts as dead once this process ends.
        """
        *dead, own = self._held.pop(name)
        HeartbeatThread.stop_for(own)
        for path in (*dead, own):
            with suppress(OSError):
                path.unlink()

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Yield whether the piece of work could be claimed; release the claim after the block."""
        taken = self.take(name)
        try:
            yield taken
        finally:
            if taken:
                self.release(name)

    def held_by_others(self, name: str) -> bool:
        """Check whether another living worker holds a claim on the piece of work."""
        return name not in self._held and any(not self._dead(path) for path in self._existing(name))

    def any_claims(self) -> bool:
        """Check whether the folder holds any claim, of an active or a dead worker."""
        return any(self.folder.glob("*.claim"))

    def clear_dead(self) -> None:
        """Remove the claims of dead holders, if the folder can be written to."""
        for path in self.folder.glob("*.claim"):
            if self._dead(path):
                with suppress(OSError):
                    path.unlink()

    def _existing(self, name: str) -> list[Path]:
        """Return the claims on one piece of work, ordered by number; the last one is valid."""
        claim = re.compile(re.escape(file_name(name)) + r"\.[0-9]+\.claim")
        found = (
            [p for p in self.folder.iterdir() if claim.fullmatch(p.name)]
            if self.folder.is_dir()
            else []
        )
        return sorted(found, key=lambda path: int(path.name.split(".")[-2]))

    def _dead(self, path: Path) -> bool:
        """Check whether the holder of a claim has ended.

        On this machine, the holder's process id and start time decide at once. A holder on another
        machine counts as dead after `patience` seconds without a heartbeat.
        """
        try:
            stamp = path.stat().st_mtime_ns
            holder = json.loads(path.read_text())
            if holder["machine"] == machine():
                return start_of(holder["pid"]) != holder["start"]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # the latter means the same on NFS
                raise
            return False  # just released: the work may be done, so do not take it over
        except (ValueError, KeyError, TypeError):
            pass  # being written, or truncated by a full disk: heartbeats decide
        now = time.monotonic()
        last, since = _seen.setdefault(path, (stamp, now))
        if stamp != last:
            _seen[path] = (stamp, now)
            return False
        return now - since > self.patience


class HeartbeatThread:
    """Thread, one per process, that renews the modification time of the process's claims.

    It renews them every HEARTBEAT seconds. Workers on other machines thereby see that the holder is
    alive.
    """

    _claims: set[Path] = set()  # noqa: RUF012 - shared by the process, like the thread
    _lock = threading.Lock()
    _thread: threading.Thread | None = None
    _pid: int | None = None

    @classmethod
    def beat_for(cls, path: Path) -> None:
        """Renew the modification time of this claim at every heartbeat from now on."""
        with cls._lock:
            if cls._pid != os.getpid():  # after a fork, the thread and claims are the parent's
                cls._claims, cls._thread, cls._pid = set(), None, os.getpid()
            cls._claims.add(path)
            if cls._thread is None:
                cls._thread = threading.Thread(target=cls._beat, name="adir claims", daemon=True)
                cls._thread.start()

    @classmethod
    def stop_for(cls, path: Path) -> None:
        """Stop renewing the modification time of this claim."""
        with cls._lock:
            cls._claims.discard(path)

    @classmethod
    def _beat(cls) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with cls._lock:
                paths = list(cls._claims)
            for path in paths:
                with suppress(OSError):  # the folder is gone or read-only: let others take over
                    os.utime(path)
