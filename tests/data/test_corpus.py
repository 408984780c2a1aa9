"""Corpora made of files written here: ids, identity, and pictures that cannot be read."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from adir.data.corpus import EmbeddedCorpus, FolderCorpus, ParquetCorpus
from adir.data.selection import Selection
from adir.errors import InputError
from adir.images import to_uint8


def pixels(seed, height=9, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array, mode=None):
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(buffer, format="tiff" if mode == "CMYK" else "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three good pictures, four that cannot be used, and files that are none."""
    top = tmp_path / "pictures"
    (top / "b" / "deep").mkdir(parents=True)
    (top / ".thumbs").mkdir()
    (top / "z.png").write_bytes(png(pixels(1)))
    (top / "b" / "a.png").write_bytes(png(pixels(2)))
    (top / "b" / "deep" / "GREY.PNG").write_bytes(png(pixels(3), "L"))
    (top / "text.jpg").write_text("not a picture")
    (top / "b" / "cut.png").write_bytes(png(pixels(4))[:100])
    (top / "clear.png").write_bytes(png(pixels(5), "RGBA"))
    (top / "print.tif").write_bytes(png(pixels(6), "CMYK"))
    (top / "notes.txt").write_text("passed over")
    (top / ".thumbs" / "z.png").write_bytes(png(pixels(1)))
    return top


def test_a_folder_gives_its_readable_pictures_and_names_the_others(folder):
    corpus = FolderCorpus(folder)
    assert corpus.ids == ["b/a.png", "b/deep/GREY.PNG", "z.png"] and len(corpus) == 3 and corpus.name == "pictures"
    assert sorted(corpus.rejects) == ["b/cut.png", "clear.png", "print.tif", "text.jpg"]
    assert "alpha" in corpus.rejects["clear.png"] and "CMYK" in corpus.rejects["print.tif"]
    assert np.array_equal(to_uint8(corpus.image("b/a.png")), pixels(2))
    assert corpus.image("b/deep/GREY.PNG").shape == (3, 9, 12)
    with pytest.raises(KeyError):
        corpus.image("../pictures/z.png")


def test_the_identity_of_a_folder_is_its_pictures_and_their_ids_and_nothing_else(folder, tmp_path):
    identity = FolderCorpus(folder).sha256
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "text.jpg").unlink()
    assert FolderCorpus(moved).sha256 == identity
    (moved / "z.png").rename(moved / "y.png")
    assert FolderCorpus(moved).sha256 != identity
    (moved / "y.png").rename(moved / "z.png")
    (moved / "z.png").write_bytes(png(pixels(7)))
    assert FolderCorpus(moved).sha256 != identity


def test_a_folder_without_pictures_raises(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        FolderCorpus(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no picture files"):
        FolderCorpus(empty)
    (empty / "text.jpg").write_text("not a picture")
    with pytest.raises(InputError, match="not a picture"):
        FolderCorpus(empty)


def write_parquet(path, **columns):
    contents = [png(pixels(seed)) for seed in range(6)]
    contents[4] = contents[4][:60]
    images = [{"bytes": content, "path": None} for content in contents]
    images[5] = None
    table = {"image": images, "split": ["corpus", "test", "corpus", "corpus", "corpus", "corpus"], **columns}
    parquet.write_table(pa.table(table), path)
    return path


def test_a_parquet_file_gives_the_rows_of_one_value(tmp_path):
    path = write_parquet(tmp_path / "set.parquet", source_file=list("fedcba"), category=["x", "y", "x", "z", "z", "z"])
    corpus = ParquetCorpus(path)
    assert corpus.ids == ["c", "d", "f"] and sorted(corpus.rejects) == ["a", "b"] and corpus.name == "set-corpus"
    assert corpus.categories == {"f": "x", "d": "x", "c": "z"}
    assert np.array_equal(to_uint8(corpus.image("d")), pixels(2))
    assert ParquetCorpus(path, "split", "test").ids == ["e"]
    with pytest.raises(InputError, match="12x9, its shorter side is below least_side=10"):
        ParquetCorpus(path, "split", "test", least_side=10)


def test_the_origins_that_a_parquet_file_tells_are_kept_also_through_a_selection(tmp_path):
    told = {"license": ["CC0", "", None, "CC BY 4.0", "x", "x"], "author": ["Ümit", "b", None, None, "x", "x"]}
    corpus = ParquetCorpus(write_parquet(tmp_path / "set.parquet", source_file=list("fedcba"), **told))
    found = {"c": {"licence": "CC BY 4.0"}, "d": {}, "f": {"licence": "CC0", "author": "Ümit"}}
    for one in (corpus, Selection(corpus)):
        assert {image_id: one.attribution(image_id) for image_id in one.ids} == found
    assert corpus.sha256 == ParquetCorpus(write_parquet(tmp_path / "o.parquet", source_file=list("fedcba"))).sha256


@pytest.mark.parametrize("columns", [{}, {"source_file": ["same"] * 6}], ids=["no names", "repeated names"])
def test_rows_without_names_of_their_own_are_numbered_over_the_whole_file(tmp_path, columns):
    corpus = ParquetCorpus(write_parquet(tmp_path / "set.parquet", **columns))
    assert corpus.ids == ["row-00000", "row-00002", "row-00003"]
    assert torch.equal(corpus.image("row-00003"), ParquetCorpus(tmp_path / "set.parquet").image("row-00003"))


def test_a_parquet_file_that_does_not_fit_raises(tmp_path):
    path = write_parquet(tmp_path / "set.parquet")
    with pytest.raises(InputError, match="values: corpus, test"):
        ParquetCorpus(path, "split", "train")
    with pytest.raises(InputError, match="no column 'fold'; it has image, split"):
        ParquetCorpus(path, "fold", "1")
    with pytest.raises(InputError, match="no such file"):
        ParquetCorpus(tmp_path / "other.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable parquet"):
        ParquetCorpus(tmp_path / "junk.parquet")


def test_the_embedded_corpus_is_some_hundreds_of_fields():
    corpus = EmbeddedCorpus()
    assert 300 <= len(corpus) <= 700
    assert corpus.sha256 == EmbeddedCorpus().sha256
    assert all(corpus.image(image_id).shape == (3, 128, 128) for image_id in corpus.ids[::40])
    assert corpus.categories["chelsea-s1-y000-x240"] == "chelsea"
