"""Base class of image sources, which list images without reading them and read images by id."""

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
"""The column names that data sets use for licence, author and source; the preferred name first."""


class SourceDown(InputError):
    """Raised if no image of a source can be read now, for example because the network is down.

    It stops the build of an index. A single unreadable image is rejected, and the build goes on.
    """


class Item(NamedTuple):
    """Image of a source that has not been read yet.

    Attributes:
        id: unique in the source.
        read: returns the file's bytes. It may be called in another thread. It raises InputError or
            OSError if this image is unreadable, and SourceDown if no image can be read.
        attribution: licence, author and source, if known.
        category: category of the image; None if unknown.
    """

    id: str
    read: Callable[[], bytes]
    attribution: Mapping[str, str]
    category: str | None = None

    def decoded(self, least_side: int = 0) -> tuple[bytes, np.ndarray]:
        """Return the bytes of the image file and its (H, W, 3) uint8 RGB pixels.

        Test sets, corpora and indexes check all images of a source by this method.

        Args:
            least_side: pixels; images with a shorter side are refused.

        Raises:
            InputError: if the image's name is not UTF-8, its file is unreadable, or `decode`
                refuses it. The caller then rejects the image. The message has one line.
            SourceDown: if no image of the source can be read.
        """
        if storable(self.id) != self.id:
            raise InputError("the file name is not UTF-8 and cannot be stored; rename the file")
        try:
            content = self.read()
            return content, decode(content, self.id, least_side=least_side)
        except SourceDown:
            raise
        except (InputError, OSError) as error:
            raise InputError(" ".join(str(error).split())) from error


class Source(ABC):
    """Collection of image files that are listed by key and read by id.

    A key stands for one image, for a file with many images, or for a section of such a file.

    Attributes:
        kind: name by which an index on disk refers to this class.
        name: label for tables and messages.
        arguments: constructor arguments; an index stores them to open the source again.
    """

    kind: str
    name: str
    arguments: dict[str, Any]

    @abstractmethod
    def listing(self) -> Iterator[tuple[str, int | None]]:
        """Yield (key, its number of images), always in the same order.

        The number is None if it is unknown until the file is read.
        """

    @abstractmethod
    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        """Yield the images of the given keys one by one, without keeping them in memory."""

    @abstractmethod
    def read(self, image_id: str) -> bytes:
        """Return the bytes of one image file. Raises InputError if the file is missing."""


def attribution_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return licence, author and source from an image's fields; the dict omits what is unknown."""
    found = {}
    for name, spellings in ATTRIBUTION.items():
        values = [
            fields[spelling] for spelling in spellings if fields.get(spelling) not in (None, "")
        ]
        if values:
            found[name] = storable(str(values[0]))
    return found


def fail(reason: str) -> bytes:
    """Raise InputError with this reason; used as the function `read` of an unreadable item."""
    raise InputError(reason)


def each_id_once(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, with a replacement for each item whose id occurred before.

    The replacement has the id `ID (2)`, `ID (3)` and so on, and raises InputError when it is read.
    """
    times: Counter[str] = Counter()
    for item in items:
        times[item.id] += 1
        if times[item.id] == 1:
            yield item
        else:
            read = functools.partial(
                fail, "an earlier image of the corpus has the same id; rename one of the two"
            )
            yield Item(f"{item.id} ({times[item.id]})", read, {})
