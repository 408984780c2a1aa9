"""The cache folder of weights and converted networks, and the cached hashes of large files."""

import os
import time
from pathlib import Path

from adir.files import read_json, sha256_of_bytes, sha256_of_file, write_json


def cache_dir() -> Path:
    """Return the cache folder of adir.

    It is $ADIR_CACHE if this variable is set, else $XDG_CACHE_HOME/adir if that is set, else
    ~/.cache/adir.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adir"
    return Path(os.environ.get("ADIR_CACHE") or default).expanduser().absolute()


SMALL = 64 << 20  # bytes; hashes of smaller files are not cached, because hashing is fast
# The timestamps of file systems can be this coarse. A file that is changed twice within this time
# can keep the timestamp of the first change.
SETTLED_SECONDS = 2.0


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, from the cache if the file has not changed since it was hashed.

    The file counts as unchanged if its path, inode, size and timestamps are the same. Otherwise it
    is hashed again, and the new hash is cached. A file smaller than SMALL (64 MiB) is always hashed
    and never cached.
    """
    if path.stat().st_size < SMALL:
        return sha256_of_file(path)
    note, stamp = hash_file_of(path), stamp_of(path)
    try:
        known = read_json(note)
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no cached hash, or a damaged one: hash the file
    sha256 = sha256_of_file(path)
    if stamp_of(path) == stamp:
        remember_sha256(path, sha256)
    return sha256


def remember_sha256(path: Path, sha256: str, own: bool = False) -> None:
    """Cache the hash of a file, if the file is large and has not changed recently.

    Large means at least SMALL (64 MiB). Recently means less than SETTLED_SECONDS (2 s) ago: a
    further change might then leave the timestamps as they are.

    Args:
        path: the file.
        sha256: hash of the file.
        own: whether the caller has just created the file and no other process can change it. If
            true, the hash is cached even after a recent change.
    """
    stamp = stamp_of(path)
    settled = own or time.time() - stamp["changed_ns"] / 1e9 >= SETTLED_SECONDS
    if path.stat().st_size < SMALL or not settled:
        return
    try:
        write_json(
            hash_file_of(path), {"path": str(path.resolve()), "stamp": stamp, "sha256": sha256}
        )
    except OSError:
        pass  # the cache is not writable, so the next run hashes the file again


def stamp_of(path: Path) -> dict[str, int]:
    """Return the size in bytes, timestamps and inode of a file, which detect a change of the file.

    `modified_ns` is the mtime and `changed_ns` the ctime, in nanoseconds. Programs can set back the
    mtime but not the ctime.
    """
    stat = path.stat()
    return {
        "size": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "changed_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def hash_file_of(path: Path) -> Path:
    """Return the path of the JSON file in the cache that stores the hash of the file `path`."""
    return cache_dir() / "hashes" / f"{sha256_of_bytes(str(path.resolve()).encode())[:32]}.json"
