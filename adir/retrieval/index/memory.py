"""The index in memory, for corpora that fit there.

`sharded.py` has the one on disk. Both search the same float16 embeddings in the same way, so they
give the same neighbours.
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
    """Exact nearest neighbours among (N, D) embeddings, ties by id; metric "angular" (unit vectors)
    or "euclidean".

    Embeddings keep their type: `build` makes float16, as it is on disk.
    """

    def __init__(self, ids: Sequence[str], embeddings: Tensor, metric: str = "angular") -> None:
        """Raises ValueError for an unknown metric, repeated ids, a wrong shape, values that are not
        finite, or vectors that are not of unit length if the metric is angular.
        """
        if metric not in ("angular", "euclidean"):
            raise ValueError(f"unknown metric {metric!r}; choose angular or euclidean")
        if embeddings.ndim != 2 or len(ids) != len(embeddings):
            raise ValueError(
                f"{len(ids)} ids with embeddings of shape {tuple(embeddings.shape)}; (N, D) needed"
            )
        if len(set(ids)) != len(ids):
            raise ValueError("ids repeat")
        if not torch.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or Inf")
        if metric == "angular" and not ((embeddings.float().norm(dim=1) - 1).abs() < 1e-3).all():
            raise ValueError("angular distance needs unit vectors")
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
        """Return the index of a corpus.

        It is embedded unless `cache_folder` holds its embeddings by the same encoder.

        The file's name is SHA-256 of (corpus.sha256, encoder.weights_sha256). A damaged file is set
        aside, reported by `warn(message)`, and made again. Raises OSError if it exists but cannot
        be read.
        """
        if cache_folder is None:
            return cls(corpus.ids, embed(corpus, encoder).half(), encoder.metric)
        path = cls.path(corpus, encoder, cache_folder)
        try:
            return cls(corpus.ids, read_embeddings(path).half(), encoder.metric)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, SafetensorError) as error:
            warn(f"{path}: damaged embeddings ({error}); {set_aside(path)}, made again")
        embeddings = embed(corpus, encoder).half()
        write_embeddings(path, embeddings)
        return cls(corpus.ids, embeddings, encoder.metric)

    @staticmethod
    def path(corpus: Corpus, encoder: Encoder, cache_folder: str | Path) -> Path:
        """Return the path at which `build` stores the embeddings."""
        key = sha256_of_bytes(f"{corpus.sha256}\n{encoder.weights_sha256}".encode())
        return Path(cache_folder) / f"{key}.safetensors"

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return [self.ids[row] for row in rows.tolist()]


def embed(corpus: Corpus, encoder: Encoder, batch: int = 64) -> Tensor:
    """Return (N, D) embeddings of all images of a corpus, in the order of its ids."""
    rows = []
    for start in range(0, len(corpus.ids), batch):
        inputs = [
            encoder.prepare(corpus.image(image_id))
            for image_id in corpus.ids[start : start + batch]
        ]
        rows.append(encoder.vectors(torch.stack(inputs)))
    return torch.cat(rows)


def write_embeddings(path: Path, embeddings: Tensor) -> None:
    """Write the embeddings atomically as safetensors, with their SHA-256, which the format lacks."""
    embeddings = embeddings.contiguous()
    write_bytes(
        path,
        save({"embeddings": embeddings}, {"sha256": sha256_of_bytes(embeddings.numpy().tobytes())}),
    )


def read_embeddings(path: Path) -> Tensor:
    """Return the embeddings that `write_embeddings` wrote.

    The file's name, not its content, identifies their images.

    Raises ValueError, KeyError or SafetensorError if the file is damaged, and OSError if it cannot
    be read.
    """
    content = path.read_bytes()
    embeddings = load(content)["embeddings"]
    if safetensors_metadata(content).get("sha256") != sha256_of_bytes(embeddings.numpy().tobytes()):
        raise ValueError("its checksum does not fit")
    return embeddings
