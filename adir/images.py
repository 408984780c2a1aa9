"""Pictures: the one reader, writing, ranges and layout.

Inside the program a picture is float32 RGB, (3, H, W) or (B, 3, H, W), in [-1, 1], black at -1. Metrics take [0, 1], and
`require_unit` guards their door. Files are 8-bit.
"""

import functools
import hashlib
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes, warn_in_one_line, write_bytes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NOT_TAKEN = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tga", ".psd", ".exr", ".hdr", ".dng")
"""Listed to be refused: Pillow reads these on some machines only, or cuts them to 8 bits unasked."""

MAX_PIXELS = 64_000_000
"""Larger pictures are refused unseen: one of 64 million takes 0.8 GB as float32 while it is embedded."""
MAX_ASPECT = 100
"""Longer ones too: CLIP brings the short side to 224 pixels, and 1x60000 would become 224x13 million."""
ORIENTATION = 0x0112  # of EXIF; the others are TIFF's
BITS_PER_SAMPLE, PHOTOMETRIC, PLANES = 258, 262, 284
SAME_COLOUR = 2
"""Grey levels: a profile that moves no colour further is one of sRGB; those in use differ by their rounding."""
MOST_REMARKS = 20
_said: dict[str, set[str]] = {}

# Pillow warns of odd EXIF and TIFF tags that change no pixel, and of large pictures, above our own limit. Here once, not
# around each call: `warnings.catch_warnings` in several threads leaves the filters of one to all.
warnings.filterwarnings("ignore", module=r"PIL\.")


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


