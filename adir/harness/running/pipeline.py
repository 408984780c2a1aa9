"""The walk of one test picture: y, neighbours, adapter, restoration, scores, record. Its stages are stored for other cells."""

import dataclasses
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adir.adaptation.base import adapted
from adir.data.reduced import reduced
from adir.diffusion.posterior import diffuse, epsilon_loss
from adir.errors import InputError, first_line
from adir.files import hash_of
from adir.harness.cells.cell import Cell
from adir.harness.running.claims import Claims
from adir.harness.running.interruption import HandlersStay
from adir.harness.running.neighbours import Neighbour, find_neighbours
from adir.harness.running.provenance import Clock, commit, process_peak_memory_mb, versions
from adir.harness.running.stores import (
    AdapterStore,
    FoundNeighbours,
    Measurement,
    MeasurementStore,
    NeighbourStore,
    StoredAdapter,
    keep_picture,
)
from adir.images import generator, hash_of_picture, read_image, write_png
from adir.samplers.base import Restoration
from adir.scoring.metrics import data_consistency_residual

Tell = Callable[[str], None]


class Busy(Exception):
    """Another worker is making a stage that this picture needs: come back later."""


@dataclass
class Prepared:
    """A test picture with all that its restoration needs."""

    image_id: str
    x: Tensor
    task: Any
    """The cell's task, bound to this picture where pictures bring masks or prompts of their own."""
    measurement: Measurement
    neighbours: list[Neighbour] = field(default_factory=list)
    neighbour_hashes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    recall: float | None = None
    """The share of the K neighbours that the search finds, where it may miss some."""
    adapter: StoredAdapter | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def operator(self) -> Any:
        """A for this picture."""
        return self.task.operator(tuple(self.x.shape))


def prepare(cell: Cell, image_id: str, tell: Tell, progress: bool) -> Prepared:
    """All stages before sampling, found or made. Raises Busy where another worker is making the adapter just now."""
    clock = Clock()
    x = cell.data.image(image_id)
    task = cell.task.bound(cell.data, image_id)
    cell = dataclasses.replace(cell, task=task)
    store = MeasurementStore(cell.results, task, cell.configuration["task"], cell.noise_seed)
    measurement = store.get(image_id, x, warn=lambda message: tell(f"warning: {message}"))
    keep_picture(cell.results, x)
    clock.lap("measure")
    prepared = Prepared(image_id, x, task, measurement, clock=clock)
    if cell.corpus is not None:
        found = neighbours_of(cell, image_id, x, measurement)
        prepared.neighbours = [Neighbour(name, d) for name, d in zip(found.ids, found.distances, strict=True)]
        prepared.neighbour_hashes, prepared.excluded = found.pictures, found.excluded
        prepared.recall = cell.corpus.recall(cell.k) if cell.mode != "random" else None
    clock.lap("retrieve")
    prepared.adapter = find_or_train_adapter(cell, image_id, task, measurement.y, prepared.neighbours, progress, tell)
    clock.lap("adapt")
    return prepared


def neighbours_of(cell: Cell, image_id: str, x: Tensor, measurement: Measurement) -> FoundNeighbours:
    """The K neighbours, from the store that all cells share: a list is a prefix of the list for a larger K."""
    assert cell.corpus is not None

    def find() -> FoundNeighbours:
        assert cell.corpus is not None
        neighbours, excluded = find_neighbours(cell, image_id, x, measurement.y)
        hashes = [keep_picture(cell.results, reduced(cell.corpus.image(n.id)), thumbnail=True) for n in neighbours]
        return FoundNeighbours([n.id for n in neighbours], [n.distance for n in neighbours], hashes, excluded)

    return NeighbourStore(cell.results).get(
        neighbours_key(cell, image_id, hash_of_picture(x), measurement), cell.k, find
    )


def neighbours_key(cell: Cell, image_id: str, image_sha256: str, measurement: Measurement) -> str:
    """Hash of what neighbours follow from, K aside. cell: its task bound to this picture."""
    retrieval = cell.identity.configuration["retrieval"]
    drawn = {"seed": cell.seed, "image": image_id} if cell.mode == "random" else {"y": measurement.sha256}
    # An edit is looked for by its prompt; other tasks have none.
    asked = {"prompt": cell.task.prompt, "by": cell.task.by} if cell.task.edits else {}
    return hash_of({"mode": cell.mode, "retrieval": retrieval, "x": image_sha256, **drawn, **asked})


def adaptation_pictures(cell: Cell, task: Any, y: Tensor, neighbours: list[Neighbour]) -> list[Tensor]:
    """What the mode tunes on: y itself, the neighbours, or nothing."""
    if cell.mode == "none":
        return []
    if cell.mode == "self":
        return [task.picture_of(y)]
    assert cell.corpus is not None
    return [reduced(cell.corpus.image(neighbour.id)) for neighbour in neighbours]


