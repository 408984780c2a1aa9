"""Where the pictures of an index come from: listed without being read, read piece by piece, found again by id."""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adir.errors import InputError
from adir.images import PICTURE_SUFFIXES

ATTRIBUTION = {
    "licence": ("licence", "license", "License", "LICENSE"),
    "author": ("author", "Author", "creator", "photographer"),
    "source": ("source", "OriginalLandingURL", "source_url", "url", "OriginalURL"),
}
"""What is kept of a picture's origin, and what data sets call it, the better name first."""

TAKEN = (*PICTURE_SUFFIXES, ".gif", ".jfif")
"""More than a corpus without an index takes, whose identity would be another with them."""
NOT_TAKEN = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tga", ".psd", ".exr", ".hdr", ".dng")
"""Listed to be rejected: Pillow reads these on some machines only, or cuts them to 8 bits unasked."""


class SourceDown(InputError):
    """No picture can be read now, such as without a network: stops a build, where an unreadable picture is only noted."""


class Item(NamedTuple):
    """A picture to read. `read` may be called in another thread; raises InputError or OSError when this one cannot be read,
    and SourceDown when none can."""

    id: str
    read: Callable[[], bytes]
    attribution: Mapping[str, str]


class Source(ABC):
    """A collection of picture files. Its constructor's arguments, in `arguments`, are what an index remembers of it.

    name: for people.  A key is what is listed and read in one go: a picture, or a file that holds many.
    """

    kind: str
    name: str
    arguments: dict[str, Any]

    @abstractmethod
    def listing(self) -> Iterator[tuple[str, int | None]]:
        """(key, how many pictures it holds, or None where only reading it would tell), in an order that stays."""

    @abstractmethod
    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        """The pictures of some keys, one after the other, none of them kept in memory."""

    @abstractmethod
    def read(self, image_id: str) -> bytes:
        """The file of one picture. Raises InputError when it is not there."""


def storable(text: str) -> str:
    """The text as UTF-8 can hold it: bytes of a file name that are not UTF-8, lone surrogates in Python, as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def attribution_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Licence, author and source among the fields that a data set gives with a picture."""
    found = {}
    for name, spellings in ATTRIBUTION.items():
        values = [fields[spelling] for spelling in spellings if fields.get(spelling) not in (None, "")]
        if values:
            found[name] = storable(str(values[0]))
    return found


def fail(reason: str) -> bytes:
    """Stands in for reading what cannot be read."""
    raise InputError(reason)


def require_taken(name: str) -> None:
    """Raise InputError for a picture file of a kind that is not taken."""
    if name.lower().endswith(NOT_TAKEN):
        raise InputError(
            f"{name}: a kind of file that is not taken ({', '.join(TAKEN)} are); convert it to one of them"
        )


def refuse(error: OSError) -> None:
    """Stops a walk at a folder that cannot be listed, which os.walk would pass over with all that is in it."""
    raise InputError(
        f"{error.filename}: cannot be listed ({error.strerror}); make it readable, or take it away"
    ) from error


class FolderSource(Source):
    """All pictures below a folder; an id is the path below it, with forward slashes. Hidden files are passed over."""

    kind = "folder"

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(str(path))  # of a folder called 2019, Hydra makes a number
        if not self.folder.is_dir():
            raise InputError(f"corpus folder {path}: no such folder")
        self.name = storable(self.folder.resolve().name)
        self.arguments = {"path": str(self.folder.resolve())}

    def listing(self) -> Iterator[tuple[str, int | None]]:
        empty = True
        for where, folders, files in os.walk(self.folder, onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(TAKEN + NOT_TAKEN):
                    empty = False
                    yield (Path(where) / name).relative_to(self.folder).as_posix(), 1
        if empty:
            raise InputError(f"corpus folder {self.folder}: no picture files ({', '.join(TAKEN)}) in it or below")

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            yield Item(key, functools.partial(self._content, key), {})

    def _content(self, key: str) -> bytes:
        require_taken(key)
        path = self.folder / key
        if path.is_file():
            return path.read_bytes()
        if path.exists():  # a pipe would never end
            raise InputError(f"{path}: not a file")
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            raise SourceDown(f"corpus folder {self.folder}: gone or empty by now; go on when it is mounted again")
        raise InputError(f"{path}: is gone, or a link to nothing")

    def read(self, image_id: str) -> bytes:
        if ".." in Path(image_id).parts or Path(image_id).is_absolute():
            raise InputError(f"{image_id}: leads out of the corpus folder {self.folder}")
        try:
            return (self.folder / image_id).read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"{self.folder / image_id}: no such picture any more; bring it back or build anew"
            ) from error
