"""Building in shards: what is planned, resumed, added and rejected; the same neighbours as the index in memory."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from adir.errors import InputError
from adir.files import read_json, write_json
from adir.images import from_uint8
from adir.retrieval.builder import build_shard, extend_plan, finish, missing_shards, require_same_index, shard_path
from adir.retrieval.corpus import FolderCorpus
from adir.retrieval.duplicates import near_duplicates
from adir.retrieval.index import Index
from adir.retrieval.sharded import IndexedCorpus, ShardedIndex
from adir.retrieval.sources import FolderSource, Item, SourceDown


class Colours:
    """(B, 48) unit vectors of 4x4 colours; remembers how many pictures it has seen."""

    metric = "angular"
    input_size = 4

    def __init__(self, name="colours"):
        self.name, self.weights_sha256, self.seen = name, name * 8, 0

    def prepare(self, picture):
        return functional.adaptive_avg_pool2d(picture[None], 4)[0]

    def vectors(self, inputs):
        self.seen += len(inputs)
        return functional.normalize(inputs.flatten(1), dim=1)

    def image(self, batch):
        return self.vectors(torch.stack([self.prepare(picture) for picture in batch]))


def smooth(seed, height=32, width=40):
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path):
    """23 pictures of two sizes, of which 7.png is no picture."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number in range(23):
        smooth(number, 32, 40 if number % 3 else 32).save(folder / ("deep" if number % 2 else ".") / f"{number}.png")
    (folder / "deep/7.png").write_bytes(b"no picture")
    return folder


def build(folder, pictures, encoder=None, shard_size=5, shards=None):
    """Everything that is missing, or the first so many shards of it; how many pictures were embedded."""
    encoder, source = Colours() if encoder is None else encoder, FolderSource(pictures)
    require_same_index(folder, source, encoder)
    extend_plan(folder, source, shard_size)
    done = [build_shard(folder, number, source, encoder, 4) for number in missing_shards(folder)[:shards]]
    if not missing_shards(folder):
        finish(folder)
    return sum(one.pictures for one in done)


def test_the_index_on_disk_gives_the_neighbours_and_the_identity_of_the_one_in_memory(pictures, tmp_path):
    build(tmp_path / "index", pictures)
    corpus, indexed = FolderCorpus(pictures), IndexedCorpus(tmp_path / "index")
    assert indexed.sha256 == corpus.sha256 and indexed.ids == corpus.ids and len(indexed) == len(corpus) == 22
    assert indexed.manifest == corpus.manifest and indexed.rejects.keys() == corpus.rejects.keys() == {"deep/7.png"}
    memory = Index.build(corpus, Colours())
    queries = Colours().image(torch.rand(3, 3, 8, 8) * 2 - 1)
    hidden = [{"0.png"}, set(), {"2.png", "unknown"}]
    expected, distances = memory.search(queries, 20, hidden)
    found, again = indexed.index.search(queries, 20, hidden)
    assert found == expected and torch.equal(again, distances)
    assert all(torch.equal(indexed.image(name), corpus.image(name)) for name in corpus.ids)


def test_shards_hold_so_many_pictures_and_are_the_same_files_again(pictures, tmp_path):
    for folder in ("a", "b"):
        build(tmp_path / folder, pictures)
    assert [len(shard) for shard in ShardedIndex(tmp_path / "a").shards] == [5, 5, 5, 5, 2]  # the last less a reject
    for path in (tmp_path / "a/shards").iterdir():
        assert path.read_bytes() == (tmp_path / "b/shards" / path.name).read_bytes()


def test_a_build_goes_on_where_it_stopped_and_embeds_each_picture_once(pictures, tmp_path):
    encoder = Colours()
    build(tmp_path / "index", pictures, encoder, shards=2)
    with pytest.raises(InputError, match="not finished"):
        ShardedIndex(tmp_path / "index")
    build(tmp_path / "index", pictures, encoder)
    assert encoder.seen == 22
    build(tmp_path / "whole", pictures)
    assert read_json(tmp_path / "index/manifest.json") == read_json(tmp_path / "whole/manifest.json")


