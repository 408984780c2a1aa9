"""The fields of domains: placed by their rule, and no corpus field on ground of a test field."""

import itertools
import re

import numpy as np
import pytest

from adir.data import domains, embedded
from adir.data.fields import is_flat
from adir.data.selection import Selection
from adir.errors import InputError
from adir.images import to_uint8
from benchmarks.quality import domains as rule

TESTS, CORPUS = domains.DomainTestFields(), domains.DomainCorpus()


def window(image_id: str) -> tuple[str, int, int, int]:
    """(photograph, scale, top, left) in the photograph's own pixels, read from the id alone."""
    name, scale, y, x = re.fullmatch(r"(\w+)-s(\d)-y(\d+)-x(\d+)", image_id).groups()
    return name, int(scale), int(scale) * int(y), int(scale) * int(x)


@pytest.mark.parametrize("photograph", domains.DOMAINS)
def test_the_fields_of_a_photograph_are_three_that_share_no_ground_with_each_other_or_the_corpus(
    photograph: str,
) -> None:
    # Painted on a canvas of the photograph's own pixels, each field widened by the reach of the
    # bicubic kernel (2 s).
    canvases = {}
    for image_id in [*TESTS.ids, *CORPUS.ids]:
        name, scale, top, left = window(image_id)
        if name == photograph:
            reach = 2 * scale if scale > 1 else 0
            canvas = canvases.setdefault(image_id in TESTS.ids, np.zeros((1600, 1600), int))
            side = 128 * scale + reach
            canvas[max(0, top - reach) : top + side, max(0, left - reach) : left + side] += 1
    assert canvases[True].max() == 1 and canvases[True].sum() >= 3 * 128**2
    assert canvases[False].any() and not (canvases[True] & (canvases[False] > 0)).any()
    assert sum(TESTS.cluster(image_id) == photograph for image_id in TESTS.ids) == 3


def test_no_test_field_is_flat_and_each_has_an_id_of_its_own() -> None:
    assert not any(is_flat(to_uint8(TESTS.image(image_id))) for image_id in TESTS.ids)
    assert len(set(TESTS.manifest.values())) == len(TESTS) == 3 * len(domains.DOMAINS)
    assert set(TESTS.manifest.values()).isdisjoint(CORPUS.manifest.values())


@pytest.mark.parametrize("photograph", domains.DOMAINS)
def test_a_photograph_leaves_as_many_crops_as_the_rule_asks(photograph: str) -> None:
    # Counted in pixels of the photograph: what the bicubic kernel reaches from the test fields is
    # taken.
    scale = domains.scale_of(photograph)
    height, width = domains.reduced(photograph, 1).shape[:2]
    free = np.ones((height, width), bool)
    for _, _, top, left in (window(field.id) for field in domains.three_of_a_column(photograph)):
        reach = 2 * scale if scale > 1 else 0
        free[
            max(0, top - reach) : top + 128 * scale + reach,
            max(0, left - reach) : left + 128 * scale + reach,
        ] = False
    side = 64 * scale
    corners = itertools.product(range(0, height - side + 1, side), range(0, width - side + 1, side))
    assert (
        20
        <= rule.crops_left(photograph)
        <= sum(free[y : y + side, x : x + side].all() for y, x in corners)
    )


def test_other_photographs_are_in_the_corpus_as_the_embedded_corpus_has_them() -> None:
    others = embedded.EmbeddedCorpus().manifest
    mine = {
        name: sha256
        for name, sha256 in CORPUS.manifest.items()
        if window(name)[0] not in domains.DOMAINS
    }
    assert mine == {
        name: sha256 for name, sha256 in others.items() if window(name)[0] not in domains.DOMAINS
    }
    assert {window(name)[0] for name in CORPUS.ids} == {*domains.DOMAINS, *embedded.PHOTOGRAPHS}


def test_the_control_withholds_the_own_photograph_and_nothing_else() -> None:
    control = domains.DomainCorpus(own_photograph=False)
    assert control.sha256 == CORPUS.sha256 and control.withholds != CORPUS.withholds
    for one in (control, Selection(control, size=64)):
        assert (
            one.withheld("grass")
            == {name for name in CORPUS.ids if name.startswith("grass-")}
            != set()
        )
        assert one.withheld("grass-s1-y000-x000") == set()
    assert CORPUS.withheld("grass") == set()


def test_an_unknown_field_raises() -> None:
    assert domains.DomainTestFields([TESTS.ids[0]]).ids == [TESTS.ids[0]]
    with pytest.raises(InputError, match="unknown test field 'chelsea'; choose from brick"):
        domains.DomainTestFields(["chelsea"])