def adapter_made_of(cell: Cell, image_id: str, task: Any, picture_hashes: list[str]) -> dict[str, Any]:
    """What an adapter follows from; not the cell, so cells that differ in the sampler share, and `random` draws of two tasks.

    A latent backbone also sees the operator (the low-resolution twins of the pictures) or the prompt.
    """
    seen = {} if cell.backbone.kind == "pixel" else {"task": task_seen(cell, task)}
    return {
        "backbone": cell.identity.configuration["backbone"],
        "adaptation": {key: cell.configuration["adaptation"][key] for key in ("adapter", "fine_tuning")},
        "pictures": picture_hashes,
        "seed": [cell.seed, image_id],
        **seen,
    }


def task_seen(cell: Cell, task: Any) -> dict[str, Any]:
    """What of the task enters an adaptation of a latent backbone."""
    configuration = {k: v for k, v in cell.identity.configuration["task"].items() if k != "version"}
    return configuration | {"prompt": task.prompt}


def find_or_train_adapter(
    cell: Cell,
    image_id: str,
    task: Any,
    y: Tensor,
    neighbours: list[Neighbour],
    progress: bool,
    tell: Tell,
) -> StoredAdapter | None:
    """The adapter for one picture, trained unless its store has it; None in mode `none`.

    Raises Busy where another worker is training it.
    """
    pictures = adaptation_pictures(cell, task, y, neighbours)
    if not pictures:
        return None
    made_of = adapter_made_of(cell, image_id, task, [hash_of_picture(picture) for picture in pictures])
    key, store = hash_of(made_of), AdapterStore(cell.results)
    warn = lambda message: tell(f"warning: {message}")  # noqa: E731 - both calls below
    found = store.find(key, warn)
    if found is not None:
        return found
    with Claims(cell.results / "adapters").claimed(key) as mine:
        if not mine:
            raise Busy(key)
        found = store.find(key, warn)  # finished between the look and the claim
        if found is not None:
            return found
        started = time.perf_counter()
        trained = cell.fine_tuning.fit(
            cell.backbone,
            cell.adapter,
            pictures,
            generator(cell.seed, image_id, "adaptation"),
            callbacks=[HandlersStay()],
            progress=progress,
            task=task,
            names=[neighbour.id for neighbour in neighbours] if cell.mode != "self" else [image_id],
        )
        if trained.crop_remark is not None:
            tell_once(tell, f"adaptation: {trained.crop_remark}")
        facts = {
            "made_of": made_of,
            "losses": trained.losses,
            "layers": trained.layers,
            "n_parameters": trained.n_parameters,
            "crop_size": trained.crop_size,
            "seconds": round(time.perf_counter() - started, 3),
        }
        tell_once(
            tell, f"adapter {cell.adapter.name}: {trained.n_parameters:,} parameters in {len(trained.layers)} layers"
        )
        return store.put(key, trained.tensors, facts)


_told: set[str] = set()


def tell_once(tell: Tell, message: str) -> None:
    """Say it, unless this process has said it before."""
    if message not in _told:
        _told.add(message)
        tell(message)


def sample(cell: Cell, batch: list[Prepared]) -> Restoration:
    """The restorations of pictures of one shape and operator; of one picture where an adapter is in place."""
    adapter = batch[0].adapter
    assert adapter is None or len(batch) == 1
    y = torch.stack([prepared.measurement.y for prepared in batch]).to(cell.backbone.device)
    noise = [generator(cell.seed, prepared.image_id, "sampler") for prepared in batch]
    network = cell.backbone.network
    for prepared in batch:
        prepared.clock.start()
    with adapted(network, cell.adapter, adapter.tensors) if adapter is not None else nullcontext():
        restored = cell.sampler.restore(cell.backbone, batch[0].operator, y, noise)
    for prepared in batch:
        prepared.clock.lap("sample", share=len(batch))
    return restored