def test_pictures_added_later_cost_only_themselves(pictures, tmp_path):
    build(tmp_path / "index", pictures)
    before = {path.name: path.read_bytes() for path in (tmp_path / "index/shards").iterdir()}
    for name in ("0a.png", "deep/zz.png"):
        smooth(len(name) + 100).save(pictures / name)
    encoder = Colours()
    extend_plan(tmp_path / "index", FolderSource(pictures), 5)
    assert len(ShardedIndex(tmp_path / "index")) == 22  # until the new shard is there
    build(tmp_path / "index", pictures, encoder)
    assert encoder.seen == 2
    assert all((tmp_path / "index/shards" / name).read_bytes() == content for name, content in before.items())
    assert IndexedCorpus(tmp_path / "index").sha256 == FolderCorpus(pictures).sha256


def test_pictures_that_are_gone_stop_a_build(pictures, tmp_path):
    build(tmp_path / "index", pictures)
    (pictures / "0.png").unlink()
    with pytest.raises(InputError, match="1 of 23 parts of the corpus"):
        build(tmp_path / "index", pictures)
    corpus = IndexedCorpus(tmp_path / "index")
    with pytest.raises(InputError, match="no such picture any more"):
        corpus.image("0.png")
    smooth(99).save(pictures / "0.png")
    with pytest.raises(InputError, match="another picture"):
        corpus.image("0.png")
    with pytest.raises(KeyError):
        corpus.image("unknown")


def test_pictures_may_move(pictures, tmp_path):
    build(tmp_path / "index", pictures)
    moved = shutil.move(pictures, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no such folder"):
        IndexedCorpus(tmp_path / "index")
    assert IndexedCorpus(tmp_path / "index", {"path": moved}).image("0.png").shape == (3, 32, 32)
    with pytest.raises(InputError, match="no argument pfad; it has path"):
        IndexedCorpus(tmp_path / "index", {"pfad": moved})


def test_an_index_belongs_to_one_encoder(pictures, tmp_path):
    build(tmp_path / "index", pictures)
    with pytest.raises(InputError, match=r"made by encoder colours .*, asked is other"):
        build(tmp_path / "index", pictures, Colours("other"))
    with pytest.raises(InputError, match=r"made by encoder colours .* encoded by other"):
        ShardedIndex(tmp_path / "index").require_encoder(Colours("other"))
    with pytest.raises(InputError, match="holds other files"):
        build(pictures, pictures)


def test_damaged_and_foreign_shards_are_named(pictures, tmp_path):
    folder = tmp_path / "index"
    build(folder, pictures)
    path = shard_path(folder, 1)
    good = path.read_bytes()
    path.write_bytes(good[:-10])
    with pytest.raises(InputError, match=r"000001.*cut short"):
        ShardedIndex(folder)
    path.write_bytes(shard_path(folder, 0).read_bytes())
    with pytest.raises(InputError, match=r"000001.* is not the shard that manifest"):
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
    manifest["corpus"]["pictures"] += 1
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(InputError, match="tells of 23 pictures, its shards hold 22"):
        ShardedIndex(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        ShardedIndex(folder)


def test_a_source_that_is_down_stops_the_build_and_leaves_no_shard(pictures, tmp_path):
    folder, source = tmp_path / "index", FolderSource(pictures)
    extend_plan(folder, source, 50)

    def down(self):
        raise SourceDown("no network")

    load = type(
        "Down", (FolderSource,), {"items": lambda self, keys: (Item(key, lambda: down(self), {}) for key in keys)}
    )
    with pytest.raises(SourceDown):
        build_shard(folder, 0, load(pictures), Colours())
    assert missing_shards(folder) == [0]


def test_a_corpus_of_rejects_alone_says_why(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/x.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no picture could be read; the first of 1 rejects: x.png: not a picture"):
        build(tmp_path / "index", tmp_path / "pictures")


def test_copies_found_by_fingerprints_on_disk_are_those_found_in_memory(pictures, tmp_path):
    smooth(4).save(pictures / "copy.jpg", quality=80)
    smooth(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((80, 64)).save(pictures / "mirror.png")
    build(tmp_path / "index", pictures)
    corpus, indexed = FolderCorpus(pictures), IndexedCorpus(tmp_path / "index")
    x = from_uint8(np.array(smooth(4)))
    assert indexed.near_duplicates(x) == near_duplicates(x, corpus) == {"4.png", "copy.jpg", "mirror.png"}
    for name in corpus.ids[:6]:
        assert indexed.near_duplicates(corpus.image(name)) == near_duplicates(corpus.image(name), corpus)
