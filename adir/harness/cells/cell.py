"""One cell of the grid: its configuration turned into objects, and the walk from image to record.

This is the only place that calls Hydra's `instantiate`; below it nobody sees a configuration
object.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from adir.adaptation.base import Adapter
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import Mode
from adir.data.base import Corpus
from adir.errors import InputError, first_line
from adir.harness.cells.identity import CellIdentity, cell_identity
from adir.harness.cells.paths import from_plain, literal
from adir.harness.records.ledger import Ledger
from adir.harness.records.record import Axes
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.query import require_query
from adir.samplers.base import SteerableSampler, Steering
from adir.scoring.metrics import Scoring


class NotApplicable(InputError):
    """A combination whose parts do not go together, whatever their values: a grid leaves it out and
    says so.
    """


class CannotRun(InputError):
    """All that keeps a cell from running, as far as it can be told at once."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(reasons)  # as it stands, so that it is the same again from another process
        self.reasons = reasons

    def __str__(self) -> str:
        return "; also: ".join(self.reasons)


@dataclass(frozen=True)
class Cell:
    """Everything one cell needs, built; and who it is."""

    identity: CellIdentity
    backbone: Any
    """adir.backbones: a GuidedDiffusion or one of Stable Diffusion's."""
    task: Any
    """adir.tasks: a RestorationTask or an EditTask."""
    mode: Mode
    """Which images the backbone is adapted to, and how."""
    k: int
    sampler: Any
    """adir.samplers: ADIR or one of the baselines."""
    scoring: Scoring
    data: Corpus
    corpus: Corpus | None
    """D_IA; None in modes without neighbours."""
    encoder: Encoder | None
    """Where neighbours are looked for; None in modes without a corpus."""
    query: str
    """How y is shown to it (adir.retrieval.query)."""
    seed: int
    noise_seed: int
    results: Path
    configuration: dict[str, Any]
    """The whole resolved configuration, for the record."""

    @property
    def adapter(self) -> Adapter:
        """What is trained."""
        return self.mode.adapter

    @property
    def fine_tuning(self) -> FineTuning:
        """How it is trained."""
        return self.mode.fine_tuning

    @property
    def ledger(self) -> Ledger:
        """Where its records go."""
        return Ledger(self.results / self.identity.folder)

    @property
    def label(self) -> str:
        """For people: `sr4 knn k=20 full seed=0`, `deblur dps none seed=0`."""
        return label_of(self.identity.axes)


def label_of(axes: Axes) -> str:
    """Return a cell's axes, the backbone aside, as text: `sr4 knn k=20 full seed=0`."""
    k = f" k={axes.k}" if axes.k is not None else ""
    adapter = f" {axes.adapter}" if axes.adapter else ""
    sampler = f" {axes.sampler}" if axes.sampler != "adir" else ""
    return f"{axes.task}{sampler} {axes.adaptation}{k}{adapter} seed={axes.seed}"


def axes_of(cfg: DictConfig) -> Axes:
    """Return the axes of a cell that may not be built, as its configuration names them, unchecked."""
    named = {
        name: OmegaConf.select(cfg, f"{name}.name")
        for name in ("backbone", "task", "adaptation", "sampler")
    }
    mode = mode_class(cfg.adaptation)
    adapter = OmegaConf.select(cfg, "adaptation.adapter.name")
    return Axes.model_construct(
        **named,
        k=cfg.k if mode.encoder is not None else None,
        adapter=adapter if mode.trains or issubclass(mode, Steering) else None,
        seed=cfg.seed,
    )


def mode_class(node: Mapping[str, Any]) -> type[Mode]:
    """Return the class of an adaptation's configuration.

    Raises InputError for one that names none.
    """
    target = node.get("_target_")
    found = get_class(target) if target is not None else None
    if found is None or not issubclass(found, Mode):
        raise InputError(
            f"adaptation: {target!r} is no mode of adaptation; `adir list` shows those there are"
        )
    return found


def build(node: DictConfig, what: str) -> Any:
    """The object that a leaf describes, built once per process for equal leaves; InputError for
    arguments it refuses.
    """
    return _build_once(json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True), what)


@functools.lru_cache(maxsize=64)
def _build_once(leaf: str, what: str) -> Any:
    # Escaped twice: `instantiate` resolves the whole leaf, and then every value of it once more.
    return made(lambda: instantiate(from_plain(literal(json.loads(leaf))), _convert_="all"), what)


def made(make: Callable[[], Any], what: str) -> Any:
    """Return what `make` gives; InputError for arguments that are refused."""
    try:
        return make()
    except InputError:
        raise
    except (
        Exception
    ) as error:  # Hydra wraps what a constructor raised; the cause says what is wrong
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from error
        if isinstance(
            cause, (ValueError, TypeError, RuntimeError)
        ):  # the last is torch's for a missing device
            raise InputError(f"{what}: {first_line(cause)}") from error
        raise


class Parts:
    """The parts of a configuration, built one after the other; what is wrong with one does not hide
    what is with another.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._missing = sorted(OmegaConf.missing_keys(cfg))
        self.reasons = [f"{key} is missing: say {key}=..." for key in self._missing]

    def build(self, what: str) -> Any:
        """The part, or None where that is among the reasons."""
        if any(key.startswith(f"{what}.") for key in self._missing):
            return None
        return self.attempt(lambda: build(OmegaConf.select(self._cfg, what), what))

    def attempt(self, do: Callable[[], Any]) -> Any:
        """What it gives, or None where it raises InputError, which then is among the reasons."""
        try:
            return do()
        except InputError as error:
            self.reasons.append(str(error))
            return None


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration without interpolations; what is missing stays `???`. Raises InputError."""
    try:
        full: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except (
        InterpolationKeyError
    ) as error:  # such as the variance of a latent backbone, for the sampler adir
        raise unmet(cfg, error) from error
    except OmegaConfBaseException as error:
        raise InputError(f"configuration: {first_line(error)}") from error
    for key in ("seed", "noise_seed", "k", "threads"):
        if isinstance(full[key], bool) or not isinstance(full[key], int):
            raise InputError(f"{key}={full[key]!r}: a whole number is needed")
    if full["threads"] < 1:
        raise InputError(f"threads={full['threads']}: at least 1 is needed")
    return full


