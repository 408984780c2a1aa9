"""The neighbours of one test image: found with y in the corpus's index, copies of the test image
left out.
"""

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
class CorpusAround:
    """The corpus as a mode of adaptation sees it from one y (adir.adaptation.modes.Surroundings)."""

    cell: Cell
    corpus: Corpus
    y: torch.Tensor
    excluded: frozenset[str]
    """Copies of the test image, and what the corpus withholds from it."""

    @property
    def ids(self) -> list[str]:
        """Every image that may be chosen, sorted.

        Of equal images, only the one with the smallest id may.
        """
        return [name for name in self.corpus.ids if name not in self.hidden]

    @property
    def hidden(self) -> frozenset[str]:
        """What may not be chosen."""
        return self.excluded | self.corpus.repeats

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images nearest to y in the encoder's measure, nearest first."""
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
    """Return (the K images that the mode adapts to, the corpus ids left out as copies of the test
    image x).

    y alone is looked for, as x is unknown at test time. x serves only to keep itself out of a
    test's corpus, and is None for a user's own image.
    """
    assert cell.corpus is not None
    excluded = left_out(cell.corpus, x) if x is not None else []
    withheld = cell.corpus.withheld(cell.data.cluster(image_id)) if x is not None else frozenset()
    around = CorpusAround(cell, cell.corpus, y, withheld.union(excluded))
    drawn = generator(cell.seed, image_id, "random neighbours")
    return cell.mode.choose(around, cell.k, drawn), excluded


def tuned_on(cell: Cell, chosen: list[str], excluded: Collection[str]) -> list[str]:
    """Return those of the chosen images, nearest first, that the fine-tuning takes.

    Args:
        cell: its fine-tuning may leave out images that lie too far from y.
        chosen: ids of the corpus.
        excluded: ids that could not be chosen, repeats aside.
    """
    if cell.corpus is None or not cell.mode.follows_y:
        return chosen
    n = len(cell.corpus) - len(cell.corpus.repeats.union(excluded))
    return chosen[: cell.fine_tuning.usable(len(chosen), n)]


def judging_images(
    cell: Cell, image_id: str, chosen: list[str], excluded: Collection[str]
) -> list[str]:
    """Return ids of corpus images, drawn at random, by which the fine-tuning on a single image is
    judged besides.
    """
    if cell.corpus is None or len(chosen) != 1:
        return []
    hidden = cell.corpus.repeats.union(excluded, chosen)
    ids = [name for name in cell.corpus.ids if name not in hidden]
    drawn = torch.randperm(len(ids), generator=generator(cell.seed, image_id, "held-out images"))
    return [ids[row] for row in drawn[: cell.fine_tuning.n_others].tolist()]


_copies: dict[tuple[str, str], list[str]] = {}
"""Cells of several tasks and modes ask for the same."""


def left_out(corpus: Corpus, x: torch.Tensor) -> list[str]:
    """Return the ids of corpus images that are copies of x, sorted: the same for all modes."""
    key = (corpus.sha256, hash_of_image(x))
    if key not in _copies:
        _copies[key] = sorted(copies(x, corpus))
    return _copies[key]


ROOM = 100
"""A corpus this much larger than K is taken to be large enough without counting the copies of each
test image.
"""


def require_enough(cell: Cell) -> None:
    """Raise InputError where the corpus holds fewer than K images for a test image: equal ones
    count once, copies of the test image not at all. Embeds nothing.
    """
    if cell.corpus is None:
        return
    repeats, image_id = cell.corpus.repeats, None
    left = len(cell.corpus) - len(repeats)
    if cell.corpus.withholds is not None or cell.k <= left < cell.k + ROOM:
        left, image_id = min(
            (left_for(cell, cell.corpus, image_id), image_id) for image_id in cell.data.ids
        )
    if cell.k > left:
        kept_out = "copies" if cell.corpus.withholds is None else "copies and withheld images"
        copies_too = "" if image_id is None else f"{kept_out} of test image {image_id} and "
        raise InputError(
            f"K={cell.k} neighbours asked, but without {copies_too}repeats {left} of "
            f"{len(cell.corpus)} corpus images are "
            "left: lower K or enlarge the corpus"
        )


def left_for(cell: Cell, corpus: Corpus, image_id: str) -> int:
    """Return how many images of the corpus a test image may have: no repeats, copies of it or
    withheld ones.
    """
    withheld = corpus.withheld(cell.data.cluster(image_id))
    return len(corpus) - len(
        withheld.union(corpus.repeats, left_out(corpus, cell.data.image(image_id)))
    )


def is_embedded(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> bool:
    """Return whether `corpus_index` would find stored embeddings."""
    return (
        corpus.own_index(encoder) is not None or Index.path(corpus, encoder, cache_folder).is_file()
    )


_indices: dict[tuple[str, str, Path], Index] = {}
"""{(corpus, encoder, folder): index}.

By hash of content, as a user's own encoder may be unhashable.
"""


def corpus_index(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> NeighbourIndex:
    """Return the index on disk that the corpus was opened with, or else one in memory.

    The latter is built once per process and stored in `cache_folder` for the next. Raises
    InputError if the index on disk was made by another encoder.
    """
    own = corpus.own_index(encoder)
    key = (corpus.sha256, encoder.weights_sha256, cache_folder)
    if own is None and key not in _indices:
        _indices[key] = Index.build(corpus, encoder, cache_folder)
    return own if own is not None else _indices[key]
