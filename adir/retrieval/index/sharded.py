"""The index on disk, and the corpus whose images and embeddings it lists."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from adir.data.base import Corpus, EncoderIdentity
from adir.data.corpus import read_again
from adir.data.sources.base import Source
from adir.data.sources.folder import FolderSource
from adir.data.sources.open_images import OpenImagesSource, OpenImagesTars
from adir.data.sources.tables import DatasetSource, ParquetSource
from adir.data.sources.tars import TarSource
from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes, write_json
from adir.retrieval.index.approximate import ApproximateIndex, recall
from adir.retrieval.index.builder import read_facts
from adir.retrieval.index.search import VectorIndex
from adir.retrieval.index.shards import Shard

SOURCES: dict[str, type[Source]] = {
    source.kind: source
    for source in (
        FolderSource,
        TarSource,
        ParquetSource,
        DatasetSource,
        OpenImagesSource,
        OpenImagesTars,
    )
}


def open_source(description: Mapping[str, Any], moved: Mapping[str, Any]) -> Source:
    """Open the image source of an index.

    Args:
        description: the entry `source` of index.json, with kind and constructor arguments.
        moved: constructor arguments that replace those in index.json, such as a new path.
    """
    kind, arguments = description["kind"], description["arguments"]
    unknown = sorted(set(moved) - set(arguments))
    if unknown:
        raise InputError(
            f"image source of kind {kind} has no argument {', '.join(unknown)}; choose from "
            f"{', '.join(arguments)}"
        )
    return SOURCES[kind](**(arguments | dict(moved)))


class ShardedIndex(VectorIndex):
    """Finished index on disk, whose shards are mapped into memory.

    The constructor compares the headers of the shards with manifest.json. It raises InputError if
    the folder has no finished index, or if a shard is missing, truncated or different from its
    entry in manifest.json. The data are read and checked only by `damage`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").is_file():
            begun = (self.folder / "index.json").is_file()
            state = (
                "the index is not finished; run `adir index build` again"
                if begun
                else "the folder holds no index; create one with `adir index build`"
            )
            raise InputError(f"{folder}: {state}")
        self.manifest = read_facts(self.folder / "manifest.json")
        self.encoder: dict[str, str] = self.manifest["encoder"]
        self.metric = self.encoder["metric"]
        shards: list[Shard] = []
        for entry in self.manifest["shards"]:
            shard = Shard.open(self.folder / "shards" / entry["file"])
            if shard.sha256 != entry["sha256"] or len(shard) != entry["images"]:
                raise InputError(
                    f"{shard.path}: checksum or number of images differs from manifest.json; "
                    f"{BUILD}"
                )
            shards.append(shard)
        self.shards = [shard for shard in shards if len(shard)]
        self.rejecting = [shard for shard in shards if shard.rejects]
        self.parts = [shard.part for shard in self.shards]
        self._ends = np.cumsum([len(shard) for shard in self.shards])

    def ids_of(self, rows: np.ndarray) -> list[str]:
        numbers = np.searchsorted(self._ends, rows, side="right").tolist()
        first = [0, *self._ends.tolist()]
        return [
            self.shards[n].id(row - first[n]) for n, row in zip(numbers, rows.tolist(), strict=True)
        ]

    def find(self, image_id: str) -> tuple[Shard, int]:
        """Return the shard that holds an image, and the image's row in the shard.

        Raises KeyError if the image is not in the index.
        """
        for shard in self.shards:
            row = shard.row(image_id)
            if row is not None:
                return shard, row
        raise KeyError(image_id)

    def require_encoder(self, encoder: EncoderIdentity) -> None:
        """Raise InputError if the index was built with another encoder."""
        if self.encoder["weights_sha256"] != encoder.weights_sha256:
            raise InputError(
                f"index {self.folder} was built with encoder {self.encoder['name']} "
                f"({self.encoder['weights_sha256'][:10]}), but the configured encoder is "
                f"{encoder.name} ({encoder.weights_sha256[:10]}); configure the encoder of the "
                "index, or build another index"
            )

    def damage(self) -> list[str]:
        """Read all data and return one line per shard whose checksum is wrong."""
        return [
            f"{shard.path}: {problem}"
            for shard in self.shards
            if (problem := shard.damage()) is not None
        ]