def read_pixels(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file, or (H, W, 1) when the file is grey; see `decode_pixels`.

    Raises InputError also where there is no such file, or its name is that of a kind that is not taken.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    require_taken(str(path))
    return decode_pixels(Path(path).read_bytes(), str(path), max_pixels)


def require_taken(name: str) -> None:
    """Raise InputError for a picture file of a kind that is not taken."""
    if name.lower().endswith(NOT_TAKEN):
        raise InputError(
            f"{name}: a kind of file that is not taken ({', '.join(PICTURE_SUFFIXES)} are); convert it to one of them"
        )


def decode(content: bytes, name: str, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the bytes of a picture file, a grey one repeated in three channels; see `decode_pixels`."""
    return in_colour(decode_pixels(content, name, max_pixels, least_side))


def decode_pixels(content: bytes, name: str, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB, or (H, W, 1) grey, of the bytes of a picture file: the one reader, whatever a picture is for.

    Converted: turned upright by the EXIF orientation, colours to sRGB by the embedded profile, a palette looked up, an alpha
    channel that is opaque everywhere dropped, 16 bits a channel scaled to 8 (and said). A phone's MPO is its first picture.

    Raises InputError, before decoding where the header tells, for what is truncated or no picture, larger than `max_pixels`
    (a decompression bomb) or than the memory, of a shorter side below `least_side`, longer than MAX_ASPECT times its width,
    animated or of several pages (which one?), transparent (on which background?), CMYK without a profile, or deeper than 16
    bits. A profile that cannot be used is said, and the colours are taken as sRGB.

    name: what errors and warnings call it.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            require_fit(picture, name, max_pixels, least_side)
            rawmodes = [str(tile.args) for tile in picture.tile]
            picture.load()
            if any(";16" in rawmode for rawmode in rawmodes):
                pixels = deep_pixels(picture, rawmodes, content, name)
            else:
                pixels = shallow_pixels(picture, name)
            return upright(in_srgb(pixels, picture.info.get("icc_profile"), name), orientation_of(picture))
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that Pillow {Image.__version__} can read") from error
    except Exception as error:  # Pillow's decoders raise of everything where data are broken
        raise InputError(f"{name}: damaged picture ({type(error).__name__}: {error})") from error


def require_fit(picture: Image.Image, name: str, max_pixels: int, least_side: int) -> None:
    """Raise InputError, by its header, for a picture that is too large, too small or too long, or one of several."""
    width, height = picture.size
    if width * height > max_pixels:
        raise InputError(f"{name}: {width}x{height}, more than {max_pixels / 1e6:g} million pixels; reduce it")
    if min(width, height) < least_side:
        raise InputError(f"{name}: {width}x{height}, its shorter side is below least_side={least_side}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{name}: {width}x{height}, more than {MAX_ASPECT} times as long as wide; cut it")
    n_frames = getattr(picture, "n_frames", 1)
    if n_frames > 1 and picture.format != "MPO":  # after a phone's first picture come previews and maps of brightness
        raise InputError(f"{name}: is animated or has pages ({n_frames} pictures); take one of them")


def shallow_pixels(picture: Image.Image, name: str) -> np.ndarray:
    """(H, W, C) uint8 of a loaded picture of 8 bits a channel: C = 1 grey, 3 RGB, 4 CMYK. InputError for other depths."""
    if picture.mode.startswith("I") or picture.mode == "F" or max(bits_of(picture)) > 8:
        raise too_deep(name)
    if picture.mode == "CMYK":
        return np.array(picture)
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        require_opaque(picture.convert("RGBA").getchannel("A"), 255, name)
        picture.info.pop("transparency", None)
        picture = picture.convert("RGBA")  # of La and RGBa, nothing else can be made
    return np.array(picture.convert("L"))[:, :, None] if grey else np.array(picture.convert("RGB"))


def deep_pixels(picture: Image.Image, rawmodes: list[str], content: bytes, name: str) -> np.ndarray:
    """(H, W, C) uint8 of a loaded picture of 16 bits a channel, 65535 as 255, rounded: C = 1 grey, 3 RGB.

    Pillow cuts 16-bit colours to their upper bytes without a word. Told that the bytes stand the other way round, it gives
    the lower ones, and the two together are what the file holds.  Raises InputError where that cannot be done.
    """
    tags = getattr(picture, "tag_v2", {})
    # Pillow is wrong about white as 0, and about a plane for each channel.
    misread = tags.get(PHOTOMETRIC) == 0 or tags.get(PLANES) == 2
    if misread or "transparency" in picture.info or any("LA;" in rawmode for rawmode in rawmodes):
        raise too_deep(name)
    if picture.mode.startswith("I;16"):
        levels = np.array(picture).astype(np.uint32)[:, :, None]
    elif picture.mode in ("RGB", "RGBA"):
        with Image.open(io.BytesIO(content)) as other:
            other.tile = [tile._replace(args=other_way_round(tile.args)) for tile in other.tile]
            levels = np.array(picture).astype(np.uint32) * 256 + np.array(other)
        if picture.mode == "RGBA":
            require_opaque(levels[:, :, 3], 65535, name)
            levels = levels[:, :, :3]
    else:
        raise too_deep(name)
    remark(name, "16 bits a channel are scaled to 8")
    return ((levels * 255 + 32767) // 65535).astype(np.uint8)


def other_way_round(args: Any) -> Any:
    """The arguments of Pillow's decoder of 16-bit numbers, their bytes swapped."""
    if isinstance(args, tuple):
        return (other_way_round(args[0]), *args[1:])
    native, foreign = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    return args[:-1] + {native: foreign, foreign: native, "N": foreign}[args[-1]]


def bits_of(picture: Image.Image) -> tuple[int, ...]:
    """Bits a channel as a TIFF tells them; (8,) for other files."""
    return tuple(getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))


def too_deep(name: str) -> InputError:
    """The refusal of a depth that cannot be scaled safely."""
    return InputError(f"{name}: has more than 8 bits a channel; convert it to 8-bit RGB")


def require_opaque(alpha: Any, opaque: int, name: str) -> None:
    """Raise InputError unless an alpha channel is `opaque` everywhere."""
    if np.any(np.asarray(alpha) != opaque):
        raise InputError(f"{name}: has an alpha channel; flatten it onto a background first (convert to RGB)")


def in_srgb(pixels: np.ndarray, profile: bytes | None, name: str) -> np.ndarray:
    """(H, W, 1 or 3) uint8 in sRGB, of pixels as stored, grey, RGB or CMYK, and their ICC profile; see `decode_pixels`.

    Without a profile, or with one of sRGB, grey and RGB pixels are given back untouched.
    """
    channels = pixels.shape[2]
    if not profile:
        if channels == 4:
            raise InputError(
                f"{name}: is CMYK; convert it to RGB with the colour profile it was made for (it brings none)"
            )
        return pixels
    try:
        transform = to_srgb(profile, channels)
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        reason = " ".join(str(error).split())
        if channels == 4:
            raise InputError(
                f"{name}: is CMYK, and its colour profile cannot be used ({reason}); convert it to RGB"
            ) from error
        remark(name, f"its colour profile cannot be used ({reason}); its colours are taken as sRGB")
        return pixels
    if transform is None:
        return pixels
    converted = transformed(pixels, transform)
    return converted[:, :, :1] if channels == 1 else converted


@functools.lru_cache(maxsize=16)
def to_srgb(profile: bytes, channels: int) -> ImageCms.ImageCmsTransform | None:
    """The transform from an ICC profile to sRGB; None for a profile of sRGB, whichever of its many makers' it is.

    Raises OSError, ValueError or ImageCms.PyCMSError for a profile that cannot be used with so many channels.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in {1: ("GRAY", "RGB"), 3: ("RGB",), 4: ("CMYK",)}[channels]:
        raise ValueError(f"it is one for {space} colours")
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        "L" if space == "GRAY" else space,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if channels == 4:
        return transform
    greys = np.arange(256, dtype=np.uint8)[None, :, None]
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(1, -1, 3)
    asked = [greys] if channels == 1 else [in_colour(greys), colours]
    moved = max(np.abs(transformed(one, transform).astype(int) - one).max() for one in asked)
    return None if moved <= SAME_COLOUR else transform


def transformed(pixels: np.ndarray, transform: ImageCms.ImageCmsTransform) -> np.ndarray:
    """(H, W, 3) uint8: the pixels, of 1, 3 or 4 channels, through a transform to RGB."""
    height, width, channels = pixels.shape
    picture = Image.frombytes({1: "L", 3: "RGB", 4: "CMYK"}[channels], (width, height), pixels.tobytes())
    return np.array(ImageCms.applyTransform(picture.convert(transform.input_mode), transform))


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of a loaded picture; 1 where that is broken. (Pillow turns TIFF files itself.)"""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever Pillow makes of broken notes: the pixels are good all the same
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) pixels turned and mirrored as the EXIF orientation (1 to 8; others count as 1) says."""
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }
    return np.ascontiguousarray(turns[orientation](pixels)) if orientation in turns else pixels


def remark(name: str, what: str) -> None:
    """Warn of something about a picture: once of each, and of no more than MOST_REMARKS of a kind in a process."""
    said = _said.setdefault(what, set())
    if name in said or len(said) >= MOST_REMARKS:
        return
    said.add(name)
    warn_in_one_line(f"{name}: {what}" + ("; more such pictures are not named" if len(said) == MOST_REMARKS else ""))


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """(3, H, W) in [-1, 1] of a picture file; a grey file is repeated in the three channels. Errors: `read_pixels`."""
    return from_uint8(in_colour(read_pixels(path, max_pixels)))


def read_png(path: str | Path) -> Tensor:
    """(3, H, W) in [-1, 1] of a PNG that `write_png` wrote, however large."""
    return read_image(path, max_pixels=sys.maxsize)


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
