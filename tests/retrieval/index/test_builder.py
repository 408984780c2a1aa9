"""Building in shards: what is planned, resumed, added and rejected; the same neighbours as the
index in memory.
"""

import errno
import io
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from adir.data.corpus import folder_corpus
from adir.data.sources.base import Item, SourceDown
from adir.data.sources.folder import FolderSource
from adir.data.sources.open_images import OpenImagesSource
from adir.data.sources.tables import DatasetSource, ParquetSource
from adir.errors import InputError
from adir.files import read_json, write_json
from adir.images import from_uint8
from adir.retrieval.index.builder import (
    build_shard,
    extend_plan,
    finish,
    missing_shards,
    require_same_index,
    shard_path,
)
from adir.retrieval.index.memory import Index
from adir.retrieval.index.sharded import IndexedCorpus, ShardedIndex
from adir.retrieval.leakage import copies


class Colours:
    """(B, 48) unit vectors of 4x4 colours; remembers how many images it has seen."""

    metric = "angular"
    input_size = 4

    def __init__(self, name="colours"):
        self.name, self.weights_sha256, self.seen = name, name * 8, 0

    def prepare(self, image):
        return functional.adaptive_avg_pool2d(image[None], 4)[0]

    def vectors(self, inputs):
        self.seen += len(inputs)
        return functional.normalize(inputs.flatten(1), dim=1)

    def image(self, batch):
        return self.vectors(torch.stack([self.prepare(image) for image in batch]))


