"""Where the pictures of an index come from: listed without being read, read piece by piece, found again by id."""

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


def attribution_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Licence, author and source among the fields that a data set gives with a picture."""
    found = {}
    for name, spellings in ATTRIBUTION.items():
        values = [fields[spelling] for spelling in spellings if fields.get(spelling) not in (None, "")]
        if values:
            found[name] = str(values[0])
    return found


class FolderSource(Source):
    """All pictures below a folder; an id is the path below it, with forward slashes. Hidden files are passed over."""

    kind = "folder"

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path)
        if not self.folder.is_dir():
            raise InputError(f"corpus folder {path}: no such folder")
        self.name = self.folder.resolve().name
        self.arguments = {"path": str(self.folder.resolve())}

    def listing(self) -> Iterator[tuple[str, int | None]]:
        empty = True
        for where, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(PICTURE_SUFFIXES):
                    empty = False
                    yield (Path(where) / name).relative_to(self.folder).as_posix(), 1
        if empty:
            raise InputError(
                f"corpus folder {self.folder}: no picture files ({', '.join(PICTURE_SUFFIXES)}) in it or below"
            )

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            yield Item(key, (self.folder / key).read_bytes, {})

    def read(self, image_id: str) -> bytes:
        if ".." in Path(image_id).parts or Path(image_id).is_absolute():
            raise InputError(f"{image_id}: leads out of the corpus folder {self.folder}")
        try:
            return (self.folder / image_id).read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"{self.folder / image_id}: no such picture any more; bring it back or build anew"
            ) from error
