"""The DIV2K test set, on made images under its file names."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adir.data.div2k import Div2kSquares
from adir.errors import InputError
from adir.images import to_uint8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of DIV2K's shapes at a tenth, in its folder; number 0802 is too small for 100 pixels."""
    rng = np.random.default_rng(0)
    (tmp_path / "DIV2K_valid_HR").mkdir()
    for number, (height, width) in {
        801: (136, 204),
        802: (80, 204),
        803: (204, 120),
        900: (104, 104),
    }.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "DIV2K_valid_HR" / f"{number:04}.png")
    Image.fromarray(pixels).save(tmp_path / "DIV2K_valid_HR" / "readme.png")
    return tmp_path


def zipped(folder: Path) -> Path:
    path = folder / "valid.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def test_the_first_images_that_are_large_enough_are_taken_by_number(folder: Path) -> None:
    assert Div2kSquares(folder, size=100, count=2).ids == ["0801-100", "0803-100"]
    assert Div2kSquares(folder, size=80, count=2).ids == ["0801-80", "0802-80"]


def test_a_square_is_the_centre_reduced_by_an_antialiased_bicubic_filter(folder: Path) -> None:
    x = Div2kSquares(folder, size=68, count=1).image("0801-68")
    whole = np.asarray(Image.open(folder / "DIV2K_valid_HR" / "0801.png"))
    centre = torch.from_numpy(whole[:, 34:170].copy()).permute(2, 0, 1)[None].float()
    # torch's antialiased bicubic filter has Pillow's a = -0.5
    expected = torch.nn.functional.interpolate(
        centre, (68, 68), mode="bicubic", antialias=True
    ).clamp(0, 255)
    error = (torch.from_numpy(to_uint8(x)).permute(2, 0, 1) - expected[0]).abs()
    # Pillow rounds between its two passes; on this noise a wrong filter or crop differs by tens.
    assert error.mean() < 0.4 and error.max() < 2.5


def test_the_zip_file_gives_what_its_folder_gives(folder: Path) -> None:
    unpacked, packed = (Div2kSquares(place, size=64, count=3) for place in (folder, zipped(folder)))
    assert packed.manifest == unpacked.manifest and packed.sha256 == unpacked.sha256
    assert all(torch.equal(packed.image(name), unpacked.image(name)) for name in packed.ids)


def test_two_sizes_share_no_id(folder: Path) -> None:
    assert not set(Div2kSquares(folder, 64, 3).ids) & set(Div2kSquares(folder, 80, 3).ids)


def test_what_is_missing_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError,
        match=r"has 3 usable DIV2K images .* data.count is 4 .too small for 100 pixels: 0802.; lower",
    ):
        Div2kSquares(folder, size=100, count=4)
    with pytest.raises(InputError, match="no file or folder"):
        Div2kSquares(folder / "nothing.zip")
    (tmp_path / "broken.zip").write_bytes(zipped(folder).read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged zip file"):
        Div2kSquares(tmp_path / "broken.zip")
    content = bytearray(zipped(folder).read_bytes())
    content[5000] ^= 1  # in 0801.png
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"0801.png in .*flipped.zip is damaged \(Bad CRC-32"):
        Div2kSquares(tmp_path / "flipped.zip", size=64, count=1)
    (folder / "DIV2K_valid_HR" / "0801.png").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"0801.png in .* is damaged"):
        Div2kSquares(folder, size=64, count=1)
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="adir weights get div2k"):
        Div2kSquares()


def test_each_image_says_its_licence(folder: Path) -> None:
    assert "research" in Div2kSquares(folder, 64, 1).attribution("0801-64")["licence"]
