"""Test fields of photographs unlike the embedded prior's training images, and a corpus that holds
their like.

benchmarks/quality/domains.py holds the rule that chose the photographs, before any adaptation was
run on them, and results/embedded/domains.md what it measured. No corpus field shares a pixel of its
photograph with a test field here. The corpus does hold ground of the 12 fields of
adir/data/embedded.py: do not restore those with it.
"""

from collections.abc import Collection
from functools import cache

from adir.data import embedded
from adir.data.fields import FLAT, SIZE, Field, Fields, clear_of, lattice, overlap
from adir.data.photographs import reduced

DOMAINS = ("brick", "grass", "gravel", "ihc", "retina", "hubble_deep_field")
"""Photographs that passed."""
SHORTEST = 4 * SIZE  # pixels of the shorter side that a reduced photograph keeps, if it has as many
STRIDE = SIZE // 2  # of fields, in reduced pixels at the scale of the test fields
STRIDES_OF = {
    "hubble_deep_field": SIZE,
    "retina": SIZE // 4,
}  # of corpus fields: much room there, little room here
CROP = 64  # pixels a side of a crop of fine-tuning


def scale_of(photograph: str) -> int:
    """Return the largest whole factor that leaves SHORTEST pixels of the shorter side; 1 where none
    does.
    """
    return max(1, min(reduced(photograph, 1).shape[:2]) // SHORTEST)


def three_of_a_column(photograph: str) -> tuple[Field, ...]:
    """Return three test fields: the top, the middle and the bottom one of a column of fields; none
    where no column has room.

    It is the leftmost column, of a lattice of STRIDE, whose three do not overlap; flat fields do
    not count. The ground of the corpus then is in one piece.
    """
    columns: dict[int, list[Field]] = {}
    for field in lattice(photograph, {scale_of(photograph): STRIDE}):
        columns.setdefault(field.x, []).append(field)
    for _, column in sorted(columns.items()):
        top, bottom = column[0], column[-1]
        middle = min(column, key=lambda field: abs(2 * field.y - top.y - bottom.y))
        if not overlap(top, middle) and not overlap(middle, bottom):
            return top, middle, bottom
    return ()


@cache
def test_fields() -> tuple[Field, ...]:
    """Return the test fields, three of each photograph."""
    return tuple(field for name in DOMAINS for field in three_of_a_column(name))


test_fields.__test__ = False  # type: ignore[attr-defined]  # its name would make pytest run it wherever it is imported


def corpus_fields_of(photograph: str) -> list[Field]:
    """Return the corpus fields of a photograph of DOMAINS, sorted by id: at the scale of its test
    fields and at twice that.
    """
    scale, stride = scale_of(photograph), STRIDES_OF.get(photograph, STRIDE)
    return clear_of(
        lattice(photograph, {scale: stride, 2 * scale: stride // 2}), three_of_a_column(photograph)
    )


@cache
def corpus_fields() -> tuple[Field, ...]:
    """Return all corpus fields, sorted by id: those of DOMAINS, and the embedded corpus's of other
    photographs.
    """
    others = [field for field in embedded.corpus_fields() if field.photograph not in DOMAINS]
    return tuple(
        clear_of(
            [*others, *(field for name in DOMAINS for field in corpus_fields_of(name))],
            test_fields(),
        )
    )


def crops_left(photograph: str) -> int:
    """Return how many cells of a lattice of CROP pixels share no pixel with what a test field
    depends on, and are not flat.
    """
    scale = scale_of(photograph)
    pixels = reduced(photograph, scale)
    taken = [
        [edge / scale for edge in field.footprint()] for field in three_of_a_column(photograph)
    ]
    count = 0
    for y in range(0, pixels.shape[0] - CROP + 1, CROP):
        for x in range(0, pixels.shape[1] - CROP + 1, CROP):
            free = all(
                y >= bottom or y + CROP <= top or x >= right or x + CROP <= left
                for top, left, bottom, right in taken
            )
            count += free and pixels[y : y + CROP, x : x + CROP].mean(2).std() >= FLAT
    return count


class DomainTestFields(Fields):
    """Three 128x128 fields of each photograph of DOMAINS, one cluster each.

    only: ids to keep, in any order; None keeps all. Raises InputError for an id that is not there.
    """

    def __init__(self, only: Collection[str] | None = None) -> None:
        super().__init__("domains-test", test_fields(), only)


class DomainCorpus(Fields):
    """Fields of the photographs of DOMAINS and of the embedded corpus's, none on ground of a test
    field of DOMAINS.

    own_photograph: whether a test image may have neighbours from its own photograph; without them:
        a control, in which the
    corpus holds other textures only.
    """

    def __init__(self, own_photograph: bool = True) -> None:
        super().__init__("domains", corpus_fields())
        self.withholds = None if own_photograph else "own photograph"

    def withheld(self, cluster: str) -> frozenset[str]:
        if self.withholds is None:
            return frozenset()
        return frozenset(image_id for image_id in self.ids if self.cluster(image_id) == cluster)
