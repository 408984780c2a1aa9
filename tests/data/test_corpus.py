"""Corpora made of files written here: ids, identity, and images that cannot be read."""

import hashlib
import io
import shutil
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from adir.data.base import Corpus
from adir.data.corpus import SourceCorpus, folder_corpus, parquet_corpus
from adir.data.selection import Selection
from adir.data.sources.tables import DatasetSource
from adir.data.sources.tars import TarSource
from adir.errors import InputError
from adir.images import to_uint8


def pixels(seed, height=9, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(
        buffer, format="tiff" if mode == "CMYK" else "png"
    )
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three good images, four that cannot be used, and files that are none."""
    top = tmp_path / "images"
    (top / "b" / "deep").mkdir(parents=True)
    (top / ".thumbs").mkdir()
    (top / "z.png").write_bytes(png(pixels(1)))
    (top / "b" / "a.png").write_bytes(png(pixels(2)))
    (top / "b" / "deep" / "GREY.PNG").write_bytes(png(pixels(3), "L"))
    (top / "text.jpg").write_text("not an image")
    (top / "b" / "cut.png").write_bytes(png(pixels(4))[:100])
    (top / "clear.png").write_bytes(png(np.dstack([pixels(5), pixels(5)[:, :, 0]])))
    (top / "print.tif").write_bytes(png(pixels(6), "CMYK"))
    (top / "notes.txt").write_text("passed over")
    (top / ".thumbs" / "z.png").write_bytes(png(pixels(1)))
    return top


def test_a_folder_gives_its_readable_images_and_names_the_others(folder):
    corpus = folder_corpus(folder)
    assert (
        corpus.ids == ["b/a.png", "b/deep/GREY.PNG", "z.png"]
        and len(corpus) == 3
        and corpus.name == "images"
    )
    assert sorted(corpus.rejects) == ["b/cut.png", "clear.png", "print.tif", "text.jpg"]
    assert "alpha" in corpus.rejects["clear.png"] and "CMYK" in corpus.rejects["print.tif"]
    assert np.array_equal(to_uint8(corpus.image("b/a.png")), pixels(2))
    assert corpus.image("b/deep/GREY.PNG").shape == (3, 9, 12)
    with pytest.raises(KeyError):
        corpus.image("../images/z.png")


def test_the_identity_of_a_folder_is_its_images_and_their_ids_and_nothing_else(folder, tmp_path):
    identity = folder_corpus(folder).sha256
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "text.jpg").unlink()
    assert folder_corpus(moved).sha256 == identity
    (moved / "z.png").rename(moved / "y.png")
    assert folder_corpus(moved).sha256 != identity
    (moved / "y.png").rename(moved / "z.png")
    (moved / "z.png").write_bytes(png(pixels(7)))
    assert folder_corpus(moved).sha256 != identity


def test_a_folder_without_images_raises(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        folder_corpus(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no image files"):
        folder_corpus(empty)
    (empty / "text.jpg").write_text("not an image")
    with pytest.raises(InputError, match="not an image"):
        folder_corpus(empty)


def write_parquet(path, **columns):
    contents = [png(pixels(seed)) for seed in range(6)]
    contents[4] = contents[4][:60]
    images = [{"bytes": content, "path": None} for content in contents]
    images[5] = None
    table = {
        "image": images,
        "split": ["corpus", "test", "corpus", "corpus", "corpus", "corpus"],
        **columns,
    }
    parquet.write_table(pa.table(table), path)
    return path


def test_a_parquet_file_gives_the_rows_of_one_value(tmp_path):
    path = write_parquet(
        tmp_path / "set.parquet",
        source_file=list("fedcba"),
        category=["x", "y", "x", "z", "z", "z"],
    )
    corpus = parquet_corpus(path)
    assert (
        corpus.ids == ["c", "d", "f"]
        and sorted(corpus.rejects) == ["a", "b"]
        and corpus.name == "set-corpus"
    )
    assert corpus.categories == {"f": "x", "d": "x", "c": "z"}
    assert np.array_equal(to_uint8(corpus.image("d")), pixels(2))
    assert parquet_corpus(path, "split", "test").ids == ["e"]
    with pytest.raises(InputError, match="12x9, its shorter side is below least_side=10"):
        parquet_corpus(path, "split", "test", least_side=10)


def test_the_origins_that_a_parquet_file_tells_are_kept_also_through_a_selection(tmp_path):
    told = {
        "license": ["CC0", "", None, "CC BY 4.0", "x", "x"],
        "author": ["Ümit", "b", None, None, "x", "x"],
    }
    corpus = parquet_corpus(
        write_parquet(tmp_path / "set.parquet", source_file=list("fedcba"), **told)
    )
    found = {"c": {"licence": "CC BY 4.0"}, "d": {}, "f": {"licence": "CC0", "author": "Ümit"}}
    for one in (corpus, Selection(corpus)):
        assert {image_id: one.attribution(image_id) for image_id in one.ids} == found
    assert (
        corpus.sha256
        == parquet_corpus(write_parquet(tmp_path / "o.parquet", source_file=list("fedcba"))).sha256
    )


def test_an_image_is_its_own_cluster_unless_its_set_says_otherwise_also_through_a_selection(
    tmp_path, monkeypatch
):
    corpus = parquet_corpus(write_parquet(tmp_path / "set.parquet", source_file=list("fedcba")))
    assert [corpus.cluster(image_id) for image_id in corpus.ids] == corpus.ids
    monkeypatch.setattr(type(corpus), "cluster", lambda self, image_id: f"photograph of {image_id}")
    assert Selection(corpus).cluster("c") == "photograph of c"


@pytest.mark.parametrize(
    "columns", [{}, {"source_file": ["same"] * 6}], ids=["no names", "repeated names"]
)
def test_rows_without_names_of_their_own_are_numbered_over_the_whole_file(tmp_path, columns):
    corpus = parquet_corpus(write_parquet(tmp_path / "set.parquet", **columns))
    assert corpus.ids == ["row-00000", "row-00002", "row-00003"]
    assert torch.equal(
        corpus.image("row-00003"), parquet_corpus(tmp_path / "set.parquet").image("row-00003")
    )


def test_a_parquet_file_that_does_not_fit_raises(tmp_path):
    path = write_parquet(tmp_path / "set.parquet")
    with pytest.raises(InputError, match="set value to one of corpus, test"):
        parquet_corpus(path, "split", "train")
    with pytest.raises(InputError, match="no column 'fold'; it has image, split"):
        parquet_corpus(path, "fold", "1")
    with pytest.raises(InputError, match="no such file"):
        parquet_corpus(tmp_path / "other.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        parquet_corpus(tmp_path / "junk.parquet")


def bmp(seed, height=6, width=8):
    """An image file written out by hand: no library's next version writes other bytes."""
    size = 3 * width * height
    head = struct.pack(
        "<2sIHHIIiiHHIIiiII",
        b"BM",
        54 + size,
        0,
        0,
        54,
        40,
        width,
        height,
        1,
        24,
        0,
        size,
        0,
        0,
        0,
        0,
    )
    return head + bytes((37 * seed + 3 * place) % 256 for place in range(size))


def pixels_of_bmp(seed, height=6, width=8):
    """What is in it: rows from below, blue first."""
    stored = np.frombuffer(bmp(seed, height, width)[54:], np.uint8).reshape(height, width, 3)
    return stored[::-1, :, ::-1]


def identity(contents):
    """SHA-256 of the lines `SHA-256 of the file, id`, in the order of the ids."""
    lines = [f"{hashlib.sha256(contents[name]).hexdigest()} {name}\n" for name in sorted(contents)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_identity_of_a_folder_is_what_it_has_always_been(tmp_path):
    contents = {"z.BMP": bmp(0), "b/a.bmp": bmp(1), "b/é.bmp": bmp(2)}
    for name, content in {**contents, "cut.bmp": bmp(3)[:60], "b/.a.bmp": bmp(4)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    corpus = folder_corpus(tmp_path)
    # The number is of the class that read folders before there was one for all sources.
    assert (
        corpus.sha256
        == "040ec9f7cdcbfb6ba770aa742263ec8f78c23974a22ecd48c641d2aac0e76127"
        == identity(contents)
    )
    assert corpus.rejects.keys() == {"cut.bmp"} and corpus.rejects["cut.bmp"].startswith(
        "cut.bmp: damaged image"
    )
    for seed, name in enumerate(contents):
        assert np.array_equal(to_uint8(corpus.image(name)), pixels_of_bmp(seed))


@pytest.mark.parametrize(
    "source_file, ids, sha256",
    [
        (
            "fedcba",
            ["f", "d", "b"],
            "b31b2b723227b66c8f0a6ba6aefbe44f909c7d3f8197c319396c653c367ddda6",
        ),
        (
            "ffddbb",
            ["f", "d", "b"],
            "b31b2b723227b66c8f0a6ba6aefbe44f909c7d3f8197c319396c653c367ddda6",
        ),
        (
            "xyxyzw",
            ["row-00000", "row-00002", "row-00004"],
            "579a19cdb01d6c87cd1a74c2ac66afb3451557c549498dd363e787459961fbe8",
        ),
    ],
    ids=["names", "names that repeat in rows left out", "names that repeat"],
)
def test_the_identity_of_a_parquet_file_is_what_it_has_always_been(
    tmp_path, source_file, ids, sha256
):
    images = [{"bytes": bmp(seed), "path": None} for seed in range(6)]
    columns = {"image": images, "split": ["corpus", "test"] * 3, "source_file": list(source_file)}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    corpus = parquet_corpus(tmp_path / "x.parquet")
    # The numbers are of the class that read Parquet files before there was one for all sources.
    assert corpus.sha256 == sha256 == identity(dict(zip(ids, map(bmp, (0, 2, 4)), strict=True)))
    for seed, name in zip((0, 2, 4), ids, strict=True):
        assert np.array_equal(to_uint8(corpus.image(name)), pixels_of_bmp(seed))


def test_one_class_reads_the_images_of_every_source(tmp_path):
    datasets = pytest.importorskip("datasets")
    contents = {f"row-{row:07d}": png(pixels(row)) for row in range(3)} | {
        "row-0000003": b"not an image"
    }
    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, content in contents.items():
            (tmp_path / f"folder/{name}.png").write_bytes(content)
            tar.add(tmp_path / f"folder/{name}.png", f"{name}.png")
    rows = {"image": [{"bytes": content, "path": None} for content in contents.values()]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "dataset")
    parquet.write_table(
        pa.table({**rows, "split": ["x"] * 4, "source_file": list(contents)}),
        tmp_path / "x.parquet",
    )
    corpora = {
        "{}.png": folder_corpus(tmp_path / "folder"),
        "images.tar/{}": SourceCorpus(TarSource(tmp_path / "images.tar")),
        "{}": parquet_corpus(tmp_path / "x.parquet", "split", "x"),
        "{} ": SourceCorpus(DatasetSource(tmp_path / "dataset")),
    }
    for spelling, corpus in corpora.items():
        good = {
            spelling.strip().format(name): content for name, content in list(contents.items())[:3]
        }
        assert corpus.ids == sorted(good) and corpus.sha256 == identity(good)
        assert len(corpus.rejects) == 1 and "not an image" in next(iter(corpus.rejects.values()))
        for seed, name in enumerate(good):
            assert np.array_equal(to_uint8(corpus.image(name)), pixels(seed))


def test_an_image_that_has_changed_since_is_not_given_for_the_one_that_was_listed(folder):
    corpus = folder_corpus(folder)
    (folder / "z.png").write_bytes(png(pixels(8)))
    with pytest.raises(InputError, match=r"z\.png: the file has changed since"):
        corpus.image("z.png")
    (folder / "z.png").unlink()
    with pytest.raises(InputError, match=r"z\.png: missing"):
        corpus.image("z.png")


def test_of_images_with_one_id_the_later_are_rejects(tmp_path):
    class Twice(TarSource):
        def items(self, keys):
            for item in super().items(keys):
                yield from (item, item)

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        (tmp_path / "a.png").write_bytes(png(pixels(0)))
        tar.add(tmp_path / "a.png", "a.png")
    corpus = SourceCorpus(Twice(tmp_path / "x.tar"))
    assert corpus.ids == ["x.tar/a"]
    assert corpus.rejects == {
        "x.tar/a (2)": "an earlier image of the corpus has the same id; rename one of the two"
    }


def test_images_without_a_category_are_a_category_of_their_own(tmp_path):
    path = write_parquet(
        tmp_path / "set.parquet",
        source_file=list("fedcba"),
        category=["x", "y", None, None, "z", "z"],
    )
    corpus = parquet_corpus(path)
    assert corpus.categories == {"f": "x"}
    assert Selection(corpus, per_category=1).ids == ["c", "f"]


def test_a_reduced_selection_rounds_in_float32_as_published_results_do(folder, monkeypatch):
    corpus = folder_corpus(folder)
    large = (torch.arange(256) / 127.5 - 1)[None, :, None].expand(
        3, -1, 256
    )  # a ramp, whose halves are ties
    monkeypatch.setattr(corpus, "image", lambda image_id: large)
    small = interpolate(large[None], size=(128, 128), mode="bicubic", antialias=True)[0].clamp(
        -1, 1
    )
    found = Selection(corpus, size=128).image("z.png")
    assert torch.equal(found, torch.round((small + 1) * 127.5) / 127.5 - 1)
    assert (to_uint8(found) != to_uint8(small)).any()  # to_uint8 rounds in float64


def test_a_set_has_no_index_masks_or_prompts_of_its_own_unless_it_says_so(folder):
    corpus: Corpus = folder_corpus(folder)
    assert (
        corpus.mask("z.png") is None and corpus.prompt("z.png") is None and corpus.recall(1) is None
    )
    assert corpus.attribution("z.png") == {}