def smooth(seed, height=32, width=40):
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path):
    """23 images of two sizes, of which 7.png is no image."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for number in range(23):
        smooth(number, 32, 40 if number % 3 else 32).save(
            folder / ("deep" if number % 2 else ".") / f"{number}.png"
        )
    (folder / "deep/7.png").write_bytes(b"no image")
    return folder


def build(folder, images, encoder=None, shard_size=5, shards=None, least_side=0):
    """Everything that is missing, or the first so many shards of it; how many images were embedded."""
    encoder, source = Colours() if encoder is None else encoder, FolderSource(images)
    require_same_index(folder, source, encoder, least_side)
    extend_plan(folder, source, shard_size)
    todo = missing_shards(folder)[:shards]
    done = [
        build_shard(folder, number, source, encoder, 4, least_side=least_side) for number in todo
    ]
    if not missing_shards(folder):
        finish(folder)
    return sum(one.images for one in done)


def test_the_index_on_disk_gives_the_neighbours_and_the_identity_of_the_one_in_memory(
    images, tmp_path
):
    build(tmp_path / "index", images)
    corpus, indexed = folder_corpus(images), IndexedCorpus(tmp_path / "index")
    assert (
        indexed.sha256 == corpus.sha256
        and indexed.ids == corpus.ids
        and len(indexed) == len(corpus) == 22
    )
    assert (
        indexed.manifest == corpus.manifest
        and indexed.rejects.keys() == corpus.rejects.keys() == {"deep/7.png"}
    )
    memory = Index.build(corpus, Colours())
    queries = Colours().image(torch.rand(3, 3, 8, 8) * 2 - 1)
    hidden = [{"0.png"}, set(), {"2.png", "unknown"}]
    expected, distances = memory.search(queries, 20, hidden)
    found, again = indexed.index.search(queries, 20, hidden)
    assert found == expected and torch.equal(again, distances)
    assert all(torch.equal(indexed.image(name), corpus.image(name)) for name in corpus.ids)


def test_shards_hold_so_many_images_and_are_the_same_files_again(images, tmp_path):
    for folder in ("a", "b"):
        build(tmp_path / folder, images)
    assert [len(shard) for shard in ShardedIndex(tmp_path / "a").shards] == [
        5,
        5,
        5,
        5,
        2,
    ]  # the last less a reject
    for path in (tmp_path / "a/shards").iterdir():
        assert path.read_bytes() == (tmp_path / "b/shards" / path.name).read_bytes()


def test_a_build_goes_on_where_it_stopped_and_embeds_each_image_once(images, tmp_path):
    encoder = Colours()
    build(tmp_path / "index", images, encoder, shards=2)
    with pytest.raises(InputError, match="not finished"):
        ShardedIndex(tmp_path / "index")
    build(tmp_path / "index", images, encoder)
    assert encoder.seen == 22
    build(tmp_path / "whole", images)
    assert read_json(tmp_path / "index/manifest.json") == read_json(
        tmp_path / "whole/manifest.json"
    )


def test_images_added_later_cost_only_themselves(images, tmp_path):
    build(tmp_path / "index", images)
    before = {path.name: path.read_bytes() for path in (tmp_path / "index/shards").iterdir()}
    for name in ("0a.png", "deep/zz.png"):
        smooth(len(name) + 100).save(images / name)
    encoder = Colours()
    extend_plan(tmp_path / "index", FolderSource(images), 5)
    assert len(ShardedIndex(tmp_path / "index")) == 22  # until the new shard is there
    build(tmp_path / "index", images, encoder)
    assert encoder.seen == 2
    assert all(
        (tmp_path / "index/shards" / name).read_bytes() == content
        for name, content in before.items()
    )
    assert IndexedCorpus(tmp_path / "index").sha256 == folder_corpus(images).sha256


def test_images_that_are_gone_stop_a_build(images, tmp_path):
    build(tmp_path / "index", images)
    (images / "0.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 23 indexed images .* the first is 0\.png"):
        build(tmp_path / "index", images)
    corpus = IndexedCorpus(tmp_path / "index")
    with pytest.raises(InputError, match="missing"):
        corpus.image("0.png")
    smooth(99).save(images / "0.png")
    with pytest.raises(InputError, match="has changed since"):
        corpus.image("0.png")
    with pytest.raises(KeyError):
        corpus.image("unknown")


def test_a_renamed_image_stops_a_build_until_it_has_its_name_again(images, tmp_path):
    build(tmp_path / "index", images)
    manifest = read_json(tmp_path / "index/manifest.json")
    (images / "0.png").rename(images / "new.png")
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=r"1 of the 23 indexed images are missing from corpus \w+, the first is 0\.png",
        ):
            build(tmp_path / "index", images, shard_size=1)
    (images / "new.png").rename(images / "0.png")
    build(tmp_path / "index", images)
    assert read_json(tmp_path / "index/manifest.json") == manifest


def test_another_folder_named_by_mistake_leaves_no_trace(images, tmp_path):
    build(tmp_path / "index", images)
    manifest = read_json(tmp_path / "index/manifest.json")
    (tmp_path / "wrong").mkdir()
    for number in range(7):
        smooth(number).save(tmp_path / f"wrong/other-{number}.png")
    with pytest.raises(
        InputError, match=r"22 of the 23 indexed images are missing from corpus wrong"
    ):
        build(tmp_path / "index", tmp_path / "wrong", shard_size=2)
    build(tmp_path / "index", images)
    assert read_json(tmp_path / "index/manifest.json") == manifest


def test_rejects_may_be_taken_away(images, tmp_path):
    build(tmp_path / "index", images)
    (images / "deep/7.png").unlink()
    smooth(50).save(images / "new.png")
    assert build(tmp_path / "index", images) == 1
    assert IndexedCorpus(tmp_path / "index").sha256 == folder_corpus(images).sha256
    shard_path(tmp_path / "index", 4).unlink()  # the one with the reject is made again
    build(tmp_path / "index", images)
    assert IndexedCorpus(tmp_path / "index").sha256 == folder_corpus(images).sha256


def test_every_kind_of_image_is_embedded_or_rejected_with_its_reason(images, tmp_path, monkeypatch):
    rgb, frames = smooth(1), [smooth(2), smooth(3)]
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned clockwise
    rgb.save(images / "turned.jpg", exif=exif, quality=95)
    rgb.convert("L").save(images / "grey.png")
    rgb.quantize(16).save(images / "palette.png")
    rgb.convert("RGBA").save(images / "opaque.png")
    bad = {
        "animated.webp": (
            frames[0],
            {"save_all": True, "append_images": frames[1:]},
            "is animated",
        ),
        "pages.tiff": (frames[0], {"save_all": True, "append_images": frames[1:]}, "pages"),
        "print.jpg": (rgb.convert("CMYK"), {}, "is CMYK"),
        "deep.tif": (Image.fromarray(np.full((4, 4), 0.5, np.float32)), {}, "more than 8 bits"),
        "clear.png": (Image.new("RGBA", (40, 32), (1, 2, 3, 4)), {}, "alpha"),
        "clear-palette.png": (rgb.quantize(16), {"transparency": 0}, "alpha"),
        "bomb.png": (Image.new("1", (20_000, 20_000)), {}, "decompression bomb"),
        "large.png": (Image.new("1", (9_000, 9_000)), {}, "million pixels"),
        "long.png": (Image.new("L", (5_000, 5)), {}, "as long as wide"),
    }
    for name, (image, options, _) in bad.items():
        image.save(images / name, **options)
    (images / "cut.jpg").write_bytes((images / "turned.jpg").read_bytes()[:500])
    (images / "empty.png").touch()
    build(tmp_path / "index", images)
    rejects = read_json(tmp_path / "index/rejects.json")
    assert rejects.keys() == {*bad, "cut.jpg", "empty.png", "deep/7.png"}
    for name, (_, _, reason) in bad.items():
        assert reason in rejects[name] and name in rejects[name] and "\n" not in rejects[name]
    assert "damaged" in rejects["cut.jpg"] and "not an image" in rejects["empty.png"]
    memory, indexed = folder_corpus(images), IndexedCorpus(tmp_path / "index")
    assert memory.rejects == rejects and indexed.sha256 == memory.sha256
    assert indexed.image("turned.jpg").shape == (3, 40, 32)
    shard, row = indexed.index.find("turned.jpg")
    assert shard.columns["size"][row].tolist() == [40, 32]
    assert shard.columns["n_bytes"][row] == (images / "turned.jpg").stat().st_size


def test_images_with_too_short_a_side_are_rejects_and_an_index_keeps_to_its_limit(images, tmp_path):
    smooth(40, 31, 200).save(images / "low.png")
    smooth(41, 1, 1).save(images / "dot.png")
    assert (
        build(tmp_path / "index", images, least_side=32) == 22
    )  # of exactly 32 pixels, or 32 of 40
    rejects = read_json(tmp_path / "index/rejects.json")
    assert rejects.keys() == {"low.png", "dot.png", "deep/7.png"}
    assert rejects["low.png"] == "low.png: 200x31, its shorter side is below least_side=32"
    assert (
        IndexedCorpus(tmp_path / "index").sha256
        == folder_corpus(images, 32).sha256
        != folder_corpus(images).sha256
    )
    assert folder_corpus(images, 32).rejects == rejects
    with pytest.raises(
        InputError,
        match=r"with least_side=32, but least_side=0 is requested; choose another folder",
    ):
        build(tmp_path / "index", images)
    older = read_json(tmp_path / "index/index.json")
    del older["least_side"]  # made before there was a limit
    write_json(tmp_path / "index/index.json", older)
    with pytest.raises(InputError, match=r"with least_side=0, but least_side=32 is requested"):
        build(tmp_path / "index", images, least_side=32)


def test_images_of_every_kind_are_taken_or_rejected_by_one_rule_with_and_without_an_index(
    images, tmp_path
):
    before = folder_corpus(images)
    for name in ("still.gif", "camera.JFIF"):
        smooth(50).save(images / name, format="gif" if name.endswith("gif") else "jpeg")
    smooth(51).save(images / "moving.gif", save_all=True, append_images=[smooth(52)])
    for name in ("phone.heic", "new.AVIF", "scan.jp2"):
        (images / name).write_bytes(images_bytes(53))  # by its name alone
    assert build(tmp_path / "index", images) == 24
    rejects = read_json(tmp_path / "index/rejects.json")
    assert rejects.keys() == {"moving.gif", "phone.heic", "new.AVIF", "scan.jp2", "deep/7.png"}
    assert (
        "animated" in rejects["moving.gif"]
        and "new.AVIF: this file format is not supported" in rejects["new.AVIF"]
    )
    indexed = IndexedCorpus(tmp_path / "index")
    assert set(indexed.ids) == {*before.ids, "still.gif", "camera.JFIF"}
    assert torch.equal(
        indexed.image("still.gif"),
        from_uint8(np.array(Image.open(images / "still.gif").convert("RGB"))),
    )
    memory = folder_corpus(images)
    assert memory.sha256 == indexed.sha256 != before.sha256 and memory.rejects == rejects


def test_of_images_with_one_id_in_a_shard_the_first_is_used_and_the_build_goes_on(images, tmp_path):
    class Twice(FolderSource):
        def items(self, keys):
            for item in super().items(keys):
                yield item
                if item.id == "0.png":
                    yield from (
                        Item(item.id, (self.folder / name).read_bytes, {})
                        for name in ("2.png", "4.png")
                    )

    folder, source = tmp_path / "index", Twice(images)
    require_same_index(folder, source, Colours())
    extend_plan(folder, source, 50)
    assert build_shard(folder, 0, source, Colours(), 4).images == 22
    finish(folder)
    rejects = read_json(folder / "rejects.json")
    assert (
        rejects.keys() == {"deep/7.png", "0.png (2)", "0.png (3)"}
        and "same id" in rejects["0.png (3)"]
    )
    corpus = IndexedCorpus(folder)
    assert corpus.sha256 == folder_corpus(images).sha256 and corpus.image("0.png").shape == (
        3,
        32,
        32,
    )


def test_a_name_that_is_not_utf_8_is_a_reject(images, tmp_path, capsys):
    bad = os.fsdecode(b"caf\xe9.png")
    smooth(30).save(images / bad)
    smooth(31).save(images / "café.png")
    build(tmp_path / "index", images)
    corpus, indexed = folder_corpus(images), IndexedCorpus(tmp_path / "index")
    rejects = read_json(tmp_path / "index/rejects.json")
    assert (
        rejects.keys()
        == indexed.rejects.keys()
        == corpus.rejects.keys()
        == {"deep/7.png", "caf\\udce9.png"}
    )
    assert (
        "not UTF-8" in rejects["caf\\udce9.png"]
        and corpus.rejects["caf\\udce9.png"] == rejects["caf\\udce9.png"]
    )
    print(rejects)  # as `adir index info` does
    assert "café.png" in indexed.ids and indexed.sha256 == corpus.sha256
    assert build(tmp_path / "index", images) == 0  # it is planned, and there
    (images / bad).unlink()
    assert build(tmp_path / "index", images) == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: you tried"),
    ],
)
def test_an_image_for_which_the_memory_is_too_small_is_a_reject(images, tmp_path, error):
    class Small(Colours):
        def prepare(self, image):
            if image.shape == (3, 33, 33):
                raise error
            return super().prepare(image)

    smooth(40, 33, 33).save(images / "big.png")
    assert build(tmp_path / "index", images, Small()) == 22
    assert "not enough memory" in read_json(tmp_path / "index/rejects.json")["big.png"]


def test_a_defect_of_an_encoder_is_not_called_a_bad_image(images, tmp_path):
    class Broken(Colours):
        def prepare(self, image):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        build(tmp_path / "index", images, Broken())


def test_images_may_move(images, tmp_path):
    build(tmp_path / "index", images)
    moved = shutil.move(images, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no such folder"):
        IndexedCorpus(tmp_path / "index")
    assert IndexedCorpus(tmp_path / "index", {"path": moved}).image("0.png").shape == (3, 32, 32)
    with pytest.raises(InputError, match="no argument pfad; choose from path"):
        IndexedCorpus(tmp_path / "index", {"pfad": moved})


def test_a_build_goes_on_in_a_folder_that_has_moved_and_remembers_where(images, tmp_path):
    build(tmp_path / "index", images, shards=2)
    moved = shutil.move(images, tmp_path / "elsewhere")
    encoder = Colours()
    build(tmp_path / "index", moved, encoder)
    assert encoder.seen == 12  # of 22 in shards of 5, the last less a reject
    assert IndexedCorpus(tmp_path / "index").image("0.png").shape == (3, 32, 32)
    shutil.move(tmp_path / "index", tmp_path / "index moved")
    assert build(tmp_path / "index moved", moved) == 0
    assert len(IndexedCorpus(tmp_path / "index moved")) == 22


def sources_of(tmp_path):
    """Sources by kind, with what makes another selection of each, and what only says where it lies."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as parquet

    cells = [(images_bytes(seed)) for seed in range(4)]
    rows = {
        "image": cells,
        "other": cells,
        "split": ["a", "b", "a", "b"],
        "fold": ["a"] * 4,
        "name": list("wxyz"),
    }
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        parquet.write_table(pa.table(rows), tmp_path / folder / "x.parquet")
        saved = datasets.Dataset.from_dict(rows)
        datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(
            tmp_path / folder / "saved"
        )
        header, row = "ImageID,Subset,License,Author,OriginalLandingURL", f"{1:016x},train,,,"
        (tmp_path / folder / "list.csv").write_text(f"{header}\n{row}\n")
    one, two = tmp_path / "one", tmp_path / "two"
    return {
        ParquetSource: (
            {"path": one / "x.parquet", "column": "split", "value": "a"},
            {"image": "other", "column": "fold", "value": "b", "id_column": "name"},
            {"path": two / "x.parquet"},
        ),
        DatasetSource: (
            {"path": one / "saved", "split": "train"},
            {"image": "other", "split": "test"},
            {"path": two / "saved"},
        ),
        OpenImagesSource: (
            {"lists": [one / "list.csv"], "images": one},
            {},
            {"lists": [two / "list.csv"], "images": None, "bucket": "https://mirror"},
        ),
    }


