"""Large files from mirrors: streamed, resumed after a break, verified, and moved into place whole."""

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
ATTEMPTS = 5  # per mirror; an attempt that brings nothing is the last
CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, total bytes or None if unknown)."""


def fetch(
    target: Path,
    mirrors: Sequence[str],
    sha256: str,
    size: int | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Download the file with this SHA-256 (or prefix of one) to `target`, from the first mirror
    that has it.

    An interrupted download stays in `target`.part, and a later call resumes it from any mirror. A
    file with a wrong hash is renamed to *.corrupt-*, and the next mirror is tried.

    Raises:
        InputError: all mirrors fail, another process is downloading the same file, or the disk is
            too small.
        OSError: of the file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for url in map(address_of, mirrors):
        print(
            f"fetching {target.name} from {urllib.parse.urlsplit(url).netloc}",
            file=sys.stderr,
            flush=True,
        )
        with opened_alone(part) as file:
            reason = fetch_from(url, file, part, sha256, size, progress)
            if reason is None:
                os.replace(part, target)
                return
        reasons.append(f"{url} ({reason})")
    kept = part.stat().st_size if part.exists() else 0
    if not kept:
        part.unlink(missing_ok=True)
    going_on = (
        f"; the {megabytes(kept)} that came are kept, and the same command resumes there"
        if kept
        else ""
    )
    raise InputError(
        f"{target.name} could not be fetched: "
        f"{'; '.join(reasons) or 'it has no mirror'}{going_on}; or put the file into "
        f"{target.parent} by hand"
    )


def address_of(url: str) -> str:
    """Return the address to request: HF_ENDPOINT, if set, replaces the Hugging Face hub.

    Raises InputError if HF_ENDPOINT is not an address.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if not endpoint or not url.startswith(HUB):
        return url
    if not endpoint.startswith(("http://", "https://")):
        raise InputError(f"HF_ENDPOINT={endpoint}: no address; say https://{endpoint}, or unset it")
    return f"{endpoint}/{url.removeprefix(HUB)}"


def opened(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Send a request, through the proxy of the environment, and to the hub with the user's token."""
    request = urllib.request.Request(url, headers=headers)
    token = huggingface_hub.get_token() if url.startswith(address_of(HUB)) else None
    if token is not None:  # not sent on to the storage that the hub redirects to
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    proxies = urllib.request.getproxies()
    if "all" in proxies:  # urllib does not know ALL_PROXY
        proxies = dict.fromkeys(("http", "https"), proxies["all"]) | proxies
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    answer: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)
    return answer


def fetch_from(
    url: str, file: BinaryIO, part: Path, sha256: str, size: int | None, progress: Progress
) -> str | None:
    """Complete the open .part file from one mirror.

    Returns None if its hash is right, else the reason.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        have = file.seek(0, os.SEEK_END)
        try:
            stream(url, file, size, progress)
        except (OSError, http.client.HTTPException) as error:
            reason = reason_of(error)
            if (
                have and getattr(error, "code", None) == 416
            ):  # no such range: another file, or a complete one
                file.truncate(0)
                continue
            if file.seek(0, os.SEEK_END) <= have:
                return reason
            time.sleep(min(attempt, 3))
            continue
        found = sha256_of(file)
        if found.startswith(sha256):
            file.flush()
            os.fsync(file.fileno())
            return None
        if not have:
            note = set_aside(part)
            return f"what came has a SHA-256 of {found[:8]}..., not {sha256[:8]}...; {note}"
        # The .part file may come from another mirror, or from an older version: start again.
        file.truncate(0)
        reason = "what came in parts has another SHA-256"
    return f"{reason}, and so on, {ATTEMPTS} times"


def stream(url: str, file: BinaryIO, size: int | None, progress: Progress) -> None:
    """Download the rest of `file`.

    Raises OSError or HTTPException if the connection fails or breaks.
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
            raise OSError(f"its file has {total} bytes, {size} are expected")
        require_room(Path(file.name).parent, (total or size or have) - have)
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            have += len(chunk)
            progress(have, total or size)
        if total is not None and have < total:
            raise OSError(f"the connection broke after {megabytes(have)} of {megabytes(total)}")


@contextmanager
def opened_alone(part: Path) -> Iterator[BinaryIO]:
    """Open and lock the .part file. Raises InputError if another process has locked it."""
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{part}: another process is fetching this file: wait for it"
            ) from error
        yield file


def sha256_of(file: BinaryIO) -> str:
    """Return SHA-256 of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def require_room(folder: Path, size: int) -> None:
    """Raise InputError if the disk of `folder` has less than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder}: {megabytes(size)} more are needed and {megabytes(free)} are free: make "
            "room there"
        )


def reason_of(error: Exception) -> str:
    """Return why a mirror failed, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


def megabytes(size: int) -> str:
    """Return a size for people: '2.21 GB', '109 MB', '6 kB'."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