def finish(cell: Cell, prepared: Prepared, restored: Restoration, place: int, oracle: bool) -> dict[str, Any]:
    """Write the restored picture and give back its record. Raises FloatingPointError where the sampler failed on it."""
    clock, x, y = prepared.clock, prepared.x, prepared.measurement.y
    clock.start()
    reason = restored.errors[place]
    if reason is not None:
        raise FloatingPointError(reason)
    error = adapted_oracle_error(cell, prepared) if oracle else None
    clock.lap("oracle")
    picture = cell.ledger.picture_path(prepared.image_id)
    write_png(picture, restored.x_hat[place])
    scores = score_picture(cell, prepared.task, picture, x, y)
    if error is not None:
        scores["oracle-eps-error"] = {"value": error, "direction": "lower", "version": "1"}
    clock.lap("score")
    return (
        identity_fields(cell, prepared.image_id)
        | {
            "status": "done",
            "image": image_fields(cell, prepared.image_id) | {"sha256": hash_of_picture(x)},
            "y": {
                "sha256": prepared.measurement.sha256,
                "file": str(prepared.measurement.path.relative_to(cell.results)),
            },
            "picture": str(picture.relative_to(cell.results)),
            "scores": scores,
            "unavailable": dict(cell.scoring.unavailable),
            "sampler": {
                "capped_steps": restored.capped_steps[place],
                "n_steps": cell.sampler.n_steps,
                "network_evaluations": restored.network_evaluations,
                "gradient_evaluations": restored.gradient_evaluations,
            },
            "neighbours": [
                {"id": n.id, "distance": n.distance, "picture": sha256}
                for n, sha256 in zip(prepared.neighbours, prepared.neighbour_hashes, strict=True)
            ],
            "excluded": prepared.excluded,
            "adapter": None if prepared.adapter is None else adapter_fields(prepared.adapter),
            "seconds": clock.seconds,
            "process_peak_memory_mb": process_peak_memory_mb(cell.backbone.device),
        }
        | ({} if prepared.recall is None else {"search": {"approximate": True, "recall": prepared.recall}})
    )


def adapter_fields(adapter: StoredAdapter) -> dict[str, Any]:
    """What a record says of its adapter; losses and layer names stay beside the tensors."""
    facts = adapter.facts
    return {
        "key": adapter.key,
        "sha256": adapter.sha256,
        "n_layers": len(facts["layers"]),
        "n_parameters": facts["n_parameters"],
        "training_seconds": facts["seconds"],
        "first_loss": facts["losses"][0] if facts["losses"] else None,
        "last_loss": facts["losses"][-1] if facts["losses"] else None,
    }


def score_picture(cell: Cell, task: Any, picture: Path, x: Tensor, y: Tensor) -> dict[str, dict[str, Any]]:
    """Scores of a restored picture as its file holds it, so that scoring again gives the same; the residual beside them."""
    x_hat = read_image(picture)
    scores = cell.scoring.score(x_hat, x, task.prompt)
    residual = data_consistency_residual(task.operator(tuple(x.shape)), x_hat[None], y[None])
    scores["residual"] = {"value": float(residual), "direction": "none", "version": "1", "sigma_y": task.sigma_y}
    return scores


def adapted_oracle_error(cell: Cell, prepared: Prepared) -> float:
    """`oracle_eps_error` of the denoiser as it was when it restored this picture."""
    adapter = prepared.adapter
    with adapted(cell.backbone.network, cell.adapter, adapter.tensors) if adapter is not None else nullcontext():
        return oracle_eps_error(cell, prepared.x)


@torch.no_grad()
def oracle_eps_error(cell: Cell, x: Tensor, timesteps: tuple[int, ...] = (10, 50, 100, 200, 400, 700)) -> float:
    """Mean l_simple of the denoiser as it stands on the ground truth x, over `timesteps`, one fixed noise each.

    Says whether adaptation made the denoiser better for this very picture. Lower is better.
    """
    errors = []
    for t in timesteps:
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))[None]
        x_t = diffuse(x[None], eps, cell.backbone.schedule.alpha_bar[t]).to(cell.backbone.device)
        eps_hat = cell.backbone.predict(x_t, torch.tensor([t], device=x_t.device)).eps.cpu()
        errors.append(epsilon_loss(eps, eps_hat).item())
    return sum(errors) / len(errors)


def failure_record(cell: Cell, image_id: str, error: Exception) -> dict[str, Any]:
    """The record of a picture that could not be done: its error in place of scores."""
    return identity_fields(cell, image_id) | {
        "status": "failed",
        "image": image_fields(cell, image_id),
        "y": None,
        "scores": {},
        "error": f"{type(error).__name__}: {first_line(error)}",
        "traceback": None if isinstance(error, InputError) else "".join(traceback.format_exception(error)),
    }


def image_fields(cell: Cell, image_id: str) -> dict[str, Any]:
    """What a record says of its test picture. manifest: SHA-256 of the data set's, a list of its pictures (RESULTS/manifests).
    Licence and source are null where the data set does not tell them."""
    known = {"licence": None, "source": None} | cell.data.attribution(image_id)
    return {"id": image_id, "data": cell.data.name, "manifest": cell.data.sha256} | known


def identity_fields(cell: Cell, image_id: str) -> dict[str, Any]:
    """Who a record belongs to and what it was made with."""
    return {
        "cell": cell.identity.sha256,
        "axes": cell.identity.axes,
        "identity": cell.identity.configuration,
        "configuration": cell.configuration,
        "seed": cell.seed,
        "versions": versions(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }
