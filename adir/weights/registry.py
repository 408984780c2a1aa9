"""Registry of pretrained weights (conf/weights/), which finds, downloads and verifies files."""

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
import torch.hub
import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from adir.configuration import config_dir
from adir.errors import InputError
from adir.files import read_json, read_text, set_aside, sha256_of_file, write_json
from adir.weights.cache import cache_dir, known_sha256, remember_sha256
from adir.weights.download import HUB, Progress, fetch, readable_size

HASHES = "sha256.json"
"""Name of the file that stores the SHA-256 of each weights file in a downloaded folder.

It is needed because conf/weights/ does not give the hash of every file.
"""

Place = Literal["adir", "pyiqa", "checkpoints"]


def require_online(name: str, by_hand: str) -> None:
    """Raise InputError if HF_HUB_OFFLINE=1 forbids downloads.

    Args:
        name: name of the weights, for the error message.
        by_hand: what the user can copy, and where: "model.pth into /weights", for example.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes"):
        raise InputError(
            f"{name}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or put {by_hand} "
            "by hand"
        )


_failed_fetches: dict[str, str] = {}
"""Reason for each failed download, by file name.

A process does not repeat a failed download. Otherwise, a run of 50 images would wait 50 times.
"""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Base class of the two kinds of registry entries.

    Attributes:
        entry: name of the entry.
        size: size in bytes of the file, or total size of the large files; None if unknown.
        licence: licence of the weights; None if unknown.
        about: the approximate size as text, such as "about 244 MB", if `size` is None.
    """

    entry: str
    size: int | None
    licence: str | None
    about: str | None = None

    @property
    def size_text(self) -> str:
        """The size as readable text, such as "109 MB"."""
        return (self.about or "size unknown") if self.size is None else readable_size(self.size)


@dataclass(frozen=True, kw_only=True)
class WeightsFile(PublishedWeights):
    """Registry entry of weights that are a single file.

    Attributes:
        name: name of the file.
        sha256: the SHA-256 in 64 hex digits, or the prefix that the publisher gives; None if no
            hash is published. A file without a published hash is never downloaded. The user puts it
            in place, and each result stores the hash that the file has.
        mirrors: URLs of the file, tried in this order.
        place: where the file is: "adir" is the folder `weights` in adir's cache folder. "pyiqa" and
            "checkpoints" are subfolders of torch's hub folder, where pyiqa and torchvision search.
    """

    name: str
    sha256: str | None
    mirrors: tuple[str, ...]
    place: Place = "adir"

    @property
    def path(self) -> Path:
        """The path of the file, whether it exists or not."""
        return (
            cache_dir() / "weights"
            if self.place == "adir"
            else Path(torch.hub.get_dir()) / self.place
        ) / self.name

    def missing(self) -> str | None:
        """Return None if the file exists, else a message that says how to get the file.

        The message gives the file's name, size, mirrors and folder.
        """
        if self.path.is_file():
            return None
        if self.sha256 is None:
            return (
                f"{self.entry} needs {self.name} ({self.size_text}), which is missing: "
                f"{self.by_hand}"
            )
        return (
            f"{self.entry} needs {self.name} ({self.size_text}), which is missing: run `adir "
            f"weights get {self.entry}`, or download the file from {' or '.join(self.mirrors)} and "
            f"put it into {self.path.parent}"
        )

    @property
    def by_hand(self) -> str:
        """The instruction to download the file by hand, because no hash of it is published."""
        return (
            f"download the file by hand from {' or '.join(self.mirrors)} and put it into "
            f"{self.path.parent} (adir does not download it, because its SHA-256 is not published)"
        )

    def unavailable(self) -> str | None:
        """Return None if the file can be used, else a message that says what to do.

        The file can be used if it exists and has the expected hash, if one is published. A missing
        file is downloaded first, except with HF_HUB_OFFLINE=1. If this fails, later calls in the
        process do not try again. The method is meant for optional files, such as the weights of a
        metric.
        """
        if not self.path.is_file() and self.name not in _failed_fetches:
            try:
                self.fetch()
            except (InputError, OSError) as error:  # OSError: of the file system
                _failed_fetches[self.name] = f"adir could not download it ({error})"
        if not self.path.is_file():
            return (
                f"{self.name} ({self.size_text}) is missing: download the file from "
                f"{' or '.join(self.mirrors)} and put it into {self.path.parent}; "
                f"{_failed_fetches[self.name]}"
            )
        found = known_sha256(self.path)
        if self.sha256 is not None and not found.startswith(self.sha256):
            return (
                f"{self.path}: its SHA-256 starts with {found[:8]} instead of {self.sha256}, so "
                f"the file is damaged or wrong: delete it and run `adir weights get {self.entry}`"
            )
        return None

    def fetch(self, progress: Progress = lambda done, total: None) -> Path:
        """Download and verify the file, and return its path.

        Raises:
            InputError: if no hash of the file is published, if HF_HUB_OFFLINE=1 forbids downloads,
                or if the download fails.
            OSError: if the file system fails.
        """
        if self.sha256 is None:
            raise InputError(f"{self.entry} needs {self.name}: {self.by_hand}")
        require_online(self.name, f"the file into {self.path.parent}")
        fetch(self.path, self.mirrors, self.sha256, self.size, progress)
        return self.path

    def verify(self) -> str | None:
        """Hash the file, and return None if it has the expected hash, else a message.

        If no hash is published, any file is accepted. A file with a wrong hash is renamed to
        *.corrupt-*.
        """
        found = sha256_of_file(self.path)
        if self.sha256 is None or found.startswith(self.sha256):
            remember_sha256(self.path, found)
            return None
        return f"SHA-256 {found[:16]}... instead of {self.sha256[:16]}...; {set_aside(self.path)}"


