"""From any picture file to upright RGB, or the reason why not: the same for test sets, corpora and indices."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from adir.data.sources.base import Item, SourceDown, storable
from adir.errors import InputError
from adir.images import decode_pixels, in_colour

MAX_PIXELS = 64_000_000
"""Larger pictures are rejected unseen: one of 64 million takes 0.8 GB as float32 while it is embedded."""
MAX_ASPECT = 100
"""Longer ones too: CLIP brings the short side to 224 pixels, and 1x60000 would become 224x13 million."""
ORIENTATION = 0x0112  # the EXIF tag

# Pillow warns of odd EXIF and TIFF tags that change no pixel, and of large pictures, above our own limit. Here once, not
# around each call: `warnings.catch_warnings` in several threads leaves the filters of one to all.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decoded(item: Item, least_side: int = 0) -> tuple[bytes, np.ndarray]:
    """(file, (H, W, 3) uint8 RGB) of a picture that a source lists.

    Raises InputError, in one line, for one that is to be rejected: its name is not UTF-8, it cannot be read, or `decode`
    refuses it. Raises SourceDown where no picture can be read.
    """
    if storable(item.id) != item.id:
        raise InputError("its name is not UTF-8 and cannot be kept; rename the file")
    try:
        content = item.read()
        return content, decode(content, item.id, least_side=least_side)
    except SourceDown:
        raise
    except (InputError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error


def decode(content: bytes, name: str, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file, upright by its EXIF orientation; `name` is what errors call it.

    Converted: grey is repeated in three channels, a palette looked up.  Raises InputError, before decoding where the header
    tells, for what is truncated or no picture, larger than `max_pixels` (a decompression bomb) or than the memory, of a
    shorter side below `least_side`, longer than MAX_ASPECT times its width, animated (which frame?), transparent (on which
    background?), CMYK or deeper than 8 bits (by which profile or curve?).
    """
    try:
        orientation = orientation_of(content, name, max_pixels, least_side)
        return upright(in_colour(decode_pixels(content, name)), orientation)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise of everything where data are broken
        raise InputError(f"{name}: damaged picture ({type(error).__name__}: {error})") from error


def orientation_of(content: bytes, name: str, max_pixels: int, least_side: int) -> int:
    """The EXIF orientation, after a look at the header; 1 where that is broken. Raises InputError as `decode` does."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise InputError(f"{name}: {width}x{height}, more than {max_pixels / 1e6:g} million pixels; reduce it")
            if min(width, height) < least_side:
                raise InputError(f"{name}: {width}x{height}, its shorter side is below least_side={least_side}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise InputError(f"{name}: {width}x{height}, more than {MAX_ASPECT} times as long as wide; cut it")
            n_frames = getattr(picture, "n_frames", 1)
            if n_frames > 1:
                raise InputError(f"{name}: is animated or has pages ({n_frames} pictures); take one of them")
            orientation: int = picture.getexif().get(ORIENTATION, 1)
            return orientation
    except (InputError, MemoryError):
        raise
    except Exception:  # whatever Pillow makes of broken headers: `decode_pixels` has the words for it
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) pixels turned and mirrored as the EXIF orientation (1 to 8; others count as 1) says."""
    if orientation not in range(2, 9):
        return pixels
    picture = Image.fromarray(pixels)
    picture.getexif()[ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(picture))
