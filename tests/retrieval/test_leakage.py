"""Crops of corpus pictures, and pictures that a corpus picture is a crop of."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from adir.data.base import Corpus
from adir.data.embedded import EmbeddedCorpus
from adir.images import from_uint8, to_uint8
from adir.retrieval.encoders.embedded import EmbeddedEncoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import correlations, crops

EMBEDDED = EmbeddedCorpus()
FINE = ("brick", "grass", "gravel", "hubble_deep_field")  # at 16x16 nothing is left of them to be recognised by


class Part(Corpus):
    """Every ninth field of the embedded corpus but the first, which is held out."""

    def __init__(self, also=()):
        self.pictures = {name: EMBEDDED.image(name) for name in EMBEDDED.ids[9::9]} | dict(also)
        super().__init__("part", {name: str(x.sum().item()) for name, x in self.pictures.items()}, {})

    def image(self, image_id):
        return self.pictures[image_id]


@pytest.fixture(scope="module")
def part():
    corpus = Part()
    return corpus, Index.build(corpus, EmbeddedEncoder()), EmbeddedEncoder()


def cut(x, fraction, top, left, quality=75):
    """A part of a picture, saved as JPEG: `fraction` of its sides; top and left from 0 to 1."""
    side = round(x.shape[-1] * fraction)
    y, z = round((x.shape[-2] - side) * top), round((x.shape[-1] - side) * left)
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(x[:, y : y + side, z : z + side])).save(buffer, format="jpeg", quality=quality)
    return from_uint8(np.array(Image.open(buffer)))


@pytest.mark.parametrize("fraction, top, left", [(0.9, 0.5, 0.5), (0.9, 0, 0), (0.8, 1, 1), (0.8, 0.3, 0.7)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_of_a_corpus_picture_is_found(part, fraction, top, left, mirrored):
    corpus = part[0]
    for name in corpus.ids[::20]:
        if EMBEDDED.categories[name] in FINE:
            continue
        x = cut(corpus.image(name), fraction, top, left)
        assert name in crops(x.flip(-1) if mirrored else x, *part)


def test_a_corpus_picture_that_is_a_crop_is_found():
    x = EMBEDDED.image(EMBEDDED.ids[0])
    corpus = Part({"crop": cut(x, 0.85, 0.2, 0.9)})
    assert crops(x, corpus, Index.build(corpus, EmbeddedEncoder()), EmbeddedEncoder()) == {"crop"}


def test_other_pictures_are_not_taken_for_crops(part):
    corpus = part[0]
    photograph = {name: EMBEDDED.categories[name] for name in corpus.ids}
    for name in corpus.ids[::16]:
        assert all(photograph[other] == photograph[name] for other in crops(corpus.image(name), *part))
    assert crops(torch.zeros(3, 40, 60), *part) == set()


def test_correlations_are_those_of_numpy():
    wholes, windows = torch.rand(2, 3, 6, 6), torch.rand(3, 3, 4, 4)
    found = correlations(wholes, windows)
    assert found.shape == (2, 3, 3, 3)
    for b, a, y, z in np.ndindex(2, 3, 3, 3):
        place = wholes[b, :, y : y + 4, z : z + 4].flatten().numpy()
        expected = np.corrcoef(place, windows[a].flatten().numpy())[0, 1]
        assert found[b, a, y, z].item() == pytest.approx(expected, abs=1e-4)