@dataclass(frozen=True)
class Mirror:
    """Repository of the Hugging Face hub at one commit."""

    repository: str
    """OWNER/NAME."""
    revision: str
    """The commit."""


@dataclass(frozen=True, kw_only=True)
class HubRepository(PublishedWeights):
    """Registry entry of weights that are a folder of files, in the layout of diffusers.

    The folder is searched first in adir's cache, then in the cache of the Hugging Face hub
    (HF_HUB_CACHE). It is complete if all files in `weights` and `settings` exist.

    Attributes:
        mirrors: repositories of the Hugging Face hub, tried in this order.
        weights: expected SHA-256 of each large file, by name; None if the entry gives no hash.
        settings: names of the small files.
    """

    mirrors: tuple[Mirror, ...]
    weights: dict[str, str | None]
    settings: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The path of the first complete folder, else of the folder in adir's cache."""
        folders = self._folders()
        return next((folder for folder in folders if not self.lacking(folder)), folders[0])

    def lacking(self, folder: Path) -> list[str]:
        """Return the names of the files of this entry that are missing in `folder`."""
        return [name for name in (*self.weights, *self.settings) if not (folder / name).is_file()]

    def _folders(self) -> list[Path]:
        """Return the folders to search: one in adir's cache, then those in the hub's cache.

        The folder in adir's cache may not exist.
        """
        folders = [cache_dir() / "weights" / self.entry]
        for mirror in self.mirrors:
            with contextlib.suppress(LocalEntryNotFoundError):
                found = huggingface_hub.snapshot_download(
                    mirror.repository, revision=mirror.revision, local_files_only=True
                )
                folders.append(Path(found))
        return folders

    def missing(self) -> str | None:
        """Return None if the folder is complete, else a message that says how to get the files.

        The message gives the names and total size of the large files, the number of small files,
        the mirrors and the folder. After an unfinished download, the message also names the missing
        files.
        """
        if not self.lacking(self.path):
            return None
        begun = [
            f"; {place} lacks {', '.join(self.lacking(place))}"
            for place in self._folders()
            if place.is_dir()
        ]
        mirrors = " or ".join(
            f"https://huggingface.co/{m.repository}/tree/{m.revision}" for m in self.mirrors
        )
        return (
            f"{self.entry} needs a folder with {', '.join(self.weights)} ({self.size_text}) and "
            f"{len(self.settings)} small files, which is missing: run `adir weights get "
            f"{self.entry}`, or download {mirrors} and put the files into {self.path}"
            f"{''.join(begun)}"
        )

    def fetch(self, progress: Progress = lambda done, total: None) -> Path:
        """Download and verify the files that adir's cache lacks, and return their folder.

        Each file comes from the first mirror that has it.

        Raises:
            InputError: if HF_HUB_OFFLINE=1 forbids downloads, or if a download fails.
            OSError: if the file system fails.
        """
        folder = self._folders()[0]
        require_online(self.entry, f"the folder's content into {folder}")
        for name in self.lacking(folder):
            urls = [
                f"{HUB}{mirror.repository}/resolve/{mirror.revision}/{name}"
                for mirror in self.mirrors
            ]
            fetch(folder / name, urls, self.weights.get(name) or "", None, progress)
        write_json(folder / HASHES, {name: known_sha256(folder / name) for name in self.weights})
        return folder

    def verify(self) -> str | None:
        """Hash the files, and return None if no hash is wrong, else a message about wrong files.

        The expected hash of a file is the one in conf/weights/, else the one stored after the
        download (in sha256.json), else the file's name in the hub's cache. A file without an
        expected hash is not checked. A file with a wrong hash is renamed to *.corrupt-*.
        """
        wrong, folder = [], self.path
        noted = read_json(folder / HASHES) if (folder / HASHES).is_file() else {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name, blob = str(path.relative_to(folder)), path.resolve()
            expected = (
                self.weights.get(name)
                or noted.get(name)
                or (blob.name if path.is_symlink() and len(blob.name) == 64 else None)
            )
            if expected is None:
                continue
            found = sha256_of_file(path)
            if found != expected:
                wrong.append(
                    f"{name}: SHA-256 {found[:16]}... instead of {expected[:16]}...; "
                    f"{set_aside(blob)}"
                )
        return "; ".join(wrong) or None


Entry = WeightsFile | HubRepository


@functools.cache
def registry(folder: Path | None = None) -> dict[str, Entry]:
    """Return all registry entries in `folder`, by name; None stands for conf/weights/."""
    return {
        path.stem: read_entry(path)
        for path in sorted((folder or config_dir() / "weights").glob("*.yaml"))
    }


def read_entry(path: Path) -> Entry:
    """Return the registry entry in a YAML file.

    With the key `file` it is a WeightsFile, and with the key `repositories` a HubRepository. Raises
    InputError if the file is no valid entry.
    """
    try:
        fields: dict[str, Any] = yaml.safe_load(read_text(path))
        if "file" in fields:
            # Without quotes, YAML reads 12345678 and 1e234567 as numbers.
            if not isinstance(fields["sha256"], str | None):
                raise TypeError(f"sha256: {fields['sha256']} must be in quotation marks")
            name, mirrors = fields.pop("file"), tuple(fields.pop("mirrors"))
            return WeightsFile(entry=path.stem, name=name, mirrors=mirrors, **fields)
        repositories = tuple(Mirror(**mirror) for mirror in fields.pop("repositories"))
        settings = tuple(fields.pop("settings"))
        return HubRepository(entry=path.stem, mirrors=repositories, settings=settings, **fields)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a valid weights entry ({' '.join(str(error).split())}); correct the file"
        ) from error


