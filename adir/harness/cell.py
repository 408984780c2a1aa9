"""One cell of the grid: its configuration turned into objects, and the walk from picture to record.

This is the only place that calls Hydra's `instantiate`; below it nobody sees a configuration object.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from adir.adaptation.adapters import Adapter
from adir.adaptation.denoising_module import FineTuning
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.harness.identity import MODES, WITH_NEIGHBOURS, CellIdentity, cell_identity
from adir.harness.ledger import Ledger
from adir.images import generator
from adir.retrieval.corpus import Corpus
from adir.retrieval.duplicates import near_duplicates
from adir.retrieval.encoders import Encoder
from adir.retrieval.index import Index
from adir.samplers.adir import ADIR
from adir.scoring.metrics import Scoring
from adir.tasks.restoration import RestorationTask


@dataclass(frozen=True)
class Cell:
    """Everything one cell needs, built; and who it is."""

    identity: CellIdentity
    backbone: GuidedDiffusion
    task: RestorationTask
    mode: str
    k: int
    adapter: Adapter
    fine_tuning: FineTuning
    sampler: ADIR
    scoring: Scoring
    data: Corpus
    corpus: Corpus | None
    """D_IA; None in modes without neighbours."""
    encoder: Encoder | None
    """Where neighbours are looked for; None in modes without, and for `random`."""
    seed: int
    noise_seed: int
    results: Path
    configuration: dict[str, Any]
    """The whole resolved configuration, for the record."""

    @property
    def ledger(self) -> Ledger:
        """Where its records go."""
        return Ledger(self.results / self.identity.folder)

    @property
    def label(self) -> str:
        """For people: `sr4 knn k=20 full seed=0`."""
        axes = self.identity.axes
        k = f" k={axes['k']}" if axes["k"] is not None else ""
        adapter = f" {axes['adapter']}" if axes["adapter"] else ""
        return f"{axes['task']} {axes['adaptation']}{k}{adapter} seed={axes['seed']}"


def build(node: DictConfig, what: str) -> Any:
    """The object that a leaf describes, built once per process for equal leaves; InputError for arguments it refuses."""
    return _build_once(json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True), what)


@functools.lru_cache(maxsize=64)
def _build_once(leaf: str, what: str) -> Any:
    try:
        return instantiate(OmegaConf.create(json.loads(leaf)), _convert_="all")
    except InputError:
        raise
    except Exception as error:  # Hydra wraps what a constructor raised; the cause says what is wrong
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from error
        if isinstance(cause, (ValueError, TypeError, RuntimeError)):  # the last is torch's for a missing device
            raise InputError(f"{what}: {first_line(cause)}") from error
        raise


def first_line(error: BaseException) -> str:
    """The message of an exception, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def resolve_cell(cfg: DictConfig) -> Cell:
    """The cell that a composed configuration describes. Raises InputError for anything that could not run, before any work."""
    try:
        full: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is missing: say {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise InputError(f"configuration: {first_line(error)}") from error
    for key in ("seed", "noise_seed", "k", "threads"):
        if isinstance(full[key], bool) or not isinstance(full[key], int):
            raise InputError(f"{key}={full[key]!r}: a whole number is needed")
    if full["threads"] < 1:
        raise InputError(f"threads={full['threads']}: at least 1 is needed")
    mode, k = full["adaptation"]["name"], full["k"]
    if mode not in MODES:
        raise InputError(f"unknown adaptation {mode!r}; choose one of {', '.join(MODES)}")
    backbone: GuidedDiffusion = build(cfg.backbone, "backbone")
    task: RestorationTask = build(cfg.task, "task")
    data: Corpus = build(cfg.data, "data")
    corpus: Corpus | None = None
    encoder: Encoder | None = None
    if mode in WITH_NEIGHBOURS:
        if k < 1:
            raise InputError(f"K={k} with adaptation={mode}: use k=1 or more, or adaptation=none for no neighbours")
        corpus = build(cfg.retrieval.corpus, "retrieval.corpus")
        if k > len(corpus):
            raise InputError(
                f"K={k} neighbours asked of a corpus of {len(corpus)} pictures: lower K or use a larger corpus"
            )
        if mode != "random":
            encoder = build(cfg.retrieval.encoders[mode], "retrieval.encoders")
    identity = cell_identity(
        backbone=without(full["backbone"], "folder", "device")
        | {"weights_sha256": backbone.weights_sha256, "config_sha256": backbone.config_sha256},
        task=full["task"],
        adaptation=full["adaptation"],
        retrieval={
            "corpus": corpus.sha256 if corpus is not None else None,
            "encoders": {mode: encoder.weights_sha256} if encoder is not None else {},
        },
        sampler=full["sampler"],
        k=k,
        seed=full["seed"],
        noise_seed=full["noise_seed"],
    )
    cell = Cell(
        identity=identity,
        backbone=backbone,
        task=task,
        mode=mode,
        k=k,
        adapter=build(cfg.adaptation.adapter, "adaptation.adapter"),
        fine_tuning=build(cfg.adaptation.fine_tuning, "adaptation.fine_tuning"),
        sampler=build(cfg.sampler, "sampler"),
        scoring=build(cfg.scoring, "scoring"),
        data=data,
        corpus=corpus,
        encoder=encoder,
        seed=full["seed"],
        noise_seed=full["noise_seed"],
        results=Path(full["results"]),
        configuration=full,
    )
    require_fitting_parts(cell)
    return cell


def require_fitting_parts(cell: Cell) -> None:
    """Raise InputError where sampler or fine-tuning ask for what the backbone has not got."""
    sampler, backbone = cell.sampler, cell.backbone
    if sampler.n_steps > len(backbone.schedule):
        raise InputError(
            f"n_steps={sampler.n_steps}: choose from 1 to {len(backbone.schedule)}, the backbone's own steps"
        )
    if sampler.variance == "learned" and not backbone.learns_variance:
        raise InputError(f"variance=learned, but backbone {backbone.name} predicts none: use small or large")
    if cell.mode != "none" and cell.fine_tuning.crop_size < backbone.stride:
        raise InputError(
            f"crop_size={cell.fine_tuning.crop_size}: this backbone needs {backbone.stride} pixels or more"
        )


def without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping less some keys."""
    return {key: value for key, value in mapping.items() if key not in keys}


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
    excluded = sorted(near_duplicates(x, corpus)) if x is not None else []
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
    query = cell.encoder.image(cell.task.picture_of(y)[None])
    ids, distances = index.search(query, cell.k, exclude=[set(excluded)])
    return [Neighbour(name, float(d)) for name, d in zip(ids[0], distances[0].tolist(), strict=True)], excluded


_indices: dict[str, Index] = {}


def corpus_index(corpus: Corpus, encoder: Encoder, cache_folder: Path) -> Index:
    """The index of a corpus under an encoder: built once per process, stored in `cache_folder` for the next."""
    key = sha256_of_bytes(f"{corpus.sha256} {encoder.weights_sha256} {cache_folder}".encode())
    if key not in _indices:
        _indices[key] = Index.build(corpus, encoder, cache_folder)
    return _indices[key]
