"""The fingerprint of an image: 16x16 grey levels, by which its copies are looked for
(adir/retrieval/leakage.py).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 16  # cells of a fingerprint's side
# of a fingerprint's numbers for one standard deviation: int8 then holds 8 of them to either side
STEPS = 16
# grey levels: an image with a smaller standard deviation at 16x16 has a fingerprint of zeros
FLAT = 0.5
LUMA = torch.tensor([0.299, 0.587, 0.114])[
    :, None, None
]  # ITU-R BT.601, as Pillow makes images grey


def grey(x: Tensor, side: int) -> Tensor:
    """Return (side, side) luma of (3, H, W) in [-1, 1], antialiased; an image that is not square is
    squeezed.
    """
    luma = (x.float() * LUMA).sum(0)
    return functional.interpolate(luma[None, None], (side, side), mode="bilinear", antialias=True)[
        0, 0
    ]


def fingerprint(x: Tensor) -> np.ndarray:
    """Return (16, 16) int8 luma of (3, H, W) in [-1, 1], less its mean, in sixteenths of its
    standard deviation.

    So brightness and contrast do not matter. A flat image's is zero.
    """
    small = grey(x, SIDE)
    deviation = small.std(correction=0)
    if deviation * 127.5 < FLAT:
        return np.zeros((SIDE, SIDE), np.int8)
    return (
        ((small - small.mean()) / deviation * STEPS).round().clamp(-127, 127).to(torch.int8).numpy()
    )
