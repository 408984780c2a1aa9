"""Running a cell: for each test picture y, neighbours, adapter, restoration, scores, record; resuming by what is there."""

import functools
import platform
import resource
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

import adir
from adir.adaptation.adapters import adapted
from adir.adaptation.denoising_module import FineTuning
from adir.diffusion.posterior import diffuse, epsilon_loss
from adir.errors import InputError
from adir.harness.cell import Cell, Neighbour, find_neighbours, first_line
from adir.harness.identity import hash_of
from adir.harness.ledger import DamagedFile
from adir.harness.stages import AdapterStore, MeasurementStore, OtherPicture, StoredAdapter, hash_of_picture
from adir.images import generator, read_image, write_png
from adir.retrieval.corpus import Corpus
from adir.scoring.metrics import data_consistency_residual

Existing = Literal["skip", "redo", "report"]


class Tracker(Protocol):
    """Where a cell's progress is told besides its records; adir.harness.tracking."""

    def record(self, record: dict[str, Any], picture: Path) -> None: ...


@dataclass
class Outcome:
    """What a run did to one cell, in pictures."""

    done: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Options:
    """How to run, without effect on any result.

    existing: what to do with finished pictures, `skip`, `redo` or `report` (run nothing).  retry_failed: run those
    again whose record holds an error.  progress: show a bar while adapting.  oracle: also measure the denoiser's error
    on the ground truth (for studies; the method never sees it).
    """

    existing: Existing = "skip"
    retry_failed: bool = False
    progress: bool = False
    oracle: bool = False


def run_cell(cell: Cell, options: Options, tell: Callable[[str], None], tracker: Tracker | None = None) -> Outcome:
    """Restore and score every picture of the cell that has no record yet. One picture at a time: a kill loses that one.

    A picture that fails leaves a record with its error and the rest go on; OSError (disk full, read-only) stops the run,
    as nothing could be written down any more, and so does OtherPicture. Raises InputError for an unfit test set.
    """
    require_test_pictures(cell)
    outcome = Outcome()
    for number, image_id in enumerate(cell.data.ids, start=1):
        where = f"{cell.label} [{number}/{len(cell.data)}] {image_id}"
        try:
            record = cell.ledger.read(image_id, cell.identity.sha256)
        except DamagedFile as error:
            tell(f"warning: {error}")
            record = None
        if record is not None and record["status"] == "done":
            if record["image"]["sha256"] != hash_of_picture(cell.data.image(image_id)):
                raise OtherPicture(
                    f"{cell.ledger.record_path(image_id)}: is of another picture with the id {image_id!r}; "
                    "use another results folder"
                )
        if record is not None and options.existing != "redo":
            failed_before = record["status"] == "failed"
            if not (failed_before and options.retry_failed and options.existing == "skip"):
                outcome.skipped += not failed_before
                outcome.failed += failed_before
                continue
        if options.existing == "report":
            continue
        started = time.perf_counter()
        try:
            record = run_picture(cell, image_id, options, tell)
        except (OSError, OtherPicture):
            raise
        except Exception as error:
            record = failure_record(cell, image_id, error)
        cell.ledger.write(image_id, record)
        if record["status"] == "failed":
            outcome.failed += 1
            tell(f"{where}  FAILED: {record['error']}")
        else:
            outcome.done += 1
            tell(f"{where}  {summary(record)}  {time.perf_counter() - started:.1f} s")
        if tracker is not None:
            tracker.record(record, cell.ledger.picture_path(image_id))
    return outcome


