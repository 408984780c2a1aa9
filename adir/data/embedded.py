"""The embedded test set, the demo's test set and the embedded corpus; none needs a download.

All images are fields, 128x128 windows of 13 photographs (adir/data/fields.py). No corpus field
shares a pixel of a photograph with a test field, at any scale. Drawings are excluded. The right
image of the motorcycle stereo pair is excluded too, because it almost equals the left one.
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
"""The photographs from which the embedded corpus is cut."""

# Grid spacing of corpus fields in downsampled pixels, by scale. Textures, the retina and the stars
# are repetitive, so STRIDES_OF gives fewer fields for these photographs.
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
# Three different cases: the corpus has images like the bricks and none like the eye. The motorcycle
# lies in between.
DEMO = ("brick-s2-y000-x000", "chelsea-s1-y050-x105", "motorcycle_left-s2-y120-x230")


@cache
def corpus_fields() -> tuple[Field, ...]:
    """Return the fields (crops of photographs) of the embedded corpus, sorted by id.

    The fields lie on a regular grid at each scale. Fields without contrast are left out, and so are
    fields that share a pixel with a test field.
    """
    fields = [
        field for name in PHOTOGRAPHS for field in lattice(name, STRIDES_OF.get(name, STRIDES))
    ]
    return tuple(clear_of(fields, TEST_FIELDS))


def test_fields() -> list[tuple[str, Tensor]]:
    """Return the test images as pairs (id, (3, 128, 128) in [-1, 1]), sorted by id."""
    return sorted(
        ((field.id, from_uint8(cut(field))) for field in TEST_FIELDS), key=lambda pair: pair[0]
    )


# Without this, pytest would run the function as a test wherever it is imported.
test_fields.__test__ = False  # type: ignore[attr-defined]


class EmbeddedCorpus(Fields):
    """Corpus of fields of scikit-image's photographs, which needs no download.

    No corpus field shares a pixel of its photograph with a test field.
    """

    def __init__(self) -> None:
        super().__init__("embedded", corpus_fields())


class EmbeddedTestFields(Fields):
    """Test set of 12 fields that share no pixel of a photograph with the embedded corpus.

    Args:
        only: ids to keep, in any order; None keeps all.

    Raises:
        InputError: if an id in `only` is unknown.
    """

    def __init__(self, only: list[str] | None = None) -> None:
        super().__init__("embedded-test", TEST_FIELDS, only)


class DemoFields(EmbeddedTestFields):
    """Test set of three of the 12 images of `data=embedded`."""

    def __init__(self) -> None:
        super().__init__(list(DEMO))
