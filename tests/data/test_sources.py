"""Every kind of corpus, made of files written here: ids, bytes, attributions; and what cannot be
used.
"""

import gzip
import http.server
import importlib
import io
import json
import os
import struct
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from adir import images
from adir.data.corpus import parquet_corpus
from adir.data.sources import open_images, tables, tars
from adir.data.sources.base import SourceDown
from adir.data.sources.folder import FolderSource
from adir.data.sources.open_images import OpenImagesSource, OpenImagesTars
from adir.data.sources.tables import DatasetSource, ParquetSource
from adir.data.sources.tars import TarSource
from adir.errors import InputError
from adir.images import decode


def pixels(seed, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, format=kind, **options
    )
    return buffer.getvalue()


def png(seed):
    return encoded(pixels(seed))


def everything(source):
    """{id: (bytes, attribution)} of all that a source lists."""
    keys = [key for key, _ in source.listing()]
    return {item.id: (item.read(), dict(item.attribution)) for item in source.items(keys)}


# What an image file may be


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_as_its_exif_says(orientation):
    # Exif 2.3: where the first row and the first column of what was stored belong.
    stored = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation](pixels(0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(decode(content, "p"), pixels(0))


def test_grey_and_palette_become_rgb():
    grey = Image.fromarray(pixels(1)).convert("L")
    assert np.array_equal(decode(encoded(grey), "p"), np.repeat(np.array(grey)[:, :, None], 3, 2))
    palette = Image.fromarray(pixels(1)).quantize(16)
    assert np.array_equal(decode(encoded(palette), "p"), np.array(palette.convert("RGB")))


FRAMES = [Image.fromarray(pixels(seed)) for seed in range(3)]
BAD = {
    "truncated": (png(1)[:90], "damaged"),
    "text": (b"no image", "not an image"),
    "empty": (b"", "not an image"),
    "animated": (
        encoded(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:], lossless=True),
        "animated",
    ),
    "pages": (encoded(FRAMES[0], "tiff", save_all=True, append_images=FRAMES[1:]), "pages"),
    "cmyk": (encoded(Image.fromarray(pixels(1)).convert("CMYK"), "jpeg"), "CMYK"),
    "float": (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "tiff"), "more than 8 bits"),
    "grey alpha": (encoded(Image.new("LA", (8, 6), (9, 254))), "alpha"),
    "alpha": (encoded(Image.new("RGBA", (8, 6), (1, 2, 3, 254))), "alpha"),
    "clear palette": (encoded(Image.fromarray(pixels(1)).quantize(16), transparency=0), "alpha"),
    "large": (encoded(Image.new("1", (9_000, 9_000))), "million pixels"),
    "long": (encoded(Image.new("RGB", (1001, 10))), "more than 100 times as long as wide"),
    "high": (encoded(Image.new("L", (1, 60_000))), "more than 100 times as long as wide"),
    "bomb": (encoded(Image.new("1", (30_000, 30_000))), "decompression bomb"),
}


@pytest.mark.parametrize("content, reason", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_says_why(content, reason, recwarn):
    with pytest.raises(InputError, match=reason):
        decode(content, "p")
    assert not recwarn.list


def test_an_image_a_hundred_times_as_long_as_wide_is_still_one():
    assert decode(encoded(Image.new("RGB", (1000, 10))), "p").shape == (10, 1000, 3)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "bmp"])
def test_whatever_is_broken_in_a_file_is_an_error_that_names_it(kind):
    draw, whole = np.random.default_rng(0), encoded(pixels(1, 24, 32), kind)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.integers(1, 6)):  # mostly in the headers
            content[min(int(draw.exponential(60)), len(content) - 1)] = draw.integers(256)
        try:
            assert decode(bytes(content), "p").dtype == np.uint8
        except InputError as error:  # most of them can still be read
            assert str(error).startswith("p: ")


@pytest.mark.parametrize("error", [MemoryError(), IndexError("tile"), struct.error("unpack")])
def test_what_a_decoder_raises_is_an_error_that_names_the_file(monkeypatch, error):
    def fail(image):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(
        InputError,
        match=r"^p: (not enough memory|damaged image \((IndexError: tile|error: unpack))",
    ):
        decode(png(1), "p")


