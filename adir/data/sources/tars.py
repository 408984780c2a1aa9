"""Tar shards of the WebDataset format, read through the `webdataset` library."""

import functools
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from adir.data.sources.base import NOT_TAKEN, Item, Source, attribution_of, fail, require_taken
from adir.errors import InputError
from adir.images import PICTURE_SUFFIXES


class TarSource(Source):
    """Tar files of samples (00017.jpg, 00017.json): an id is TAR/KEY, as in `train-0003.tar/00017`.

    path: a tar file, or a folder with tar files in it or below.  Licence, author and source come from a sample's JSON.
    Nothing is ever unpacked to disk. A member whose path climbs out of the tar makes the whole file unusable: InputError.
    """

    kind = "tar"

    def __init__(self, path: str | Path) -> None:
        path = Path(str(path))
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
        name, suffix = f"{key}/{sample['__key__']}", picture_suffix(sample)
        if suffix is not None:
            read = functools.partial(content_of, f"{name}.{suffix}", sample[suffix])
            yield Item(name, read, self.attribution(sample))

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
        problems.append(" ".join(str(error.args[0] if error.args else error).split(" @ ")[0].split()))
        return True

    files = tar_file_expander([{"url": name, "stream": stream}], handler=note)
    yield from group_by_keys(checked(files, name, problems), handler=note)


def checked(files: Iterable[dict[str, Any]], tar: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The members of a tar, each name once; not as a filter of webdataset, which rewrites the errors of filters."""
    seen: set[tuple[str, str]] = set()
    for file in files:
        if file:  # an empty one ends the tar
            require_inside(file["fname"], tar)
            key, suffix = base_plus_ext(file["fname"])
            if key is None:
                continue
            if (key, suffix.lower()) in seen:
                problems.append(f"the member {file['fname']!r} comes twice; the first is used")
                continue
            seen.add((key, suffix.lower()))
        yield file


def require_inside(member: str, tar: str) -> None:
    """Raise InputError for a member whose path leads out of the tar."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{tar}: the member {member!r} climbs out of the tar; do not trust this file, take it away")


def picture_suffix(sample: dict[str, Any]) -> str | None:
    """The entry of a sample that is a picture: jpg, png, ..., also with a word before it (image.jpg); if there is none, one
    of a kind that is not taken."""
    for endings in (PICTURE_SUFFIXES, NOT_TAKEN):
        suffixes = [name for name in sample if f".{name}".endswith(endings) and not name.startswith("__")]
        if suffixes:
            return min(suffixes, key=len)
    return None


def content_of(name: str, content: bytes) -> bytes:
    """The content, of a picture file of this name. Raises InputError where its kind is not taken."""
    require_taken(name)
    return content


@functools.lru_cache(maxsize=32)
def member_places(path: Path) -> dict[str, tuple[int, int]]:
    """Key to (first byte, bytes) of the picture of each sample in a tar, as `samples` gives them: one pass over its headers.

    Of samples with one key, of which `samples` gives all, the first with a picture.
    """
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(path, "r:") as tar:
        for key, members in itertools.groupby(keyed(tar), key=lambda member: member[0]):
            places: dict[str, tuple[int, int]] = {}
            for _, suffix, member in members:
                places.setdefault(suffix, (member.offset_data, member.size))
            picture = picture_suffix(places)
            if picture is not None:
                found.setdefault(key, places[picture])
    return found


def keyed(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, suffix, member) of the files in a tar, up to where it is cut short."""
    try:
        for member in tar:
            key, suffix = base_plus_ext(member.name)
            if member.isreg() and key is not None:
                yield key, suffix.lower(), member
    except tarfile.ReadError:
        pass
