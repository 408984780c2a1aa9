"""Whatever way an image comes in, it is read alike: its pixels, or the reason why not."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from adir.commands.restore import image_files
from adir.data.corpus import SourceCorpus, folder_corpus, parquet_corpus
from adir.data.edits import EditSet
from adir.data.sources.tars import TarSource
from adir.errors import InputError
from adir.images import decode, read_image, to_uint8
from adir.tasks.editing import EditTask, read_mask
from adir.tasks.operators import BoxBlur
from adir.tasks.restoration import RestorationTask

pytestmark = pytest.mark.filterwarnings("ignore:.*16 bits per channel are scaled")

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
UPRIGHT = np.rot90(PIXELS, -1)
TURN = Image.Exif()
TURN[0x0112] = 6


def encoded(image, kind="png", **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()).save(
        buffer, format=kind, **options
    )
    return buffer.getvalue()


FRAMES = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
READ = {
    "turned.png": (encoded(PIXELS, exif=TURN), UPRIGHT),
    "TURNED.TIF": (encoded(PIXELS, "tiff", exif=TURN), UPRIGHT),
    "opaque.Webp": (encoded(FRAMES[0].convert("RGBA"), "webp", lossless=True, exif=TURN), UPRIGHT),
    "deep.png": (
        encoded(PIXELS[:, :, 0].astype(np.uint16) * 257),
        np.repeat(PIXELS[:, :, :1], 3, 2),
    ),
    "still.GIF": (
        encoded(FRAMES[0].quantize(16), "gif"),
        np.array(FRAMES[0].quantize(16).convert("RGB")),
    ),
}
MPO = encoded(FRAMES[0], "MPO", save_all=True, append_images=[FRAMES[1].copy()], exif=TURN)
READ["phone.jpg"] = (MPO, np.rot90(np.array(Image.open(io.BytesIO(MPO))), -1))
REFUSED = {
    "moving.gif": (
        encoded(FRAMES[0], "gif", save_all=True, append_images=[FRAMES[1].copy()]),
        "is animated or has several pages",
    ),
    "moving.png": (
        encoded(FRAMES[0], save_all=True, append_images=[FRAMES[1].copy()]),
        "is animated or has several pages",
    ),
    "pages.tif": (
        encoded(FRAMES[0], "tiff", save_all=True, append_images=[FRAMES[1].copy()]),
        "is animated or has several pages",
    ),
    "print.jpg": (encoded(FRAMES[0].convert("CMYK"), "jpeg"), "is CMYK"),
    "clear.png": (encoded(Image.new("RGBA", (32, 24), (1, 2, 3, 200))), "alpha channel"),
    "long.png": (encoded(np.zeros((1, 101, 3), np.uint8)), "more than 100 times as long as wide"),
    "large.png": (encoded(Image.new("1", (8_100, 8_000))), "more than 64 million pixels"),
    "photo.HEIC": (encoded(PIXELS), "this file format is not supported"),
}


def from_corpus(corpus) -> np.ndarray:
    return to_uint8(corpus.image(corpus.ids[0]))


def by_folder(path: Path) -> np.ndarray:
    return from_corpus(folder_corpus(path.parent))


def by_parquet(path: Path) -> np.ndarray:
    row = {"image": [path.read_bytes()], "split": ["corpus"], "source_file": [path.name]}
    parquet.write_table(pa.table(row), path.parent / "x.parquet")
    return from_corpus(parquet_corpus(path.parent / "x.parquet"))


def by_tar(path: Path) -> np.ndarray:
    with tarfile.open(path.parent / "x.tar", "w") as tar:
        tar.add(path, path.name)
    return from_corpus(SourceCorpus(TarSource(path.parent)))


def by_restore(path: Path) -> np.ndarray:
    task = RestorationTask("x", 1, BoxBlur(3), 0, 1)
    (found,) = image_files([str(path.parent)])
    return to_uint8(task.read_y(found))


def by_search(path: Path) -> np.ndarray:
    return to_uint8(read_image(path))


def by_edit(path: Path) -> np.ndarray:
    """Outside the mask it is the image; what is inside is taken from a second edit."""
    shape = decode(READ[path.name][0], "p").shape[:2] if path.name in READ else (24, 32)
    whole = np.zeros((*shape, 3), np.uint8)
    for part in (np.s_[:8], np.s_[8:]):
        mask = np.zeros(shape, bool)
        mask[part] = True
        y = to_uint8(EditTask().with_mask(torch.from_numpy(mask), "a cat").read_y(path))
        whole[~mask] = y[~mask]
    return whole


def by_edit_set(path: Path) -> np.ndarray:
    shape = decode(READ[path.name][0], "p").shape[:2] if path.name in READ else (24, 32)
    mask = np.zeros(shape, np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(path.parent / f"{path.stem}_mask.png")
    (path.parent / "prompts.csv").write_text(f"image,prompt\n{path.stem},a cat\n")
    return from_corpus(EditSet(path.parent))


DOORS = [by_folder, by_parquet, by_tar, by_restore, by_search, by_edit, by_edit_set]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adir.images._said", {})


def at_each_door(names, unless) -> list:
    """Every name at every door, but those pairs."""
    return [(door, name) for door in DOORS for name in names if (door, name) not in unless]


GREY_Y = {
    (by_restore, "deep.png"),
    (by_edit, "deep.png"),
}  # tasks of colours refuse a grey y, of whatever depth
NO_NAME = {
    (by_parquet, "photo.HEIC"),
    (by_edit_set, "photo.HEIC"),
}  # a cell has none; a set looks for PNG and so on


@pytest.mark.parametrize("door, name", at_each_door(READ, GREY_Y))
def test_every_door_reads_the_same_pixels(door, name: str, tmp_path: Path) -> None:
    content, expected = READ[name]
    (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(door(tmp_path / name), expected)


@pytest.mark.parametrize("door, name", at_each_door(REFUSED, NO_NAME))
def test_every_door_refuses_the_same_files_for_the_same_reason(
    door, name: str, tmp_path: Path
) -> None:
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        door(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, options",
    [("png", {"exif": TURN}), ("tiff", {"exif": TURN}), ("png", {"rgba": True, "exif": TURN})],
)
def test_a_mask_lies_as_the_image_does(kind: str, options: dict, tmp_path: Path) -> None:
    stored = np.zeros((24, 32), np.uint8)
    stored[2:9, 3:12] = 255
    image = Image.fromarray(stored)
    if options.pop("rgba", False):  # an editor's, saved with an alpha channel that is opaque
        image = image.convert("RGBA")
    (tmp_path / "mask").write_bytes(encoded(image, kind, **options))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask").numpy(), np.rot90(stored, -1) == 255)
