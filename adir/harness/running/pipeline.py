"""Process one test image: measure y, find neighbours, adapt, restore, score, and record.

The measurement y, the neighbours and the adapter are cached on disk, and other cells reuse them.
"""

import dataclasses
import functools
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adir.adaptation import base as adapters
from adir.data.reduced import reduced
from adir.diffusion.posterior import diffuse, epsilon_loss
from adir.errors import InputError, one_line
from adir.files import hash_of, storable, write_json
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.records.record import (
    Adapter as RecordedAdapter,
    Measurement as Measured,
    Neighbour,
    OracleError,
    Prior,
    Record,
    Sampling,
    Score,
    Search,
    TestImage,
    scores_of,
)
from adir.harness.running.claims import Claims
from adir.harness.running.neighbours import (
    corpus_index,
    excluded_ids,
    find_neighbours,
    is_embedded,
    training_ids,
    validation_images,
)
from adir.harness.running.provenance import commit, process_peak_memory_mb, timed, versions
from adir.harness.running.stores import (
    AdapterStore,
    FoundNeighbours,
    Measurement,
    MeasurementStore,
    StoredAdapter,
    keep_image,
    stored_neighbours,
)
from adir.images import generator, hash_of_image, read_png, write_png
from adir.retrieval.index.memory import Index
from adir.samplers.base import Restoration, Steering
from adir.scoring.metrics import data_consistency_residual

Log = Callable[[str], None]


class Busy(Exception):
    """Exception raised if another worker is computing the adapter, or the corpus's embeddings.

    The image needs this result, so the caller tries the image again later.
    """


NO_NEIGHBOURS = FoundNeighbours(neighbours=(), excluded=())


@dataclass
class Prepared:
    """Test image with everything that its restoration needs."""

    image_id: str
    x: Tensor
    task: Any
    """The cell's task, bound to this image if images bring masks or prompts of their own."""
    measurement: Measurement
    found: FoundNeighbours = NO_NEIGHBOURS
    recall: float | None = None
    """The share of the true K neighbours that an approximate search finds; None if exact."""
    adapter: StoredAdapter | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """{stage: seconds that this image took}"""

    @property
    def operator(self) -> Any:
        """The task's operator A for images of the shape of x."""
        return self.task.operator(tuple(self.x.shape))


