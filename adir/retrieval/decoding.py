"""From the bytes of any picture file to upright RGB, or the reason why not."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from adir.errors import InputError
from adir.images import decode_pixels, in_colour

MAX_PIXELS = 64_000_000
"""Larger pictures are rejected unseen: one of 64 million takes 0.8 GB as float32 while it is embedded."""
ORIENTATION = 0x0112  # the EXIF tag


def decode(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file, upright by its EXIF orientation; `name` is what errors call it.

    Converted: grey is repeated in three channels, a palette looked up.  Raises InputError, before decoding where the header
    tells, for what is truncated or no picture, larger than `max_pixels` (a decompression bomb), animated (which frame?),
    transparent (on which background?), CMYK or deeper than 8 bits (by which profile or curve?).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below Pillow's
            picture = Image.open(io.BytesIO(content))
        with picture:
            if picture.width * picture.height > max_pixels:
                raise InputError(
                    f"{name}: {picture.width}x{picture.height}, more than {max_pixels / 1e6:g} million pixels; reduce it"
                )
            n_frames = getattr(picture, "n_frames", 1)
            if n_frames > 1:
                raise InputError(f"{name}: is animated or has pages ({n_frames} pictures); take one of them")
            orientation = picture.getexif().get(ORIENTATION, 1)
    except InputError:
        raise
    except Exception:  # whatever Pillow makes of broken headers: `decode_pixels` has the words for it
        orientation = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and TIFF tags that change no pixel
        pixels = in_colour(decode_pixels(content, name))
    return upright(pixels, orientation)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) pixels turned and mirrored as the EXIF orientation (1 to 8; others count as 1) says."""
    if orientation not in range(2, 9):
        return pixels
    picture = Image.fromarray(pixels)
    picture.getexif()[ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(picture))
