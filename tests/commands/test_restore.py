"""`adir restore` of pictures as phones, cameras and editors save them, and of folders that hold its own."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adir.files import RESULTS_MARKER
from adir.images import read_pixels

PIXELS = np.array(Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)).resize((32, 24)))


def restored(adir, out: Path, *pictures: Path) -> list[np.ndarray]:
    """What `adir restore` makes of them, by the sampler that needs no network."""
    done = adir("restore", *pictures, "task=sr4", "sampler=bicubic", "--out", out)
    assert done.status == 0, done.err
    return [read_pixels(out / f"{picture.stem}-sr4-none.png") for picture in pictures]


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("orientation, turns", [(6, -1), (8, 1), (3, 2)])
def test_a_phone_s_photograph_comes_out_upright(adir, tmp_path: Path, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(PIXELS)
    phone = saved(tmp_path / "phone.jpg", picture, exif=exif, quality=95)
    stream = io.BytesIO()
    picture.save(stream, "jpeg", quality=95)
    turned = saved(tmp_path / "turned.png", Image.fromarray(np.rot90(np.array(Image.open(stream)), turns).copy()))
    one, other = restored(adir, tmp_path / "out", phone, turned)
    np.testing.assert_array_equal(one, other)
    assert one.shape[:2] == ((96, 128) if orientation == 3 else (128, 96))


@pytest.mark.parametrize("name, mode", [("x.png", "RGBA"), ("x.tif", "RGBA"), ("x.png", "P")])
def test_opaque_pictures_are_restored_as_those_without_alpha(adir, tmp_path: Path, name: str, mode: str) -> None:
    picture = Image.fromarray(PIXELS).quantize(8)
    plain = saved(tmp_path / "plain.png", picture.convert("RGB"))
    options = {"transparency": 100} if mode == "P" else {}  # a colour that is in no pixel
    opaque = saved(tmp_path / name, picture if mode == "P" else picture.convert("RGB").convert(mode), **options)
    one, other = restored(adir, tmp_path / "out", plain, opaque)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name, pixels, options, task, words",
    [
        ("broken.png", PIXELS, {"icc_profile": b"no profile"}, "sr4", "its colour profile cannot be used"),
        ("deep.png", PIXELS[:, :, 0].astype(np.uint16) * 257, {}, "colorization", "16 bits a channel are scaled to 8"),
    ],
)
def test_what_was_done_to_a_picture_unasked_is_said(adir, tmp_path: Path, name, pixels, options, task, words) -> None:
    path = saved(tmp_path / name, Image.fromarray(pixels), **options)
    with pytest.warns(UserWarning, match=f"{path}: {words}"):
        assert adir("restore", path, f"task={task}", "sampler=adjoint", "--out", tmp_path / "out").status == 0


def test_restored_pictures_are_not_read_again(adir, tmp_path: Path) -> None:
    saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    saved(tmp_path / "._a.png", Image.fromarray(PIXELS))
    out = tmp_path / "out"
    words = ["task=sr4", "sampler=bicubic", "--out"]
    assert adir("restore", tmp_path, *words, out).status == 0
    assert sorted(path.name for path in out.iterdir()) == ["a-sr4-none.json", "a-sr4-none.png", RESULTS_MARKER]
    for again in (
        adir("restore", out, *words, tmp_path / "again"),
        adir("run", "data=folder", f"data.path={out}", "sampler=bicubic", f"results={tmp_path / 'runs'}"),
        adir("index", "build", "corpus=folder", f"corpus.path={out}", f"out={tmp_path / 'index'}"),
    ):
        assert again.status == 2 and f"{out}: holds results of adir" in again.err and again.err.count("\n") == 1
    refused = adir("restore", tmp_path, *words, tmp_path)
    assert refused.status == 2 and "is the folder of the pictures" in refused.err
    assert not (tmp_path / RESULTS_MARKER).exists()
    assert adir("restore", tmp_path / "a.png", *words, out).status == 0  # the folder itself goes on


def test_a_folder_with_a_kind_of_file_that_is_not_taken_is_refused_and_not_shortened(adir, tmp_path: Path) -> None:
    saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    (tmp_path / "b.HEIC").write_bytes(b"")
    done = adir("restore", tmp_path, "task=sr4", "sampler=bicubic", "--out", tmp_path / "out")
    assert done.status == 2 and "b.HEIC: a kind of file that is not taken" in done.err
