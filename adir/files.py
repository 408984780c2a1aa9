"""Files and folders: written whole or not at all, hashed, listed by one rule, read whatever program
wrote them.
"""

import codecs
import csv
import hashlib
import io
import json
import os
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adir.errors import InputError

RESULTS_MARKER = "adir-results.json"
"""The file that marks a folder as written by this program: its images are results, and no data."""


def sha256_of_bytes(content: bytes) -> str:
    """SHA-256 of `content`, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


LONGEST_NAME = 120
"""Bytes of a file's name that is made of a user's words: file systems take 255, and suffixes are
put after it.
"""


def shortened(name: str, most: int = LONGEST_NAME) -> str:
    """Return a file's name, or where it has more than `most` bytes as many as leave room for a hash
    of the whole.
    """
    encoded = name.encode(errors="surrogateescape")
    return name if len(encoded) <= most else with_hash(name, name, most)


def with_hash(readable: str, whole: str, most: int) -> str:
    """Return the start of a readable text and `@`, which `urllib.parse.quote` never leaves, with a
    hash of the whole.

    most: bytes.
    """
    mark = "@" + sha256_of_bytes(whole.encode(errors="surrogateescape"))[:16]
    return (
        readable.encode(errors="surrogateescape")[: most - len(mark)].decode(errors="ignore") + mark
    )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file that a reader sees whole or not at all, also when the process is killed or the
    disk is full.
    """
    with replacing(Path(path)) as temporary, open(temporary, "xb") as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary neighbour, which the block writes and which then takes the
    place of `path`.

    It is removed on any failure; only SIGKILL can leave one, and its name starts with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: its files are readable by their owner alone, and results folders are
    # shared.
    temporary = path.with_name(f".{shortened(path.name)}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(
                file.fileno()
            )  # without it a power cut can leave a complete name on an empty file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (
            isinstance(error, OSError) and error.filename is None
        ):  # a full disk's does not say where
            error.filename = str(path)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    NaN and Inf raise ValueError: they are not JSON, and not results.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The content of a JSON file of ours."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises json.JSONDecodeError or UnicodeDecodeError (both ValueError) when it is damaged.
    """
    return json.loads(read_text(path))


def read_text(path: str | Path) -> str:
    """The text of a file that a user wrote:

    UTF-8 with or without a byte order mark, or UTF-16 with one; lines end as they do.

    Raises UnicodeDecodeError (a ValueError) for another encoding.
    """
    return decode_text(Path(path).read_bytes())


def decode_text(content: bytes) -> str:
    """The text in the bytes of a file; see `read_text`."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig")


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column; encoding and line ends as in `read_text`."""
    return list(csv.DictReader(io.StringIO(read_text(path), newline="")))


def require_no_results(folder: Path) -> None:
    """Raise InputError where a folder that images are to be read from was written by this program."""
    if (folder / RESULTS_MARKER).exists():
        raise InputError(
            f"{folder}: holds results of adir, which are never taken as images; name another "
            "folder (or remove "
            f"{RESULTS_MARKER} from it, if these are images of yours)"
        )


def walk(folder: str | Path, suffixes: tuple[str, ...], below: bool = True) -> Iterator[Path]:
    """Yield the files of a folder, and of those below it, whose names end so, in any case of
    letters.

    Sorted within each folder, files before folders. Hidden files and folders are left out, and so
    are results of this program below. Links are followed; a folder that is reached in several ways
    is listed once, at its own place if that is below. Raises InputError where a folder cannot be
    listed, or where `folder` itself holds results.

    suffixes: in lower case, with their dots.
    """
    require_no_results(Path(folder))
    seen: set[tuple[int, int]] = set()
    waiting = [
        str(folder)
    ]  # what links lead to comes last, so that a folder which lies below keeps its own name
    while waiting:
        for where, folders, files in os.walk(waiting.pop(0), onerror=refuse_folder):
            place = os.stat(where)
            if (place.st_dev, place.st_ino) in seen or os.path.exists(
                os.path.join(where, RESULTS_MARKER)
            ):
                folders.clear()
                continue
            seen.add((place.st_dev, place.st_ino))
            folders[:] = sorted(name for name in folders if below and not name.startswith("."))
            waiting += [
                path for name in folders if os.path.islink(path := os.path.join(where, name))
            ]
            for name in sorted(files):
                if name.lower().endswith(suffixes) and not name.startswith("."):
                    yield Path(where, name)


def refuse_folder(error: OSError) -> None:
    """Stop a walk at a folder that cannot be listed, which os.walk would pass over with all that is
    in it.
    """
    raise InputError(
        f"{error.filename}: cannot be listed ({error.strerror}); make it readable, or take it away"
    ) from error


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file of which its library has read the tensors; {} when it has
    none.

    The library itself gives it of a path only, and turns every OSError into FileNotFoundError.
    """
    header = json.loads(
        content[8 : 8 + int.from_bytes(content[:8], "little")]
    )  # its length, then JSON
    return header.get("__metadata__", {})


def set_aside(path: Path) -> str:
    """Rename a damaged file so that its place is free, keep its content, and say so."""
    target = path.with_name(f"{path.name}.corrupt-{time.time_ns():x}")
    try:
        os.replace(path, target)
    # a read-only folder, or another process was first: the work goes on without the file
    except OSError as error:
        return f"it could not be set aside ({error.strerror})"
    return f"set aside as {target.name}"


def warn_in_one_line(message: str) -> None:
    """A Python warning without the line of source that `warnings.warn` prints below it."""
    warnings.warn_explicit(message, UserWarning, "<adir>", 1)


def hash_of(configuration: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces, 10.0 as 10).

    Raises ValueError for NaN, which equals nothing.
    """
    canonical = json.dumps(
        plain_numbers(configuration), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return sha256_of_bytes(canonical.encode())


def plain_numbers(value: Any) -> Any:
    """The value with whole floats as integers: sigma_y=10 and sigma_y=10.0 are one cell."""
    if isinstance(value, dict):
        return {key: plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def storable(text: str) -> str:
    """Return the text with lone surrogates escaped as \\udcff.

    Python uses lone surrogates for bytes of a file name that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode()
