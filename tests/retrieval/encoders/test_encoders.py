"""The pixel encoder against distances computed with numpy and Pillow; what encoders refuse."""

import inspect

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image

from adir.configuration import config_dir
from adir.errors import InputError
from adir.images import from_uint8
from adir.retrieval.encoders.base import Encoder, tensors_sha256
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.encoders.pixel import PixelEncoder
from adir.retrieval.index.memory import Index

ENCODERS = [ImagenetEncoder, PixelEncoder]


def smooth(n, height, width, seed=0):
    """(n, H, W, 3) uint8 images with structure at low frequencies."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BILINEAR))
            for p in small
        ]
    )


def test_pixel_neighbours_are_those_of_smallest_rms_pixel_difference():
    pixels = smooth(30, 32, 32)
    batch = torch.stack([from_uint8(p) for p in pixels])
    encoder = PixelEncoder(32)
    vectors = encoder.image(batch)
    found, distances = Index([f"{n:02d}" for n in range(30)], vectors, encoder.metric).search(
        vectors[:3], 30
    )
    for row in range(3):
        rms = np.sqrt(((pixels.astype(float) - pixels[row]) ** 2).mean((1, 2, 3))) / 127.5
        assert [int(name) for name in found[row]] == np.argsort(rms, kind="stable").tolist()
        np.testing.assert_allclose(distances[row], np.sort(rms), rtol=1e-5, atol=1e-7)


def test_pixel_vectors_are_the_antialiased_small_image():
    (pixels,) = smooth(1, 96, 120)
    small = (
        np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)).astype(float)
        / 127.5
        - 1
    )
    vector = PixelEncoder(8).image(from_uint8(pixels)[None])[0] * (3 * 8 * 8) ** 0.5
    # Pillow rounds to 8 bits: half a level, twice (once for each direction).
    np.testing.assert_allclose(vector.reshape(3, 8, 8).permute(1, 2, 0), small, atol=2 / 127.5)


def test_pixel_encoders_of_two_sizes_do_not_share_stored_embeddings():
    assert PixelEncoder(8).weights_sha256 != PixelEncoder(16).weights_sha256


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_size_gives_vectors_of_one_length(encoder):
    lengths = {
        encoder().image(torch.zeros(2, 3, h, w)).shape
        for h, w in ((16, 16), (64, 64), (50, 200), (128, 96))
    }
    assert len(lengths) == 1


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (50, 70)])
def test_preparing_images_one_by_one_gives_the_same_vectors(encoder, size):
    batch = torch.stack([from_uint8(p) for p in smooth(3, *size)])
    built = encoder()
    inputs = torch.stack([built.prepare(image) for image in batch])
    assert inputs.shape[-2:] == (built.input_size, built.input_size)
    assert torch.equal(built.vectors(inputs), built.image(batch))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.full((1, 3, 8, 8), 1.5), r"\[-1, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), r"\[-1, 1\]"),
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(1, 1, 8, 8), "shape"),
    ],
    ids=["too bright", "NaN", "no batch", "grey"],
)
def test_what_is_no_batch_of_images_raises(encoder, bad, message):
    with pytest.raises(ValueError, match=message):
        encoder().image(bad)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_without_text_says_so(encoder):
    with pytest.raises(InputError, match="cannot encode text"):
        encoder().text(["Taj Mahal"])


@pytest.mark.parametrize(
    "file", sorted((config_dir() / "encoder").glob("*.yaml")), ids=lambda file: file.stem
)
def test_a_file_of_conf_names_the_arguments_of_its_encoder_in_their_order(file):
    leaf = OmegaConf.to_container(OmegaConf.load(file))
    arguments = inspect.signature(get_class(leaf.pop("_target_"))).parameters
    assert list(leaf) == list(arguments) and file.read_text().startswith("# ")
    assert leaf == {name: argument.default for name, argument in arguments.items()}


def test_the_hash_of_weights_follows_names_shapes_and_values():
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1)}
    assert tensors_sha256(weights) == tensors_sha256(dict(reversed(weights.items())))
    others = [
        weights | {"b": weights["b"].reshape(3, 2)},
        weights | {"b": weights["b"].half()},
        weights | {"b": weights["b"].nextafter(torch.tensor(9.0))},
        {"a": weights["a"], "c": weights["b"]},
    ]
    assert len({tensors_sha256(w) for w in [weights, *others]}) == 5


class Mean(Encoder):
    """The mean colour, as an encoder that a user writes: it checks nothing itself."""

    def prepare(self, image):
        return image

    def vectors(self, inputs):
        return inputs.mean((2, 3))


@pytest.mark.parametrize("value, channels", [(torch.nan, 3), (200.0, 3), (0.5, 1)])
def test_images_are_checked_for_every_encoder(value, channels):
    assert torch.equal(Mean().image(torch.full((1, 3, 4, 4), 0.5)), torch.full((1, 3), 0.5))
    with pytest.raises(ValueError, match="an encoder takes"):
        Mean().image(torch.full((1, channels, 4, 4), value))
