"""The index in memory: float16 embeddings of a corpus that fits there. `sharded.py` has the one on disk; both give the
same neighbours, as both search the same float16 numbers in the same way."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adir.data.base import Corpus
from adir.files import safetensors_metadata, set_aside, sha256_of_bytes, warn_in_one_line, write_bytes
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.search import VectorIndex, part_of


class Index(VectorIndex):
    """Exact nearest neighbours among (N, D) embeddings, ties by id; metric "angular" (unit vectors) or "euclidean".

    Embeddings keep their type: `build` makes float16, as it is on disk.
    """

    def __init__(self, ids: Sequence[str], embeddings: Tensor, metric: str = "angular") -> None:
        """Raises ValueError on repeated ids, a shape that does not fit, values that are not finite, or vectors not
        of unit length where the metric is angular."""
        if metric not in ("angular", "euclidean"):
            raise ValueError(f"unknown metric {metric!r}; choose angular or euclidean")
        if embeddings.ndim != 2 or len(ids) != len(embeddings):
            raise ValueError(f"{len(ids)} ids with embeddings of shape {tuple(embeddings.shape)}; (N, D) needed")
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
        """Index of a corpus, embedding it unless `cache_folder` holds what the same encoder gave for the same corpus.

        The stored file is named by SHA-256 of (corpus.sha256, encoder.weights_sha256). A damaged one is set aside,
        reported through `warn(message)`, and built again. Raises OSError where one is there but cannot be read.
        """
        if cache_folder is None:
            return cls(corpus.ids, embed(corpus, encoder).half(), encoder.metric)
        path = cls.path(corpus, encoder, cache_folder)
        try:
            return cls(corpus.ids, read_embeddings(path).half(), encoder.metric)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, SafetensorError) as error:
            warn(f"{path}: damaged embeddings ({error}); {set_aside(path)}, built anew")
        embeddings = embed(corpus, encoder).half()
        write_embeddings(path, embeddings)
        return cls(corpus.ids, embeddings, encoder.metric)

    @staticmethod
    def path(corpus: Corpus, encoder: Encoder, cache_folder: str | Path) -> Path:
        """Where `build` keeps the embeddings."""
        key = sha256_of_bytes(f"{corpus.sha256}\n{encoder.weights_sha256}".encode())
        return Path(cache_folder) / f"{key}.safetensors"

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return [self.ids[row] for row in rows.tolist()]


def embed(corpus: Corpus, encoder: Encoder, batch: int = 64) -> Tensor:
    """(N, D) embeddings of all pictures of a corpus, in the order of its ids."""
    rows = []
    for start in range(0, len(corpus.ids), batch):
        inputs = [encoder.prepare(corpus.image(image_id)) for image_id in corpus.ids[start : start + batch]]
        rows.append(encoder.vectors(torch.stack(inputs)))
    return torch.cat(rows)


def write_embeddings(path: Path, embeddings: Tensor) -> None:
    """Write one atomic safetensors file: the embeddings, and SHA-256 of the numbers, which the format lacks."""
    embeddings = embeddings.contiguous()
    write_bytes(path, save({"embeddings": embeddings}, {"sha256": sha256_of_bytes(embeddings.numpy().tobytes())}))


def read_embeddings(path: Path) -> Tensor:
    """Return the embeddings that `write_embeddings` wrote; of which pictures, the file's name says.

    Raises ValueError, KeyError or SafetensorError where the file is damaged, and OSError where it cannot be read.
    """
    content = path.read_bytes()
    embeddings = load(content)["embeddings"]
    if safetensors_metadata(content).get("sha256") != sha256_of_bytes(embeddings.numpy().tobytes()):
        raise ValueError("its checksum does not fit")
    return embeddings
