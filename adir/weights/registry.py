"""Pretrained weights: list them (conf/weights/), locate, download and verify them."""

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
from adir.weights.download import HUB, Progress, fetch, megabytes

HASHES = "sha256.json"
"""In the folder of a repository: the hashes of its files when they were downloaded, as some are not
pinned.
"""

Place = Literal["adir", "pyiqa", "checkpoints"]


def require_online(name: str, by_hand: str) -> None:
    """Raise InputError, which says what to put where by hand, if HF_HUB_OFFLINE=1 forbids
    downloads.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes"):
        raise InputError(
            f"{name}: not fetched: HF_HUB_OFFLINE is set: unset it, or put {by_hand} by hand"
        )


_failed_fetches: dict[str, str] = {}
"""Reason by file. A process tries a download once: a cell of 50 images would wait 50 times."""


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights.

    Args:
        entry: its name in the registry.
        name: of the file.
        size: bytes; None if unknown.
        sha256: 64 hex digits, or the prefix that the publisher gives; None if no hash is published.
            Such a file is never
            downloaded: the user puts it there, and records hold its hash.
        licence: None if unknown.
        mirrors: addresses.
        place: our folder, or one below torch's hub folder (TORCH_HOME), where pyiqa or torchvision
            look.
        about: its size in words, if `size` is None.
    """

    entry: str
    name: str
    size: int | None
    sha256: str | None
    licence: str | None
    mirrors: tuple[str, ...]
    place: Place = "adir"
    about: str | None = None

    @property
    def path(self) -> Path:
        """Its path, whether the file exists or not."""
        return (
            cache_dir() / "weights"
            if self.place == "adir"
            else Path(torch.hub.get_dir()) / self.place
        ) / self.name

    @property
    def size_text(self) -> str:
        """For people."""
        return (self.about or "size unknown") if self.size is None else megabytes(self.size)

    def missing(self) -> str | None:
        """Return None if the file exists, else one line with name, size, mirrors and folder."""
        if self.path.is_file():
            return None
        if self.sha256 is None:
            return (
                f"{self.entry} needs {self.name} ({self.size_text}), which is not here: "
                f"{self.by_hand}"
            )
        return (
            f"{self.entry} needs {self.name} ({self.size_text}), which is not here: run `adir "
            f"weights get {self.entry}`, or "
            f"put it into {self.path.parent}; mirrors: {', '.join(self.mirrors)}"
        )

    @property
    def by_hand(self) -> str:
        """What to do about a file without a published hash."""
        return (
            f"put it into {self.path.parent} by hand, from {', '.join(self.mirrors)}; no "
            "SHA-256 of it is published"
        )

    def unavailable(self) -> str | None:
        """Return None if the right file exists, else one line: why not, and what to do.

        A process tries once to download it, unless HF_HUB_OFFLINE=1. For optional uses, such as a
        metric.
        """
        if not self.path.is_file() and self.name not in _failed_fetches:
            try:
                self.fetch()
            except (InputError, OSError) as error:  # OSError: of the file system
                _failed_fetches[self.name] = f"fetching it failed: {error}"
        if not self.path.is_file():
            return (
                f"{self.name} ({self.size_text}) is not here: put it into {self.path.parent}; from "
                f"{', '.join(self.mirrors)} ({_failed_fetches[self.name]})"
            )
        found = known_sha256(self.path)
        if self.sha256 is not None and not found.startswith(self.sha256):
            return (
                f"{self.path}: its SHA-256 starts with {found[:8]}, {self.sha256} is expected, "
                "so it is damaged or "
                f"another file: delete it and run `adir weights get {self.entry}`"
            )
        return None

    def fetch(self, progress: Progress = lambda done, total: None) -> Path:
        """Download and verify the file; return its path.

        Raises as `download.fetch`, and InputError if that is forbidden.
        """
        if self.sha256 is None:
            raise InputError(f"{self.entry}: {self.name} is not fetched: {self.by_hand}")
        require_online(self.name, f"the file into {self.path.parent}")
        fetch(self.path, self.mirrors, self.sha256, self.size, progress)
        return self.path

    def verify(self) -> str | None:
        """Hash the file.

        Returns None if the hash is right or none is known, else the problem. A wrong file is set
        aside.
        """
        found = sha256_of_file(self.path)
        if self.sha256 is None or found.startswith(self.sha256):
            remember_sha256(self.path, found)
            return None
        return f"SHA-256 {found[:16]}... instead of {self.sha256[:16]}...; {set_aside(self.path)}"


@dataclass(frozen=True)
class Mirror:
    """A repository of the Hugging Face hub at one commit."""

    repository: str
    revision: str


