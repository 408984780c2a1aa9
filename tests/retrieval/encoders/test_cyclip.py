"""CyCLIP's checkpoint, made here as the authors' training writes it, through the real loading code
at its real size.
"""

import zipfile

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from adir.errors import InputError
from adir.images import from_uint8
from adir.retrieval.encoders.clip import empty_network
from adir.retrieval.encoders.cyclip import CyclipEncoder
from adir.weights.checkpoint import read_checkpoint

PROMPTS = ["a photo of a dog", "Taj Mahal"]


@pytest.fixture(scope="module")
def trained():
    """An RN50 of the right activation whose random weights stand for trained ones (every residual
    branch is open).
    """
    network = empty_network("RN50-quickgelu")
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith(
                "bn3.weight"
            ):  # zero at the start of training: whole blocks would not be tested
                tensor.fill_(0.5)
    return network


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """What src/main.py of the authors saves after training on several GPUs:

    NumPy's cosine is the learning rate.
    """
    path = tmp_path_factory.mktemp("cyclip") / "best.pt"
    optimizer = {
        "state": {},
        "param_groups": [{"lr": 0.5 * (1 + np.cos(np.pi * 0.3)) * 5e-4, "betas": (0.9, 0.999)}],
    }
    state_dict = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save(
        {"epoch": 61, "name": "cyclip-3M", "state_dict": state_dict, "optimizer": optimizer}, path
    )
    yield path
    path.unlink()  # 400 MB


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return CyclipEncoder(checkpoint)


def test_vectors_are_those_of_the_network_and_of_clips_preprocessing(encoder, trained):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    preprocess = open_clip.image_transform(224, is_train=False)
    with torch.inference_mode():
        image = trained.encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)
        text = trained.encode_text(open_clip.get_tokenizer("RN50")(PROMPTS), normalize=True)
    # The order of the sums is left, as in test_clip.py.
    torch.testing.assert_close(encoder.image(from_uint8(pixels)[None]), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.text(PROMPTS), text, rtol=0, atol=1e-5)
    assert (encoder.name, encoder.metric, encoder.input_size) == ("cyclip", "angular", 224)


def test_its_activation_is_quickgelu_as_in_the_authors_code(encoder):
    x = torch.linspace(-3, 3, 7)
    activation = encoder.network.transformer.resblocks[0].mlp.gelu
    torch.testing.assert_close(activation(x), x * torch.sigmoid(1.702 * x))


def test_a_checkpoint_written_with_numpy_1_is_read_too(tmp_path):
    torch.save(
        {"state_dict": {"module.a": torch.ones(3)}, "lr": np.float64(0.5)}, tmp_path / "new.pt"
    )
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as old,
    ):
        for item in new.infolist():
            content = new.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(item, content)
    for name in ("new.pt", "old.pt"):
        assert torch.equal(read_checkpoint(tmp_path / name)["a"], torch.ones(3))


def test_weights_of_another_network_and_missing_ones_are_named(tmp_path):
    torch.save(
        {"state_dict": {"module.positional_embedding": torch.zeros(77, 512)}}, tmp_path / "part.pt"
    )
    with pytest.raises(
        InputError,
        match=r"part.pt: the weights do not match architecture RN50-quickgelu .*Missing.*text_projection",
    ):
        CyclipEncoder(tmp_path / "part.pt")
    with pytest.raises(InputError, match="goel-shashank/CyCLIP"):
        CyclipEncoder()
    with pytest.raises(
        InputError, match=r"no file .*best.pt; download the authors.* and put the weights there"
    ):
        CyclipEncoder(tmp_path / "best.pt")
