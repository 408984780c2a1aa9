"""Fingerprints: 16x16 grey versions of images, used to search for copies of a test image.

The search is in adir/retrieval/leakage.py.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 16  # a fingerprint has SIDE x SIDE cells
# integer steps per standard deviation: int8 then covers 8 standard deviations on each side
STEPS = 16
# grey levels: an image with a smaller standard deviation at 16x16 has a fingerprint of zeros
FLAT = 0.5
# luma weights of ITU-R BT.601, which Pillow uses
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def grey(x: Tensor, side: int) -> Tensor:
    """Return the luma of an image, resized to side x side with antialiasing.

    An image that is not square is distorted.

    Args:
        x: (3, H, W) in [-1, 1].
        side: height and width of the result in pixels.

    Returns:
        (side, side) in [-1, 1].
    """
    luma = (x.float() * LUMA).sum(0)
    return functional.interpolate(luma[None, None], (side, side), mode="bilinear", antialias=True)[
        0, 0
    ]


def fingerprint(x: Tensor) -> np.ndarray:
    """Return the (16, 16) int8 fingerprint of an image: standardised luma in steps of 1/16.

    The mean of the luma is subtracted, and the difference is divided by the standard deviation, so
    brightness and contrast do not matter. The fingerprint of a flat image (see FLAT) is all zeros.

    Args:
        x: (3, H, W) in [-1, 1].
    """
    small = grey(x, SIDE)
    deviation = small.std(correction=0)
    if deviation * 127.5 < FLAT:
        return np.zeros((SIDE, SIDE), np.int8)
    return (
        ((small - small.mean()) / deviation * STEPS).round().clamp(-127, 127).to(torch.int8).numpy()
    )