def images_bytes(seed):
    buffer = io.BytesIO()
    smooth(seed).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [ParquetSource, DatasetSource, OpenImagesSource])
def test_an_index_is_of_one_selection_wherever_it_lies(tmp_path, kind):
    arguments, others, places = sources_of(tmp_path)[kind]
    folder = tmp_path / "index"
    require_same_index(folder, kind(**arguments), Colours())
    for name, value in others.items():
        before = (folder / "index.json").read_bytes()
        words = (
            rf"holds an index with {name}={arguments.get(name, '.*')}, but "
            rf"{name}={value} is requested; choose another folder"
        )
        with pytest.raises(InputError, match=words) as caught:
            require_same_index(folder, kind(**(arguments | {name: value})), Colours())
        assert "\n" not in str(caught.value) and (folder / "index.json").read_bytes() == before
    for name, value in places.items():
        source = kind(**(arguments | {name: value}))
        require_same_index(folder, source, Colours())
        assert read_json(folder / "index.json")["source"]["arguments"] == source.arguments
    with pytest.raises(InputError, match=rf"kind={kind.kind}.*, but .*kind=folder"):
        require_same_index(folder, FolderSource(tmp_path), Colours())


def test_3_and_the_text_3_are_one_selection(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(
        pa.table({"image": [images_bytes(0)], "label": [3]}), tmp_path / "x.parquet"
    )
    for value in (3, "3"):
        require_same_index(
            tmp_path / "index",
            ParquetSource(tmp_path / "x.parquet", "image", "label", value),
            Colours(),
        )


def test_an_index_belongs_to_one_encoder(images, tmp_path):
    build(tmp_path / "index", images)
    with pytest.raises(
        InputError, match=r"holds an index with encoder=colours .*, but encoder=other"
    ):
        build(tmp_path / "index", images, Colours("other"))
    with pytest.raises(
        InputError, match=r"built with encoder colours .* configured encoder is other"
    ):
        ShardedIndex(tmp_path / "index").require_encoder(Colours("other"))
    with pytest.raises(InputError, match="holds files that are not an index"):
        build(images, images)


def test_damaged_and_foreign_shards_are_named(images, tmp_path):
    folder = tmp_path / "index"
    build(folder, images)
    path = shard_path(folder, 1)
    good = path.read_bytes()
    path.write_bytes(good[:-10])
    with pytest.raises(InputError, match=r"000001.*truncated"):
        ShardedIndex(folder)
    path.write_bytes(shard_path(folder, 0).read_bytes())
    with pytest.raises(InputError, match=r"000001.* differs from manifest"):
        ShardedIndex(folder)
    with pytest.raises(InputError, match=r"000001.*another plan"):
        finish(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"000001.*missing"):
        ShardedIndex(folder)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert len(ShardedIndex(folder).damage()) == 1
    path.write_bytes(good)
    manifest = read_json(folder / "manifest.json")
    for bad in ("{", "[]", "{}"):
        (folder / "manifest.json").write_text(bad)
        with pytest.raises(InputError, match=r"manifest\.json: the file is damaged"):
            ShardedIndex(folder)
    write_json(folder / "manifest.json", manifest | {"schema": 99})
    with pytest.raises(InputError, match="has schema 99, but this version of adir reads"):
        ShardedIndex(folder)


def test_plans_that_are_gone_or_damaged_and_shards_of_another_encoder_are_named(images, tmp_path):
    folder = tmp_path / "index"
    build(folder, images)
    plan = (folder / "plan/000001.json").read_bytes()
    (folder / "plan/000001.json").write_text("{")
    with pytest.raises(InputError, match=r"000001\.json is missing or damaged"):
        build(folder, images)
    (folder / "plan/000001.json").unlink()
    with pytest.raises(InputError, match=r"000001\.json is missing"):
        build(folder, images)
    assert (
        len(list((folder / "plan").iterdir())) == 4
    )  # nothing was planned in the place of another
    (folder / "plan/000001.json").write_bytes(plan)
    shutil.copy(shard_path(folder, 2), tmp_path / "good")
    shard_path(folder, 2).unlink()
    build_shard(folder, 2, FolderSource(images), Colours("other"))
    with pytest.raises(
        InputError, match=r"000002\.safetensors: the shard was built with another encoder"
    ):
        finish(folder)
    shutil.copy(tmp_path / "good", shard_path(folder, 2))
    assert build(folder, images) == 0


@pytest.mark.parametrize(
    "write", ["plan/", "shards/", "index.json", "manifest.json", "rejects.json"]
)
def test_a_disk_that_is_full_at_any_write_loses_nothing_that_was_finished(
    images, tmp_path, monkeypatch, write
):
    folder, real, left = tmp_path / "index", os.replace, [1]

    def replace(source, target):
        if write in str(target) and left:
            left.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    encoder = Colours()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="No space"):
            build(folder, images, encoder)
    assert not left and not list(folder.rglob("*.part"))
    build(folder, images, encoder)
    assert encoder.seen <= 22 + (5 if write == "shards/" else 0)
    build(tmp_path / "whole", images)
    assert read_json(folder / "manifest.json") == read_json(tmp_path / "whole/manifest.json")


