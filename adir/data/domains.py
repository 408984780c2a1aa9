"""An out-of-domain test set for the embedded prior, and a corpus with similar images.

The embedded prior is the small diffusion model in this package. All images are fields, 128x128
windows of photographs (adir/data/fields.py). The photographs of the test fields are unlike the
prior's training images. A rule in benchmarks/quality/domains.py chose these photographs before any
adaptation was run on them; the measurements are in results/embedded/domains.md. No corpus field
shares a pixel of a photograph with a test field of this file. The corpus does overlap with the 12
test fields of adir/data/embedded.py, so do not restore those 12 fields with this corpus.
"""

from collections.abc import Collection
from functools import cache

from adir.data import embedded
from adir.data.fields import SIZE, Field, Fields, clear_of, lattice, overlap
from adir.data.photographs import reduced

DOMAINS = ("brick", "grass", "gravel", "ihc", "retina", "hubble_deep_field")
"""The photographs that the rule of benchmarks/quality/domains.py accepted."""
# least shorter side of a downsampled photograph in pixels, unless the original is smaller
SHORTEST = 4 * SIZE
STRIDE = SIZE // 2  # grid spacing of fields, in downsampled pixels at the scale of the test fields
# exceptions for corpus fields: a wide grid on a large photograph, a narrow one on a small area
STRIDES_OF = {"hubble_deep_field": SIZE, "retina": SIZE // 4}


def scale_of(photograph: str) -> int:
    """Return the integer factor by which a photograph is downsampled for its test fields.

    It is the largest factor that leaves at least SHORTEST pixels on the shorter side. It is 1 if
    the original photograph is too small for that.
    """
    return max(1, min(reduced(photograph, 1).shape[:2]) // SHORTEST)


def three_of_a_column(photograph: str) -> tuple[Field, ...]:
    """Return the three test fields of a photograph: top, middle and bottom of one grid column.

    The grid has spacing STRIDE and no flat fields. The column is the leftmost one whose top, middle
    and bottom fields do not overlap. One column is used so that the area left for the corpus is in
    one piece.

    Returns:
        Three fields, or () if no column has room for three.
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
    """Return the test fields, three per photograph of DOMAINS."""
    return tuple(field for name in DOMAINS for field in three_of_a_column(name))


# Without this, pytest would run the function as a test wherever it is imported.
test_fields.__test__ = False  # type: ignore[attr-defined]


def corpus_fields_of(photograph: str) -> list[Field]:
    """Return the corpus fields of a photograph of DOMAINS, sorted by id.

    They are cut at the scale of the photograph's test fields and at twice that scale. They share no
    pixel with those test fields.
    """
    scale, stride = scale_of(photograph), STRIDES_OF.get(photograph, STRIDE)
    return clear_of(
        lattice(photograph, {scale: stride, 2 * scale: stride // 2}), three_of_a_column(photograph)
    )


@cache
def corpus_fields() -> tuple[Field, ...]:
    """Return the fields of the corpus, sorted by id.

    They are the corpus fields of the photographs in DOMAINS, and the embedded corpus's fields of
    all other photographs.
    """
    others = [field for field in embedded.corpus_fields() if field.photograph not in DOMAINS]
    return tuple(
        clear_of(
            [*others, *(field for name in DOMAINS for field in corpus_fields_of(name))],
            test_fields(),
        )
    )


class DomainTestFields(Fields):
    """Test set of three 128x128 fields per photograph of DOMAINS.

    The fields of a photograph are a cluster: results are averaged over them first.

    Args:
        only: ids to keep, in any order; None keeps all.

    Raises:
        InputError: if an id in `only` is unknown.
    """

    def __init__(self, only: Collection[str] | None = None) -> None:
        super().__init__("domains-test", test_fields(), only)


class DomainCorpus(Fields):
    """Corpus of fields of the photographs of DOMAINS and of the embedded corpus.

    No corpus field shares a pixel of a photograph with a test field of DOMAINS.

    Args:
        own_photograph: whether a test image may have neighbours from its own photograph. False is
            for a control experiment, because all neighbours then show other textures.
    """

    def __init__(self, own_photograph: bool = True) -> None:
        super().__init__("domains", corpus_fields())
        self.withholds = None if own_photograph else "own photograph"

    def withheld(self, cluster: str) -> frozenset[str]:
        if self.withholds is None:
            return frozenset()
        return frozenset(image_id for image_id in self.ids if self.cluster(image_id) == cluster)
