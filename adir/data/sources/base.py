"""Where pictures come from: listed without being read, read piece by piece, found again by id."""

import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adir.errors import InputError
from adir.images import decode

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
    category: str | None = None

    def decoded(self, least_side: int = 0) -> tuple[bytes, np.ndarray]:
        """Return the file and its (H, W, 3) uint8 RGB pixels: the same for test sets, corpora and indices.

        Raises InputError, in one line, for one that is to be rejected: its name is not UTF-8, it cannot be read, or `decode`
        refuses it. Raises SourceDown where no picture can be read.
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


def each_id_once(items: Iterable[Item]) -> Iterator[Item]:
    """The items; those whose id came before cannot be read, and are called `ID (2)`, `ID (3)`."""
    times: Counter[str] = Counter()
    for item in items:
        times[item.id] += 1
        if times[item.id] == 1:
            yield item
        else:
            read = functools.partial(fail, "an earlier picture of the corpus has the same id")
            yield Item(f"{item.id} ({times[item.id]})", read, {})