def test_a_source_that_is_down_stops_the_build_and_leaves_no_shard(images, tmp_path):
    folder, source = tmp_path / "index", FolderSource(images)
    extend_plan(folder, source, 50)

    def down(self):
        raise SourceDown("no network")

    load = type(
        "Down",
        (FolderSource,),
        {"items": lambda self, keys: (Item(key, lambda: down(self), {}) for key in keys)},
    )
    with pytest.raises(SourceDown):
        build_shard(folder, 0, load(images), Colours())
    assert missing_shards(folder) == [0]


def test_a_corpus_of_rejects_alone_says_why(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x.png").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"no image could be read .1 rejected; first reason: x.png: not an image"
    ):
        build(tmp_path / "index", tmp_path / "images")


def test_copies_and_equal_images_found_on_disk_are_those_found_in_memory(images, tmp_path):
    smooth(4).save(images / "copy.jpg", quality=80)
    smooth(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((80, 64)).save(
        images / "mirror.png"
    )
    smooth(4).save(images / "again.bmp")
    build(tmp_path / "index", images)
    corpus, indexed = folder_corpus(images), IndexedCorpus(tmp_path / "index")
    assert len(indexed.fingerprints) > 1  # shards
    assert indexed.repeats == corpus.repeats == {"again.bmp"}
    x = from_uint8(np.array(smooth(4)))
    assert (
        copies(x, indexed) == copies(x, corpus) == {"4.png", "again.bmp", "copy.jpg", "mirror.png"}
    )
    for name in corpus.ids[:6]:
        assert copies(corpus.image(name), indexed) == copies(corpus.image(name), corpus)
