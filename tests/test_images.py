"""Pictures in and out: exact 8-bit round trips, ranges, one generator per purpose, and one-line errors for bad files."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from adir.errors import InputError
from adir.images import (
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
    with Image.open(tmp_path / "x.png") as picture:  # as another reader sees it
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.array(picture), ALL_LEVELS)


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
    with pytest.raises(ValueError, match=r"LPIPS takes pictures in \[0, 1\]"):
        require_unit(x, "LPIPS")


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4)])
def test_the_door_of_metrics_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="takes \\(B, 3, H, W\\)"):
        require_unit(torch.zeros(shape), "LPIPS")


def test_generators_depend_on_seed_picture_and_purpose_alone():
    def draw(*key) -> list[float]:
        return torch.rand(4, generator=generator(*key)).tolist()

    torch.manual_seed(1)
    first = draw(0, "cat", "sampler")
    torch.manual_seed(2)
    assert draw(0, "cat", "sampler") == first
    others = [draw(1, "cat", "sampler"), draw(0, "dog", "sampler"), draw(0, "cat", "y"), draw(0, "catsampler", "")]
    assert all(other != first for other in others) and len({tuple(o) for o in others}) == 4
    # The parts are kept apart: (1, "1x") is not (11, "x").
    assert draw(1, "1x", "y") != draw(11, "x", "y")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_picture_with_nan_is_never_written(tmp_path, bad):
    x = torch.zeros(3, 4, 4)
    x[0, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        write_png(tmp_path / "x.png", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_files_are_one_channel_of_pixels_and_three_of_a_picture(tmp_path, mode):
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
        ("x.jpg", "CMYK", {}, "CMYK; convert"),
    ],
)
def test_files_that_would_lose_something_are_refused_in_one_line(tmp_path, name, mode, options, words):
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
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"This is no picture."):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_image(path)


def test_a_picture_of_absurd_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: .*pixels"):
        read_image(tmp_path / "x.png")


def png_16_bit_rgb() -> bytes:
    """A 4x4 PNG of 16 bits a channel, which Pillow cannot write: the PNG specification's chunks by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = b"".join(b"\x00" + struct.pack(">12H", *range(1000, 1012)) for _ in range(4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_rgb_is_refused_although_pillow_reads_it_as_8_bit(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png_16_bit_rgb())
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
    with pytest.raises(InputError, match=r"x\.png: has more than 8 bits a channel"):
        read_image(path)
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile to write a 16-bit RGB TIFF")
    tifffile.imwrite(tmp_path / "x.tif", np.full((8, 8, 3), 1000, np.uint16), photometric="rgb")
    with pytest.raises(InputError, match=r"x\.tif: "):
        read_image(tmp_path / "x.tif")
