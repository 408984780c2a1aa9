"""One cell of a grid, built from its configuration and checked before any work.

Only this module builds the parts of a cell with Hydra's `instantiate`, so the classes of these
parts never receive a configuration object.
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
from adir.errors import InputError, one_line
from adir.harness.cells.identity import CellIdentity, cell_identity
from adir.harness.cells.paths import from_plain, literal
from adir.harness.records.ledger import Ledger
from adir.harness.records.record import Axes
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.query import require_query
from adir.samplers.base import SteerableSampler, Steering
from adir.scoring.metrics import Scoring


class NotApplicable(InputError):
    """Error for parts of a cell, such as task and sampler, that cannot work together.

    No settings would help, so a grid skips the cell and reports it.
    """


class CannotRun(InputError):
    """Error for a cell that cannot run, with all reasons that a single check finds."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(reasons)  # the list itself, so that the error survives pickling
        self.reasons = reasons

    def __str__(self) -> str:
        return "; also: ".join(self.reasons)


class Refused(InputError):
    """Error for a cell of a grid that cannot run or is not applicable.

    `reasons` lists all reasons that can be found at once.
    """

    def __init__(self, cfg: DictConfig, error: InputError, lacking: list[str]) -> None:
        """Collect the reasons.

        Args:
            cfg: composed configuration of the cell.
            error: the error raised while the cell was built.
            lacking: messages about unavailable devices; ignored if the cell is not applicable.
        """
        self.applicable = not isinstance(error, NotApplicable)
        reasons = error.reasons if isinstance(error, CannotRun) else [str(error)]
        self.reasons = [*lacking, *reasons] if self.applicable else reasons
        super().__init__("; also: ".join(self.reasons))
        self.axes = axes_of(cfg)


@dataclass(frozen=True)
class Cell:
    """Cell of an experiment grid: the objects that its configuration describes, ready to run.

    `identity` identifies the cell: equal identities give equal restored images.
    """

    identity: CellIdentity
    backbone: Any
    """A class of adir.backbones: GuidedDiffusion or one of the Stable Diffusion backbones."""
    task: Any
    """A class of adir.tasks: RestorationTask or EditTask."""
    mode: Mode
    """The adaptation mode, which chooses the images that the backbone is adapted to."""
    k: int
    sampler: Any
    """A class of adir.samplers: ADIR or a baseline."""
    scoring: Scoring
    data: Corpus
    corpus: Corpus | None
    """The corpus, D_IA in the paper; None in modes without neighbours."""
    encoder: Encoder | None
    """The encoder of the neighbour search; None in modes without a corpus."""
    query: str
    """The name of the method that turns y into an image for the encoder (adir.retrieval.query)."""
    seed: int
    noise_seed: int
    results: Path
    configuration: dict[str, Any]
    """The whole resolved configuration, which is stored in the record."""

    @property
    def adapter(self) -> Adapter:
        """The adapter, which determines which weights of the network are trained."""
        return self.mode.adapter

    @property
    def fine_tuning(self) -> FineTuning:
        """The fine-tuning settings."""
        return self.mode.fine_tuning

    @property
    def ledger(self) -> Ledger:
        """The ledger that stores the cell's records and images."""
        return Ledger(self.results / self.identity.folder)

    @property
    def label(self) -> str:
        """A readable label, such as `sr4 knn k=20 full seed=0` or `deblur dps none seed=0`."""
        return label_of(self.identity.axes)


def label_of(axes: Axes) -> str:
    """Return axes as a text, such as `sr4 knn k=20 full seed=0`.

    The text leaves out the backbone, and the sampler if it is `adir`.
    """
    k = f" k={axes.k}" if axes.k is not None else ""
    adapter = f" {axes.adapter}" if axes.adapter else ""
    sampler = f" {axes.sampler}" if axes.sampler != "adir" else ""
    return f"{axes.task}{sampler} {axes.adaptation}{k}{adapter} seed={axes.seed}"


def axes_of(cfg: DictConfig) -> Axes:
    """Return the axes that a configuration names, without checking them.

    This works even if the cell cannot be built.
    """
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
    """Return the mode class that an adaptation's configuration names.

    Raises InputError if `_target_` is missing or names another class.
    """
    target = node.get("_target_")
    found = get_class(target) if target is not None else None
    if found is None or not issubclass(found, Mode):
        raise InputError(
            f"adaptation: {target!r} is not an adaptation mode; `adir list` shows all modes"
        )
    return found


def build(node: DictConfig, what: str) -> Any:
    """Return the object that a leaf, a configuration node with `_target_`, describes.

    Equal leaves are built once per process. Raises InputError if the constructor rejects an
    argument.
    """
    return _build_once(json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True), what)


@functools.lru_cache(maxsize=64)
def _build_once(leaf: str, what: str) -> Any:
    # Texts are escaped here and again in `from_plain`, because `instantiate` resolves the whole
    # leaf and then each of its values again.
    return made(lambda: instantiate(from_plain(literal(json.loads(leaf))), _convert_="all"), what)


def made(make: Callable[[], Any], what: str) -> Any:
    """Return the result of `make`, and raise InputError if a constructor rejects an argument.

    Args:
        make: instantiates an object.
        what: dotted key of the object in the configuration, for the message.
    """
    try:
        return make()
    except InputError:
        raise
    except Exception as error:
        # Hydra wraps the constructor's exception, whose message is the useful one.
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from error
        # torch raises RuntimeError for a missing device.
        if isinstance(cause, (ValueError, TypeError, RuntimeError)):
            raise InputError(f"{what}: {one_line(cause)}") from error
        raise


