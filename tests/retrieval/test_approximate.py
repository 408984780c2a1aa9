"""faiss proposes, we measure: the distances are exact, the recall is what it is, and it is never used for little."""

import pytest
import torch
from torch.nn import functional

from adir.errors import InputError
from adir.images import write_png
from adir.retrieval.approximate import ApproximateIndex, recall
from adir.retrieval.builder import build_shard, extend_plan, finish, require_same_index
from adir.retrieval.encoders import PixelEncoder
from adir.retrieval.index import Index
from adir.retrieval.sharded import IndexedCorpus
from adir.retrieval.sources import FolderSource

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def exact():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 32, generator=g)
    vectors = centres[torch.arange(4000) % 40] + 0.5 * torch.randn(4000, 32, generator=g)
    return Index([f"{row:04d}" for row in range(4000)], functional.normalize(vectors, dim=1).half())


QUERIES = functional.normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), dim=1)


def test_with_every_list_and_many_proposals_it_is_the_exact_search(exact):
    whole = ApproximateIndex(exact, n_lists=16, n_bytes=8, n_probe=16, n_proposed=4000, least=0)
    expected, distances = exact.search(QUERIES, 10, [{"0000"}] * 8)
    found, again = whole.search(QUERIES, 10, [{"0000"}] * 8)
    assert found == expected and torch.equal(again, distances)
    assert recall(exact, whole, QUERIES, 10) == 1


def test_recall_is_the_share_that_is_found(exact):
    rough = ApproximateIndex(exact, n_lists=16, n_bytes=8, n_probe=1, n_proposed=40, least=0)
    true, found = exact.search(QUERIES, 10)[0], rough.search(QUERIES, 10)[0]
    share = sum(name in row for row, names in zip(true, found, strict=True) for name in names) / 80
    assert 0 < share < 1 and recall(exact, rough, QUERIES, 10) == pytest.approx(share)


def test_it_is_refused_where_the_exact_search_does(exact):
    with pytest.raises(InputError, match="4000 pictures: below 10000000 use the exact one"):
        ApproximateIndex(exact)
    with pytest.raises(InputError, match="divide the 32 dimensions"):
        ApproximateIndex(exact, n_bytes=7, least=0)


def test_a_corpus_may_ask_for_it_is_another_corpus_then_and_keeps_the_recall(tmp_path):
    pictures = tmp_path / "pictures"
    for number, x in enumerate(torch.rand(300, 3, 6, 6) * 2 - 1):
        write_png(pictures / f"{number:03d}.png", x)
    require_same_index(tmp_path / "index", FolderSource(pictures), PixelEncoder(4))
    extend_plan(tmp_path / "index", FolderSource(pictures), 200)
    for number in (0, 1):
        build_shard(tmp_path / "index", number, FolderSource(pictures), PixelEncoder(4))
    finish(tmp_path / "index")
    exact = IndexedCorpus(tmp_path / "index")
    asked = {"n_lists": 4, "n_bytes": 8, "n_probe": 4, "n_proposed": 300, "least": 0}
    for _ in range(2):  # the second time faiss's part is read
        corpus = IndexedCorpus(tmp_path / "index", approximate=asked)
        assert corpus.sha256 != exact.sha256
        queries = PixelEncoder(4).image(corpus.image("000.png")[None])
        assert corpus.searcher.search(queries, 9)[0] == exact.searcher.search(queries, 9)[0]
        assert corpus.recall == 1
    assert len(list((tmp_path / "index").glob("approximate-*"))) == 2
    with pytest.raises(InputError, match="use the exact one"):
        _ = IndexedCorpus(tmp_path / "index", approximate={}).searcher