def test_pillow_warns_of_nothing_and_threads_leave_the_warnings_of_the_process_alone():
    huge = encoded(
        Image.new("1", (9_600, 9_400))
    )  # 90 million pixels: Pillow warns from 89 million on
    good = encoded(pixels(0, 300, 400))  # long enough that threads take turns within it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        importlib.reload(images)  # pytest has taken its filters away
        before = list(warnings.filters)
        with pytest.raises(InputError, match="million pixels"):
            decode(huge, "p")
        with ThreadPoolExecutor(8) as pool:
            assert all(p.shape == (300, 400, 3) for p in pool.map(decode, [good] * 80, ["p"] * 80))
        assert warnings.filters == before and not caught


# Folder


def test_a_folder_is_listed_with_what_lies_below_it(tmp_path):
    for name in ("b/c/x.PNG", "a.png", ".hidden/y.png", "b/.z.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    source = FolderSource(tmp_path)
    assert everything(source) == {name: (png(len(name)), {}) for name in ("a.png", "b/c/x.PNG")}
    assert source.read("a.png") == png(5)
    for bad in ("../a.png", "/etc/hostname", "gone.png"):
        with pytest.raises(InputError):
            source.read(bad)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image files"):
        list(FolderSource(tmp_path / "empty").listing())


def test_what_is_no_file_or_gone_is_not_read(tmp_path):
    folder = tmp_path / "2019"
    (folder / "below").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(1))
    os.mkfifo(folder / "pipe.png")  # to read it would take for ever
    (folder / "link.png").symlink_to("nothing.png")
    (folder / "gone.png").write_bytes(png(2))
    source = FolderSource(folder)
    items = {item.id: item for item in source.items([key for key, _ in source.listing()])}
    (folder / "gone.png").unlink()
    assert items.keys() == {"a.png", "gone.png", "link.png", "pipe.png"} and items[
        "a.png"
    ].read() == png(1)
    for name, reason in {
        "pipe.png": "not a file",
        "link.png": "a broken link",
        "gone.png": "missing",
    }.items():
        with pytest.raises(InputError, match=reason) as caught:
            items[name].read()
        assert not isinstance(caught.value, SourceDown)
    folder.rename(
        tmp_path / "away"
    )  # a drive that is not mounted any more: not its images are at fault
    for _ in range(2):
        with pytest.raises(SourceDown, match="when the folder is mounted again"):
            items["a.png"].read()
        folder.mkdir(exist_ok=True)


def test_folders_whose_names_are_numbers_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2019").mkdir()
    (tmp_path / "2019/a.png").write_bytes(png(1))
    write_tar(tmp_path / "2019/0.tar", [("0.png", png(0))])
    parquet.write_table(table([1]), tmp_path / "2019/x.parquet")
    for source in (FolderSource(2019), TarSource(2019), ParquetSource(2019)):
        assert len(everything(source)) == 1 and source.name == "2019"


def test_a_folder_below_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):  # a test that runs as root may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"locked: cannot be listed \(Permission denied\)"):
        list(FolderSource(tmp_path).listing())


# Tar shards


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tar_shards_give_their_samples(tmp_path):
    note = json.dumps({"license": "CC0", "creator": "A", "url": "http://x", "width": 8}).encode()
    write_tar(
        tmp_path / "0.tar",
        [("000.png", png(0)), ("000.json", note), ("000.txt", b"t"), ("001.PNG", png(1))],
    )
    write_tar(
        tmp_path / "deep/1.tar",
        [
            ("d/000.image.png", png(2)),
            ("d/001.json", b"{}"),
            ("d/002.json", b"{"),
            ("d/002.png", png(3)),
        ],
    )
    source = TarSource(tmp_path)
    assert list(source.listing()) == [("0.tar", None), ("deep/1.tar", None)]
    expected = {
        "0.tar/000": (png(0), {"licence": "CC0", "author": "A", "source": "http://x"}),
        "0.tar/001": (png(1), {}),
        "deep/1.tar/d/000": (png(2), {}),
        "deep/1.tar/d/002": (png(3), {}),
    }
    assert everything(source) == expected
    assert {name: source.read(name) for name in expected} == {
        name: content for name, (content, _) in expected.items()
    }
    for bad in ("0.tar/002", "2.tar/000", "../0.tar/000", "000"):
        with pytest.raises(InputError):
            source.read(bad)


