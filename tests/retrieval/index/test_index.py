"""Search against a full sort written out, and stored embeddings that are found, damaged and built
again.
"""

import errno
import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from adir.data.base import Corpus
from adir.errors import InputError
from adir.retrieval.index.memory import Index


def unit(n, d=16, seed=0):
    return functional.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def names(n, seed=0):
    return [f"p{number:04d}" for number in np.random.default_rng(seed).permutation(n)]


def full_sort(ids, embeddings, query, k, hidden=()):
    """[(distance, id)]: arccos in float64, sorted in Python."""
    cosines = (embeddings.double() @ query.double()).clamp(-1, 1).tolist()
    return sorted(
        (math.acos(c), name) for c, name in zip(cosines, ids, strict=True) if name not in hidden
    )[:k]


def test_search_equals_a_full_sort():
    ids, embeddings, queries = names(300), unit(300), unit(5, seed=1)
    exclude = [set(), {ids[3]}, set(ids[:250]), {"unknown"}, set(ids[::2])]
    found, distances = Index(ids, embeddings).search(queries, 20, exclude)
    assert distances.dtype == torch.float32 and distances.shape == (5, 20)
    for row, query in enumerate(queries):
        expected = full_sort(ids, embeddings, query, 20, exclude[row])
        assert found[row] == [name for _, name in expected]
        np.testing.assert_allclose(
            distances[row], [distance for distance, _ in expected], atol=1e-6
        )


def test_equal_distances_are_ordered_by_id_whatever_the_order_of_the_corpus():
    rows = unit(4).repeat_interleave(5, dim=0)  # four places, five images at each
    for seed in range(3):
        ids = names(20, seed)
        found, distances = Index(ids, rows).search(rows[:1], 20)
        assert found[0][:5] == sorted(ids[:5])
        assert distances[0, :5].tolist() == [0.0] * 5
        for place in range(0, 20, 5):
            assert found[0][place : place + 5] == sorted(found[0][place : place + 5])


def test_near_neighbours_are_told_apart():
    # 1e-4 and 2e-4 radians: in float32 both cosines round to 1, and a search by dot products could
    # not order them.
    angles = [2e-4, 1e-4, 0.0]
    embeddings = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    found, distances = Index(["a", "b", "c"], embeddings).search(torch.tensor([[1.0, 0.0]]), 3)
    assert found == [["c", "b", "a"]]
    np.testing.assert_allclose(distances[0], [0.0, 1e-4, 2e-4], rtol=1e-3)


def test_a_query_finds_the_same_alone_and_in_a_batch():
    index, queries = Index(names(200), unit(200)), unit(6, seed=2)
    found, distances = index.search(queries, 7)
    for row in range(6):
        alone, distance = index.search(queries[row : row + 1], 7)
        assert alone == [found[row]] and torch.equal(distance[0], distances[row])


def test_euclidean_search_measures_lengths():
    embeddings = torch.randn(50, 3) * 5
    found, distances = Index(names(50), embeddings, "euclidean").search(embeddings[:1] + 1, 50)
    expected = np.sort(np.linalg.norm(embeddings.numpy() - embeddings[0].numpy() - 1, axis=1))
    np.testing.assert_allclose(distances[0], expected, rtol=1e-5)
    assert len(set(found[0])) == 50


@pytest.mark.parametrize(
    "k, exclude, message",
    [
        (0, None, "at least 1"),
        (-1, None, "at least 1"),
        (11, None, "corpus has 10 images"),
        (8, [{"p0000", "p0001", "p0002"}], "only 7 of 10 candidate images remain"),
    ],
)
def test_too_many_or_too_few_neighbours_raise(k, exclude, message):
    with pytest.raises(InputError, match=message):
        Index(names(10), unit(10)).search(unit(1), k, exclude)


