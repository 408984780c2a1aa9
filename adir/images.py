"""Pictures: reading, writing, ranges and layout.

Inside the program a picture is float32 RGB, (3, H, W) or (B, 3, H, W), in [-1, 1], black at -1. Metrics take [0, 1], and
`require_unit` guards their door. Files are 8-bit.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from adir.errors import InputError
from adir.files import (
    sha256_of_bytes,
    write_bytes,
)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def generator(seed: int, image_id: str, purpose: str) -> torch.Generator:
    """CPU random generator of one picture and one purpose (y, neighbours, adaptation, sampler).

    Seeded by SHA-256 of the three, so a picture gets the same numbers in any batch, order, resume, worker or device.
    """
    digest = hashlib.sha256(f"{seed}\x00{image_id}\x00{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def require_unit(x: Tensor, who: str) -> None:
    """Raise ValueError unless x is a (B, 3, H, W) batch with all values in [0, 1]; `who` names the door in the message."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"{who} takes (B, 3, H, W) pictures, got shape {tuple(x.shape)}")
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"{who} takes pictures in [0, 1], got values from {low:.3g} to {high:.3g}")


def to_uint8(x: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] to an (H, W, 3) array of grey levels, rounded and clipped."""
    levels = (x.detach().cpu().double() + 1).mul_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) grey levels to (3, H, W) float32 in [-1, 1]; the inverse of `to_uint8` on 8-bit values."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)


def read_pixels(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file, or (H, W, 1) when the file is grey.

    Transparent, 16-bit and CMYK pictures raise InputError instead of being flattened, cut to 8 bits or colour-converted
    without the user's knowledge; so do files that are no picture, truncated ones, and ones of more than 178 million pixels.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    return decode_pixels(Path(path).read_bytes(), str(path))


def decode_pixels(content: bytes, name: str) -> np.ndarray:
    """What `read_pixels` gives, of the bytes of a picture file; `name` is what its errors call it."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            # Pillow cuts 16-bit RGB files to 8 bits without a word; only the raw mode of their data tells.
            deep = any(";16" in str(tile[3]) for tile in picture.tile)
            picture.load()
            mode = picture.mode
            if mode == "P":  # a palette is a way to store RGB, unless it holds transparency
                mode = "RGBA" if "transparency" in picture.info else "RGB"
            if mode in ("RGBA", "LA", "PA", "La", "RGBa"):
                raise InputError(f"{name}: has an alpha channel; flatten it onto a background first (convert to RGB)")
            if deep or mode.startswith("I") or mode == "F":
                raise InputError(f"{name}: has more than 8 bits a channel; convert it to 8-bit RGB")
            if mode == "CMYK":
                raise InputError(f"{name}: is CMYK; convert it to RGB with the colour profile it was made for")
            if mode in ("L", "1"):
                return np.array(picture.convert("L"))[:, :, None]
            return np.array(picture.convert("RGB"))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that Pillow {Image.__version__} can read") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for truncated and damaged files
        raise InputError(f"{name}: damaged picture ({error})") from error


def read_image(path: str | Path) -> Tensor:
    """(3, H, W) in [-1, 1] of a picture file; a grey file is repeated in the three channels. Errors: `read_pixels`."""
    return from_uint8(in_colour(read_pixels(path)))


def in_colour(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, 3), or of (H, W, 1) repeated."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def png_bytes(pixels: np.ndarray) -> bytes:
    """An (H, W, 3) or (H, W, 1) uint8 array as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | Path, x: Tensor) -> None:
    """Write (3, H, W) or (1, H, W) in [-1, 1] as an 8-bit PNG, atomically. NaN or Inf raise ValueError."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{path}: refusing to write a picture with NaN or Inf")
    write_bytes(path, png_bytes(to_uint8(x)))


def hash_of_picture(x: Tensor) -> str:
    """SHA-256 of a float32 tensor's shape and values."""
    return sha256_of_bytes(repr(tuple(x.shape)).encode() + x.detach().cpu().float().contiguous().numpy().tobytes())
