"""The neighbours of one test picture: found with y in the corpus's index, copies of the test picture left out."""

from dataclasses import dataclass
from pathlib import Path

import torch

from adir.adaptation.modes import Chosen
from adir.data.base import Corpus, NeighbourIndex
from adir.files import sha256_of_bytes
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.images import generator
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import crops
from adir.retrieval.query import query_picture


@dataclass(frozen=True)
class CorpusAround:
    """The corpus as a mode of adaptation sees it from one y (adir.adaptation.modes.Surroundings)."""

    cell: Cell
    corpus: Corpus
    y: torch.Tensor
    excluded: frozenset[str]
    """Copies of the test picture."""

    @property
    def ids(self) -> list[str]:
        """Every picture that may be chosen, sorted."""
        return [name for name in self.corpus.ids if name not in self.excluded]

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k pictures nearest to y in the encoder's measure, nearest first."""
        encoder, task = self.cell.encoder, self.cell.task
        assert encoder is not None
        index = corpus_index(self.corpus, encoder, Layout(self.cell.results).embeddings)
        query = task.query(encoder, query_picture(task, self.y, self.cell.feeding, encoder.input_size))
        ids, distances = index.search(query, k, exclude=[set(self.excluded)])
        return [Chosen(name, float(d)) for name, d in zip(ids[0], distances[0].tolist(), strict=True)]


def find_neighbours(
    cell: Cell, image_id: str, x: torch.Tensor | None, y: torch.Tensor
) -> tuple[list[Chosen], list[str]]:
    """Return (the K pictures that the mode adapts to, the corpus ids left out as copies of the test picture x).

    y alone is looked for, as x is unknown at test time. x serves only to keep itself out of a test's corpus, and is None
    for a user's own picture.
    """
    assert cell.corpus is not None
    excluded = left_out(cell, x) if x is not None else []
    around = CorpusAround(cell, cell.corpus, y, frozenset(excluded))
    drawn = generator(cell.seed, image_id, "random neighbours")
    return cell.mode.choose(around, cell.k, drawn), excluded


def left_out(cell: Cell, x: torch.Tensor) -> list[str]:
    """Ids of corpus pictures that are copies or crops of x, sorted: the same for `knn` and `random`."""
    assert cell.corpus is not None and cell.encoder is not None
    index = corpus_index(cell.corpus, cell.encoder, Layout(cell.results).embeddings)
    return sorted(cell.corpus.near_duplicates(x) | crops(x, cell.corpus, index, cell.encoder))


def is_embedded(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> bool:
    """Whether `corpus_index` finds the embeddings made."""
    return corpus.own_index(encoder) is not None or Index.path(corpus, encoder, cache_folder).is_file()


_indices: dict[str, Index] = {}


def corpus_index(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> NeighbourIndex:
    """The index of a corpus under an encoder: the one on disk that the corpus was opened with, or one in memory, built once
    per process and stored in `cache_folder` for the next. Raises InputError where the one on disk is by another encoder."""
    own = corpus.own_index(encoder)
    if own is not None:
        return own
    key = sha256_of_bytes(f"{corpus.sha256} {encoder.weights_sha256} {cache_folder}".encode())
    if key not in _indices:
        _indices[key] = Index.build(corpus, encoder, cache_folder)
    return _indices[key]
