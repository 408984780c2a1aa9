"""The neighbours of one test picture: found with y in the corpus's index, copies of the test picture left out."""

from dataclasses import dataclass
from pathlib import Path

import torch

from adir.data.base import Corpus, NeighbourIndex
from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.harness.cells.cell import Cell
from adir.images import generator
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import crops
from adir.retrieval.query import query_picture


@dataclass(frozen=True)
class Neighbour:
    """One picture that the backbone is adapted to. distance: in the encoder's own measure; None where none was taken."""

    id: str
    distance: float | None


def find_neighbours(
    cell: Cell, image_id: str, x: torch.Tensor | None, y: torch.Tensor
) -> tuple[list[Neighbour], list[str]]:
    """(the K neighbours, the corpus ids left out because they equal or nearly equal the test picture x).

    Looked for with y alone, as x is unknown at test time; x serves only to keep itself out of a test's corpus, and is
    None for a user's own picture.
    """
    corpus = cell.corpus
    assert corpus is not None
    excluded = left_out(cell, x) if x is not None else []
    if cell.mode == "random":
        eligible = [name for name in corpus.ids if name not in set(excluded)]
        if cell.k > len(eligible):
            raise InputError(
                f"K={cell.k} pictures asked, {len(eligible)} are left after leaving out copies of {image_id}"
            )
        order = torch.randperm(len(eligible), generator=generator(cell.seed, image_id, "random neighbours"))
        return [Neighbour(eligible[row], None) for row in order[: cell.k].tolist()], excluded
    assert cell.encoder is not None
    index = corpus_index(corpus, cell.encoder, cell.results / "embeddings")
    picture = query_picture(cell.task, y, cell.feeding, cell.encoder.input_size)
    query = cell.task.query(cell.encoder, picture)
    ids, distances = index.search(query, cell.k, exclude=[set(excluded)])
    return [Neighbour(name, float(d)) for name, d in zip(ids[0], distances[0].tolist(), strict=True)], excluded


def left_out(cell: Cell, x: torch.Tensor) -> list[str]:
    """Ids of corpus pictures that are copies or crops of x, sorted: the same for `knn` and `random`."""
    assert cell.corpus is not None and cell.encoder is not None
    index = corpus_index(cell.corpus, cell.encoder, cell.results / "embeddings")
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
