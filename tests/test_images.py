"""Images in and out: exact 8-bit round trips, ranges, one generator per purpose, and one-line
errors for bad files.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from adir.errors import InputError
from adir.images import (
    MOST_REMARKS,
    decode_pixels,
    from_uint8,
    generator,
    read_image,
    read_pixels,
    require_unit,
    to_uint8,
    write_png,
)

ALL_LEVELS = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)


def test_all_256_levels_survive_the_way_to_tensors_and_back():
    x = from_uint8(ALL_LEVELS)
    assert x.dtype == torch.float32 and x.shape == (3, 16, 16)
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(to_uint8(x), ALL_LEVELS)


def test_all_256_levels_survive_a_file(tmp_path):
    write_png(tmp_path / "x.png", from_uint8(ALL_LEVELS))
    assert torch.equal(read_image(tmp_path / "x.png"), from_uint8(ALL_LEVELS))
    with Image.open(tmp_path / "x.png") as image:  # as another reader sees it
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.array(image), ALL_LEVELS)


def test_channels_and_axes_keep_their_places(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[1, 2] = (255, 128, 0)  # row 1, column 2: orange
    Image.fromarray(pixels).save(tmp_path / "x.png")
    x = read_image(tmp_path / "x.png")
    assert x.shape == (3, 2, 3)
    torch.testing.assert_close(x[:, 1, 2], torch.tensor([1, 128 / 127.5 - 1, -1]))
    assert (x[:, 0, 0] == -1).all()


def test_values_out_of_range_are_clipped_and_others_rounded():
    x = torch.tensor([-5.0, -1.0, -0.999, 0.0, 0.999, 5.0]).reshape(1, 1, 6)
    # 127.5 x + 127.5: -510, 0, 0.1275, 127.5, 254.87, 765; halves go to even
    assert to_uint8(x)[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    for same in (x, x.double()):  # and what was given stays
        to_uint8(same)
        assert torch.equal(same.float(), x)
    levels = np.zeros((1, 1, 3), np.uint8)
    from_uint8(levels)
    assert not levels.any()


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_the_door_of_metrics_refuses_what_is_not_in_0_1(value):
    x = torch.full((1, 3, 4, 4), 0.5)
    require_unit(x, "LPIPS")
    x[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match=r"LPIPS takes images in \[0, 1\]"):
        require_unit(x, "LPIPS")


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4)])
def test_the_door_of_metrics_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="takes \\(B, 3, H, W\\)"):
        require_unit(torch.zeros(shape), "LPIPS")


def test_generators_depend_on_seed_image_and_purpose_alone():
    def draw(*key) -> list[float]:
        return torch.rand(4, generator=generator(*key)).tolist()

    torch.manual_seed(1)
    first = draw(0, "cat", "sampler")
    torch.manual_seed(2)
    assert draw(0, "cat", "sampler") == first
    others = [
        draw(1, "cat", "sampler"),
        draw(0, "dog", "sampler"),
        draw(0, "cat", "y"),
        draw(0, "catsampler", ""),
    ]
    assert all(other != first for other in others) and len({tuple(o) for o in others}) == 4
    # The parts are kept apart: (1, "1x") is not (11, "x").
    assert draw(1, "1x", "y") != draw(11, "x", "y")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_with_nan_is_never_written(tmp_path, bad):
    x = torch.zeros(3, 4, 4)
    x[0, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        write_png(tmp_path / "x.png", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_files_are_one_channel_of_pixels_and_three_of_an_image(tmp_path, mode):
    levels = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(levels).convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "x.png")[:, :, 0], levels)
    x = read_image(tmp_path / "x.png")
    assert x.shape == (3, 2, 2) and torch.equal(x[0], x[2]) and x[0, 0].tolist() == [-1, 1]


def test_a_grey_y_is_written_as_a_grey_file(tmp_path):
    write_png(tmp_path / "y.png", torch.zeros(1, 4, 5))
    assert read_pixels(tmp_path / "y.png").shape == (4, 5, 1)


def test_a_palette_is_read_as_the_colours_it_stands_for(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = (255, 0, 0)
    Image.fromarray(pixels).quantize(2).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "x.png"), pixels)


@pytest.mark.parametrize(
    "name, mode, options, words",
    [
        ("x.png", "RGBA", {}, "alpha channel; flatten"),
        ("x.png", "LA", {}, "alpha channel; flatten"),
        ("x.png", "P", {"transparency": 0}, "alpha channel; flatten"),
        ("x.tif", "F", {}, "more than 8 bits"),
        ("x.jpg", "CMYK", {}, "CMYK without a colour profile; convert"),
    ],
)
def test_files_that_would_lose_something_are_refused_in_one_line(
    tmp_path, name, mode, options, words
):
    Image.new(mode, (8, 8)).save(tmp_path / name, **options)
    with pytest.raises(InputError, match=words) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's remark on half a TIFF
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_truncated_and_empty_files_are_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"This is no image."):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_image(path)


def test_an_image_of_absurd_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: .*pixels"):
        read_image(tmp_path / "x.png")


# One reader: what a camera, a phone, a scanner or a printer puts into a file

SOME = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encoded(image, kind="png", **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, format=kind, **options
    )
    return buffer.getvalue()


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind, options", [("png", {}), ("tiff", {}), ("webp", {"lossless": True})])
def test_every_kind_of_file_is_turned_upright_once(kind, options):
    for pixels in (SOME, SOME[:, :, 0]):
        if not (kind == "webp" and pixels.ndim == 2):
            found = decode_pixels(encoded(pixels, kind, exif=turned(), **options), "p")
            np.testing.assert_array_equal(found.squeeze(), np.rot90(pixels, -1))


def test_a_phone_s_mpo_is_its_first_image_upright():
    smooth = Image.fromarray(SOME).resize((64, 48), Image.Resampling.BICUBIC)
    mpo = encoded(
        smooth,
        "MPO",
        save_all=True,
        append_images=[smooth.resize((16, 12))],
        exif=turned(),
        quality=95,
    )
    alone = np.array(Image.open(io.BytesIO(encoded(smooth, "jpeg", quality=95))))
    np.testing.assert_array_equal(decode_pixels(mpo, "p"), np.rot90(alone, -1))


GREY = Image.fromarray(SOME).convert("L")
PALETTE = Image.fromarray(SOME).quantize(16)


@pytest.mark.parametrize(
    "content, expected",
    [
        (encoded(Image.fromarray(SOME).convert("RGBA")), SOME),
        (encoded(Image.fromarray(SOME).convert("RGBA"), "webp", lossless=True, exact=True), SOME),
        (encoded(Image.fromarray(SOME).convert("RGBA"), "tiff"), SOME),
        (encoded(GREY.convert("LA")), np.array(GREY)),
        (
            encoded(PALETTE, transparency=200),
            np.array(PALETTE.convert("RGB")),
        ),  # a colour that no pixel has
        (
            encoded(GREY.point(lambda level: min(level, 250)), transparency=255),
            np.array(GREY).clip(0, 250),
        ),
        (encoded(SOME, transparency=(1, 2, 3)), SOME),
    ],
    ids=[
        "png",
        "webp",
        "tiff",
        "grey",
        "palette",
        "grey with a clear level",
        "rgb with a clear colour",
    ],
)
def test_an_alpha_channel_that_is_opaque_everywhere_is_dropped(content, expected):
    np.testing.assert_array_equal(decode_pixels(content, "p").squeeze(), expected)


@pytest.mark.parametrize(
    "image, options",
    [(SOME, {"transparency": tuple(map(int, SOME[3, 4]))}), (GREY, {"transparency": 0})],
)
def test_a_colour_that_stands_for_transparency_is_refused_where_it_occurs(image, options):
    if image is GREY:
        image = np.array(GREY)
        image[2, 2] = 0
    with pytest.raises(InputError, match="alpha channel; flatten"):
        decode_pixels(encoded(image, **options), "p")


# Colour profiles

ADOBE = (
    (0.60974, 0.31111, 0.01947),
    (0.20528, 0.62567, 0.06087),
    (0.14919, 0.06322, 0.74457),
)  # XYZ at D50, IEC 61966-2-5
SRGB = (
    (0.43607, 0.22249, 0.01392),
    (0.38515, 0.71687, 0.09708),
    (0.14307, 0.06061, 0.71410),
)  # IEC 61966-2-1
P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)  # SMPTE EG 432-1
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def icc(
    space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr"
) -> bytes:
    """A profile of version 2.4, by the specification ICC.1:2001-04."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + b"\0" * 78,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **tags,
    }
    table, body, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, kind, space, connection
    )
    return (
        (head + struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp").ljust(68, b"\0")
        + fixed(0.9642, 1.0, 0.8249).ljust(60, b"\0")
        + table
        + body
    )


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


def curve(*values: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", {1: 0, 5: 3}[len(values)], 0) + fixed(*values)


def rgb_profile(primaries, transfer) -> bytes:
    tags = {
        key + b"XYZ": xyz(*values)
        for key, values in zip((b"r", b"g", b"b"), primaries, strict=True)
    }
    return icc(b"RGB ", tags | {key + b"TRC": curve(*transfer) for key in (b"r", b"g", b"b")})


GREY_PROFILE = icc(b"GRAY", {b"kTRC": curve(1.8)})


def encode_srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def decode_srgb(levels: np.ndarray) -> np.ndarray:
    x = levels / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    "primaries, transfer, light",
    [
        (ADOBE, (2.2,), lambda levels: (levels / 255) ** 2.2),
        (P3, SRGB_CURVE, decode_srgb),
        (SRGB, (1.8,), lambda levels: (levels / 255) ** 1.8),
    ],
    ids=["Adobe RGB", "Display P3", "gamma 1.8"],
)
@pytest.mark.parametrize("kind, options", [("png", {}), ("tiff", {}), ("webp", {"lossless": True})])
def test_colours_are_converted_to_srgb_as_the_profile_says(
    primaries, transfer, light, kind, options
):
    # Levels to light, by the primaries to XYZ, by those of sRGB back to light, to levels.
    expected = encode_srgb(light(SOME) @ np.array(primaries) @ np.linalg.inv(np.array(SRGB)))
    found = decode_pixels(
        encoded(SOME, kind, icc_profile=rgb_profile(primaries, transfer), **options), "p"
    )
    assert np.abs(found - expected).max() < 2 and np.abs(SOME - expected).max() > 8


def test_grey_levels_are_converted_and_stay_grey():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for profile in (GREY_PROFILE, rgb_profile(SRGB, (1.8,))):
        found = decode_pixels(encoded(levels, icc_profile=profile), "p")
        assert found.shape == (16, 16, 1)
        assert np.abs(found[:, :, 0] - encode_srgb((levels / 255) ** 1.8)).max() < 2


@pytest.mark.parametrize(
    "profile",
    [
        rgb_profile(SRGB, SRGB_CURVE),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        None,
    ],
)
@pytest.mark.parametrize(
    "pixels", [ALL_LEVELS, SOME, ALL_LEVELS[:, :, 0]], ids=["levels", "colours", "grey"]
)
def test_no_profile_and_any_of_srgb_leave_the_pixels_to_the_bit(profile, pixels):
    np.testing.assert_array_equal(
        decode_pixels(encoded(pixels, icc_profile=profile), "p").squeeze(), pixels
    )


@pytest.mark.parametrize(
    "profile, reason",
    [
        (b"no profile at all", "cannot open profile"),
        (rgb_profile(SRGB, (1.8,))[:150], "cannot"),
        (GREY_PROFILE, "it is for GRAY colours"),
        (icc(b"RGB ", {}), "cannot build"),
    ],
)
def test_a_profile_that_cannot_be_used_is_said_once_and_the_colours_are_as_stored(
    profile, reason, request
):
    content, name = encoded(SOME, icc_profile=profile), request.node.name
    with pytest.warns(
        UserWarning, match=f"colour profile cannot be used .*{reason}.*taken as sRGB"
    ) as said:
        for _ in range(3):
            np.testing.assert_array_equal(decode_pixels(content, name), SOME)
    assert len(said) == 1 and "\n" not in str(said[0].message)


LAB = np.random.default_rng(1).uniform((20, -60, -60), (90, 60, 60), (16, 3))
LAB[0], LAB[15] = (100, 0, 0), (0, 0, 0)  # paper, and all four inks
"""CIELAB of every mix of four inks, each there or not."""


def cmyk_profile() -> bytes:
    """A printer whose mixes of four inks look like LAB, what is between them interpolated: an 8-bit
    table (lut8Type).
    """
    table = np.rint(LAB * (255 / 100, 1, 1) + (0, 128, 128)).astype(np.uint8)
    lines = bytes(range(256))
    lut = (
        b"mft1\0\0\0\0"
        + bytes([4, 3, 2, 0])
        + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + lines * 4
        + table.tobytes()
        + lines * 3
    )
    return icc(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, b"Lab ", b"prtr")


def test_cmyk_is_converted_by_its_profile():
    mixes = np.array([[255 * (n >> bit & 1) for bit in (3, 2, 1, 0)] for n in range(16)], np.uint8)
    image = Image.frombytes("CMYK", (4, 4), mixes.tobytes())
    for kind, options in (("tiff", {}), ("tiff", {"compression": "tiff_lzw"})):
        found = decode_pixels(
            encoded(image, kind, icc_profile=cmyk_profile(), **options), "p"
        ).reshape(16, 3)
        # CIELAB at D50 to XYZ (CIE 15:2004) to sRGB; colours that sRGB has are met.
        fy = (LAB[:, 0] + 16) / 116
        f = np.stack([fy + LAB[:, 1] / 500, fy, fy - LAB[:, 2] / 200], -1)
        light = (
            np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
            * (0.9642, 1.0, 0.8249)
            @ np.linalg.inv(np.array(SRGB))
        )
        inside = ((light >= 0) & (light <= 1.001)).all(1)
        assert inside.sum() >= 5
        assert np.abs(found[inside] - encode_srgb(light[inside])).max() < 4
    with pytest.raises(InputError, match="is CMYK, and its colour profile cannot be used"):
        decode_pixels(encoded(image, "tiff", icc_profile=rgb_profile(SRGB, (1.8,))), "p")


# 16 bits a channel

DEEP = np.random.default_rng(0).integers(0, 65536, (24, 32, 4), dtype=np.uint16)
DEEP[0, :8, :3] = np.array([0, 1, 128, 129, 255, 256, 65407, 65535])[:, None]
DEEP[:, :, 3] = 65535
EIGHT = np.rint(DEEP[:, :, :3] / 257)  # 65535 = 255 * 257


def deep_png(levels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write: the specification's chunks by hand,
    rows filtered by Sub.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, colour_type, 0, 0, 0)
    lines = np.ascontiguousarray(levels.astype(">u2")).view(np.uint8).reshape(*levels.shape[:2], -1)
    lines = np.concatenate([lines[:, :1], lines[:, 1:] - lines[:, :-1]], 1).reshape(len(levels), -1)
    rows = b"".join(b"\x01" + line.tobytes() for line in lines)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def deep_tiff(levels, **options) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile to write a 16-bit RGB TIFF")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, levels, **options)
    return buffer.getvalue()


def test_pillow_alone_cuts_16_bit_colours_without_a_word():
    with Image.open(io.BytesIO(deep_png(DEEP[:, :, :3], 2))) as image:
        assert image.mode == "RGB" and (np.array(image) != EIGHT).any()


@pytest.mark.filterwarnings("ignore:.*16 bits per channel are scaled")
@pytest.mark.parametrize(
    "write, channels",
    [
        (lambda: deep_png(DEEP[:, :, :1], 0), 1),
        (lambda: deep_png(DEEP[:, :, :3], 2), 3),
        (lambda: deep_png(DEEP, 6), 3),
        *[
            (
                lambda order=order, packed=packed: deep_tiff(
                    DEEP[:, :, :3], photometric="rgb", byteorder=order, compression=packed
                ),
                3,
            )
            for order in "<>"
            for packed in (None, "zlib")
        ],
        (lambda: deep_tiff(DEEP[:, :, 0], photometric="minisblack", byteorder=">"), 1),
        (lambda: deep_tiff(DEEP[:, :, 0], photometric="minisblack", compression="zlib"), 1),
        (lambda: deep_tiff(DEEP, photometric="rgb", extrasamples=["unassalpha"]), 3),
        (lambda: encoded(DEEP[:, :, 0]), 1),
    ],
)
def test_16_bits_are_scaled_to_8_and_rounded(write, channels):
    np.testing.assert_array_equal(decode_pixels(write(), "p"), EIGHT[:, :, :channels])


def test_scaling_is_said_once_of_each_image_and_not_of_thousands(monkeypatch):
    monkeypatch.setattr("adir.images._said", {})
    content = encoded(DEEP[:, :, 0])
    with pytest.warns(UserWarning) as said:
        for number in range(50):
            decode_pixels(content, f"p{number // 2}.png")
    words = [str(warning.message) for warning in said]
    assert words[:2] == [f"p{n}.png: 16 bits per channel are scaled to 8" for n in range(2)]
    assert len(words) == MOST_REMARKS and words[-1].endswith(
        "; further images with this warning are not listed"
    )


def test_16_bits_that_cannot_be_scaled_safely_are_refused():
    clear = DEEP.copy()
    clear[5, 5, 3] = 65406  # 254.498 of 255
    with pytest.raises(InputError, match="alpha channel; flatten"):
        decode_pixels(deep_png(clear, 6), "p")
    for content in (
        deep_png(DEEP[:, :, 2:], 4),
        deep_tiff(DEEP[:, :, 0], photometric="miniswhite"),
        deep_tiff(np.moveaxis(DEEP[:, :, :3], 2, 0), photometric="rgb", planarconfig="separate"),
        deep_tiff(
            np.moveaxis(DEEP[:, :, :3], 2, 0),
            photometric="rgb",
            planarconfig="separate",
            compression="zlib",
        ),
        deep_tiff(DEEP[:, :, 0].astype(np.int16), photometric="minisblack"),
        deep_tiff(DEEP[:, :, 0].astype(np.uint32), photometric="minisblack"),
    ):
        with pytest.raises(InputError, match="more than 8 bits"):
            decode_pixels(content, "p")
