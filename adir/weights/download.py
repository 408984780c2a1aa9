"""Download large files from mirrors, resume interrupted downloads, and verify hashes."""

import fcntl
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import huggingface_hub

from adir.errors import InputError
from adir.files import set_aside

HUB = "https://huggingface.co/"
TIMEOUT_SECONDS = 10.0  # for the connection, and for each read
ATTEMPTS = 5  # per mirror; if an attempt brings no new data, the next mirror is tried at once
CHUNK = 1 << 20  # bytes

Progress = Callable[[int, int | None], None]
"""Callback with arguments (bytes so far, total bytes or None if unknown)."""


def fetch(
    target: Path,
    mirrors: Sequence[str],
    sha256: str,
    size: int | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Download a file from the first mirror that has it, and verify its hash.

    The download is written to the file `target`.part, which is renamed to `target` when it is
    complete and its hash is right. If the download is interrupted, a later call resumes it from any
    mirror. A file with a wrong hash is renamed to *.corrupt-*, and the next mirror is tried.

    Args:
        target: path of the downloaded file.
        mirrors: URLs of the file, tried in this order.
        sha256: the expected SHA-256, or a prefix of it.
        size: the expected size in bytes; None if unknown.
        progress: called after each chunk with the bytes so far and the total bytes, if known.

    Raises:
        InputError: if all mirrors fail, another process is downloading the same file, or the disk
            has too little free space.
        OSError: if the file system fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for url in map(request_url, mirrors):
        print(
            f"downloading {target.name} from {urllib.parse.urlsplit(url).netloc}",
            file=sys.stderr,
            flush=True,
        )
        with opened_locked(part) as file:
            reason = fetch_from(url, file, part, sha256, size, progress)
            if reason is None:
                os.replace(part, target)
                return
        reasons.append(f"{url} ({reason})")
    kept = part.stat().st_size if part.exists() else 0
    if not kept:
        part.unlink(missing_ok=True)
    going_on = (
        f"; the first {readable_size(kept)} are saved, and the same command resumes the download"
        if kept
        else ""
    )
    why = f"for {', '.join(reasons)}" if reasons else "because no mirror is known"
    raise InputError(
        f"{target.name}: the download failed {why}{going_on}; you can also put the file into "
        f"{target.parent} by hand"
    )


def request_url(url: str) -> str:
    """Return the URL to request for `url`, the URL of a file on a mirror.

    If the environment variable HF_ENDPOINT is set, its value replaces https://huggingface.co at the
    start of `url`. Raises InputError if the replacement is not an http or https URL.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if not endpoint or not url.startswith(HUB):
        return url
    if not endpoint.startswith(("http://", "https://")):
        raise InputError(
            f"HF_ENDPOINT={endpoint} is not an address; set HF_ENDPOINT=https://{endpoint}, or "
            "unset it"
        )
    return f"{endpoint}/{url.removeprefix(HUB)}"


def opened(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Send a GET request and return the response.

    If environment variables name a proxy, the request goes through it. A request to the Hugging
    Face hub carries the user's access token, if there is one.
    """
    request = urllib.request.Request(url, headers=headers)
    token = huggingface_hub.get_token() if url.startswith(request_url(HUB)) else None
    if token is not None:  # not sent on to the storage that the hub redirects to
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    proxies = urllib.request.getproxies()
    if "all" in proxies:  # urllib does not know ALL_PROXY
        proxies = dict.fromkeys(("http", "https"), proxies["all"]) | proxies
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    return opener.open(request, timeout=TIMEOUT_SECONDS)


def fetch_from(
    url: str, file: BinaryIO, part: Path, sha256: str, size: int | None, progress: Progress
) -> str | None:
    """Download the rest of a partly downloaded file from one mirror, and verify its hash.

    Args:
        url: URL of the file on the mirror.
        file: the open .part file, which holds the data downloaded so far.
        part: path of the .part file.
        sha256: the expected SHA-256, or a prefix of it.
        size: the expected size in bytes; None if unknown.
        progress: called after each chunk.

    Returns:
        None on success, else the reason why the mirror failed.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        have = file.seek(0, os.SEEK_END)
        try:
            stream(url, file, size, progress)
        except (OSError, http.client.HTTPException) as error:
            reason = reason_of(error)
            # HTTP 416, no such range: the .part file is complete or belongs to another file.
            if have and getattr(error, "code", None) == 416:
                file.truncate(0)
                continue
            if file.seek(0, os.SEEK_END) <= have:
                return reason
            time.sleep(min(attempt, 3))
            continue
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if found.startswith(sha256):
            file.flush()
            os.fsync(file.fileno())
            return None
        if not have:
            note = set_aside(part)
            return (
                f"the downloaded file has SHA-256 {found[:8]}... instead of {sha256[:8]}...; {note}"
            )
        # Earlier data may come from another mirror or an older version of the file: start again.
        file.truncate(0)
        reason = "the resumed file has a wrong SHA-256"
    return f"{reason}; gave up after {ATTEMPTS} attempts"


def stream(url: str, file: BinaryIO, size: int | None, progress: Progress) -> None:
    """Download the bytes that are missing at the end of a partly downloaded file.

    If the server cannot send only the missing bytes, the file is downloaded from the start.

    Args:
        url: URL of the file.
        file: the open .part file, which holds the data downloaded so far.
        size: the expected size in bytes; None if unknown.
        progress: called after each chunk.

    Raises:
        OSError, HTTPException: if the connection fails or breaks, or the size is wrong.
        InputError: if the disk has too little free space.
    """
    have = file.seek(0, os.SEEK_END)
    if size is not None and have > size:
        have = file.truncate(0)
    if have and have == size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with opened(url, headers) as response:
        if response.status != 206:
            have = file.truncate(0)
        file.seek(have)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        if size is not None and total is not None and total != size:
            raise OSError(f"the file on this mirror has {total} bytes instead of {size}")
        require_room(Path(file.name).parent, (total or size or have) - have)
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            have += len(chunk)
            progress(have, total or size)
        if total is not None and have < total:
            raise OSError(
                f"the connection broke after {readable_size(have)} of {readable_size(total)}"
            )


@contextmanager
def opened_locked(part: Path) -> Iterator[BinaryIO]:
    """Open a .part file for appending, and lock it against other processes within the context.

    Raises InputError if another process has locked the file.
    """
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{part}: another process is downloading this file; wait until it has finished"
            ) from error
        yield file


def require_room(folder: Path, size: int) -> None:
    """Raise InputError if the disk that holds `folder` has less than `size` bytes of free space."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder}: {readable_size(size)} are needed, but only {readable_size(free)} are free; "
            "free some disk space"
        )


def reason_of(error: Exception) -> str:
    """Return one line that says why a request failed with this error."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


def readable_size(size: int) -> str:
    """Return a size in bytes as readable text: '2.21 GB', '109 MB', '6 kB'."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
