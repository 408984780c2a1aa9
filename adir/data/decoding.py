"""From an item that a source lists to its pixels, or the reason why not: the same for test sets, corpora and indices."""

import numpy as np

from adir.data.sources.base import Item, SourceDown, storable
from adir.errors import InputError
from adir.images import decode


def decoded(item: Item, least_side: int = 0) -> tuple[bytes, np.ndarray]:
    """(file, (H, W, 3) uint8 RGB) of a picture that a source lists.

    Raises InputError, in one line, for one that is to be rejected: its name is not UTF-8, it cannot be read, or `decode`
    refuses it. Raises SourceDown where no picture can be read.
    """
    if storable(item.id) != item.id:
        raise InputError("its name is not UTF-8 and cannot be kept; rename the file")
    try:
        content = item.read()
        return content, decode(content, item.id, least_side=least_side)
    except SourceDown:
        raise
    except (InputError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error
