"""Neighbours at the size that adaptation can use: a photograph of 24 megapixels is 0.3 GB as
float32, and K may be 50.
"""

from torch import Tensor
from torch.nn.functional import interpolate

from adir.images import from_uint8, to_uint8

LARGEST_SHORT_SIDE = 2048
"""Pixels: eight times the paper's crops of 256, four times those of a latent backbone's 512.

Beyond it, a crop shows next to nothing of the image that retrieval chose as a whole, at 224x224.
"""


def reduced(image: Tensor, short_side: int = LARGEST_SHORT_SIDE) -> Tensor:
    """(3, h, w) in [-1, 1] whose shorter side is at most `short_side`: antialiased bicubic, rounded
    to 8 bits as in a file.

    image: (3, H, W) in [-1, 1]. One that is small enough is given back itself, not a copy: its
        pixels stay as they are.
    """
    height, width = image.shape[1:]
    if min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    return from_uint8(to_uint8(interpolate(image[None], size, mode="bicubic", antialias=True)[0]))
