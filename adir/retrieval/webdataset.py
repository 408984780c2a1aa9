"""Tar shards of the WebDataset format, read through the `webdataset` library."""

import functools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from adir.errors import InputError
from adir.images import PICTURE_SUFFIXES
from adir.retrieval.sources import Item, Source, attribution_of


class TarSource(Source):
    """Tar files of samples (00017.jpg, 00017.json): an id is TAR/KEY, as in `train-0003.tar/00017`.

    path: a tar file, or a folder with tar files in it or below.  Licence, author and source come from a sample's JSON.
    Nothing is ever unpacked to disk. A member whose path climbs out of the tar makes the whole file unusable: InputError.
    """

    kind = "tar"

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise InputError(f"tar shards {path}: no such file or folder")
        self.folder = path if path.is_dir() else path.parent
        self.tars = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        if not self.tars or self.tars[0].suffix != ".tar":
            compressed = " (.tar.gz cannot be read at random: unpack it to .tar first)"
            raise InputError(f"tar shards {path}: no .tar file{compressed}")
        self.name = path.resolve().name
        self.arguments = {"path": str(path.resolve())}

    def listing(self) -> Iterator[tuple[str, int | None]]:
        for tar in self.tars:
            yield tar.relative_to(self.folder).as_posix(), None

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            problems: list[str] = []
            with open(self.folder / key, "rb") as stream:
                for sample in samples(stream, key, problems):
                    yield from self._pictures(key, sample)
            for number, problem in enumerate(problems):
                yield Item(f"{key}/(unreadable {number})", functools.partial(fail, f"{key}: {problem}"), {})

    def _pictures(self, key: str, sample: dict[str, Any]) -> Iterator[Item]:
        suffix = picture_suffix(sample)
        if suffix is not None:
            content = sample[suffix]
            yield Item(f"{key}/{sample['__key__']}", lambda: content, self.attribution(sample))

    def attribution(self, sample: dict[str, Any]) -> dict[str, str]:
        """What the sample's JSON says of its origin; nothing when it has none, or a broken one."""
        try:
            fields = json.loads(sample.get("json", b"{}"))
        except ValueError:
            return {}
        return attribution_of(fields) if isinstance(fields, dict) else {}

    def read(self, image_id: str) -> bytes:
        name, tar, key = image_id.partition(".tar/")
        path = self.folder / f"{name}.tar"
        if not tar or path not in self.tars:
            raise InputError(f"{image_id}: no tar of that name below {self.folder}; bring it back or build anew")
        places = member_places(path)
        if key not in places:
            raise InputError(f"{path}: holds no picture {key!r} any more; bring it back or build anew")
        start, size = places[key]
        with open(path, "rb") as stream:
            stream.seek(start)
            return stream.read(size)


def samples(stream: Any, name: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of an open tar as webdataset groups them; what it cannot read is added to `problems`."""

    def note(error: Exception) -> bool:
        if isinstance(error, InputError):
            raise error
        problems.append(" ".join(str(error.args[0] if error.args else error).split(" @ ")[0].split()))
        return True

    def inside(member: str) -> bool:
        require_inside(member, name)
        return True

    files = tar_file_expander([{"url": name, "stream": stream}], handler=note, select_files=inside)
    yield from group_by_keys(files, handler=note)


def require_inside(member: str, tar: str) -> None:
    """Raise InputError for a member whose path leads out of the tar."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{tar}: the member {member!r} climbs out of the tar; do not trust this file, take it away")


def picture_suffix(sample: dict[str, Any]) -> str | None:
    """The entry of a sample that is a picture: jpg, png, ..., also with a word before it (image.jpg)."""
    suffixes = [name for name in sample if f".{name}".endswith(PICTURE_SUFFIXES) and not name.startswith("__")]
    return min(suffixes, key=len) if suffixes else None


@functools.lru_cache(maxsize=32)
def member_places(path: Path) -> dict[str, tuple[int, int]]:
    """Key to (first byte, bytes) of the picture of each sample in a tar: one pass over its headers."""
    by_key: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path, "r:") as tar:
        try:
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                if member.isreg() and key is not None:
                    by_key.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
        except tarfile.ReadError:  # cut short: what stands before the cut can be read
            pass
    chosen = {key: picture_suffix(places) for key, places in by_key.items()}
    return {key: by_key[key][suffix] for key, suffix in chosen.items() if suffix is not None}


def fail(reason: str) -> bytes:
    """Stands in for reading what cannot be read."""
    raise InputError(reason)
