"""Copies that must be found, and different pictures that must not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from adir.data.embedded import EmbeddedCorpus, test_fields
from adir.images import from_uint8, to_uint8

CORPUS = EmbeddedCorpus()
SAMPLE = CORPUS.ids[::31]


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=quality)
    return np.array(Image.open(buffer))


def resized(pixels, factor):
    side = round(128 * factor)
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def brighter(pixels, factor):
    return np.clip(np.round(pixels * factor), 0, 255).astype(np.uint8)


COPIES = {
    "itself": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels[:, ::-1].copy(),
    "jpeg 75": lambda pixels: jpeg(pixels, 75),
    "jpeg 50": lambda pixels: jpeg(pixels, 50),
    "mirrored jpeg": lambda pixels: jpeg(pixels[:, ::-1].copy(), 75),
    "half": lambda pixels: resized(pixels, 0.5),
    "three quarters": lambda pixels: resized(pixels, 0.75),
    "double": lambda pixels: resized(pixels, 2),
    "5 % brighter": lambda pixels: brighter(pixels, 1.05),
    "5 % darker": lambda pixels: brighter(pixels, 0.95),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_copies_are_found(copy):
    missed = [i for i in SAMPLE if i not in CORPUS.near_duplicates(from_uint8(copy(to_uint8(CORPUS.image(i)))))]
    assert missed == []


def test_different_fields_are_not_found():
    # Fields of one photograph may overlap: of all pairs, one that shares two thirds of its ground counts as a copy.
    others = {(i, other) for i in CORPUS.ids for other in CORPUS.near_duplicates(CORPUS.image(i)) if other != i}
    assert others <= {
        ("rocket-s1-y080-x000", "rocket-s1-y120-x000"),
        ("rocket-s1-y120-x000", "rocket-s1-y080-x000"),
    }


def test_no_test_field_has_a_copy_in_the_embedded_corpus():
    assert {image_id: CORPUS.near_duplicates(x) for image_id, x in test_fields()} == {
        image_id: set() for image_id, _ in test_fields()
    }


def test_a_flat_picture_is_no_copy_of_a_textured_one_with_its_mean():
    x = CORPUS.image(SAMPLE[0])
    flat = x.mean((1, 2), keepdim=True).expand_as(x)
    assert CORPUS.near_duplicates(flat) == set()
    assert CORPUS.near_duplicates(torch.zeros(3, 40, 60)) == set()
