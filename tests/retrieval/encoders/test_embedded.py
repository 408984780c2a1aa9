"""The embedded encoder: unit vectors, the same in any batch, that find a picture again through a degradation."""

import pytest
import safetensors.torch
import torch
from torch.nn import functional

from adir.data import embedded as pictures
from adir.files import sha256_of_file
from adir.images import from_uint8, to_uint8
from adir.retrieval.encoders.embedded import EMBEDDED_FOLDER, EmbeddedEncoder
from adir.retrieval.encoders.embedded_network import WEIGHTS_NAME, EncoderNetwork, load_network, save_network

ENCODER = EmbeddedEncoder()
FIELDS = torch.stack([x for _, x in pictures.test_fields()])


def eight_bits(x):
    return torch.stack([from_uint8(to_uint8(picture)) for picture in x])


def low_resolution(x):
    return eight_bits(functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True))


def blurred_and_noisy(x):
    box = functional.avg_pool2d(functional.pad(x, (2, 2, 2, 2), mode="circular"), 5, stride=1)
    return eight_bits(box + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 10 / 127.5)


def test_vectors_have_unit_length():
    vectors = ENCODER.image(FIELDS)
    assert vectors.shape == (len(FIELDS), 256) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(FIELDS)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_vector_does_not_depend_on_its_batch(size):
    # To the bit: an index on disk is made in other batches than one in memory, and both hold the same float16 numbers.
    together = ENCODER.image(FIELDS)
    assert torch.equal(torch.cat([ENCODER.image(chunk) for chunk in FIELDS.split(size)]), together)


@pytest.mark.parametrize("degrade", [low_resolution, blurred_and_noisy])
def test_a_degraded_picture_is_nearest_to_its_own_clean_one(degrade):
    # Chance: 1 of 12 each.
    similarity = ENCODER.image(degrade(FIELDS)) @ ENCODER.image(FIELDS).T
    assert similarity.argmax(1).tolist() == list(range(len(FIELDS)))


def test_a_mirrored_picture_is_nearest_to_its_own_original():
    similarity = ENCODER.image(FIELDS.flip(-1)) @ ENCODER.image(FIELDS).T
    assert similarity.argmax(1).tolist() == list(range(len(FIELDS)))


def test_weights_are_small_and_the_card_names_them():
    path = EMBEDDED_FOLDER / WEIGHTS_NAME
    assert path.stat().st_size <= 6_000_000
    assert sha256_of_file(path) in (EMBEDDED_FOLDER / "README.md").read_text()


def trained_network():
    """A network whose batch statistics are not the ones it starts with."""
    network = EncoderNetwork()
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64) * 0.5 + 0.3)
    return network.eval()


def test_saved_weights_give_the_same_vectors(tmp_path):
    network, x = trained_network(), torch.rand(3, 3, 64, 64) * 2 - 1
    save_network(network, tmp_path)
    with torch.no_grad():
        # float16 keeps 11 bits: 5e-4 of each weight
        torch.testing.assert_close(load_network(tmp_path / WEIGHTS_NAME)(x), network(x), atol=2e-3, rtol=0)


def test_a_file_of_another_network_raises(tmp_path):
    content = safetensors.torch.save({"stem.weight": torch.zeros(32, 3, 3, 3)})
    (tmp_path / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(ValueError, match="not an embedded encoder"):
        load_network(tmp_path / WEIGHTS_NAME)
