"""The index in memory, for corpora whose embeddings fit in memory.

The index on disk is in `sharded.py`. Both indexes search the same float16 embeddings with the same
code, so they return the same neighbours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adir.data.base import Corpus
from adir.files import (
    safetensors_metadata,
    set_aside,
    sha256_of_bytes,
    warn_in_one_line,
    write_bytes,
)
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.search import VectorIndex, part_of


class Index(VectorIndex):
    """Exact nearest-neighbour index in memory.

    Args:
        ids: N ids in any order.
        embeddings: (N, D), in the order of the ids. Their data type is kept; `build` passes
            float16, as in the index on disk.
        metric: "angular" for unit vectors, or "euclidean".

    Raises:
        ValueError: if the metric is unknown, an id is repeated, the shape is wrong, a value is not
            finite, or the metric is "angular" and a vector does not have unit length.
    """

    def __init__(self, ids: Sequence[str], embeddings: Tensor, metric: str = "angular") -> None:
        if metric not in ("angular", "euclidean"):
            raise ValueError(f"unknown metric {metric!r}; choose angular or euclidean")
        if embeddings.ndim != 2 or len(ids) != len(embeddings):
            raise ValueError(
                f"{len(ids)} ids, but embeddings of shape {tuple(embeddings.shape)}; shape "
                f"({len(ids)}, D) is needed"
            )
        if len(set(ids)) != len(ids):
            raise ValueError("an id is repeated; ids must be unique")
        if not torch.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or Inf; check the encoder")
        if metric == "angular" and not ((embeddings.float().norm(dim=1) - 1).abs() < 1e-3).all():
            raise ValueError("angular distance needs unit vectors; normalise the embeddings")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self.ids = [ids[row] for row in order]
        self.embeddings = embeddings[order].contiguous()
        self.parts = [part_of(self.embeddings)]
        self.metric = metric

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        encoder: Encoder,
        cache_folder: str | Path | None = None,
        warn: Callable[[str], None] = warn_in_one_line,
    ) -> "Index":
        """Return the index of a corpus; its embeddings are read from the cache or computed.

        The cache key is SHA-256 of (corpus.sha256, encoder.weights_sha256). A damaged cache file is
        renamed and reported with `warn`, and its embeddings are computed again.

        Args:
            corpus: the images.
            encoder: computes the embeddings.
            cache_folder: folder of cached embeddings; None disables the cache.
            warn: called with the message if a file is damaged.

        Raises:
            OSError: if the cache file exists but cannot be read.
        """
        if cache_folder is None:
            return cls(corpus.ids, embed(corpus, encoder).half(), encoder.metric)
        path = cls.path(corpus, encoder, cache_folder)
        try:
            return cls(corpus.ids, read_embeddings(path).half(), encoder.metric)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, SafetensorError) as error:
            warn(
                f"{path}: damaged embeddings ({error}); {set_aside(path)}, and the embeddings are "
                "computed again"
            )
        embeddings = embed(corpus, encoder).half()
        write_embeddings(path, embeddings)
        return cls(corpus.ids, embeddings, encoder.metric)

    @staticmethod
    def path(corpus: Corpus, encoder: Encoder, cache_folder: str | Path) -> Path:
        """Return the path of the cache file for a corpus and an encoder."""
        key = sha256_of_bytes(f"{corpus.sha256}\n{encoder.weights_sha256}".encode())
        return Path(cache_folder) / f"{key}.safetensors"

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return [self.ids[row] for row in rows.tolist()]


def embed(corpus: Corpus, encoder: Encoder, batch: int = 64) -> Tensor:
    """Return (N, D) embeddings of all images of a corpus, in the order of `corpus.ids`."""
    rows = []
    for start in range(0, len(corpus.ids), batch):
        inputs = [
            encoder.prepare(corpus.image(image_id))
            for image_id in corpus.ids[start : start + batch]
        ]
        rows.append(encoder.vectors(torch.stack(inputs)))
    return torch.cat(rows)


def write_embeddings(path: Path, embeddings: Tensor) -> None:
    """Write embeddings to a safetensors file, atomically, with their SHA-256 in its metadata."""
    embeddings = embeddings.contiguous()
    write_bytes(
        path,
        save({"embeddings": embeddings}, {"sha256": sha256_of_bytes(embeddings.numpy().tobytes())}),
    )


def read_embeddings(path: Path) -> Tensor:
    """Return the embeddings in a file that `write_embeddings` wrote.

    The file holds no ids. Its name, the cache key, determines the images and their order.

    Raises:
        ValueError, KeyError, SafetensorError: if the file is damaged.
        OSError: if the file cannot be read.
    """
    content = path.read_bytes()
    embeddings = load(content)["embeddings"]
    if safetensors_metadata(content).get("sha256") != sha256_of_bytes(embeddings.numpy().tobytes()):
        raise ValueError("the checksum is wrong")
    return embeddings
