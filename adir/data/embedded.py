"""The demo's test set, the other embedded test fields and the embedded corpus: images that need no
download.

All are fields (adir/data/fields.py) of 13 photographs. No corpus field shares a pixel of its
photograph with a test field, at any scale. The right motorcycle of the stereo pair, a near-copy of
the left, is left out, and so are drawings.
"""

from functools import cache

from torch import Tensor

from adir.data.fields import Field, Fields, clear_of, cut, lattice
from adir.images import from_uint8

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "motorcycle_left",
    "retina",
    "rocket",
)
"""What the embedded corpus is cut from."""

# Strides of corpus fields, in reduced pixels, by scale. Textures, the retina and the stars repeat
# themselves: fewer.
STRIDES = {1: 40, 2: 24, 3: 24}
STRIDES_OF = {
    "brick": {1: 64, 2: 64},
    "grass": {1: 128, 2: 64},
    "gravel": {1: 128, 2: 64},
    "hubble_deep_field": {2: 64},
    "retina": {2: 48, 3: 32, 4: 32},
}

TEST_FIELDS = (
    Field("astronaut", 1, 14, 164),
    Field("astronaut", 1, 330, 90),
    Field("brick", 2, 0, 0),
    Field("camera", 2, 20, 75),
    Field("chelsea", 1, 50, 105),
    Field("coffee", 2, 2, 80),
    Field("coins", 1, 20, 250),
    Field("ihc", 2, 0, 120),
    Field("motorcycle_left", 1, 270, 320),
    Field("motorcycle_left", 2, 120, 230),
    Field("retina", 3, 147, 17),
    Field("rocket", 2, 80, 98),
)
# Chosen to differ: bricks whose like the corpus holds, an eye whose like it does not, an object in
# between.
DEMO = ("brick-s2-y000-x000", "chelsea-s1-y050-x105", "motorcycle_left-s2-y120-x230")


@cache
def corpus_fields() -> tuple[Field, ...]:
    """All corpus fields, sorted by id: a regular lattice at each scale, without test ground and
    without flat fields.
    """
    fields = [
        field for name in PHOTOGRAPHS for field in lattice(name, STRIDES_OF.get(name, STRIDES))
    ]
    return tuple(clear_of(fields, TEST_FIELDS))


def test_fields() -> list[tuple[str, Tensor]]:
    """The test images: (id, (3, 128, 128) in [-1, 1]) pairs, sorted by id."""
    return sorted(
        ((field.id, from_uint8(cut(field))) for field in TEST_FIELDS), key=lambda pair: pair[0]
    )


test_fields.__test__ = False  # type: ignore[attr-defined]  # its name would make pytest run it wherever it is imported


class EmbeddedCorpus(Fields):
    """The corpus that works with no download: fields of scikit-image's photographs, none on ground
    of a test field.
    """

    def __init__(self) -> None:
        super().__init__("embedded", corpus_fields())


class EmbeddedTestFields(Fields):
    """The 128x128 test fields of the embedded photographs, none of whose ground is in the embedded
    corpus.

    only: ids to keep, in any order; None keeps all. Raises InputError for an id that is not there.
    """

    def __init__(self, only: list[str] | None = None) -> None:
        super().__init__("embedded-test", TEST_FIELDS, only)


class DemoFields(EmbeddedTestFields):
    """The three test fields that the demo restores."""

    def __init__(self) -> None:
        super().__init__(list(DEMO))
