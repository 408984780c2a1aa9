"""Every kind of corpus, made of files written here: ids, bytes, attributions; and what cannot be used."""

import http.server
import io
import json
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from adir.errors import InputError
from adir.retrieval import open_images
from adir.retrieval.decoding import decode
from adir.retrieval.open_images import OpenImagesSource, OpenImagesTars
from adir.retrieval.sources import FolderSource, SourceDown
from adir.retrieval.tables import DatasetSource, ParquetSource
from adir.retrieval.webdataset import TarSource


def pixels(seed, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture, kind="png", **options):
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(seed):
    return encoded(pixels(seed))


def everything(source):
    """{id: (bytes, attribution)} of all that a source lists."""
    keys = [key for key, _ in source.listing()]
    return {item.id: (item.read(), dict(item.attribution)) for item in source.items(keys)}


# What a picture file may be


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_its_exif_says(orientation):
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
    "text": (b"no picture", "not a picture"),
    "empty": (b"", "not a picture"),
    "animated": (encoded(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:], lossless=True), "animated"),
    "pages": (encoded(FRAMES[0], "tiff", save_all=True, append_images=FRAMES[1:]), "pages"),
    "cmyk": (encoded(Image.fromarray(pixels(1)).convert("CMYK"), "jpeg"), "CMYK"),
    "16 bits": (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16))), "more than 8 bits"),
    "alpha": (encoded(Image.fromarray(pixels(1)).convert("RGBA")), "alpha"),
    "clear palette": (encoded(Image.fromarray(pixels(1)).quantize(16), transparency=0), "alpha"),
    "large": (encoded(Image.new("1", (9_000, 9_000))), "million pixels"),
    "bomb": (encoded(Image.new("1", (30_000, 30_000))), "decompression bomb"),
}


@pytest.mark.parametrize("content, reason", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_says_why(content, reason, recwarn):
    with pytest.raises(InputError, match=reason):
        decode(content, "p")
    assert not recwarn.list


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
    with pytest.raises(InputError, match="no picture files"):
        list(FolderSource(tmp_path / "empty").listing())


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
    write_tar(tmp_path / "0.tar", [("000.png", png(0)), ("000.json", note), ("000.txt", b"t"), ("001.PNG", png(1))])
    write_tar(
        tmp_path / "deep/1.tar",
        [("d/000.image.png", png(2)), ("d/001.json", b"{}"), ("d/002.json", b"{"), ("d/002.png", png(3))],
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
    assert {name: source.read(name) for name in expected} == {name: content for name, (content, _) in expected.items()}
    for bad in ("0.tar/002", "2.tar/000", "../0.tar/000", "000"):
        with pytest.raises(InputError):
            source.read(bad)


@pytest.mark.parametrize("member", ["../../evil.png", "/etc/evil.png", "a/../../evil.png"])
def test_a_member_that_climbs_out_of_the_tar_is_named(tmp_path, member):
    write_tar(tmp_path / "0.tar", [("000.png", png(0)), (member, png(1))])
    with pytest.raises(InputError, match=r"0\.tar: the member .*evil\.png' climbs out"):
        everything(TarSource(tmp_path))


def test_a_tar_that_is_cut_short_gives_what_it_holds_and_one_reject(tmp_path):
    path = write_tar(tmp_path / "0.tar", [(f"{number}.png", png(number)) for number in range(4)])
    path.write_bytes(path.read_bytes()[: 2 * 1024 + 700])
    source = TarSource(path)
    items = list(source.items(["0.tar"]))
    assert [item.id for item in items[:2]] == ["0.tar/0", "0.tar/1"]
    with pytest.raises(InputError, match="unexpected end"):
        items[-1].read()
    assert source.read("0.tar/1") == png(1)


# Tables


def table(seeds, **columns):
    return pa.table({"image": [{"bytes": png(seed), "path": None} for seed in seeds], **columns})


def test_parquet_rows_are_found_again_across_row_groups_and_files(tmp_path):
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
    assert both.read("y.parquet/row-00000") == png(20) and both.read("x.parquet/row-00009") == png(9)
    with pytest.raises(InputError, match="holds no bytes"):
        both.read("y.parquet/row-00002")
    with pytest.raises(InputError, match="no column 'split'"):
        ParquetSource(tmp_path, column="split")


def test_parquet_ids_are_those_of_the_corpus_in_memory(tmp_path):
    from adir.retrieval.corpus import ParquetCorpus

    columns = {"split": ["corpus", "test"] * 3, "source_file": list("fedcba")}
    parquet.write_table(table(range(6), **columns), tmp_path / "x.parquet", row_group_size=2)
    source = ParquetSource(tmp_path / "x.parquet", column="split", value="corpus")
    corpus = ParquetCorpus(tmp_path / "x.parquet")
    assert sorted(everything(source)) == corpus.ids and source.name == corpus.name


def test_a_saved_dataset_gives_the_files_it_was_made_of(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png(seed), "path": None} for seed in range(4)], "author": list("abcd")}
    features = datasets.Features({"image": datasets.Image(), "author": datasets.Value("string")})
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "several")
    expected = {f"row-{row:07d}": (png(row), {"author": "abcd"[row]}) for row in range(4)}
    assert everything(DatasetSource(tmp_path / "one")) == expected
    assert everything(DatasetSource(tmp_path / "several", split="train")) == expected
    with pytest.raises(InputError, match="choose one of train"):
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


def write_list(path, numbers):
    rows = [
        f"{image_id(n)},train,https://o/{n}.jpg,https://www.flickr.com/{n},https://creativecommons.org/licenses/by/2.0/,"
        f'https://p/{n},"Doe, Jané {n}","a ""title"", {n}",123,abc==,,0.0'
        for n in numbers
    ]
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def origin(number):
    licence = "https://creativecommons.org/licenses/by/2.0/"
    return {"licence": licence, "author": f"Doe, Jané {number}", "source": f"https://www.flickr.com/{number}"}


def test_open_images_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(open_images, "PART", 500)  # a few rows a part
    path = write_list(tmp_path / "train-images.csv", range(20))
    (tmp_path / "pictures/train").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "pictures" / ("train" if number % 2 else ".") / f"{image_id(number)}.jpg").write_bytes(png(number))
    source = OpenImagesSource([path], tmp_path / "pictures")
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
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        number = int(self.path.split("/")[-1].removesuffix(".jpg"), 16)
        # 1 is not there; 2 is busy at first
        status = 404 if number == 1 else 503 if number == 2 and self.asked.count(self.path) < 3 else 200
        self.send_response(status)
        self.end_headers()
        if status == 200:
            self.wfile.write(png(number))

    def log_message(self, *args):
        pass


def test_open_images_from_the_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(open_images.time, "sleep", lambda seconds: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = write_list(tmp_path / "train-images.csv", range(3))
    source = OpenImagesSource([path], bucket=f"http://127.0.0.1:{server.server_port}")
    assert source.read(f"train/{image_id(0)}") == png(0) and source.read(f"train/{image_id(2)}") == png(2)
    assert Bucket.asked[0] == f"/train/{image_id(0)}.jpg"
    with pytest.raises(InputError, match="404") as missing:
        source.read(f"train/{image_id(1)}")
    assert not isinstance(missing.value, SourceDown)
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceDown, match="could not be fetched in 4 attempts"):
        source.read(f"train/{image_id(0)}")