def prepare(cell: Cell, image_id: str, tell: Log, progress: bool) -> Prepared:
    """Return a test image with its y, neighbours and adapter, each cached or computed now.

    Raises:
        Busy: if another worker is computing the adapter or the embeddings.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "measure"):
        x = cell.data.image(image_id)
        task = cell.task.bound(cell.data, image_id)
        cell = dataclasses.replace(cell, task=task)
        store = MeasurementStore(
            cell.results, task, cell.identity.configuration["task"], cell.noise_seed
        )
        measurement = store.get(image_id, x, warn=lambda message: tell(f"warning: {message}"))
        keep_image(cell.results, x)
    prepared = Prepared(image_id, x, task, measurement, seconds=seconds)
    with timed(seconds, "retrieve"):
        if cell.corpus is not None:
            prepared.found = neighbours_of(cell, image_id, x, measurement)
            prepared.recall = cell.corpus.recall(cell.k) if cell.mode.depends_on_y else None
    with timed(seconds, "adapt"):
        chosen = [near.id for near in prepared.found.neighbours]
        excluded = excluded_ids(cell, image_id, prepared.found.excluded)
        prepared.adapter = find_or_train_adapter(
            cell, image_id, task, measurement.y, chosen, progress, tell, excluded
        )
    return prepared


def neighbours_of(
    cell: Cell, image_id: str, x: Tensor, measurement: Measurement
) -> FoundNeighbours:
    """Return the K neighbours of an image, from the cache or from a new search.

    A new result is added to the cache, which all cells share.
    """
    assert cell.corpus is not None
    key = neighbours_key(cell, image_id, hash_of_image(x), measurement.sha256)
    found = stored_neighbours(cell.results, key, cell.k)
    if found is None:
        embed_once(cell)
        chosen, excluded = find_neighbours(cell, image_id, x, measurement.y)
        neighbours = [
            Neighbour(
                id=one.id,
                distance=one.distance,
                image=keep_image(cell.results, reduced(cell.corpus.image(one.id)), thumbnail=True),
            )
            for one in chosen
        ]
        found = FoundNeighbours(neighbours=tuple(neighbours), excluded=tuple(excluded))
        write_json(Layout(cell.results).neighbours(key), found.model_dump(mode="json"))
    return found


def embed_once(cell: Cell) -> None:
    """Embed the corpus if the mode searches it and no embeddings are cached.

    Raises:
        Busy: if another worker is embedding the corpus.
    """
    folder = Layout(cell.results).embeddings
    if not cell.mode.depends_on_y or cell.corpus is None or cell.encoder is None:
        return
    if not is_embedded(cell.corpus, cell.encoder, folder):
        name = Index.path(cell.corpus, cell.encoder, folder).stem
        with Claims(folder).claimed(name) as mine:
            if not mine:
                raise Busy(name)
            # This reads the file if another worker has just written it.
            corpus_index(cell.corpus, cell.encoder, folder)


def neighbours_key(cell: Cell, image_id: str, image_sha256: str, y_sha256: str) -> str:
    """Return the cache key of an image's neighbours.

    The key is the hash of everything that determines the neighbours, except K.

    Args:
        cell: the cell, with its task bound to the test image (`Task.bound`).
        image_id: id of the test image.
        image_sha256: hash of the test image's pixels.
        y_sha256: hash of the pixels of y; ignored if the mode does not depend on y.
    """
    retrieval = cell.identity.configuration["retrieval"]
    drawn = {"y": y_sha256} if cell.mode.depends_on_y else {"seed": cell.seed, "image": image_id}
    # Edits search by prompt or by image; other tasks have no prompt.
    asked = {"prompt": cell.task.prompt, "by": cell.task.by} if cell.task.edits else {}
    # The images that a corpus withholds depend on the test image's cluster. Most corpora
    # withhold nothing.
    cluster = {"cluster": cell.data.cluster(image_id)} if "withholds" in retrieval else {}
    return hash_of(
        {
            "mode": cell.mode.name,
            "retrieval": retrieval,
            "x": image_sha256,
            **drawn,
            **asked,
            **cluster,
        }
    )


def adaptation_images(cell: Cell, task: Any, y: Tensor, chosen: list[str]) -> list[Tensor]:
    """Return the images (3, H, W) in [-1, 1] that the denoiser is tuned on.

    Args:
        cell: the cell, for its mode and corpus.
        task: the cell's task, which turns y into an image.
        y: measurement of the test image.
        chosen: ids of corpus images, nearest first.
    """
    corpus = (
        [reduced(cell.corpus.image(name)) for name in chosen] if cell.corpus is not None else []
    )
    return cell.mode.images(task.image_of(y), corpus)


def adapter_key_parts(
    cell: Cell, image_id: str, task: Any, image_hashes: list[str]
) -> dict[str, Any]:
    """Return everything that determines an adapter; the hash of this dict is the cache key.

    The dict does not contain the sampler, so cells that differ only in the sampler share adapters.
    With a pixel backbone, the dict does not contain the task either. Cells of two tasks then share
    an adapter if they adapt to the same images, as in the mode `random`. With a latent backbone,
    the dict contains the task, because training uses the task's operator (to make low-resolution
    images) or its prompt.

    An adapter that is trained on a single image may be validated on other images of the corpus. The
    dict then contains the corpus.
    """
    settings = {
        key: value for key, value in cell.identity.configuration["task"].items() if key != "version"
    }
    seen = {} if cell.backbone.kind == "pixel" else {"task": settings | {"prompt": task.prompt}}
    judged = (
        cell.corpus is not None and len(image_hashes) == 1 and cell.fine_tuning.n_extra_images > 0
    )
    variants = (
        {} if cell.mode.variant_settings is None else {"variants": cell.mode.variant_settings}
    )
    return {
        "backbone": cell.identity.configuration["backbone"],
        "adaptation": {
            key: cell.identity.configuration["adaptation"][key]
            for key in ("adapter", "fine_tuning")
        },
        "images": image_hashes,
        "seed": [cell.seed, image_id],
        **({"judged_beside": cell.identity.configuration["retrieval"]["corpus"]} if judged else {}),
        **variants,
        **seen,
    }


def find_or_train_adapter(
    cell: Cell,
    image_id: str,
    task: Any,
    y: Tensor,
    chosen: list[str],
    progress: bool,
    tell: Log,
    excluded: Collection[str] = (),
) -> StoredAdapter | None:
    """Return the adapter for one image, cached or trained now; None if the mode trains none.

    Args:
        cell: the cell that needs the adapter.
        image_id: id of the test image.
        task: the cell's task, bound to the image.
        y: measurement of the test image.
        chosen: ids of the corpus images to adapt to, nearest first.
        progress: show a progress bar of the training.
        tell: called with each message for the log.
        excluded: ids of the corpus images that the test image must not use; see `excluded_ids`.

    Raises:
        Busy: if another worker is training the adapter.
    """
    if not cell.mode.trains:
        return None
    used = training_ids(cell, chosen, excluded)
    images = adaptation_images(cell, task, y, used)
    made_of = adapter_key_parts(cell, image_id, task, [hash_of_image(image) for image in images])
    key, store = hash_of(made_of), AdapterStore(cell.results)
    warn = lambda message: tell(f"warning: {message}")  # noqa: E731 - for both calls below
    stored = store.find(key, warn)
    if stored is not None:
        return stored
    with Claims(cell.results / "adapters").claimed(key) as mine:
        if not mine:
            raise Busy(key)
        stored = store.find(key, warn)  # finished by another worker before our claim
        if stored is not None:
            return stored
        from adir.harness.running.handlers import HandlersStay  # imports Lightning

        # Train, on `images` and with validation on `others` as well; then cache the result.
        started = time.perf_counter()
        others = validation_images(cell, image_id, used, excluded)
        trained = cell.fine_tuning.fit(
            cell.backbone,
            cell.adapter,
            images,
            generator(cell.seed, image_id, "adaptation"),
            callbacks=[HandlersStay()],
            progress=progress,
            task=task,
            names=used or [image_id],
            others=[reduced(cell.corpus.image(name)) for name in others]
            if cell.corpus is not None
            else [],
            variants=cell.mode.variants,
        )
        if trained.crop_size_reason is not None:
            tell_once(tell, f"adaptation: {trained.crop_size_reason}")
        facts = {
            "made_of": made_of,
            "losses": trained.losses,
            "layers": trained.layers,
            "n_parameters": trained.n_parameters,
            "crop_size": trained.crop_size,
            "k_used": len(used) if len(used) < len(chosen) else None,
            "held_out": None if trained.held_out is None else dataclasses.asdict(trained.held_out),
            "seconds": round(time.perf_counter() - started, 3),
        }
        tell_once(
            tell,
            f"adapter {cell.adapter.name}: {trained.n_parameters:,} parameters in "
            f"{len(trained.layers)} layers",
        )
        return store.put(key, trained.tensors, facts)


@functools.cache
def tell_once(tell: Log, message: str) -> None:
    """Log a message once per process."""
    tell(message)


def in_place(cell: Cell, adapter: StoredAdapter | None) -> AbstractContextManager[Any]:
    """Return a context manager that applies a trained adapter to the backbone.

    If the fine-tuning has `gate=True`, the adapter applies only in the ranges of timesteps in which
    the held-out loss fell. Otherwise it applies at all timesteps. If `adapter` is None, the context
    manager does nothing.
    """
    if adapter is None:
        return nullcontext()
    held_out = adapter.facts["held_out"]
    strata = held_out["strata"] if held_out is not None and held_out["gate"] else None
    return adapters.in_place(cell.backbone, cell.adapter, adapter.tensors, strata)


def sample(cell: Cell, batch: list[Prepared]) -> Restoration:
    """Run the sampler on a batch of test images, and return the restorations.

    All images of the batch have the same shape and operator. An image with an adapter is a batch of
    its own.
    """
    adapter = batch[0].adapter
    assert adapter is None or len(batch) == 1
    y = torch.stack([prepared.measurement.y for prepared in batch]).to(cell.backbone.device)
    noise = [generator(cell.seed, prepared.image_id, "sampler") for prepared in batch]
    seconds: dict[str, float] = {}
    with timed(seconds, "sample", share=len(batch)), in_place(cell, adapter):
        if isinstance(cell.mode, Steering):
            network = cell.backbone.network
            steering = [
                cell.mode.steered(network, generator(cell.seed, one.image_id, "adaptation"))
                for one in batch
            ]
            restored = cell.sampler.restore_steered(
                cell.backbone, batch[0].operator, y, noise, steering
            )
        else:
            restored = cell.sampler.restore(cell.backbone, batch[0].operator, y, noise)
    for prepared in batch:
        prepared.seconds |= seconds
    return restored


def finish(
    cell: Cell, prepared: Prepared, restored: Restoration, place: int, oracle: bool
) -> Record:
    """Write the restored image, score it, and return its record.

    Args:
        cell: the cell that the image belongs to.
        prepared: the test image.
        restored: the sampler's result for the batch that contains the image.
        place: index of the image in its batch.
        oracle: also measure the denoiser's error on the ground truth.

    Raises:
        FloatingPointError: if the sampler failed on the image.
    """
    reason = restored.errors[place]
    if reason is not None:
        raise FloatingPointError(reason)
    x, seconds = prepared.x, prepared.seconds
    errors: tuple[OracleError, ...] = ()
    with timed(seconds, "oracle"):
        # A steered network changes at each step, so its error is not defined.
        if oracle and not isinstance(cell.mode, Steering):
            errors = oracle_errors(cell, prepared)
    with timed(seconds, "score"):
        image = cell.ledger.image_path(prepared.image_id)
        write_png(image, restored.x_hat[place])
        scores = score_image(cell, prepared.task, image, x, prepared.measurement.y)
        if errors:
            change = {"value": oracle_eps_change(errors), "direction": "lower", "version": "1"}
            scores |= scores_of({"oracle-eps-change": change})
    return Record(
        status="done",
        image=image_of(cell, prepared.image_id, hash_of_image(x)),
        y=Measured(
            sha256=prepared.measurement.sha256,
            file=prepared.measurement.path.relative_to(cell.results).as_posix(),
        ),
        restored=image.relative_to(cell.results).as_posix(),
        scores=scores,
        unavailable=dict(cell.scoring.unavailable),
        sampler=Sampling(
            n_steps=cell.sampler.n_steps,
            capped_steps=restored.capped_steps[place],
            network_evaluations=restored.network_evaluations,
            gradient_evaluations=restored.gradient_evaluations,
        ),
        neighbours=prepared.found.neighbours,
        excluded=prepared.found.excluded,
        search=None
        if prepared.recall is None
        else Search(approximate=True, recall=prepared.recall),
        adapter=None if prepared.adapter is None else adapter_of(prepared.adapter),
        oracle=errors,
        seconds=seconds,
        process_peak_memory_mb=process_peak_memory_mb(cell.backbone.device),
        **provenance_of(cell),
    )


def adapter_of(adapter: StoredAdapter) -> RecordedAdapter:
    """Return the part of a record that describes its adapter.

    It holds the first and the last training loss. All losses and the layer names stay in the
    adapter's file.
    """
    facts = adapter.facts
    return RecordedAdapter(
        key=adapter.key,
        sha256=adapter.sha256,
        n_layers=len(facts["layers"]),
        n_parameters=facts["n_parameters"],
        training_seconds=facts["seconds"],
        first_loss=facts["losses"][0] if facts["losses"] else None,
        last_loss=facts["losses"][-1] if facts["losses"] else None,
        k_used=facts["k_used"],
        held_out=facts["held_out"],
    )


def score_image(cell: Cell, task: Any, image: Path, x: Tensor, y: Tensor) -> dict[str, Score]:
    """Return the scores of a restored image, including `residual`.

    The residual is the rms of A x_hat - y, in grey levels of 255. The image is read from its file,
    so that `adir score` later gives the same values.
    """
    x_hat = read_png(image)
    scores = scores_of(cell.scoring.score(x_hat, x, task.prompt))
    residual = data_consistency_residual(task.operator(tuple(x.shape)), x_hat[None], y[None])
    told = {"value": float(residual), "direction": "none", "version": "1", "sigma_y": task.sigma_y}
    return scores | scores_of({"residual": told})


ORACLE_TIMESTEPS = (10, 50, 100, 200, 400, 700)


def oracle_errors(cell: Cell, prepared: Prepared) -> tuple[OracleError, ...]:
    """Return the errors of the untuned and the adapted denoiser on the ground truth.

    There is one entry per timestep, computed by `eps_errors`. Its two errors are equal if the image
    has no adapter.
    """
    adapter = prepared.adapter
    untuned = tuned = eps_errors(cell, prepared.x)
    if adapter is not None:
        with in_place(cell, adapter):
            tuned = eps_errors(cell, prepared.x)
    return tuple(OracleError(t=t, untuned=untuned[t], adapted=tuned[t]) for t in untuned)


@torch.no_grad()
def eps_errors(cell: Cell, x: Tensor) -> dict[int, float]:
    """Return {t: mean squared error of the predicted noise (l_simple)} on the ground truth x.

    The denoiser is used in its current state. The timesteps t are ORACLE_TIMESTEPS, each with one
    fixed noise sample. Any t beyond the backbone's schedule, which may have fewer than 1000
    timesteps, is left out.
    """
    errors = {}
    for t in ORACLE_TIMESTEPS:
        if t >= len(cell.backbone.schedule):
            break
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))[None]
        x_t = diffuse(x[None], eps, cell.backbone.schedule.alpha_bar[t]).to(cell.backbone.device)
        eps_hat = cell.backbone.predict(x_t, torch.tensor([t], device=x_t.device)).eps.cpu()
        errors[t] = epsilon_loss(eps, eps_hat).item()
    return errors


def oracle_eps_change(errors: tuple[OracleError, ...]) -> float:
    """Return the mean over t of the relative change of the error by fine-tuning, in percent.

    The error is that of the predicted noise on the ground truth, so the value shows whether
    adaptation improved the denoiser for this very image. Lower is better; 0 means no change, or no
    adapter. The change is relative because the absolute error at t = 10 is twice the sum of the
    errors at all other t.
    """
    return sum(100 * (error.adapted / error.untuned - 1) for error in errors) / len(errors)


def failure_record(cell: Cell, image_id: str, error: Exception) -> Record:
    """Return the record of an image that failed, with its error instead of scores."""
    return Record(
        status="failed",
        image=image_of(cell, image_id, None),
        y=None,
        scores={},
        # storable: the error may name a file that is not UTF-8.
        error=storable(f"{type(error).__name__}: {one_line(error)}"),
        traceback=None
        if isinstance(error, InputError)
        else storable("".join(traceback.format_exception(error))),
        **provenance_of(cell),
    )


def image_of(cell: Cell, image_id: str, sha256: str | None) -> TestImage:
    """Return the part of a record that describes its test image.

    Licence and source are included if the data set gives them.
    """
    cluster = cell.data.cluster(image_id)
    return TestImage(
        id=image_id,
        data=cell.data.name,
        sha256=sha256,
        cluster=None if cluster == image_id else cluster,
        manifest=cell.data.sha256,
        **cell.data.attribution(image_id),
    )


def provenance_of(cell: Cell) -> dict[str, Any]:
    """Return the fields of a record that name its cell and the software and settings used."""
    return {
        "cell": cell.identity.sha256,
        "axes": cell.identity.axes,
        "identity": cell.identity.configuration,
        "configuration": cell.configuration,
        "seed": cell.seed,
        "versions": versions(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "prior": Prior(trained_on=cell.backbone.trained_on),
    }