def test_attributions_that_are_not_utf_8_and_repeated_notes_do_no_harm(tmp_path):
    note = rb'{"license": "CC0 \udc80", "author": ["A", 3], "source": null}'
    write_tar(
        tmp_path / "0.tar",
        [("0.png", png(0)), ("0.json", note), ("1.png", png(1)), ("1.json", b"[1]")],
    )
    found = everything(TarSource(tmp_path))
    assert (
        found["0.tar/0"][1] == {"licence": "CC0 \\udc80", "author": "['A', 3]"}
        and found["0.tar/1"][1] == {}
    )


@pytest.mark.parametrize("member", ["../../evil.png", "/etc/evil.png", "a/../../evil.png"])
def test_a_member_that_climbs_out_of_the_tar_is_named(tmp_path, member):
    write_tar(tmp_path / "0.tar", [("000.png", png(0)), (member, png(1))])
    with pytest.raises(InputError) as caught:
        everything(TarSource(tmp_path))
    assert str(caught.value) == (
        f"0.tar: the path of member {member!r} leads out of the tar, so the tar is not "
        "trustworthy; remove the tar"
    )


@pytest.mark.parametrize(
    "members, first, rejected",
    [
        (("0.png", "0.png"), 0, ["0.tar: 0.png occurs 2 times; the first is used"]),
        (("0.png", "0.PNG"), 0, ["0.tar: 0.png occurs 2 times; the first is used"]),
        (("0.png", "1.png", "0.png"), 0, ["0.tar: 0.png occurs 2 times; the first is used"]),
        (("0.jpeg", "1.png", "0.png"), 0, []),
        (("0.json", "1.png", "0.png"), 2, []),
        (("0.gif", "0.png"), 0, []),
    ],
)
def test_of_repeated_members_the_first_is_what_is_listed_and_found_again(
    tmp_path, members, first, rejected
):
    write_tar(tmp_path / "0.tar", [(name, png(number)) for number, name in enumerate(members)])
    source = TarSource(tmp_path)
    items = {item.id: item for item in source.items(["0.tar"])}
    assert len(items) == len({name[0] for name in members}) + len(rejected)
    assert items["0.tar/0"].read() == source.read("0.tar/0") == png(first)
    for number, reason in enumerate(rejected):
        with pytest.raises(InputError) as caught:
            items[f"0.tar/(unreadable {number})"].read()
        assert str(caught.value) == reason


def test_a_sample_whose_image_is_of_a_kind_that_is_not_taken_is_a_reject(tmp_path):
    still = encoded(pixels(1), "gif")
    write_tar(tmp_path / "0.tar", [("0.heic", png(0)), ("1.gif", still), ("2.txt", b"no image")])
    source = TarSource(tmp_path)
    items = {item.id: item for item in source.items(["0.tar"])}
    assert items.keys() == {"0.tar/0", "0.tar/1"} and items[
        "0.tar/1"
    ].read() == still == source.read("0.tar/1")
    with pytest.raises(InputError, match=r"^0\.tar/0\.heic: this file format is not supported"):
        items["0.tar/0"].read()


