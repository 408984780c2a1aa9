"""Files and folders: atomic writing, hashing, listing, and reading in any Unicode encoding."""

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
"""The file that marks a results folder. Its images are never read as a data set or corpus."""


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


LONGEST_NAME = 120
"""The limit in bytes of a file name that is made from a user's text.

File systems allow 255 bytes. The other 135 bytes are left for suffixes.
"""


def shortened(name: str, most: int = LONGEST_NAME) -> str:
    """Return a file name, shortened to `most` bytes if it is longer.

    A shortened name ends in a hash of the whole name, so that different names stay different.
    """
    encoded = name.encode(errors="surrogateescape")
    return name if len(encoded) <= most else with_hash(name, name, most)


def with_hash(readable: str, whole: str, most: int) -> str:
    """Return the start of a readable text, followed by `@` and 16 hex digits of a hash of `whole`.

    A text from `urllib.parse.quote` contains no `@`. If `readable` is such a text, the hash is what
    follows the only `@`.

    Args:
        readable: text to be shortened.
        whole: text whose hash is appended.
        most: maximum length of the result in bytes.
    """
    mark = "@" + sha256_of_bytes(whole.encode(errors="surrogateescape"))[:16]
    return (
        readable.encode(errors="surrogateescape")[: most - len(mark)].decode(errors="ignore") + mark
    )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically.

    A reader never sees a partly written file, even if the process is killed or the disk is full.
    """
    with atomic_path(Path(path)) as temporary, open(temporary, "xb") as file:
        file.write(content)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` when the `with` block ends.

    The temporary file is in the folder of `path`, and its name starts with a dot. The block must
    write this file. If the block fails, the file is removed. Only SIGKILL or a power cut can leave
    it behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # tempfile.mkstemp is not used because only the owner could read its files, and results folders
    # are shared.
    temporary = path.with_name(f".{shortened(path.name)}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            # Without this call, a power cut can leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # The error of a full disk names no file.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises ValueError for NaN and Inf, which JSON does not allow.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as the bytes of an indented JSON file; raise ValueError for NaN and Inf."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: str | Path) -> Any:
    """Return the value in a JSON file.

    Raises json.JSONDecodeError or UnicodeDecodeError (both are ValueErrors) if the file is damaged.
    """
    return json.loads(read_text(path))


def read_text(path: str | Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16.

    UTF-16 must start with a byte order mark. UTF-8 may start with one, which is dropped. Line ends
    are not changed.

    Raises UnicodeDecodeError (a ValueError) for another encoding.
    """
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig")


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Return one dict {column: value} per row of a CSV file, decoded as `read_text` does."""
    return list(csv.DictReader(io.StringIO(read_text(path), newline="")))


def require_no_results(folder: Path) -> None:
    """Raise InputError if a folder that is given as input is marked as a results folder of adir."""
    if (folder / RESULTS_MARKER).exists():
        raise InputError(
            f"{folder}: holds results of adir, which are never read as input images; name another "
            f"folder, or remove {RESULTS_MARKER} from this folder if the images are your own"
        )


def walk(folder: str | Path, suffixes: tuple[str, ...], below: bool = True) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders whose names end in one of `suffixes`.

    Names are sorted within each folder, and files come before subfolders. Hidden files, hidden
    folders and results folders of adir are skipped. Symbolic links are followed. A folder that is
    reachable by several paths is listed once, if possible under a path without links.

    Args:
        folder: folder to list.
        suffixes: suffixes in lower case, with their dots; the case of a file's name is ignored.
        below: whether subfolders are listed too.

    Raises:
        InputError: if a folder cannot be listed, or if `folder` itself is a results folder of adir.
    """
    require_no_results(Path(folder))
    seen: set[tuple[int, int]] = set()
    # Targets of links are listed last, so that a folder inside `folder` keeps its own path.
    waiting = [str(folder)]
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
    """Raise InputError for a folder that cannot be listed.

    The function is passed to os.walk as `onerror`. Without it, os.walk skips the folder silently.
    """
    raise InputError(
        f"{error.filename}: cannot be listed ({error.strerror}); make the folder readable, "
        "or remove the folder"
    ) from error


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file from its bytes; {} if the file has no metadata.

    The bytes are not checked. To check them, read the tensors with the safetensors library first.
    Its own function for metadata is not used, because it takes only a path, and turns every OSError
    into FileNotFoundError.
    """
    # The file starts with the length of the header in 8 bytes, then the header as JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {})


def set_aside(path: Path) -> str:
    """Rename a damaged file so that its path is free, and return a phrase for a log line.

    The content is kept under the new name. If renaming fails, the phrase says why.
    """
    target = path.with_name(f"{path.name}.corrupt-{time.time_ns():x}")
    try:
        os.replace(path, target)
    except OSError as error:  # read-only folder, or another process renamed it: not fatal
        return f"it could not be set aside ({error.strerror})"
    return f"set aside as {target.name}"


def warn_in_one_line(message: str) -> None:
    """Issue a UserWarning without the source line that `warnings.warn` prints below it."""
    warnings.warn_explicit(message, UserWarning, "<adir>", 1)


def hash_of(configuration: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form (sorted keys, no spaces, 10.0 as 10).

    Raises ValueError for NaN and Inf.
    """
    canonical = json.dumps(
        canonical_numbers(configuration), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return sha256_of_bytes(canonical.encode())


def canonical_numbers(value: Any) -> Any:
    """Return a JSON value in which floats with a whole value are replaced by integers.

    Therefore settings with sigma_y=10 and sigma_y=10.0 have the same hash and describe the same
    cell (combination of settings).
    """
    if isinstance(value, dict):
        return {key: canonical_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def storable(text: str) -> str:
    """Return the text with each lone surrogate replaced by its escape code, such as \\udcff.

    Python represents the bytes of a file name that are not UTF-8 by lone surrogates, which cannot
    be written to a UTF-8 file.
    """
    return text.encode("utf-8", "backslashreplace").decode()
