"""Read and write images; value ranges and layout.

Inside the program an image is float32 RGB, (3, H, W) or (B, 3, H, W), in [-1, 1], black at -1.
Metrics take [0, 1], which `require_unit` checks. Files are 8-bit.
"""

import functools
import hashlib
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError
from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes, warn_in_one_line, write_bytes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NOT_TAKEN = (
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".ppm",
    ".tga",
    ".psd",
    ".exr",
    ".hdr",
    ".dng",
)
"""Refused by name: Pillow reads these only on some machines, or reduces them to 8 bits silently."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before decoding: 64 million pixels take 0.8 GB as float32."""
MAX_ASPECT = 100
"""Longer images are refused:

CLIP resizes the short side to 224 pixels, so 1x60000 would become 224x13 million.
"""
ORIENTATION = 0x0112  # of EXIF; the others are TIFF's
BITS_PER_SAMPLE, PHOTOMETRIC, PLANES = 258, 262, 284
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image of an EXIF orientation upright."""
SAME_COLOUR = 2
"""Grey levels.

A profile that moves no colour further counts as sRGB: sRGB profiles in use differ by rounding.
"""
MOST_REMARKS = 20
_said: dict[str, set[str]] = {}

# Pillow warns of odd EXIF and TIFF tags that change no pixel, and of images above our own limit.
# Filtered once, not around each call: `warnings.catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def generator(seed: int, image_id: str, purpose: str) -> torch.Generator:
    """Return the CPU random generator of one image and one purpose (y, neighbours, adaptation,
    sampler).

    SHA-256 of the three arguments seeds it, so an image gets the same numbers in any batch, order,
    resume, worker or device.
    """
    digest = hashlib.sha256(f"{seed}\x00{image_id}\x00{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def require_unit(x: Tensor, who: str, least: float = 0) -> None:
    """Raise ValueError unless x is a (B, 3, H, W) batch with all values in [least, 1].

    who: the caller, for the message.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"{who} takes (B, 3, H, W) images, got shape {tuple(x.shape)}")
    low, high = x.aminmax() if x.numel() else (0.0, 0.0)
    if not (low >= least and high <= 1):  # written so that NaN fails too
        raise ValueError(
            f"{who} takes images in [{least:g}, 1], got values from {low:.3g} to {high:.3g}"
        )


def to_uint8(x: Tensor) -> np.ndarray:
    """Return (H, W, 3) grey levels, rounded and clipped, of (3, H, W) in [-1, 1]."""
    levels = (x.detach().cpu().double() + 1).mul_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Return (3, H, W) float32 in [-1, 1] of (H, W, 3) grey levels; inverts `to_uint8` on 8-bit
    values.
    """
    return (
        torch.from_numpy(np.ascontiguousarray(pixels))
        .permute(2, 0, 1)
        .contiguous()
        .float()
        .div_(127.5)
        .sub_(1)
    )


def read_pixels(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of an image file, or (H, W, 1) of a grey one; see `decode_pixels`.

    Raises InputError for a missing file and for a format in NOT_TAKEN as well.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    require_taken(str(path))
    return decode_pixels(Path(path).read_bytes(), str(path), max_pixels)


def require_taken(name: str) -> None:
    """Raise InputError for the name of a file in a format that is not read (NOT_TAKEN)."""
    if name.lower().endswith(NOT_TAKEN):
        raise InputError(
            f"{name}: a kind of file that is not taken ({', '.join(IMAGE_SUFFIXES)} are); "
            "convert it to one of them"
        )


def decode(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, least_side: int = 0
) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of an image file's bytes, grey ones repeated in three channels;
    see `decode_pixels`.
    """
    return in_colour(decode_pixels(content, name, max_pixels, least_side))


