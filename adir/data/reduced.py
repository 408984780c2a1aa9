"""Downsample neighbours to the size that adaptation can use.

This saves memory: an image of 24 megapixels takes 0.3 GB as float32, and K may be 50.
"""

from torch import Tensor
from torch.nn.functional import interpolate

from adir.images import from_uint8, to_uint8

LARGEST_SHORT_SIDE = 2048
"""The largest shorter side of a neighbour, in pixels.

It is 8 times the paper's crops of 256 pixels and 4 times a latent backbone's crops of 512. In a
larger image, a crop would show only a small fraction of what retrieval has compared, which is the
whole image at 224x224.
"""


def reduced(image: Tensor, short_side: int = LARGEST_SHORT_SIDE) -> Tensor:
    """Return the image, downsampled if its shorter side is longer than `short_side`.

    Args:
        image: (3, H, W) in [-1, 1].
        short_side: the longest allowed shorter side, in pixels.

    Returns:
        (3, h, w) in [-1, 1], resized by the antialiased bicubic filter and rounded to 8 bits as in
        a file. An image that is small enough is returned unchanged, not copied.
    """
    height, width = image.shape[1:]
    if min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    return from_uint8(to_uint8(interpolate(image[None], size, mode="bicubic", antialias=True)[0]))