@dataclass(frozen=True)
class HubRepository:
    """A folder in diffusers' layout: in our cache, downloaded or put there by hand, or in the hub's
    cache (HF_HUB_CACHE).

    Args:
        entry: its name in the registry.
        mirrors: repositories of the Hugging Face hub.
        weights: its large files, with their SHA-256 or None.
        settings: its small files. The folder is complete if all of `weights` and `settings` exist.
        size, licence, about: as of a file.
    """

    entry: str
    mirrors: tuple[Mirror, ...]
    weights: dict[str, str | None]
    settings: tuple[str, ...]
    size: int | None
    licence: str | None
    about: str | None = None

    @property
    def path(self) -> Path:
        """The complete folder, else the one in our cache."""
        folders = self._folders()
        return next((folder for folder in folders if not self.lacking(folder)), folders[0])

    @property
    def size_text(self) -> str:
        """For people."""
        return (self.about or "size unknown") if self.size is None else megabytes(self.size)

    def lacking(self, folder: Path) -> list[str]:
        """Return the files that are missing from a folder."""
        return [name for name in (*self.weights, *self.settings) if not (folder / name).is_file()]

    def _folders(self) -> list[Path]:
        """Return the folders to look in: ours, then the hub's cache."""
        folders = [cache_dir() / "weights" / self.entry]
        for mirror in self.mirrors:
            with contextlib.suppress(LocalEntryNotFoundError):
                found = huggingface_hub.snapshot_download(
                    mirror.repository, revision=mirror.revision, local_files_only=True
                )
                folders.append(Path(found))
        return folders

    def missing(self) -> str | None:
        """Return None if the folder is complete, else one line with name, size, mirrors and folder."""
        if not self.lacking(self.path):
            return None
        begun = [
            f"; {place} lacks {', '.join(self.lacking(place))}"
            for place in self._folders()
            if place.is_dir()
        ]
        mirrors = ", ".join(
            f"https://huggingface.co/{m.repository}/tree/{m.revision}" for m in self.mirrors
        )
        return (
            f"{self.entry} needs a folder with {', '.join(self.weights)} ({self.size_text}) and "
            f"{len(self.settings)} small "
            f"files, which is not here: run `adir weights get {self.entry}`, or put the "
            f"folder's content into {self.path}; "
            f"mirrors: {mirrors}{''.join(begun)}"
        )

    def fetch(self, progress: Progress = lambda done, total: None) -> Path:
        """Download each missing file from the first mirror that has it, verify known hashes, and
        return the folder.

        Raises as `download.fetch`, and InputError if downloads are forbidden.
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
        """Return None if all known hashes are right, else the wrong files, which are set aside.

        Known hashes are pinned ones, those noted at the download, and the names of large files in
        the hub's cache.
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
    """Return all entries of conf/weights/ (or of another folder) by name."""
    return {
        path.stem: read_entry(path)
        for path in sorted((folder or config_dir() / "weights").glob("*.yaml"))
    }


def read_entry(path: Path) -> Entry:
    """Read an entry: with `file` it is a file, with `repositories` a repository.

    Raises InputError for anything else.
    """
    try:
        fields: dict[str, Any] = yaml.safe_load(read_text(path))
        if "file" in fields:
            if not isinstance(
                fields["sha256"], str | None
            ):  # YAML reads 12345678 and 1e234567 as numbers
                raise TypeError(f"sha256: {fields['sha256']} must stand in quotation marks")
            name, mirrors = fields.pop("file"), tuple(fields.pop("mirrors"))
            return WeightsFile(path.stem, name=name, mirrors=mirrors, **fields)
        repositories = tuple(Mirror(**mirror) for mirror in fields.pop("repositories"))
        return HubRepository(
            path.stem, repositories, settings=tuple(fields.pop("settings")), **fields
        )
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no entry of weights ({' '.join(str(error).split())})") from error


def entry(name: str) -> Entry:
    """Return the entry of that name. Raises InputError, which lists the names."""
    if name not in registry():
        raise InputError(f"unknown weights {name!r}; choose one of {', '.join(registry())}")
    return registry()[name]


def weights_file(name: str) -> WeightsFile:
    """Return the entry of that name, which must be a file."""
    found = entry(name)
    assert isinstance(found, WeightsFile), name
    return found


def located(name: str) -> Path:
    """Return the file or folder of an entry.

    If it is missing, raises InputError: what is needed, from where, and where to.
    """
    found = entry(name)
    reason = found.missing()
    if reason is not None:
        raise InputError(reason)
    return found.path


def hub_snapshot(repository: str, patterns: tuple[str, ...]) -> Path:
    """Return the folder with a repository's files of these names, downloaded from the Hugging Face
    hub if needed.

    repository: OWNER/NAME, or OWNER/NAME@COMMIT; without a commit, the head of its main branch.

    Raises InputError, in one line, if there is none, or the hub cannot be reached.
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
            f"{repository}: no such folder here, and not on the Hugging Face hub, or out of "
            f"reach ({reason}); "
            "name a folder with its files"
        ) from error