def run_picture(cell: Cell, image_id: str, options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """From one test picture to its finished record; the restored picture is on disk when this returns."""
    clock = Clock()
    x = cell.data.image(image_id)
    operator = cell.task.operator(tuple(x.shape))
    store = MeasurementStore(cell.results, cell.task, cell.configuration["task"], cell.noise_seed)
    measurement = store.get(image_id, x, warn=lambda message: tell(f"warning: {message}"))
    clock.lap("measure")

    neighbours, excluded = find_neighbours(cell, image_id, x, measurement.y) if cell.corpus is not None else ([], [])
    clock.lap("retrieve")

    adapter = find_or_train_adapter(cell, image_id, measurement.y, neighbours, options, tell)
    clock.lap("adapt")

    network = cell.backbone.network
    with adapted(network, cell.adapter, adapter.tensors) if adapter is not None else nullcontext():
        noise = generator(cell.seed, image_id, "sampler")
        restored = cell.sampler.restore(cell.backbone, operator, measurement.y[None].to(cell.backbone.device), [noise])
        clock.lap("sample")
        oracle = oracle_eps_error(cell, x) if options.oracle else None
        clock.lap("oracle")
    if restored.errors[0] is not None:
        raise FloatingPointError(restored.errors[0])
    picture = cell.ledger.picture_path(image_id)
    write_png(picture, restored.x_hat[0])

    scores = score_picture(cell, picture, x, measurement.y)
    clock.lap("score")
    if oracle is not None:
        scores["oracle-eps-error"] = {"value": oracle, "direction": "lower", "version": "1"}
    return identity_fields(cell, image_id) | {
        "status": "done",
        "image": {"id": image_id, "sha256": hash_of_picture(x), "data": cell.data.name},
        "y": {"sha256": measurement.sha256, "file": str(measurement.path.relative_to(cell.results))},
        "picture": str(picture.relative_to(cell.results)),
        "scores": scores,
        "unavailable": dict(cell.scoring.unavailable),
        "sampler": {"capped_steps": restored.capped_steps[0], "n_steps": cell.sampler.n_steps},
        "neighbours": [{"id": n.id, "distance": n.distance} for n in neighbours],
        "excluded": excluded,
        "adapter": None if adapter is None else adapter_fields(adapter),
        "seconds": clock.seconds,
        "process_peak_memory_mb": process_peak_memory_mb(cell.backbone.device),
    }


def require_test_pictures(cell: Cell) -> None:
    """Raise InputError unless every picture of the test set can be read and has a size that task and backbone take.

    A test set that silently lost a picture would give another mean.
    """
    for image_id, reason in cell.data.rejects.items():
        raise InputError(f"test picture {image_id}: {reason}; mend it, or take it out of the test set")
    stride = cell.backbone.stride
    for image_id, shape in picture_shapes(cell.data).items():
        try:
            cell.task.operator(shape)
        except InputError as error:
            raise InputError(f"test picture {image_id}: {error}") from error
        _, height, width = shape
        if height % stride or width % stride:
            raise InputError(
                f"test picture {image_id}: {width}x{height} pixels, but this backbone takes multiples of {stride}; crop it "
                "(`adir restore` takes any size)"
            )


@functools.cache
def picture_shapes(data: Corpus) -> dict[str, tuple[int, ...]]:
    """(3, H, W) of each picture; read once per process, as every cell of a grid asks."""
    return {image_id: tuple(data.image(image_id).shape) for image_id in data.ids}


def adaptation_pictures(cell: Cell, y: Tensor, neighbours: list[Neighbour]) -> list[Tensor]:
    """What the mode tunes on: y itself, the neighbours, or nothing."""
    if cell.mode == "none":
        return []
    if cell.mode == "self":
        return [cell.task.picture_of(y)]
    assert cell.corpus is not None
    return [cell.corpus.image(neighbour.id) for neighbour in neighbours]


def find_or_train_adapter(
    cell: Cell, image_id: str, y: Tensor, neighbours: list[Neighbour], options: Options, tell: Callable[[str], None]
) -> StoredAdapter | None:
    """The adapter for one picture, trained unless its store has it; None in mode `none`.

    Keyed by what makes it and not by the cell, so `random` draws of two tasks, or cells that differ in the sampler, share.
    """
    pictures = adaptation_pictures(cell, y, neighbours)
    if not pictures:
        return None
    made_of = {
        "backbone": cell.identity.configuration["backbone"],
        "adaptation": {key: cell.configuration["adaptation"][key] for key in ("adapter", "fine_tuning")},
        "pictures": [hash_of_picture(picture) for picture in pictures],
        "seed": [cell.seed, image_id],
    }
    key, store = hash_of(made_of), AdapterStore(cell.results)
    found = store.find(key, warn=lambda message: tell(f"warning: {message}"))
    if found is not None:
        return found
    started = time.perf_counter()
    fine_tuning: FineTuning = cell.fine_tuning
    trained = fine_tuning.fit(
        cell.backbone, cell.adapter, pictures, generator(cell.seed, image_id, "adaptation"), progress=options.progress
    )
    facts = {
        "made_of": made_of,
        "losses": trained.losses,
        "layers": trained.layers,
        "n_parameters": trained.n_parameters,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return store.put(key, trained.tensors, facts)


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


def score_picture(cell: Cell, picture: Path, x: Tensor, y: Tensor) -> dict[str, dict[str, Any]]:
    """Scores of a restored picture as its file holds it, so that scoring again gives the same; the residual beside them."""
    x_hat = read_image(picture)
    scores = cell.scoring.score(x_hat, x)
    residual = data_consistency_residual(cell.task.operator(tuple(x.shape)), x_hat[None], y[None])
    scores["residual"] = {"value": float(residual), "direction": "none", "version": "1", "sigma_y": cell.task.sigma_y}
    return scores


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
        "image": {"id": image_id, "data": cell.data.name},
        "y": None,
        "scores": {},
        "error": f"{type(error).__name__}: {first_line(error)}",
        "traceback": None if isinstance(error, InputError) else traceback.format_exc(),
    }


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


def summary(record: dict[str, Any]) -> str:
    """The scores of a record on one line."""
    return "  ".join(f"{name} {s['value']:.4g}" for name, s in record["scores"].items() if s["value"] is not None)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("torch", "diffusers", "peft", "deepinv", "pyiqa", "pytorch-lightning", "scikit-image")
    return {"adir": adir.__version__, "python": platform.python_version()} | {name: version(name) for name in packages}


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that runs, with `-dirty` where tracked files differ; None for an installed package."""
    root = Path(adir.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "-C", str(root), "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout without a commit
        return None
    return head.stdout.strip() + ("-dirty" if changed.returncode else "")


def process_peak_memory_mb(device: torch.device) -> float:
    """Peak of this process so far, in MB, earlier pictures included: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


class Clock:
    """Seconds between laps, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Ends a stage."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
