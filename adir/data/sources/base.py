"""Image sources: list images without reading them, read them one by one, find them again by id."""

import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adir.errors import InputError
from adir.files import storable
from adir.images import decode

ATTRIBUTION = {
    "licence": ("licence", "license", "License", "LICENSE"),
    "author": ("author", "Author", "creator", "photographer"),
    "source": ("source", "OriginalLandingURL", "source_url", "url", "OriginalURL"),
}
"""What is kept of an image's origin, and the column names that data sets use for it, preferred ones
first.
"""


class SourceDown(InputError):
    """No image can be read now, for example without a network.

    It stops a build; one unreadable image does not.
    """


class Item(NamedTuple):
    """An image to read.

    read: returns the file's bytes; may be called in another thread. Raises InputError or OSError if
        this image is unreadable, and SourceDown if all are.
    """

    id: str
    read: Callable[[], bytes]
    attribution: Mapping[str, str]
    category: str | None = None

    def decoded(self, least_side: int = 0) -> tuple[bytes, np.ndarray]:
        """Return the file's bytes and its (H, W, 3) uint8 RGB pixels, in the same way for test
        sets, corpora and indexes.

        Raises InputError, in one line, if the image is to be rejected: its name is not UTF-8, it
        cannot be read, or `decode` refuses it. Raises SourceDown if no image can be read.
        """
        if storable(self.id) != self.id:
            raise InputError("its name is not UTF-8 and cannot be kept; rename the file")
        try:
            content = self.read()
            return content, decode(content, self.id, least_side=least_side)
        except SourceDown:
            raise
        except (InputError, OSError) as error:
            raise InputError(" ".join(str(error).split())) from error


class Source(ABC):
    """A collection of image files, listed and read by key: an image, or a file that holds many.

    kind: its name in an index.
    name: for people.
    arguments: of its constructor, by which an index opens it again.
    """

    kind: str
    name: str
    arguments: dict[str, Any]

    @abstractmethod
    def listing(self) -> Iterator[tuple[str, int | None]]:
        """Yield (key, number of images in it, or None if that is unknown before reading), always in
        the same order.
        """

    @abstractmethod
    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        """Yield the images of some keys, one at a time; none is kept in memory."""

    @abstractmethod
    def read(self, image_id: str) -> bytes:
        """Return the bytes of one image file. Raises InputError if it is missing."""


def attribution_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return licence, author and source from the fields that a data set gives with an image."""
    found = {}
    for name, spellings in ATTRIBUTION.items():
        values = [
            fields[spelling] for spelling in spellings if fields.get(spelling) not in (None, "")
        ]
        if values:
            found[name] = storable(str(values[0]))
    return found


def fail(reason: str) -> bytes:
    """Raise InputError with this reason; the `read` of an unreadable item."""
    raise InputError(reason)


def each_id_once(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; repeats of an id are renamed `ID (2)`, `ID (3)` and fail when read."""
    times: Counter[str] = Counter()
    for item in items:
        times[item.id] += 1
        if times[item.id] == 1:
            yield item
        else:
            read = functools.partial(fail, "an earlier image of the corpus has the same id")
            yield Item(f"{item.id} ({times[item.id]})", read, {})
