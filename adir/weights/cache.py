"""The folder where weights and converted networks are kept, and the hashes of large files,
remembered there.
"""

import os
import time
from pathlib import Path

from adir.files import read_json, sha256_of_bytes, sha256_of_file, write_json


def cache_dir() -> Path:
    """Where weights and converted networks are kept:

    ADIR_CACHE, else adir in XDG_CACHE_HOME or ~/.cache.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adir"
    return Path(os.environ.get("ADIR_CACHE") or default).expanduser().absolute()


SMALL = 64 << 20  # bytes; below, hashing takes less than remembering is worth
SETTLED_SECONDS = (
    2.0  # file systems' clocks are that coarse: a file changed since could look unchanged
)


def known_sha256(path: Path) -> str:
    """SHA-256 of a file, from the cache where the file is the one that was hashed: same path,
    inode, size and times.
    """
    if path.stat().st_size < SMALL:
        return sha256_of_file(path)
    note, stamp = note_of(path), stamp_of(path)
    try:
        known = read_json(note)
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or damaged: hash it
    sha256 = sha256_of_file(path)
    if stamp_of(path) == stamp:
        remember_sha256(path, sha256)
    return sha256


def remember_sha256(path: Path, sha256: str, own: bool = False) -> None:
    """Note the hash of a large file that has not changed for a while; or of our own, which nobody
    else knows yet.
    """
    stamp = stamp_of(path)
    settled = own or time.time() - stamp["changed_ns"] / 1e9 >= SETTLED_SECONDS
    if path.stat().st_size < SMALL or not settled:
        return
    try:
        write_json(note_of(path), {"path": str(path.resolve()), "stamp": stamp, "sha256": sha256})
    except OSError:
        pass  # a cache that cannot be written: the next run hashes again


def stamp_of(path: Path) -> dict[str, int]:
    """What changes when a file does.

    The time of the last change of any kind cannot be set back as mtime can.
    """
    stat = path.stat()
    return {
        "size": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "changed_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def note_of(path: Path) -> Path:
    """Where the hash of a file is remembered."""
    return cache_dir() / "hashes" / f"{sha256_of_bytes(str(path.resolve()).encode())[:32]}.json"