QUERIES = 50
"""Number of queries with which the recall of approximate search is measured."""
BUILD = (
    "copy the index here again as a whole, or remove manifest.json and run `adir index build` again"
)


class IndexedCorpus(Corpus):
    """Corpus of the images in a finished index on disk.

    Ids and hashes come from the index. An image is read from the image source when it is needed,
    and its file is checked against the SHA-256 in the index.

    Args:
        folder: folder of the index.
        images: constructor arguments of the image source that replace those in index.json, such as
            {path: FOLDER} if the images have moved.
        approximate: arguments of `ApproximateIndex`, for more than ten million images. None selects
            exact search. The arguments can change the neighbours, so they enter the corpus's
            sha256.
    """

    def __init__(
        self,
        folder: str | Path | None,
        images: Mapping[str, Any] | None = None,
        approximate: Mapping[str, Any] | None = None,
    ) -> None:
        if folder is None:
            raise InputError(
                "an index is needed: set index=FOLDER (`adir index build` creates an index)"
            )
        self.index = ShardedIndex(folder)
        description = self.index.manifest["source"]
        self.source = open_source(description, {} if images is None else images)
        self.name, self.sha256 = description["name"], self.index.manifest["corpus"]["sha256"]
        self.categories = {}
        self.approximate = None if approximate is None else dict(approximate)
        self.searcher: VectorIndex = self.index
        """The exact or the approximate index, whichever is searched."""
        self._recall_file: Path | None = None
        if self.approximate is not None:
            self.sha256 = sha256_of_bytes(
                json.dumps([self.sha256, self.approximate], sort_keys=True).encode()
            )
            # The trained index depends on the vectors, n_lists and n_bytes only, but the recall in
            # the file beside it depends on all arguments.
            made_of = [
                [entry["sha256"] for entry in self.index.manifest["shards"]],
                self.approximate,
            ]
            name = sha256_of_bytes(json.dumps(made_of, sort_keys=True).encode())[:16]
            stored = self.index.folder / f"approximate-{name}.faiss"
            self.searcher = ApproximateIndex(self.index, stored=stored, **self.approximate)
            self._recall_file = stored.with_suffix(".json")

    def __len__(self) -> int:
        return len(self.index)

    def own_index(self, encoder: EncoderIdentity) -> VectorIndex:
        self.index.require_encoder(encoder)
        return self.searcher

    def recall(self, k: int) -> float | None:
        """Return recall@K of the approximate search; None if the search is exact.

        The recall is measured once per K and cached in approximate-*.json, beside the faiss index.
        """
        path = self._recall_file
        if path is None:
            return None
        known = read_json(path) if path.exists() else {}
        shares = known.get("recall", {})
        if str(k) not in shares:
            shares[str(k)] = recall(self.index, self.searcher, k, QUERIES)
            write_json(
                path, {"arguments": self.approximate, "n_queries": QUERIES, "recall": shares}
            )
        return float(shares[str(k)])

    # The base class's constructor computes these. Here they are computed on demand, because most
    # cells never need them.
    @cached_property
    def ids(self) -> list[str]:  # type: ignore[override]
        return sorted(name for shard in self.index.shards for name in shard.ids())

    @cached_property
    def manifest(self) -> dict[str, str]:  # type: ignore[override]
        return {
            shard.id(row): shard.image_sha256(row)
            for shard in self.index.shards
            for row in range(len(shard))
        }

    @cached_property
    def rejects(self) -> dict[str, str]:  # type: ignore[override]
        return {
            name: reason for shard in self.index.rejecting for name, reason in shard.rejects.items()
        }

    @cached_property
    def fingerprints(self) -> Sequence[np.ndarray]:
        return [shard.columns["fingerprint"] for shard in self.index.shards]

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return self.index.ids_of(rows)

    def attribution(self, image_id: str) -> dict[str, str]:
        shard, row = self.index.find(image_id)
        return shard.attribution(row)

    def image(self, image_id: str) -> Tensor:
        shard, row = self.index.find(image_id)
        remedy = f"build the index {self.index.folder} again"
        return read_again(self.source, image_id, shard.image_sha256(row), remedy)
