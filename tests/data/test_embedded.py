"""The embedded images: true to the photographs, and no corpus field on ground of a test field."""

import re

import numpy as np
import pytest
import skimage.data
from PIL import Image

from adir.data import embedded, fields, photographs
from adir.errors import InputError
from adir.images import to_uint8

IDS = [field.id for field in embedded.TEST_FIELDS]
PINNED = sorted({name.partition(".")[0] for name in photographs.PHOTOGRAPHS})


def window(image_id):
    """(photograph, scale, top, left) in the photograph's own pixels, read from the id alone."""
    name, scale, y, x = re.fullmatch(r"(\w+)-s(\d)-y(\d+)-x(\d+)", image_id).groups()
    return name, int(scale), int(scale) * int(y), int(scale) * int(x)


@pytest.mark.parametrize("name", embedded.PHOTOGRAPHS)
def test_no_corpus_field_shares_ground_with_a_test_field(name):
    # Painted on a canvas of the photograph's own pixels, each field widened by the reach of the
    # bicubic kernel (2 s).
    canvas = np.zeros((1600, 1600), dtype=int)
    for image_ids, mark in ((IDS, 1), ([field.id for field in embedded.corpus_fields()], 2)):
        for image_id in image_ids:
            photograph, scale, top, left = window(image_id)
            if photograph == name:
                reach = 2 * scale if scale > 1 else 0
                end_y, end_x = top + 128 * scale + reach, left + 128 * scale + reach
                canvas[max(0, top - reach) : end_y, max(0, left - reach) : end_x] |= mark
    assert (canvas == 2).any()
    assert not (canvas == 3).any()


@pytest.mark.parametrize("field", embedded.TEST_FIELDS, ids=IDS)
def test_a_field_does_not_change_with_pixels_outside_its_footprint(field):
    # Everything outside is replaced by noise before the photograph is reduced.
    photograph = photographs.reduced(field.photograph, 1)
    top, left, bottom, right = (max(0, edge) for edge in field.footprint())
    spoiled = np.random.default_rng(0).integers(0, 256, photograph.shape, dtype=np.uint8)
    spoiled[top:bottom, left:right] = photograph[top:bottom, left:right]
    s = field.scale
    height, width = photograph.shape[0] // s, photograph.shape[1] // s
    small = Image.fromarray(spoiled[: height * s, : width * s]).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    found = np.asarray(small)[field.y : field.y + 128, field.x : field.x + 128]
    assert np.array_equal(found, fields.cut(field))


def test_photographs_are_those_of_scikit_image():
    for name, load in (
        ("astronaut", skimage.data.astronaut),
        ("chelsea", skimage.data.chelsea),
        ("coffee", skimage.data.coffee),
        ("rocket", skimage.data.rocket),
    ):
        assert np.array_equal(photographs.reduced(name, 1), load())


def test_reduced_photographs_are_near_their_block_means():
    # A bicubic reduction by s and a mean over s x s pixels keep the same low frequencies.
    photograph = skimage.data.coffee().astype(float)
    means = photograph[:399, :600].reshape(133, 3, 200, 3, 3).mean((1, 3))
    assert np.abs(photographs.reduced("coffee", 3) - means).mean() < 3


def test_test_fields_are_ten_to_fourteen_images_with_content():
    tests = embedded.test_fields()
    assert 10 <= len(tests) <= 14
    assert [image_id for image_id, _ in tests] == sorted(IDS)
    for image_id, x in tests:
        assert x.shape == (3, 128, 128) and -1 <= x.min() and x.max() <= 1
        assert to_uint8(x).std() > 20, image_id
    assert len({window(image_id)[0] for image_id in IDS}) >= 8


def test_demo_fields_are_test_fields_of_different_photographs():
    assert len(embedded.DEMO) == 3 and set(embedded.DEMO) <= set(IDS)
    assert len({window(image_id)[0] for image_id in embedded.DEMO}) == 3


def test_the_manifest_has_one_hash_for_each_field_and_no_field_twice():
    manifest = embedded.EmbeddedCorpus().manifest
    assert len(manifest) == len(embedded.corpus_fields()) == len(set(manifest.values()))
    assert set(manifest.values()).isdisjoint(embedded.EmbeddedTestFields().manifest.values())


def test_another_edition_of_a_photograph_raises(monkeypatch):
    monkeypatch.setitem(photographs.PHOTOGRAPHS, "coins.png", "0" * 64)
    with pytest.raises(InputError, match=r"coins\.png: .* this photograph is missing or differs"):
        photographs.reduced.__wrapped__("coins", 1)


def test_a_field_that_reaches_beyond_its_photograph_raises():
    with pytest.raises(ValueError, match="beyond"):
        fields.cut(fields.Field("coins", 1, 200, 0))


def test_what_is_said_of_a_photograph_s_origin_is_what_scikit_image_says():
    documented = {"ihc": "immunohistochemistry", "motorcycle_left": "stereo_motorcycle"}
    words = {
        "CC0 1.0": ("CC0",),
        "public domain": ("public domain",),
        "no known copyright restrictions": ("No known",),
    }
    assert sorted(photographs.ORIGINS) == PINNED
    for name, origin in photographs.ORIGINS.items():
        text = " ".join(getattr(skimage.data, documented.get(name, name)).__doc__.split())
        said = {licence for licence, said in words.items() if any(word in text for word in said)}
        assert origin["licence"] in said if "licence" in origin else not said
        assert origin.get("source", "").removeprefix("https://doi.org/") in text


def test_the_embedded_corpus_is_some_hundreds_of_fields():
    corpus = embedded.EmbeddedCorpus()
    assert 300 <= len(corpus) <= 700
    assert corpus.sha256 == embedded.EmbeddedCorpus().sha256
    assert all(corpus.image(image_id).shape == (3, 128, 128) for image_id in corpus.ids[::40])
    assert corpus.categories["chelsea-s1-y000-x240"] == "chelsea"