def decode_pixels(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, least_side: int = 0
) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, or (H, W, 1) grey, of an image file's bytes.

    All images are read by this function.

    It applies the EXIF orientation, converts colours to sRGB by the embedded profile, looks up
    palettes, drops an alpha channel that is opaque everywhere, and scales 16 bits per channel to 8
    with a warning. Of a phone's MPO file it takes the first image. If a profile is unusable, it
    warns and takes the colours as sRGB.

    Args:
        content: the file's bytes.
        name: how errors and warnings call the file.
        max_pixels: larger images are refused.
        least_side: pixels; images with a shorter side are refused.

    Raises:
        InputError: the file is truncated or no image; it is too large for `max_pixels` or the
            memory, too small, or longer than MAX_ASPECT times its width; it is animated, multi-page
            or transparent, CMYK without a profile, or has more than 16 bits per channel. Where the
            header tells, nothing is decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            require_fit(image, name, max_pixels, least_side)
            rawmodes = " ".join(str(tile.args) for tile in image.tile)
            image.load()
            flat = flattened(
                scaled(image, rawmodes, content, name) if ";16" in rawmodes else image, name
            )
            pixels = np.array(upright(in_srgb(flat, image.info.get("icc_profile"), name), image))
            return pixels[:, :, None] if pixels.ndim == 2 else pixels
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name}: not an image that Pillow {Image.__version__} can read"
        ) from error
    except Exception as error:  # on damaged data Pillow's decoders raise anything
        raise InputError(f"{name}: damaged image ({type(error).__name__}: {error})") from error


def require_fit(image: Image.Image, name: str, max_pixels: int, least_side: int) -> None:
    """Raise InputError if the header shows an image that is too large, too small or too long, or
    several images.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height}, more than {max_pixels / 1e6:g} million pixels; reduce it"
        )
    if min(width, height) < least_side:
        raise InputError(
            f"{name}: {width}x{height}, its shorter side is below least_side={least_side}"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{name}: {width}x{height}, more than {MAX_ASPECT} times as long as wide; cut it"
        )
    n_frames = getattr(image, "n_frames", 1)
    if (
        n_frames > 1 and image.format != "MPO"
    ):  # a phone's MPO holds previews and gain maps after the image
        raise InputError(f"{name}: is animated or has pages ({n_frames} images); take one of them")


def scaled(image: Image.Image, rawmodes: str, content: bytes, name: str) -> Image.Image:
    """Return a loaded image of 16 bits per channel at 8 bits: 65535 becomes 255, rounded to
    nearest.

    Pillow keeps only the upper byte of a 16-bit colour. Decoded with its bytes swapped, the file
    gives the lower byte.

    Args:
        image: grey, RGB or RGBA, loaded.
        rawmodes: the arguments of its decoder, as text.
        content: the bytes of the file.
        name: what errors and warnings call it.

    Raises:
        InputError: Pillow misreads such a file, or it has other channels.
    """
    tags, is_grey = getattr(image, "tag_v2", {}), image.mode.startswith("I;16")
    # Pillow misreads white as 0, one plane per channel, a transparent colour, and grey with alpha.
    misread = (
        tags.get(PHOTOMETRIC) == 0
        or tags.get(PLANES) == 2
        or "transparency" in image.info
        or "LA;" in rawmodes
    )
    if misread or not (is_grey or image.mode in ("RGB", "RGBA")):
        raise too_deep(name)
    levels = np.array(image).astype(np.uint32)
    if not is_grey:
        with Image.open(io.BytesIO(content)) as other:
            other.tile = [tile._replace(args=swapped(tile.args)) for tile in other.tile]
            levels = levels * 256 + np.array(other)
    remark(name, "16 bits a channel are scaled to 8")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def swapped(args: Any) -> Any:
    """Return the arguments of Pillow's decoder of 16-bit numbers with the byte order swapped."""
    if isinstance(args, tuple):
        return (swapped(args[0]), *args[1:])
    native, foreign = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    return args[:-1] + {native: foreign, foreign: native, "N": foreign}[args[-1]]


def flattened(image: Image.Image, name: str) -> Image.Image:
    """Return a loaded 8-bit image in mode L, RGB or CMYK, with palettes looked up and an opaque
    alpha channel dropped.

    Raises InputError for more than 8 bits per channel, and for transparent images.
    """
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    if max(bits) > 8 or image.mode.startswith("I") or image.mode == "F":
        raise too_deep(name)
    if image.mode == "CMYK":
        return image
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")  # the only mode that La and RGBa convert to
        if image.getchannel("A").getextrema()[0] != 255:
            raise InputError(
                f"{name}: has an alpha channel; flatten it onto a background first (convert to RGB)"
            )
    return image.convert(mode)


