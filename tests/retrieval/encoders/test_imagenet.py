"""The imagenet encoder: unit vectors, the same in any batch, that find an image again through a
degradation.
"""

import pytest
import torch
from torch.nn import functional

from adir.data import embedded
from adir.images import from_uint8, to_uint8
from adir.retrieval.encoders.imagenet import ImagenetEncoder

ENCODER = ImagenetEncoder()
FIELDS = torch.stack([x for _, x in embedded.test_fields()])


def eight_bits(x):
    return torch.stack([from_uint8(to_uint8(image)) for image in x])


def low_resolution(x):
    return eight_bits(functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True))


def blurred_and_noisy(x):
    box = functional.avg_pool2d(functional.pad(x, (2, 2, 2, 2), mode="circular"), 5, stride=1)
    return eight_bits(
        box + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 10 / 127.5
    )


def test_vectors_are_the_averages_over_the_last_feature_map_at_unit_length():
    inputs = functional.interpolate(FIELDS[:2], (224, 224), mode="bicubic", antialias=True).clamp(
        -1, 1
    )
    with torch.no_grad():
        averages = ENCODER.network.forward_features(inputs).mean((2, 3))
    vectors = ENCODER.image(FIELDS[:2])
    assert vectors.shape == (2, 1280) and vectors.dtype == torch.float32
    torch.testing.assert_close(
        vectors, averages / averages.norm(dim=1, keepdim=True), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [1, 5])
def test_a_vector_does_not_depend_on_its_batch(size):
    # To the bit: an index on disk is made in other batches than one in memory, and both hold the
    # same float16 numbers.
    together = ENCODER.image(FIELDS)
    assert torch.equal(torch.cat([ENCODER.image(chunk) for chunk in FIELDS.split(size)]), together)


@pytest.mark.parametrize("degrade", [low_resolution, blurred_and_noisy, lambda x: x.flip(-1)])
def test_a_changed_image_is_nearest_to_its_own_original(degrade):
    # Chance: 1 of 12 each.
    similarity = ENCODER.image(degrade(FIELDS)) @ ENCODER.image(FIELDS).T
    assert similarity.argmax(1).tolist() == list(range(len(FIELDS)))
