"""Read and write images, and define the layout and the value range of images in memory.

In memory an image is float32 RGB in [-1, 1], with black at -1. Its shape is (3, H, W), and a batch
has shape (B, 3, H, W). Metrics take images in [0, 1] instead, which `require_unit` checks. Images
are written with 8 bits per channel.
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
from PIL import ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError
from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes, warn_in_one_line, write_bytes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNSUPPORTED_SUFFIXES = (
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
"""Suffixes that are refused.

Pillow reads these formats only on some machines, or converts them silently to 8 bits.
"""

MAX_PIXELS = 64_000_000
"""Maximum number of pixels of an image. Larger images are refused before decoding.

64 million pixels take 0.8 GB as float32.
"""
MAX_ASPECT = 100
"""The largest ratio of the longer to the shorter side.

CLIP resizes the shorter side to 224 pixels, so a 1x60000 image would become 224x13 million.
"""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image upright, by EXIF orientation."""
SAME_COLOUR = 2
"""The largest change of a colour, in grey levels, by a profile that still counts as sRGB.

The sRGB profiles in use differ by rounding.
"""
MOST_REMARKS = 20  # per kind of warning
_said: dict[str, set[str]] = {}

# Pillow warns about odd EXIF and TIFF tags, which change no pixel, and about large images, although
# we have our own limit. The filter is set once, because `warnings.catch_warnings` around each call
# is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def generator(seed: int, image_id: str, purpose: str) -> torch.Generator:
    """Return a random generator on the CPU for one image and one purpose.

    The generator's seed is derived from the SHA-256 of the three arguments. Therefore the random
    numbers of an image do not depend on batch, order, worker, device, or whether a run was resumed.

    Args:
        seed: value of the setting `seed`.
        image_id: id of the image.
        purpose: what the random numbers are for, such as "adaptation" or "sampler".
    """
    digest = hashlib.sha256(f"{seed}\x00{image_id}\x00{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def require_unit(x: Tensor, who: str, least: float = 0) -> None:
    """Raise ValueError unless x is a (B, 3, H, W) batch with all values in [least, 1].

    Args:
        x: the batch.
        who: name of the caller, for the message.
        least: lower end of the range.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"{who} takes (B, 3, H, W) images, got shape {tuple(x.shape)}")
    low, high = x.aminmax() if x.numel() else (0.0, 0.0)
    if not (low >= least and high <= 1):  # written so that NaN fails too
        raise ValueError(
            f"{who} takes images in [{least:g}, 1], got values from {low:.3g} to {high:.3g}"
        )


def to_uint8(x: Tensor) -> np.ndarray:
    """Return a (3, H, W) image in [-1, 1] as (H, W, 3) uint8, rounded and clipped."""
    levels = (x.detach().cpu().double() + 1).mul_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Return (H, W, 3) uint8 pixels as a (3, H, W) float32 image in [-1, 1].

    If `to_uint8` is applied to the result, it returns the same pixels.
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
    """Return the uint8 pixels of an image file: (H, W, 3) RGB or (H, W, 1) grey.

    Raises InputError if the file is missing, its suffix is in UNSUPPORTED_SUFFIXES, or
    `decode_pixels` refuses it.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    require_supported(str(path))
    return decode_pixels(Path(path).read_bytes(), str(path), max_pixels)


def require_supported(name: str) -> None:
    """Raise InputError if a file name has a suffix in UNSUPPORTED_SUFFIXES."""
    if name.lower().endswith(UNSUPPORTED_SUFFIXES):
        raise InputError(
            f"{name}: this file format is not supported; convert the file to one of "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )


def decode(content: bytes, name: str, least_side: int = 0) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB pixels of an image file's bytes; see `decode_pixels`.

    A grey image is repeated in three channels.
    """
    return in_colour(decode_pixels(content, name, least_side=least_side))


def decode_pixels(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, least_side: int = 0
) -> np.ndarray:
    """Return the uint8 pixels of an image file's bytes: (H, W, 3) RGB or (H, W, 1) grey.

    All image files are decoded by this function:

    - The EXIF orientation is applied.
    - Colours are converted from the embedded profile to sRGB. If the profile of a grey or RGB image
      is unusable, a warning is issued, and the colours are interpreted as sRGB.
    - Palette indices are replaced by their colours.
    - An alpha channel that is opaque everywhere is dropped.
    - 16 bits per channel are scaled to 8, with a warning.
    - The first image of an MPO file is taken. Phones write such files, which hold several images.

    Args:
        content: the file's bytes.
        name: name of the file in errors and warnings.
        max_pixels: images with more pixels are refused.
        least_side: pixels; images with a shorter side are refused.

    Raises:
        InputError: if the file is truncated or not an image; if it has too many pixels, too short a
            side, or an aspect ratio above MAX_ASPECT; if it is animated, multi-page or transparent;
            if it is CMYK without a usable profile; if Pillow cannot read its bit depth safely; or
            if it does not fit in memory. Size, aspect ratio and number of frames are checked in the
            file's header, before decoding.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            require_fit(image, name, max_pixels, least_side)
            rawmodes = " ".join(str(tile.args) for tile in image.tile)
            image.load()
            flat = flattened(
                scaled(image, rawmodes, content, name) if ";16" in rawmodes else image, name
            )
            turned = upright(in_srgb(flat, image.info.get("icc_profile"), name), image)
            return np.atleast_3d(np.array(turned))
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
    except Exception as error:  # Pillow's decoders raise errors of any class on damaged data
        raise InputError(f"{name}: damaged image ({type(error).__name__}: {error})") from error


def require_fit(image: Image.Image, name: str, max_pixels: int, least_side: int) -> None:
    """Raise InputError if a file's header shows an unsuitable size, aspect ratio or frame count.

    Args:
        image: the image as Pillow opened it, before decoding.
        name: name of the file, for the message.
        max_pixels: images with more pixels are refused.
        least_side: pixels; images with a shorter side are refused.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height}, more than {max_pixels / 1e6:g} million pixels; shrink it"
        )
    if min(width, height) < least_side:
        raise InputError(
            f"{name}: {width}x{height}, its shorter side is below least_side={least_side}"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{name}: {width}x{height}, more than {MAX_ASPECT} times as long as wide; crop it"
        )
    n_frames = getattr(image, "n_frames", 1)
    # A phone's MPO file holds previews and gain maps after the image.
    if n_frames > 1 and image.format != "MPO":
        raise InputError(
            f"{name}: is animated or has several pages ({n_frames} images); save one of "
            "them as a file"
        )


def scaled(image: Image.Image, rawmodes: str, content: bytes, name: str) -> Image.Image:
    """Return an image of 16 bits per channel, scaled to 8 bits per channel.

    The level 65535 becomes 255, and the scaled levels are rounded to nearest. Pillow keeps only the
    upper byte of a 16-bit colour channel. To get the lower byte, the file is decoded a second time
    with swapped byte order.

    Args:
        image: grey, RGB or RGBA, already decoded.
        rawmodes: the arguments of Pillow's decoder as text; they name the file's channels, bits and
            byte order.
        content: the file's bytes.
        name: name of the file in errors and warnings.

    Raises:
        InputError: if the image is not grey, RGB or RGBA, or if Pillow misreads its kind of file.
    """
    tags, is_grey = getattr(image, "tag_v2", {}), image.mode.startswith("I;16")
    # At 16 bits, Pillow misreads four kinds of files: white stored as 0, one plane per channel, a
    # transparent colour, and grey with alpha.
    misread = (
        tags.get(ExifTags.Base.PhotometricInterpretation) == 0
        or tags.get(ExifTags.Base.PlanarConfiguration) == 2
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
    remark(name, "16 bits per channel are scaled to 8")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def swapped(args: Any) -> Any:
    """Return the arguments of Pillow's 16-bit decoder with the byte order swapped."""
    if isinstance(args, tuple):
        return (swapped(args[0]), *args[1:])
    native, foreign = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    return args[:-1] + {native: foreign, foreign: native, "N": foreign}[args[-1]]


def flattened(image: Image.Image, name: str) -> Image.Image:
    """Return a decoded 8-bit image in mode L, RGB or CMYK.

    Palette indices are replaced by their colours, and an alpha channel that is opaque everywhere is
    dropped. Raises InputError if the image has more than 8 bits per channel or is transparent.
    """
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (8,))
    if max(bits) > 8 or image.mode.startswith("I") or image.mode == "F":
        raise too_deep(name)
    if image.mode == "CMYK":
        return image
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")  # the only mode that La and RGBa convert to
        if image.getchannel("A").getextrema()[0] != 255:
            raise InputError(
                f"{name}: has a transparent alpha channel; flatten it onto a background and "
                "convert it to RGB"
            )
    return image.convert(mode)


