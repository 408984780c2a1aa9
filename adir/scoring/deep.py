"""Perceptual distance of deep features (Zhang et al., CVPR 2018).

The features are those of EfficientNet-Lite0, a small image classifier. All channels have the same
weight, whereas LPIPS learns channel weights from human judgements.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adir.errors import InputError
from adir.scoring.base import Direction, require_images
from adir.weights.efficientnet_lite0 import SHA256, load_network, verified_weights
from adir.weights.registry import WeightsFile

BLOCKS = (0, 1, 2, 4, 6)
"""The indices of the blocks of timm's network whose outputs are the features.

Each block is the last one of its resolution: 1/2, 1/4, 1/8, 1/16 or 1/32 of the image's.
"""


def feature_distance(features: list[Tensor], others: list[Tensor]) -> Tensor:
    """Return the perceptual distance of two lists of feature maps, per image.

    It is eq. 1 of Zhang et al. (2018) with all w_l = 1. At each position, the features are divided
    by their norm over the channels. The squared difference of the two maps of a layer is summed
    over the channels and averaged over the positions. The results are summed over the layers.

    Args:
        features: one map (B, C_l, H_l, W_l) for each of L layers.
        others: maps of the same shapes.

    Returns:
        (B,) float64, from 0 to 4 L, because the squared distance of two unit vectors is at most 4.
    """
    pairs = zip(features, others, strict=True)
    units = (
        (functional.normalize(one.double()), functional.normalize(other.double()))
        for one, other in pairs
    )
    return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in units]).sum(0)


class DeepLite0:
    """Metric `deep-lite0`: distance of EfficientNet-Lite0's features, 0 to 20, lower is better.

    Equal images have distance 0. Images are compared at their own size.

    All channels have the same weight, whereas LPIPS learns channel weights from human judgements.
    Kumar et al. (TMLR 2022) find that distances without learned weights agree with people better
    than low-level distances do, and that the features of better classifiers agree with people less.

    The encoder `imagenet`, which may choose the images that ADIR fine-tunes on, is the same
    network. The choice may therefore favour this distance. Also report a metric that uses no
    network, such as `fsim`.

    Args:
        device: device of the network.
    """

    name = "deep-lite0"
    version = f"adir 1, efficientnet-lite0-{SHA256[:8]}"
    direction: Direction = "lower"
    range: tuple[float | None, float | None] = (0, 20)
    needs_reference = True
    needs_prompt = False
    weights_files: tuple[WeightsFile, ...] = ()  # a dependency contains them

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @functools.cached_property
    def _network(self) -> Any:
        return load_network().to(self.device)

    def unavailable(self) -> str | None:
        """Return None if the weights can be used, else one line that says why not.

        The network is built later, when the first score is computed.
        """
        try:
            verified_weights()
        except InputError as error:
            return str(error)
        return None

    @torch.inference_mode()
    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """Return (B,) float64 distances; see `Metric.score`.

        Raises:
            ValueError: if the shapes differ or are not (B, 3, H, W), or a value is outside [0, 1].
            InputError: if the weights are missing or damaged.
        """
        require_images(self, x_hat, x)
        assert x is not None
        # One image at a time, because a convolution's order of summation depends on the batch size.
        alone = zip(x_hat.split(1), x.split(1), strict=True)
        return torch.cat(
            [feature_distance(self._features(a), self._features(b)).cpu() for a, b in alone]
        )

    def _features(self, image: Tensor) -> list[Tensor]:
        """Return the five feature maps (1, C_l, H_l, W_l) of a (1, 3, H, W) image in [0, 1].

        The network's input is the image converted to [-1, 1].
        """
        found = []
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            h = self._network.bn1(self._network.conv_stem(2 * image.float().to(self.device) - 1))
            for index, block in enumerate(self._network.blocks):
                h = block(h)
                if index in BLOCKS:
                    found.append(h)
        return found