def unmet(cfg: DictConfig, error: InterpolationKeyError) -> InputError:
    """What says that one part asks another for what it has not got."""
    what = (
        str(error)
        .partition("\n")[0]
        .removeprefix("Interpolation key ")
        .removesuffix(" not found")
        .strip("'")
    )
    asking, asked = str(error.full_key).partition(".")[0], what.partition(".")[0]
    names = [OmegaConf.select(cfg, f"{part}.name") for part in (asking, asked)]
    if None in names:
        return InputError(f"{error.full_key} is that of {what!r}, which there is not")
    return NotApplicable(
        f"{asking}={names[0]} does not go with {asked}={names[1]}, which has no "
        f"{what.partition('.')[2]}: backbone=sd_x4, or "
        "backbone=sd_inpaint for editing, brings the task and the sampler that go with it where "
        "no others are named"
    )


def resolve_cell(cfg: DictConfig) -> Cell:
    """The cell that a composed configuration describes.

    Raises InputError for anything that could not run, before any work.
    """
    full = resolved(cfg)
    mode_name, k = full["adaptation"]["name"], full["k"]
    looks_with = mode_class(full["adaptation"]).encoder
    if looks_with is not None and k < 1:
        kind = (
            NotApplicable if k == 0 else InputError
        )  # 0 is a value of a sweep, for its modes without neighbours
        raise kind(
            f"K={k} with adaptation={mode_name}: use k=1 or more, or adaptation=none for no "
            "neighbours"
        )
    parts = Parts(cfg)
    backbone, task, sampler = (parts.build(part) for part in ("backbone", "task", "sampler"))
    mode: Mode | None = parts.build("adaptation")
    if None not in (backbone, task, sampler, mode):
        reason = sampler.not_applicable(backbone, task, mode)
        if (
            reason is None
            and isinstance(mode, Steering)
            and not isinstance(sampler, SteerableSampler)
        ):
            reason = (
                f"adaptation={mode_name} tunes the network while it samples, which sampler "
                f"{sampler.name} does not do: "
                "use sampler=dds"
            )
        if reason is not None:
            raise NotApplicable(reason)
    if backbone is not None and (mode is None or mode.trains or sampler is None or sampler.n_steps):
        parts.attempt(lambda: made(lambda: backbone.network, "backbone"))  # may be loaded only now
    data: Corpus = parts.build("data")
    scoring = parts.build("scoring")
    corpus: Corpus | None = None
    encoder: Encoder | None = None
    if looks_with is not None:
        corpus = parts.build("retrieval.corpus")
        encoder = parts.build(f"retrieval.encoders.{looks_with}")
        parts.attempt(lambda: require_query(full["retrieval"]["query"]))
        if corpus is not None and k > len(corpus):
            parts.reasons.append(
                f"K={k} neighbours asked of a corpus of {len(corpus)} images: lower K or use a "
                "larger corpus"
            )
        if corpus is not None and encoder is not None:
            parts.attempt(functools.partial(corpus.own_index, encoder))
    if parts.reasons or mode is None:
        raise CannotRun(parts.reasons)
    seed = (
        full["seed"] if sampler.n_steps else 0
    )  # a direct method draws nothing: one cell for all seeds
    identity = cell_identity(
        full,
        mode,
        backbone={
            "weights_sha256": backbone.weights_sha256,
            "config_sha256": backbone.config_sha256,
        }
        | precision(backbone),
        corpus=corpus.sha256 if corpus is not None else None,
        encoder=encoder.weights_sha256 if encoder is not None else None,
        seed=seed,
        withholds=corpus.withholds if corpus is not None else None,
    )
    cell = Cell(
        identity=identity,
        backbone=backbone,
        task=task,
        mode=mode,
        k=k,
        sampler=sampler,
        scoring=scoring,
        data=data,
        corpus=corpus,
        encoder=encoder,
        query=full["retrieval"]["query"],
        seed=seed,
        noise_seed=full["noise_seed"],
        results=Path(full["results"]),
        configuration=full,
    )
    require_fitting_parts(cell)
    return cell


def precision(backbone: Any) -> dict[str, str]:
    """The one part of how a network is executed that changes pixels, where it is not the usual one."""
    dtype = backbone.execution.dtype
    return {} if dtype == "float32" else {"dtype": dtype}


def require_fitting_parts(cell: Cell) -> None:
    """Raise InputError where parts that go together ask for what the backbone has not got."""
    sampler, backbone = cell.sampler, cell.backbone
    if sampler.n_steps > len(backbone.schedule):
        raise InputError(
            f"n_steps={sampler.n_steps}: choose from 1 to {len(backbone.schedule)}, the "
            "backbone's own steps"
        )
    if getattr(sampler, "variance", None) == "learned" and not backbone.learns_variance:
        raise InputError(
            f"variance=learned, but backbone {backbone.name} predicts none: use small or large"
        )
    if cell.mode.trains and cell.fine_tuning.crop_size < backbone.stride:
        raise InputError(
            f"crop_size={cell.fine_tuning.crop_size}: this backbone needs {backbone.stride} "
            "pixels or more"
        )
