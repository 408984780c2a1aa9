"""Neighbours that are too large are made smaller, and the others stay as they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from adir.data.reduced import LARGEST_SHORT_SIDE, reduced
from adir.images import from_uint8, to_uint8


@pytest.mark.parametrize("shape", [(64, 64), (64, 900), (3, 64), (LARGEST_SHORT_SIDE, 2100)])
def test_an_image_that_is_small_enough_is_the_very_same(shape):
    x = torch.zeros(1).expand(3, *shape)
    assert reduced(x, min(LARGEST_SHORT_SIDE, shape[0])) is x and reduced(x) is x


@pytest.mark.parametrize("height, width", [(160, 240), (240, 160), (200, 201), (65, 640)])
def test_a_large_one_keeps_its_proportions_and_is_what_pillow_makes_of_it(height, width):
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    out = reduced(from_uint8(np.array(image)), 64)
    assert min(out.shape[1:]) == 64 and out.shape[2] / out.shape[1] == pytest.approx(
        width / height, rel=0.02
    )
    assert out.dtype == torch.float32 and torch.equal(
        out, from_uint8(to_uint8(out))
    )  # 8 bits, in range
    other = np.array(image.resize((out.shape[2], out.shape[1]), Image.Resampling.BICUBIC), np.int16)
    assert (
        np.abs(to_uint8(out).astype(np.int16) - other).max() <= 2
    )  # Pillow's fixed-point arithmetic rounds between its passes


def test_reducing_a_photograph_of_24_megapixels_leaves_a_quarter_of_its_memory():
    x = torch.zeros(1).expand(3, 4000, 6000)
    assert reduced(x).shape == (3, 2048, 3072)
