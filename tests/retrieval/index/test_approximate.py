"""faiss proposes, we measure: the distances are exact, the recall is what it is, and it is never
used for little.
"""

import sys

import pytest
import torch
from torch.nn import functional

from adir.data.sources.folder import FolderSource
from adir.errors import InputError
from adir.files import read_json
from adir.images import write_png
from adir.retrieval.encoders.pixel import PixelEncoder
from adir.retrieval.index.approximate import ApproximateIndex, recall
from adir.retrieval.index.builder import build_shard, extend_plan, finish, require_same_index
from adir.retrieval.index.memory import Index
from adir.retrieval.index.sharded import IndexedCorpus

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def exact():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 32, generator=g)
    vectors = centres[torch.arange(4000) % 40] + 0.5 * torch.randn(4000, 32, generator=g)
    return Index([f"{row:04d}" for row in range(4000)], functional.normalize(vectors, dim=1).half())


QUERIES = functional.normalize(
    torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), dim=1
)


def test_with_every_list_and_many_proposals_it_is_the_exact_search(exact):
    whole = ApproximateIndex(exact, n_lists=16, n_bytes=8, n_probe=16, n_proposed=4000, least=0)
    expected, distances = exact.search(QUERIES, 10, [{"0000"}] * 8)
    found, again = whole.search(QUERIES, 10, [{"0000"}] * 8)
    assert found == expected and torch.equal(again, distances)
    assert recall(exact, whole, 10, 20) == 1


@pytest.mark.parametrize("k", [1, 10])
def test_recall_is_the_share_that_is_found_of_the_others(exact, k):
    # of which one is the image itself
    rough = ApproximateIndex(exact, n_lists=16, n_bytes=8, n_probe=1, n_proposed=k + 1, least=0)
    # By brute force: 8 images at equal steps through all, each left out of its own neighbours.
    vectors, shares = exact.embeddings.float(), []
    for row in [0, 571, 1142, 1713, 2285, 2856, 3427, 3999]:
        products = vectors @ vectors[row]
        products[row] = -2
        found = rough.search(vectors[row : row + 1], k, [{exact.ids[row]}])[0][0]
        shares += [exact.ids[near] in found for near in products.topk(k).indices.tolist()]
    assert recall(exact, rough, k, 8) == pytest.approx(sum(shares) / len(shares))
    assert (
        0 < recall(exact, rough, k, 50) < 1
    )  # also for K = 1, where an image that may find itself always does


def test_it_is_refused_where_the_exact_search_does(exact, monkeypatch):
    with pytest.raises(
        InputError, match="at least 10000000 images, and this corpus has 4000: use the exact"
    ):
        ApproximateIndex(exact)
    with pytest.raises(InputError, match="divide the embedding dimension, 32"):
        ApproximateIndex(exact, n_bytes=7, least=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="pip install faiss-cpu"):
        ApproximateIndex(exact, least=0)


def test_a_corpus_may_ask_for_it_is_another_corpus_then_and_keeps_the_recall(tmp_path, monkeypatch):
    images = tmp_path / "images"
    for number, x in enumerate(torch.rand(300, 3, 6, 6) * 2 - 1):
        write_png(images / f"{number:03d}.png", x)
    require_same_index(tmp_path / "index", FolderSource(images), PixelEncoder(4))
    extend_plan(tmp_path / "index", FolderSource(images), 200)
    for number in (0, 1):
        build_shard(tmp_path / "index", number, FolderSource(images), PixelEncoder(4))
    finish(tmp_path / "index")
    exact = IndexedCorpus(tmp_path / "index")
    assert exact.recall(9) is None
    asked = {"n_lists": 4, "n_bytes": 8, "n_probe": 4, "n_proposed": 300, "least": 0}
    for _ in range(2):  # the second time faiss's part is read
        corpus = IndexedCorpus(tmp_path / "index", approximate=asked)
        assert corpus.sha256 != exact.sha256
        queries = PixelEncoder(4).image(corpus.image("000.png")[None])
        assert corpus.searcher.search(queries, 9)[0] == exact.searcher.search(queries, 9)[0]
        assert corpus.recall(9) == corpus.recall(3) == 1
    (kept,) = (tmp_path / "index").glob("approximate-*.json")
    assert read_json(kept) == {"arguments": asked, "n_queries": 50, "recall": {"9": 1.0, "3": 1.0}}
    monkeypatch.setattr(ApproximateIndex, "_trained", None)  # refused before anything is trained
    with pytest.raises(InputError, match="use the exact search"):
        IndexedCorpus(tmp_path / "index", approximate={})