def test_all_that_remain_can_be_asked_for():
    found, _ = Index(names(10), unit(10)).search(unit(1), 7, [{"p0000", "p0001", "p0002"}])
    assert sorted(found[0]) == [f"p{number:04d}" for number in range(3, 10)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_queries_that_are_not_finite_raise(bad):
    query = unit(1)
    query[0, 0] = bad
    with pytest.raises(InputError, match="NaN or Inf"):
        Index(names(10), unit(10)).search(query, 1)


def test_an_index_refuses_what_it_cannot_search():
    with pytest.raises(ValueError, match="unknown metric 'cosine'"):
        Index(names(4), unit(4), "cosine")
    with pytest.raises(ValueError, match="unit"):
        Index(names(4), 2 * unit(4))
    with pytest.raises(ValueError, match="repeat"):
        Index(["a", "a"], unit(2))
    with pytest.raises(ValueError, match="3 ids"):
        Index(names(3), unit(2))
    with pytest.raises(ValueError, match="NaN"):
        Index(names(2), torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="exclusion"):
        Index(names(2), unit(2)).search(unit(2), 1, [set()])


class Patches(Corpus):
    """Seven random images, of three sizes."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.images = {
            f"{n}.png": torch.rand(3, 8 + n % 3, 9, generator=g) * 2 - 1 for n in range(7)
        }
        super().__init__(
            "patches", {name: str(x.sum().item()) for name, x in self.images.items()}, {}
        )

    def image(self, image_id):
        return self.images[image_id]


class MeanColour:
    """Unit vectors of mean colours; counts the images it sees."""

    name, metric = "mean", "angular"

    def __init__(self, weights_sha256="w"):
        self.weights_sha256, self.seen = weights_sha256, 0

    def prepare(self, image):
        return image.mean((1, 2))

    def vectors(self, inputs):
        self.seen += len(inputs)
        return functional.normalize(inputs, dim=1)

    def image(self, batch):
        return self.vectors(batch.mean((2, 3)))


def test_build_embeds_each_image_under_its_own_id():
    corpus = Patches()
    index = Index.build(corpus, MeanColour())
    for name, x in corpus.images.items():
        found, distances = index.search(MeanColour().image(x[None]), 1)
        assert found == [[name]] and distances.item() < 2**-11  # the rounding of float16


def test_stored_embeddings_are_found_again_by_corpus_and_encoder(tmp_path):
    first = Index.build(Patches(), MeanColour(), tmp_path)
    again = MeanColour()
    second = Index.build(Patches(), again, tmp_path)
    assert again.seen == 0
    assert second.ids == first.ids and torch.equal(second.embeddings, first.embeddings)
    for corpus, encoder in (
        (Patches(seed=1), MeanColour()),
        (Patches(), MeanColour("other weights")),
    ):
        Index.build(corpus, encoder, tmp_path)
        assert encoder.seen == 7
    assert len(list(tmp_path.iterdir())) == 3


def flip_one_bit(content):
    """The lowest bit of the last number's mantissa: every vector keeps unit length."""
    return content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-3],
        lambda content: b"",
        lambda content: b"junk" * 100,
        flip_one_bit,
    ],
    ids=["truncated", "empty", "junk", "one bit"],
)
def test_a_damaged_file_is_named_put_aside_and_built_again(tmp_path, damage):
    good = Index.build(Patches(), MeanColour(), tmp_path)
    (path,) = tmp_path.iterdir()
    damaged = damage(path.read_bytes())
    for times in (1, 2):  # what was set aside the first time stays
        path.write_bytes(damaged)
        messages = []
        rebuilt = Index.build(Patches(), MeanColour(), tmp_path, messages.append)
        assert torch.equal(rebuilt.embeddings, good.embeddings)
        asides = list(tmp_path.glob(f"{path.name}.corrupt-*"))
        assert [aside.read_bytes() for aside in asides] == [damaged] * times
        assert len(messages) == 1 and str(path) in messages[0]
        assert any(aside.name in messages[0] for aside in asides)
    again = MeanColour()
    assert (
        torch.equal(Index.build(Patches(), again, tmp_path).embeddings, good.embeddings)
        and again.seen == 0
    )


def test_the_warning_is_one_line(tmp_path):
    Index.build(Patches(), MeanColour(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"junk")
    with pytest.warns(UserWarning, match=path.name) as caught:
        Index.build(Patches(), MeanColour(), tmp_path)
    (warning,) = caught
    line = warnings.formatwarning(
        warning.message, warning.category, warning.filename, warning.lineno
    )
    assert line.count("\n") == 1


def test_embeddings_that_cannot_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    Index.build(Patches(), MeanColour(), tmp_path)
    (path,) = tmp_path.iterdir()

    def fail(self):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "read_bytes", fail)
        with pytest.raises(OSError, match="Input/output"):
            Index.build(Patches(), MeanColour(), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_embeddings_that_another_process_has_set_aside_are_missing(tmp_path, monkeypatch):
    good = Index.build(Patches(), MeanColour(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    monkeypatch.setattr(type(path), "exists", lambda self: True)  # as it was a moment ago
    assert torch.equal(Index.build(Patches(), MeanColour(), tmp_path).embeddings, good.embeddings)
    assert list(tmp_path.iterdir()) == [path]
