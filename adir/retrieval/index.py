"""The index: embeddings of a corpus, and exact search for the nearest."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adir.errors import InputError
from adir.files import safetensors_metadata, set_aside, sha256_of_bytes, warn_in_one_line, write_bytes
from adir.retrieval.corpus import Corpus
from adir.retrieval.distance import chord_to_angle
from adir.retrieval.encoders import Encoder

METRICS = ("angular", "euclidean")


class Index:
    """Exact nearest neighbours among (N, D) embeddings, ties by id; metric "angular" (unit vectors) or "euclidean"."""

    def __init__(self, ids: Sequence[str], embeddings: Tensor, metric: str = "angular") -> None:
        """Raises ValueError on repeated ids, a shape that does not fit, values that are not finite, or vectors not
        of unit length where the metric is angular."""
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
        if embeddings.ndim != 2 or len(ids) != len(embeddings):
            raise ValueError(f"{len(ids)} ids with embeddings of shape {tuple(embeddings.shape)}; (N, D) needed")
        if len(set(ids)) != len(ids):
            raise ValueError("ids repeat")
        embeddings = embeddings.float()
        if not torch.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or Inf")
        if metric == "angular" and not ((embeddings.norm(dim=1) - 1).abs() < 1e-3).all():
            raise ValueError("angular distance needs unit vectors")
        # Rows in the order of their ids: a stable sort by distance then breaks ties by id.
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self.ids = [ids[row] for row in order]
        self.embeddings = embeddings[order].contiguous()
        self.metric = metric
        self._row = {image_id: row for row, image_id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

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
            return cls(corpus.ids, embed(corpus, encoder), encoder.metric)
        key = sha256_of_bytes(f"{corpus.sha256}\n{encoder.weights_sha256}".encode())
        path = Path(cache_folder) / f"{key}.safetensors"
        try:
            return cls(corpus.ids, read_embeddings(path, corpus.ids), encoder.metric)
        except FileNotFoundError:
            pass
        except (ValueError, SafetensorError) as error:
            warn(f"{path}: damaged embeddings ({error}); {set_aside(path)}, built anew")
        embeddings = embed(corpus, encoder)
        write_embeddings(path, corpus.ids, embeddings)
        return cls(corpus.ids, embeddings, encoder.metric)

    def search(
        self, queries: Tensor, k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> tuple[list[list[str]], Tensor]:
        """The k nearest of each query: ids [Q][k] and distances (Q, k) float32, nearest first, equal distances by id.

        queries: (Q, D).  exclude: for each query, ids that must not be found (ids unknown here are ignored).
        Distances are angles in radians, or Euclidean lengths, by `metric`; differences are summed in float32 without
        the |a|^2 + |b|^2 - 2ab shortcut, which loses near neighbours to rounding.
        Raises InputError on k < 1, k beyond the corpus, fewer than k left after exclusion, or NaN or Inf in a query.
        """
        if k < 1:
            raise InputError(f"K={k} neighbours asked; K must be at least 1")
        if k > len(self):
            raise InputError(f"K={k} neighbours asked of a corpus of {len(self)}: lower K or enlarge the corpus")
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"queries of shape {tuple(queries.shape)}; (Q, {self.embeddings.shape[1]}) needed")
        queries = queries.float().cpu()
        if not torch.isfinite(queries).all():
            raise InputError("a query embedding holds NaN or Inf: the picture it was made from is not a valid picture")
        if self.metric == "angular" and not ((queries.norm(dim=1) - 1).abs() < 1e-3).all():
            raise ValueError("angular distance needs unit vectors")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"{len(exclude)} exclusion sets for {len(queries)} queries")
        ids, distances = [], torch.empty(len(queries), k)
        for number, query in enumerate(queries):
            distance = (self.embeddings - query).norm(dim=1)
            hidden = [] if exclude is None else [self._row[name] for name in set(exclude[number]) if name in self._row]
            if len(self) - len(hidden) < k:
                raise InputError(
                    f"K={k} neighbours asked, but of {len(self)} pictures {len(hidden)} are left out as copies of the "
                    "test picture: lower K or enlarge the corpus"
                )
            distance[hidden] = torch.inf
            nearest = torch.argsort(distance, stable=True)[:k]
            ids.append([self.ids[row] for row in nearest.tolist()])
            distances[number] = distance[nearest]
        return ids, chord_to_angle(distances) if self.metric == "angular" else distances


def embed(corpus: Corpus, encoder: Encoder, batch: int = 64) -> Tensor:
    """(N, D) embeddings of all pictures of a corpus, in the order of its ids; pictures of one size share a batch."""
    rows: list[Tensor] = []
    for start in range(0, len(corpus.ids), batch):
        pictures = [corpus.image(image_id) for image_id in corpus.ids[start : start + batch]]
        by_size: dict[torch.Size, list[int]] = {}
        for place, picture in enumerate(pictures):
            by_size.setdefault(picture.shape, []).append(place)
        found: dict[int, Tensor] = {}
        for places in by_size.values():
            found.update(zip(places, encoder.image(torch.stack([pictures[place] for place in places])), strict=True))
        rows.extend(found[place] for place in range(len(pictures)))
    return torch.stack(rows)


def write_embeddings(path: Path, ids: Sequence[str], embeddings: Tensor) -> None:
    """One atomic safetensors file: the embeddings, their ids, and SHA-256 of the numbers, which the format lacks."""
    embeddings = embeddings.contiguous()
    metadata = {"ids": json.dumps(list(ids)), "sha256": sha256_of_bytes(embeddings.numpy().tobytes())}
    write_bytes(path, save({"embeddings": embeddings}, metadata))


def read_embeddings(path: Path, ids: Sequence[str]) -> Tensor:
    """The embeddings that `write_embeddings` wrote for these ids. Raises ValueError or SafetensorError otherwise, and
    OSError where the file cannot be read."""
    content = path.read_bytes()
    tensors, metadata = load(content), safetensors_metadata(content)
    if set(tensors) != {"embeddings"}:
        raise ValueError(f"holds {sorted(tensors)}")
    embeddings = tensors["embeddings"]
    if json.loads(metadata.get("ids", "null")) != list(ids):
        raise ValueError("is of other ids")
    if metadata.get("sha256") != sha256_of_bytes(embeddings.numpy().tobytes()):
        raise ValueError("its checksum does not fit")
    return embeddings