class Parts:
    """Builder of the parts of a cell (backbone, task, sampler, ...) that collects all their errors.

    The error of one part therefore does not hide the errors of other parts.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._missing = sorted(OmegaConf.missing_keys(cfg))
        self.reasons = [f"{key} is missing: set {key}=..." for key in self._missing]

    def build(self, what: str) -> Any:
        """Return the part that a dotted key of the configuration describes.

        If the part cannot be built, add the error to `reasons` and return None.
        """
        if any(key.startswith(f"{what}.") for key in self._missing):
            return None
        return self.attempt(lambda: build(OmegaConf.select(self._cfg, what), what))

    def attempt(self, do: Callable[[], Any]) -> Any:
        """Return the result of `do`.

        After an InputError, return None and add the message to `reasons`.
        """
        try:
            return do()
        except InputError as error:
            self.reasons.append(str(error))
            return None


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration with all interpolations resolved; a missing value stays `???`.

    Raises InputError if an interpolation fails, or if a setting that needs a whole number has
    another value.
    """
    try:
        full: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except InterpolationKeyError as error:
        # For example, sampler=adir refers to the backbone's variance, and latent ones have none.
        raise interpolation_error(cfg, error) from error
    except OmegaConfBaseException as error:
        raise InputError(f"configuration: {one_line(error)}") from error
    for key in ("seed", "noise_seed", "k", "threads"):
        if isinstance(full[key], bool) or not isinstance(full[key], int):
            raise InputError(f"{key}={full[key]!r}: a whole number is needed")
    if full["threads"] < 1:
        raise InputError(f"threads={full['threads']}: at least 1 is needed")
    return full


def interpolation_error(cfg: DictConfig, error: InterpolationKeyError) -> InputError:
    """Return the error for an interpolation that refers to a missing key.

    If the interpolation links two named parts, such as sampler and backbone, the error is
    NotApplicable.
    """
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
        return InputError(
            f"{error.full_key} refers to {what!r}, which is not set; set {what} or {error.full_key}"
        )
    return NotApplicable(
        f"{asking}={names[0]} does not work with {asked}={names[1]}, which has no "
        f"{what.partition('.')[2]}; set only backbone=sd_x4 (or backbone=sd_inpaint for editing), "
        "which selects a suitable task and sampler"
    )


def resolve_cell(cfg: DictConfig) -> Cell:
    """Return the cell that a composed configuration describes.

    Raises InputError, before any work, for anything that would keep the cell from running.
    """
    full = resolved(cfg)
    mode_name, k = full["adaptation"]["name"], full["k"]
    encoder_name = mode_class(full["adaptation"]).encoder
    if encoder_name is not None and k < 1:
        # A sweep over K may contain 0 for its modes without neighbours.
        kind = NotApplicable if k == 0 else InputError
        raise kind(
            f"adaptation={mode_name} needs neighbours, but K={k}; use k=1 or more, or "
            "adaptation=none"
        )

    # Build the method, and check that its parts work together.
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
                f"adaptation={mode_name} tunes the network during sampling, which sampler "
                f"{sampler.name} does not support; use sampler=dds"
            )
        if reason is not None:
            raise NotApplicable(reason)
    if backbone is not None and (mode is None or mode.trains or sampler is None or sampler.n_steps):
        # The first access may load the network, and so find errors.
        parts.attempt(lambda: made(lambda: backbone.network, "backbone"))

    # Build the test set, the metrics and the corpus.
    data: Corpus = parts.build("data")
    scoring = parts.build("scoring")
    corpus: Corpus | None = None
    encoder: Encoder | None = None
    if encoder_name is not None:
        corpus = parts.build("retrieval.corpus")
        encoder = parts.build(f"retrieval.encoders.{encoder_name}")
        parts.attempt(lambda: require_query(full["retrieval"]["query"]))
        if corpus is not None and k > len(corpus):
            parts.reasons.append(
                f"K={k} neighbours requested from a corpus of {len(corpus)} images; lower K "
                "or use a larger corpus"
            )
        if corpus is not None and encoder is not None:
            parts.attempt(functools.partial(corpus.own_index, encoder))
    if parts.reasons or mode is None:
        raise CannotRun(parts.reasons)

    # A direct method uses no random numbers, so all seeds give one cell.
    seed = full["seed"] if sampler.n_steps else 0
    dtype = backbone.execution.dtype  # the only execution setting that changes pixels
    identity = cell_identity(
        full,
        mode,
        backbone={
            "weights_sha256": backbone.weights_sha256,
            "config_sha256": backbone.config_sha256,
        }
        | ({} if dtype == "float32" else {"dtype": dtype}),
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


def require_fitting_parts(cell: Cell) -> None:
    """Raise InputError if the steps, the variance or the crop size do not fit the backbone."""
    sampler, backbone = cell.sampler, cell.backbone
    if sampler.n_steps > len(backbone.schedule):
        raise InputError(
            f"sampler.n_steps={sampler.n_steps}: choose 1 to {len(backbone.schedule)}, because the "
            "backbone has no more timesteps"
        )
    if getattr(sampler, "variance", None) == "learned" and not backbone.learns_variance:
        raise InputError(
            f"sampler.variance=learned: backbone {backbone.name} does not predict a variance; use "
            "sampler.variance=small or sampler.variance=large"
        )
    if cell.mode.trains and cell.fine_tuning.crop_size < backbone.stride:
        raise InputError(
            f"adaptation.fine_tuning.crop_size={cell.fine_tuning.crop_size}: backbone "
            f"{backbone.name} needs at least {backbone.stride} pixels"
        )
