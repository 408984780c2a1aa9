"""Choose the corpus images to adapt to for one test image, leaving out copies of that image."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from adir.adaptation.modes import Chosen
from adir.data.base import Corpus, NeighbourIndex
from adir.errors import InputError
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.images import generator, hash_of_image
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import copies
from adir.retrieval.query import query_image


@dataclass(frozen=True)
class CellCorpus:
    """Images of a corpus that an adaptation mode may choose from for one measurement y.

    It implements adir.adaptation.modes.CorpusView.
    """

    cell: Cell
    corpus: Corpus
    y: torch.Tensor
    excluded: frozenset[str]
    """The ids of copies of the test image, and of images that the corpus withholds from it."""

    @property
    def ids(self) -> list[str]:
        """The ids of all images that may be chosen, sorted.

        Of identical images, only the one with the smallest id may be chosen.
        """
        return [name for name in self.corpus.ids if name not in self.hidden]

    @property
    def hidden(self) -> frozenset[str]:
        """The ids of the images that must not be chosen."""
        return self.excluded | self.corpus.repeats

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images nearest to y by the encoder's distance, nearest first.

        Edits that search by prompt use the distance to the prompt instead.
        """
        encoder, task = self.cell.encoder, self.cell.task
        assert encoder is not None
        index = corpus_index(self.corpus, encoder, Layout(self.cell.results).embeddings)
        query = task.query(encoder, query_image(task, self.y, self.cell.query, encoder.input_size))
        ids, distances = index.search(query, k, exclude=[self.hidden])
        return [
            Chosen(name, float(d)) for name, d in zip(ids[0], distances[0].tolist(), strict=True)
        ]


def find_neighbours(
    cell: Cell, image_id: str, x: torch.Tensor | None, y: torch.Tensor
) -> tuple[list[Chosen], list[str]]:
    """Return (the K images to adapt to, ids of the corpus images that are copies of x).

    The test image x is unknown at test time, so the search uses its measurement y. x serves only to
    exclude its copies and the images that the corpus withholds from it (`Corpus.withheld`). For a
    user's own image, x is None, and only repeated images of the corpus are excluded.
    """
    assert cell.corpus is not None
    found = copies_of(cell.corpus, x) if x is not None else []
    excluded = excluded_ids(cell, image_id, found) if x is not None else frozenset()
    around = CellCorpus(cell, cell.corpus, y, excluded)
    drawn = generator(cell.seed, image_id, "random neighbours")
    return cell.mode.choose(around, cell.k, drawn), found


def excluded_ids(cell: Cell, image_id: str, copies: Collection[str]) -> frozenset[str]:
    """Return the ids of the corpus images that a test image must not use.

    They are its copies, and the images that the corpus withholds from its cluster.

    Args:
        cell: the cell, for its data set and corpus.
        image_id: id of the test image.
        copies: ids of the copies of the test image.
    """
    if cell.corpus is None:
        return frozenset(copies)
    return cell.corpus.withheld(cell.data.cluster(image_id)).union(copies)


def training_ids(cell: Cell, chosen: list[str], excluded: Collection[str]) -> list[str]:
    """Return the ids of the chosen images that the fine-tuning uses, nearest first.

    If the mode searches by y, the fine-tuning may leave out images that are too far from y.

    Args:
        cell: the cell, for its corpus, mode and fine-tuning.
        chosen: ids of corpus images, nearest first.
        excluded: ids of the corpus images that the test image must not use; see `excluded_ids`.
    """
    if cell.corpus is None or not cell.mode.depends_on_y:
        return chosen
    n = n_usable(cell.corpus, excluded)
    return chosen[: cell.fine_tuning.n_training_images(len(chosen), n)]


def n_usable(corpus: Corpus, excluded: Collection[str]) -> int:
    """Return the number of corpus images that are neither excluded nor repeated."""
    return len(corpus) - len(corpus.repeats.union(excluded))


def validation_images(
    cell: Cell, image_id: str, chosen: list[str], excluded: Collection[str]
) -> list[str]:
    """Return ids of random corpus images for validating an adapter trained on one corpus image.

    The list is empty if the mode uses no corpus, or if the adapter is trained on several images.
    """
    if cell.corpus is None or len(chosen) != 1:
        return []
    hidden = cell.corpus.repeats.union(excluded, chosen)
    ids = [name for name in cell.corpus.ids if name not in hidden]
    drawn = torch.randperm(len(ids), generator=generator(cell.seed, image_id, "held-out images"))
    return [ids[row] for row in drawn[: cell.fine_tuning.n_extra_images].tolist()]


_copies: dict[tuple[str, str], list[str]] = {}
"""The cache of `copies_of`: {(corpus hash, image hash): ids of copies}.

Cells of several tasks and modes need the same entries.
"""


def copies_of(corpus: Corpus, x: torch.Tensor) -> list[str]:
    """Return the sorted ids of corpus images that are copies of x.

    The copies are the same for all adaptation modes.
    """
    key = (corpus.sha256, hash_of_image(x))
    if key not in _copies:
        _copies[key] = sorted(copies(x, corpus))
    return _copies[key]


ROOM = 100
"""The number of images beyond K with which a corpus counts as large enough.

`require_enough` then does not search for copies of test images, if the corpus withholds no images.
"""


def require_enough(cell: Cell) -> None:
    """Raise InputError if the corpus has fewer than K usable images for some test image.

    Identical images count once. Copies of the test image, and images that the corpus withholds from
    it, do not count. The check computes no embeddings.
    """
    if cell.corpus is None:
        return
    left, image_id = n_usable(cell.corpus, ()), None
    if cell.corpus.withholds is not None or cell.k <= left < cell.k + ROOM:
        excluded = (
            (excluded_ids(cell, name, copies_of(cell.corpus, cell.data.image(name))), name)
            for name in cell.data.ids
        )
        left, image_id = min((n_usable(cell.corpus, ids), name) for ids, name in excluded)
    if cell.k > left:
        withheld = "" if cell.corpus.withholds is None else " and images withheld from it"
        copies_too = "" if image_id is None else f", copies of test image {image_id}{withheld}"
        raise InputError(
            f"K={cell.k} neighbours requested, but only {left} of {len(cell.corpus)} corpus images "
            f"remain after excluding repeated images{copies_too}; lower K or enlarge the corpus"
        )


def is_embedded(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> bool:
    """Return whether the corpus has an index on disk or cached embeddings."""
    return (
        corpus.own_index(encoder) is not None or Index.path(corpus, encoder, cache_folder).is_file()
    )


_indices: dict[tuple[str, str, Path], Index] = {}
"""The in-memory indices of this process: {(corpus hash, encoder hash, folder): index}.

The keys are hashes, because a user's own encoder may be unhashable.
"""


def corpus_index(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> NeighbourIndex:
    """Return the index on disk that the corpus was opened with, or else an index in memory.

    An index in memory is built once per process and cached in `cache_folder` for other processes.

    Raises:
        InputError: if the index on disk was made with another encoder.
    """
    own = corpus.own_index(encoder)
    key = (corpus.sha256, encoder.weights_sha256, cache_folder)
    if own is None and key not in _indices:
        _indices[key] = Index.build(corpus, encoder, cache_folder)
    return own if own is not None else _indices[key]