def too_deep(name: str) -> InputError:
    """Return the error for a depth that Pillow cannot read safely."""
    return InputError(f"{name}: has more than 8 bits a channel; convert it to 8-bit RGB")


def in_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Convert an image of mode L, RGB or CMYK to sRGB by its ICC profile; see `decode_pixels`.

    Grey and RGB images without a profile, or with one of sRGB, are returned unchanged.
    """
    try:
        transform = to_srgb(profile, image.mode) if profile else None
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        reason = " ".join(str(error).split())
        if image.mode == "CMYK":
            raise InputError(
                f"{name}: is CMYK, and its colour profile cannot be used ({reason}); convert "
                "it to RGB"
            ) from error
        remark(name, f"its colour profile cannot be used ({reason}); its colours are taken as sRGB")
        return image
    if transform is not None:
        converted = transformed(image, transform)
        return converted.getchannel(0) if image.mode == "L" else converted
    if image.mode == "CMYK":
        raise InputError(
            f"{name}: is CMYK; convert it to RGB with the colour profile it was made for (it "
            "brings none)"
        )
    return image


@functools.lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an ICC profile to sRGB; None if the profile is sRGB itself (by
    SAME_COLOUR).

    Raises OSError, ValueError or ImageCms.PyCMSError if the profile cannot be used with images of
    this mode.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in {"L": ("GRAY", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}[mode]:
        raise ValueError(f"it is one for {space} colours")
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        "L" if space == "GRAY" else space,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    greys = np.arange(256, dtype=np.uint8)[None]
    colours = np.stack(np.meshgrid(greys[0, ::15], greys[0, ::15], greys[0, ::15]), -1).reshape(
        1, -1, 3
    )
    sample = Image.fromarray(
        greys if mode == "L" else np.hstack([np.stack([greys] * 3, -1), colours])
    )
    moved = np.asarray(
        ImageChops.difference(transformed(sample, transform), sample.convert("RGB"))
    ).max()
    return None if moved <= SAME_COLOUR else transform


def transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """Apply a transform to RGB."""
    return transform.apply(image.convert(transform.input_mode))


def upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of the loaded file `image` to its pixels.

    (Pillow applies it to TIFF files itself.)
    """
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow failed on broken EXIF data; the pixels are good
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def remark(name: str, what: str) -> None:
    """Warn about an image: once per image, and at most MOST_REMARKS times per kind of warning and
    process.
    """
    said = _said.setdefault(what, set())
    if name in said or len(said) >= MOST_REMARKS:
        return
    said.add(name)
    warn_in_one_line(
        f"{name}: {what}"
        + ("; more such images are not named" if len(said) == MOST_REMARKS else "")
    )


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return (3, H, W) in [-1, 1] of an image file, a grey one repeated in three channels.

    Errors: `read_pixels`.
    """
    return from_uint8(in_colour(read_pixels(path, max_pixels)))


def read_png(path: str | Path) -> Tensor:
    """Return (3, H, W) in [-1, 1] of a PNG that `write_png` wrote, of any size."""
    return read_image(path, max_pixels=sys.maxsize)


def in_colour(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) of (H, W, 3), or of (H, W, 1) repeated."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return the bytes of a PNG file of an (H, W, 3) or (H, W, 1) uint8 array."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | Path, x: Tensor) -> None:
    """Write (3, H, W) or (1, H, W) in [-1, 1] as an 8-bit PNG, atomically.

    NaN or Inf raise ValueError.
    """
    if not torch.isfinite(x).all():
        raise ValueError(f"{path}: refusing to write an image with NaN or Inf")
    write_bytes(path, png_bytes(to_uint8(x)))


def hash_of_image(x: Tensor) -> str:
    """Return SHA-256 of a float32 tensor's shape and values."""
    return sha256_of_bytes(
        repr(tuple(x.shape)).encode() + x.detach().cpu().float().contiguous().numpy().tobytes()
    )