def entry(name: str) -> Entry:
    """Return the registry entry with this name. Raises InputError if the name is unknown."""
    if name not in registry():
        raise InputError(f"unknown weights {name!r}; choose one of {', '.join(registry())}")
    return registry()[name]


def weights_file(name: str) -> WeightsFile:
    """Return the registry entry with this name, which must be a single file.

    Raises InputError if the name is unknown, and AssertionError if the entry is a folder.
    """
    found = entry(name)
    assert isinstance(found, WeightsFile), name
    return found


def located(name: str) -> Path:
    """Return the path of the weights, a file or folder, of the registry entry with this name.

    Raises InputError if the name is unknown or the weights are missing. For missing weights, the
    message says where to download them and where to put them.
    """
    found = entry(name)
    reason = found.missing()
    if reason is not None:
        raise InputError(reason)
    return found.path


def hub_snapshot(repository: str, patterns: tuple[str, ...]) -> Path:
    """Return a folder with selected files of a Hugging Face repository, downloaded if needed.

    Args:
        repository: OWNER/NAME or OWNER/NAME@COMMIT. Without a commit, the head of the main branch
            is used.
        patterns: glob patterns that select the files.

    Raises:
        InputError: if the repository does not exist or the hub cannot be reached. The message is a
            single line.
    """
    name, _, revision = repository.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=list(patterns)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{repository}: neither an existing folder nor a reachable repository of the Hugging "
            f"Face hub ({reason}); choose a folder with the files"
        ) from error
