"""Files of trained metrics: where they lie, whether they are the right ones, and one attempt to fetch each."""

import hashlib
import logging
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.hub

from adir.files import sha256_of_file

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10  # for the connection, and for each read that brings nothing
_failed_fetches: dict[
    str, str
] = {}  # address -> why; a process asks once, or a cell of 50 pictures would wait 50 times


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights in the folder where pyiqa (`pyiqa`) or torchvision (`checkpoints`) looks for it.

    size: for people, as in '109 MB'.
    sha256: the start of the file's SHA-256. The publishers give 8 hex digits, in the file's name.
    """

    name: str
    url: str
    size: str
    sha256: str
    folder: Literal["pyiqa", "checkpoints"] = "pyiqa"

    @property
    def path(self) -> Path:
        """Below torch's hub folder, which the environment variable TORCH_HOME moves."""
        return Path(torch.hub.get_dir()) / self.folder / self.name

    def unavailable(self) -> str | None:
        """None when the right file is there, after one attempt per process to fetch it; else one line: why, what to do.

        The environment variable HF_HUB_OFFLINE=1 forbids the attempt.
        """
        if not self.path.is_file():
            reason = self._fetch()
            if reason is not None:
                return (
                    f"{self.name} ({self.size}) is not here: put it into {self.path.parent}; from {self.url} ({reason})"
                )
        found = sha256_of_file(self.path)
        if not found.startswith(self.sha256):
            return (
                f"{self.path}: its SHA-256 starts with {found[:8]}, {self.sha256} is expected, so it is damaged or "
                f"another file: delete it and fetch {self.url}"
            )
        return None

    def _fetch(self) -> str | None:
        """Download to `path`, whole or not at all. Returns None, or why not."""
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes"):
            return "not fetched: HF_HUB_OFFLINE is set"
        if self.url not in _failed_fetches:
            try:
                self._download()
            except OSError as error:  # URLError, time-outs and a full disk are all OSErrors
                _failed_fetches[self.url] = f"fetching it failed: {getattr(error, 'reason', error)}"
            else:
                return None
        return _failed_fetches[self.url]

    def _download(self) -> None:
        log.info("fetching %s (%s) from %s", self.name, self.size, self.url)
        with urllib.request.urlopen(self.url, timeout=TIMEOUT_SECONDS) as response:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{self.name}.", suffix=".part", dir=self.path.parent)
            try:
                digest = hashlib.sha256()
                with os.fdopen(handle, "wb") as file:
                    while chunk := response.read(1 << 20):
                        digest.update(chunk)
                        file.write(chunk)
                if not digest.hexdigest().startswith(self.sha256):
                    raise OSError(f"what came has a SHA-256 of {digest.hexdigest()[:8]}..., not {self.sha256}...")
                os.replace(temporary, self.path)
            finally:
                Path(temporary).unlink(missing_ok=True)