def too_deep(name: str) -> InputError:
    """Return the InputError for an image with a bit depth that Pillow cannot read safely."""
    return InputError(f"{name}: has more than 8 bits per channel; convert it to 8-bit RGB")


def in_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Convert an image of mode L, RGB or CMYK from the colours of its ICC profile to sRGB.

    A grey or RGB image is returned unchanged if it has no profile, an sRGB profile, or an unusable
    profile; the last case gives a warning. Raises InputError if a CMYK image has no usable profile.
    """
    try:
        transform = to_srgb(profile, image.mode) if profile else None
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        reason = " ".join(str(error).split())
        if image.mode == "CMYK":
            raise InputError(
                f"{name}: is CMYK, and its colour profile cannot be used ({reason}); convert it "
                "to RGB"
            ) from error
        remark(name, f"its colour profile cannot be used ({reason}); its colours are taken as sRGB")
        return image
    if transform is not None:
        converted = transformed(image, transform)
        return converted.getchannel(0) if image.mode == "L" else converted
    if image.mode == "CMYK":
        raise InputError(
            f"{name}: is CMYK without a colour profile; convert it to RGB with the profile for "
            "which it was made"
        )
    return image


@functools.lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an ICC profile to sRGB; None if the profile is sRGB itself.

    A profile is sRGB if the transform changes no colour by more than SAME_COLOUR grey levels.

    Args:
        profile: content of the ICC profile.
        mode: mode of the image: L, RGB or CMYK.

    Raises:
        OSError, ValueError, ImageCms.PyCMSError: if the profile cannot be used for this mode.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in {"L": ("GRAY", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}[mode]:
        raise ValueError(f"it is for {space} colours")
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
    """Apply a colour transform to an image and return an RGB image."""
    return transform.apply(image.convert(transform.input_mode))


def upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Return `pixels`, rotated or flipped according to the EXIF orientation of `image`.

    Pixels of a TIFF file are not changed, because Pillow has already applied the orientation.

    Args:
        pixels: the image after all conversions, without EXIF data.
        image: the same image before the conversions, with EXIF data.
    """
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow failed on damaged EXIF data; the pixels are good
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def remark(name: str, what: str) -> None:
    """Warn about an image, once per image and kind of warning.

    A process emits each kind of warning for at most MOST_REMARKS images.

    Args:
        name: name of the file.
        what: the warning; warnings with equal text are of one kind.
    """
    said = _said.setdefault(what, set())
    if name in said or len(said) >= MOST_REMARKS:
        return
    said.add(name)
    warn_in_one_line(
        f"{name}: {what}"
        + ("; further images with this warning are not listed" if len(said) == MOST_REMARKS else "")
    )


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return an image file as a (3, H, W) float32 image in [-1, 1]; grey is repeated three times.

    Raises InputError if the file is missing or is not an image; see `read_pixels`.
    """
    return from_uint8(in_colour(read_pixels(path, max_pixels)))


def read_png(path: str | Path) -> Tensor:
    """Return a PNG of any size, written by `write_png`, as a (3, H, W) image in [-1, 1]."""
    return read_image(path, max_pixels=sys.maxsize)


def in_colour(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) pixels from (H, W, 3) RGB or (H, W, 1) grey, repeating grey three times."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return an (H, W, 3) or (H, W, 1) uint8 array as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | Path, x: Tensor) -> None:
    """Write a (3, H, W) or (1, H, W) image in [-1, 1] as an 8-bit PNG, atomically.

    Raises ValueError if the image holds NaN or Inf.
    """
    if not torch.isfinite(x).all():
        raise ValueError(f"{path}: the image holds NaN or Inf, so it is not written")
    write_bytes(path, png_bytes(to_uint8(x)))


def hash_of_image(x: Tensor) -> str:
    """Return the SHA-256 of a tensor's shape and its values as float32, as 64 hex digits."""
    return sha256_of_bytes(
        repr(tuple(x.shape)).encode() + x.detach().cpu().float().contiguous().numpy().tobytes()
    )