@pytest.mark.parametrize(
    "members, expected",
    [
        # Frames of a sequence, and other files that are no samples: an image each.
        (["s.0001.png", "s.0002.png", "s.0003.png"], {"s.0001": 0, "s.0002": 1, "s.0003": 2}),
        (
            ["d/a.1.png", "d/b.1.png", "d/a.2.png", "d/b.2.png"],
            {"d/a.1": 0, "d/b.1": 1, "d/a.2": 2, "d/b.2": 3},
        ),
        (["s.frame1.jpg", "s.frame2.PNG", "t.frame1.png"], {"s.frame1": 0, "s.frame2": 1, "t": 2}),
        (
            ["St. Peter.png", "St. Paul.png", "Dr. Who.png"],
            {"St. Peter": 0, "St. Paul": 1, "Dr": 2},
        ),
        (["at 10.22.31.png", "at 10.22.32.png"], {"at 10.22.31": 0, "at 10.22.32": 1}),
        (["v.png", "v.2.png", "v.3.png", "v.2.json"], {"v": 0, "v.2": 1, "v.3": 2}),
        (["v.2.png", "w.png", "v.png"], {"v.2": 0, "w": 1, "v": 2}),
        (["0.input.png", "0.mask.png", "1.mask.png"], {"0.input": 0, "0.mask": 1, "1": 2}),
        # Samples, with what goes with their image.
        (["0.jpg", "0.json", "0.txt", "0.cls"], {"0": 0}),
        (["0.jpg", "0.seg.png", "0.depth.png", "1.seg.png", "1.jpg"], {"0": 0, "1": 4}),
        (["0.image.png", "0.json", "1.image.png"], {"0": 0, "1": 2}),
        (["s.0001.png", "s.0001.json", "t.0001.png"], {"s": 0, "t": 2}),
        (["0.image.png", "0.depth.exr"], {"0": 0}),
        (["0.gif", "0.png"], {"0": 0}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_tar_gives_each_of_its_images_and_finds_it_again(tmp_path, members, expected):
    write_tar(tmp_path / "0.TAR", [(name, png(number)) for number, name in enumerate(members)])
    source = TarSource(tmp_path)
    items = {
        item.id: item.read() for item in source.items(["0.TAR"]) if "unreadable" not in item.id
    }
    assert items == {f"0.TAR/{name}": png(number) for name, number in expected.items()}
    assert {name: source.read(name) for name in items} == items


def test_each_frame_has_the_attribution_beside_it(tmp_path):
    notes = [json.dumps({"author": name}).encode() for name in "abc"]
    members = [
        ("s.1.png", png(1)),
        ("s.1.json", notes[0]),
        ("s.2.png", png(2)),
        ("s.json", notes[1]),
        ("t.png", png(3)),
    ]
    write_tar(tmp_path / "0.tar", members)
    found = {name: origin for name, (_, origin) in everything(TarSource(tmp_path)).items()}
    assert found == {"0.tar/s.1": {"author": "a"}, "0.tar/s.2": {"author": "b"}, "0.tar/t": {}}


def test_a_tar_that_is_cut_short_gives_what_it_holds_and_rejects(tmp_path):
    path = write_tar(tmp_path / "0.tar", [(f"{number}.png", png(number)) for number in range(4)])
    path.write_bytes(path.read_bytes()[: 2 * 1024 + 700])
    source = TarSource(path)
    items = list(source.items(["0.tar"]))
    assert [item.id for item in items[:2]] == ["0.tar/0", "0.tar/1"]
    for item in items[2:]:  # the image that is cut, and the tar
        with pytest.raises(InputError, match="unexpected end"):
            item.read()
    assert source.read("0.tar/1") == png(1)
    assert len(items) == 4


def test_a_compressed_tar_is_a_reject_that_says_what_it_is(tmp_path):
    write_tar(tmp_path / "plain.tar", [("0.png", png(0))])
    (tmp_path / "packed.tar").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    items = {item.id: item for item in TarSource(tmp_path).items(["packed.tar", "plain.tar"])}
    assert items.keys() == {"packed.tar/(unreadable 0)", "plain.tar/0"}
    with pytest.raises(InputError, match=r"packed\.tar: "):
        items["packed.tar/(unreadable 0)"].read()


# Tables


def table(seeds, **columns):
    return pa.table({"image": [{"bytes": png(seed), "path": None} for seed in seeds], **columns})


@pytest.mark.parametrize(
    "whole_group", [tables.WHOLE_GROUP, 0], ids=["groups read whole", "groups too large for that"]
)
def test_parquet_rows_are_found_again_across_row_groups_and_files(
    tmp_path, monkeypatch, whole_group
):
    monkeypatch.setattr(tables, "WHOLE_GROUP", whole_group)
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    columns = {"split": ["a", "b"] * 5, "license": ["CC0", None] * 5}
    parquet.write_table(table(range(10), **columns), tmp_path / "x.parquet", row_group_size=3)
    source = ParquetSource(tmp_path / "x.parquet", column="split", value="a")
    assert [count for _, count in source.listing()] == [3, 3, 3, 1]
    expected = {f"row-{row:05d}": (png(row), {"licence": "CC0"}) for row in range(0, 10, 2)}
    assert everything(source) == expected
    assert all(source.read(name) == content for name, (content, _) in expected.items())
    plain = pa.table({"image": [png(20), b"", None]})
    parquet.write_table(plain, tmp_path / "y.parquet")
    both = ParquetSource(tmp_path)
    assert both.read("y.parquet/row-00000") == png(20) and both.read("x.parquet/row-00009") == png(
        9
    )
    with pytest.raises(InputError, match="holds no image bytes"):
        both.read("y.parquet/row-00002")
    with pytest.raises(InputError, match="no column 'split'"):
        ParquetSource(tmp_path, column="split", value="a")


def test_a_file_that_is_written_anew_is_read_anew_by_another_source(tmp_path):
    for count in (1, 2):
        parquet.write_table(table(range(count)), tmp_path / "x.parquet")
        assert len(everything(ParquetSource(tmp_path / "x.parquet"))) == count


def test_ids_stay_when_a_second_file_comes_into_the_folder(tmp_path):
    parquet.write_table(table(range(2)), tmp_path / "x.parquet")
    before = everything(ParquetSource(tmp_path))
    parquet.write_table(table(range(2, 5)), tmp_path / "y.parquet")
    source = ParquetSource(tmp_path)
    after = everything(source)
    assert len(after) == 5 and before.items() <= after.items()
    assert all(source.read(name) == content for name, (content, _) in before.items())


@pytest.mark.parametrize("value", [3, "3", np.int64(3)])
def test_rows_are_chosen_by_text_and_by_number(tmp_path, value):
    texts = pa.array([str(label) for label in (3, 1, 3, 33)])
    labels = {"number": [3, 1, 3, 33], "text": texts, "kind": texts.dictionary_encode()}
    parquet.write_table(
        table(range(4), **labels, flag=[True, False, True, None]), tmp_path / "x.parquet"
    )
    for column in labels:
        source = ParquetSource(tmp_path / "x.parquet", column=column, value=value)
        assert sorted(everything(source)) == ["row-00000", "row-00002"]
        assert source.arguments["value"] == "3" and source.name == "x-3"
    assert len(everything(ParquetSource(tmp_path / "x.parquet", column="flag", value=True))) == 2
    for column in ("number", "text", "kind"):
        assert parquet_corpus(tmp_path / "x.parquet", column, value).ids == [
            "row-00000",
            "row-00002",
        ]


def test_a_value_that_no_row_has_and_half_a_choice_are_refused(tmp_path):
    parquet.write_table(table(range(2), label=[3, 1]), tmp_path / "x.parquet")
    path = tmp_path / "x.parquet"
    for words, message in {
        ("label", None): "column=label and value=None; set both or neither",
        (None, 3): "column=None and value=3; set both or neither",
        (3, 3): "no column 3; it has image, label",
    }.items():
        with pytest.raises(InputError, match=message):
            ParquetSource(path, column=words[0], value=words[1])
    with pytest.raises(InputError, match="no row has label = 'dog'; set value to one of 1, 3"):
        everything(ParquetSource(path, column="label", value="dog"))
    with pytest.raises(InputError, match="no column None"):
        ParquetSource(path, image=None)
    assert sorted(everything(ParquetSource(path, id_column=None))) == ["row-00000", "row-00001"]


def test_numbers_as_names_and_categories_are_text(tmp_path):
    columns = {"source_file": [30, 4], "category": [7, 8], "split": ["corpus", "corpus"]}
    parquet.write_table(table(range(2), **columns), tmp_path / "x.parquet")
    corpus = parquet_corpus(tmp_path / "x.parquet")
    assert corpus.ids == ["30", "4"] == sorted(everything(ParquetSource(tmp_path / "x.parquet")))
    assert corpus.categories == {"30": "7", "4": "8"}


def test_a_damaged_row_group_gives_one_reject_and_the_others_their_images(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(
        table(range(6)), path, row_group_size=2, compression="none", use_dictionary=False
    )
    start = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    source = ParquetSource(path)
    items = list(source.items([key for key, _ in source.listing()]))
    good = [item for item in items if not item.id.endswith("(unreadable)")]
    assert [item.id for item in good] == [f"row-{row:05d}" for row in (0, 1, 4, 5)]
    with pytest.raises(InputError, match=r"x\.parquet#1: damaged row group"):
        next(item for item in items if item not in good).read()


def test_parquet_ids_are_those_of_the_corpus_in_memory(tmp_path):
    columns = {"split": ["corpus", "test"] * 3, "source_file": list("fedcba")}
    parquet.write_table(table(range(6), **columns), tmp_path / "x.parquet", row_group_size=2)
    source = ParquetSource(tmp_path / "x.parquet", column="split", value="corpus")
    corpus = parquet_corpus(tmp_path / "x.parquet")
    assert sorted(everything(source)) == corpus.ids and source.name == corpus.name


def test_a_saved_dataset_gives_the_files_it_was_made_of(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": png(seed), "path": None} for seed in range(4)],
        "author": list("abcd"),
    }
    features = datasets.Features({"image": datasets.Image(), "author": datasets.Value("string")})
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "several")
    expected = {f"row-{row:07d}": (png(row), {"author": "abcd"[row]}) for row in range(4)}
    assert everything(DatasetSource(tmp_path / "one")) == expected
    assert everything(DatasetSource(tmp_path / "several", split="train")) == expected
    with pytest.raises(InputError, match="set split to one of train"):
        DatasetSource(tmp_path / "several")
    with pytest.raises(InputError, match="save_to_disk"):
        DatasetSource(tmp_path)


# Open Images

HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)


def image_id(number):
    return f"{number:016x}"


def write_list(path, numbers, encoding="utf-8", end="\n"):
    rows = [
        f"{image_id(n)},train,https://o/{n}.jpg,https://www.flickr.com/{n},https://creativecommons.org/licenses/by/2.0/,"
        f'https://p/{n},"Doe, Jané {n}","a ""title"", {n}",123,abc==,,0.0'
        for n in numbers
    ]
    path.write_bytes((end.join([HEADER, *rows]) + end).encode(encoding))
    return path


def origin(number):
    licence = "https://creativecommons.org/licenses/by/2.0/"
    return {
        "licence": licence,
        "author": f"Doe, Jané {number}",
        "source": f"https://www.flickr.com/{number}",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_open_images_is_read_as_a_spreadsheet_saves_it(tmp_path, encoding, end):
    path = write_list(tmp_path / "train.csv", range(3), encoding, end)
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{image_id(number)}.jpg").write_bytes(png(number))
    source = OpenImagesSource([path], tmp_path / "images")
    assert everything(source) == {f"train/{image_id(n)}": (png(n), origin(n)) for n in range(3)}
    write_tar(tmp_path / "0.tar", [(f"{image_id(n)}.jpg", png(n)) for n in range(3)])
    packed = OpenImagesTars(tmp_path / "0.tar", [path])
    assert everything(packed) == {f"0.tar/{image_id(n)}": (png(n), origin(n)) for n in range(3)}


def test_open_images_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(open_images, "PART", 500)  # a few rows a part
    path = write_list(tmp_path / "train-images.csv", range(20))
    (tmp_path / "images/train").mkdir(parents=True)
    for number in range(20):
        (
            tmp_path / "images" / ("train" if number % 2 else ".") / f"{image_id(number)}.jpg"
        ).write_bytes(png(number))
    source = OpenImagesSource([path], tmp_path / "images")
    assert len(list(source.listing())) > 4 and sum(count for _, count in source.listing()) == 20
    assert everything(source) == {f"train/{image_id(n)}": (png(n), origin(n)) for n in range(20)}
    for bad in ("train/../../x", f"other/{image_id(1)}", f"train/{image_id(99)}"):
        with pytest.raises(InputError):
            source.read(bad)


def test_open_images_in_tars_take_their_origin_from_the_list(tmp_path):
    path = write_list(tmp_path / "train-images.csv", range(3))
    write_tar(tmp_path / "t/0.tar", [(f"train_0/{image_id(n)}.jpg", png(n)) for n in (2, 5)])
    found = everything(OpenImagesTars(tmp_path / "t", [path]))
    names = [f"0.tar/train_0/{image_id(n)}" for n in (2, 5)]
    assert found == {names[0]: (png(2), origin(2)), names[1]: (png(5), {})}


def test_a_file_that_is_no_list_of_open_images_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("id,url\n1,2\n")
    with pytest.raises(InputError, match="no column ImageID, Subset"):
        OpenImagesSource([tmp_path / "x.csv"])


class Bucket(http.server.BaseHTTPRequestHandler):
    """What it answers to each attempt, by image: a status, `cut` half way, `mute` (closed without a
    word), or good.
    """

    answers: ClassVar = {
        1: [404],
        2: [503, 429, 500],
        3: ["cut", "mute", "cut"],
        4: ["cut"] * 9,
        5: ["junk", 403],
    }
    asked: ClassVar = []

    def do_GET(self):
        number = int(self.path.split("/")[-1].removesuffix(".jpg"), 16)
        attempt = self.asked.count(self.path)
        self.asked.append(self.path)
        answer = dict(enumerate(self.answers.get(number, []))).get(attempt, 200)
        if answer == "mute":
            return
        if answer == "junk":
            self.wfile.write(b"no http at all\r\n")
            return
        self.send_response(200 if answer == "cut" else answer)
        self.send_header("Content-Length", str(len(png(number))))
        self.end_headers()
        if answer in (200, "cut"):
            self.wfile.write(png(number)[: 50 if answer == "cut" else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Open Images in a bucket of this machine; the seconds that were waited between attempts; and
    what stops the bucket.
    """
    waited = []
    monkeypatch.setattr(open_images, "time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(Bucket, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    path = write_list(tmp_path / "train-images.csv", range(6))
    yield OpenImagesSource([path], bucket=f"http://127.0.0.1:{server.server_port}/"), waited, stop
    stop()


def test_open_images_from_the_bucket(bucket):
    source, waited, stop = bucket
    assert source.read(f"train/{image_id(0)}") == png(0)
    assert Bucket.asked == [f"/train/{image_id(0)}.jpg"] and waited == []
    with pytest.raises(InputError, match="404") as missing:
        source.read(f"train/{image_id(1)}")
    assert not isinstance(missing.value, SourceDown) and waited == []  # no use to ask again
    stop()
    with pytest.raises(SourceDown, match="the download failed 4 times"):
        source.read(f"train/{image_id(0)}")


@pytest.mark.parametrize("number", [2, 3])
def test_a_download_is_tried_again_after_a_fault_that_passes(bucket, number):
    source, waited, _ = bucket
    assert source.read(f"train/{image_id(number)}") == png(number)
    assert len(Bucket.asked) == 4 and waited == [1, 2, 4]


def test_a_download_that_is_always_cut_stops_the_build_and_one_that_is_refused_does_not(bucket):
    source, waited, _ = bucket
    with pytest.raises(
        SourceDown,
        match=rf"{image_id(4)}\.jpg: the download failed 4 times .*IncompleteRead",
    ):
        source.read(f"train/{image_id(4)}")
    assert len(Bucket.asked) == 4 and waited == [1, 2, 4]
    with pytest.raises(InputError, match="403 Forbidden") as refused:
        source.read(f"train/{image_id(5)}")
    assert not isinstance(refused.value, SourceDown) and len(Bucket.asked) == 6


NAMES = [
    "a.jpg",
    "a/b.jpg",
    "a.b/c.d.PNG",
    "./a.seg.png",
    "a",
    "a/.hidden",
    ".hidden",
    "a/b.",
    "a..b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_members_name_is_split_as_webdataset_splits_it(name):
    from webdataset.tariterators import base_plus_ext

    ours = tars.NAME.fullmatch(name)
    assert (ours.groups() if ours else (None, None)) == base_plus_ext(name)
