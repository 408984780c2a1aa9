"""The record: what one image of one cell leaves on disk, as one JSON file.

All code reads and writes records as these types.

A record holds what it takes to trust its numbers: scores with their direction and version, the
whole configuration, hashes of what went in, and the program that ran. A field that is None was not
measured or does not apply; it never stands for zero.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    StrictStr,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import from_json

SCHEMA = 3
"""Raised when a field changes its meaning or goes, and not for a new optional one.

A folder of another schema is refused.
"""

Status = Literal["done", "failed", "missing"]
Direction = Literal["higher", "lower", "none"]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(strict=True, min_length=1)]


class Part(BaseModel):
    """Base of the record's types: immutable, and a misspelt field raises."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @model_serializer(mode="wrap")
    def _with_unknown_fields(self, known: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write what a file held beyond these fields as it was: it may be a newer version's."""
        return known(self) | (self.model_extra or {})


class Axes(Part):
    """The readable values that name a cell; its identity has the rest."""

    backbone: StrictStr
    """The pretrained denoiser, such as gd256."""
    task: StrictStr
    """The task with its operator and noise, such as sr4."""
    adaptation: StrictStr
    """The mode: none, self, knn, random, pixel."""
    k: StrictInt | None
    """K, the number of neighbours asked for; None in modes without neighbours."""
    adapter: StrictStr | None
    """full or lora; None without adaptation."""
    sampler: StrictStr
    """What restores x from y, such as adir or ddrm."""
    seed: StrictInt
    """Of sampler, adaptation and random neighbours; 0 for methods that draw nothing."""


class TestImage(Part):
    """The test image, x."""

    __test__ = False  # its name would make pytest collect it

    id: StrictStr
    """Its name in the data set, for people; `sha256` says which image it is."""
    data: StrictStr | None = None
    """Name of the data set, for people."""
    sha256: Sha256 | None = None
    """`adir.images.hash_of_image` of x; None in a record that failed."""
    cluster: StrictStr | None = None
    """Images of one cluster, such as fields of one photograph, count as one in means and tests;
    None: a cluster of its own.
    """
    manifest: str | None = None
    """SHA-256 of the data set's manifest, a list of its images in RESULTS/manifests."""
    licence: str | None = None
    """The image's licence as the data set tells it, for whoever shows the image."""
    author: str | None = None
    """Its author as the data set tells it, whom many licences ask to name."""
    source: str | None = None
    """Where the data set found it, often a URL."""


class Measurement(Part):
    """y = A x + e, which every method of a task shares."""

    sha256: Sha256
    """`hash_of_image` of y: rows whose y differ are never compared."""
    file: str | None = None
    """Its PNG, relative to the results folder."""


class Score(Part):
    """One metric of one restored image."""

    value: Finite | None
    """In the metric's own unit (psnr: dB; residual: grey levels of 255); None where it could not be
    computed.
    """
    direction: Direction
    """Whether higher or lower is better; none for what is only to be read, such as the residual."""
    version: StrictStr
    """Implementation and weights: scores of two versions are never averaged."""
    reason: str | None = None
    """Why `value` is None."""
    sigma_y: Finite | None = None
    """Of the residual alone: noise of y in grey levels, which the residual is read beside."""


class Neighbour(Part):
    """One image of the corpus that the denoiser was adapted to."""

    id: StrictStr
    """Its name in the corpus."""
    distance: float | None
    """To y in the encoder's measure (radians for unit vectors); smaller is nearer.

    None where none was taken (random).
    """
    image: str | None = None
    """`hash_of_image` of what was trained on."""


class Search(Part):
    """How the neighbours were searched for, where the search may miss some."""

    approximate: bool
    """Whether the search may miss neighbours."""
    recall: float
    """Share of the true K nearest that such a search finds, in [0, 1]; higher is better."""


class Stratum(Part):
    """Held-out loss in one range of timesteps."""

    t_first: int
    t_last: int
    """Timesteps of the range, of 1000, both inclusive."""
    untuned: float
    adapted: float
    """Mean squared error of eps before and after fine-tuning, whether that was accepted or not;
    lower is better.
    """


class HeldOut(Part):
    """What held-out images said while the denoiser was fine-tuned.

    The ground truth is never among them.

    A loss is the mean over ranges of timesteps of the error of eps relative to the untuned
    denoiser's: below 1 is better.
    """

    losses: dict[int, float]
    """{iteration: loss}"""
    kept_iteration: int
    """The iteration of lowest loss, whose weights were kept."""
    alphas: dict[float, float]
    """{factor of the update: loss}"""
    alpha: float
    """The factor in use, in [0, 1]; 0 is the untuned denoiser."""
    gate: bool
    """Whether the adapter is in place only in the strata where its loss fell."""
    fall: float
    """Fall of the loss on crops, noise and timesteps that chose nothing."""
    standard_error: float
    """Of `fall` over the held-out images. Where the fall does not exceed it, `alpha` is 0."""
    strata: tuple[Stratum, ...] = ()
    """The error of eps by ranges of timesteps: where the adaptation helped and where it hurt."""


class Adapter(Part):
    """The adapter that was in place while sampling; its tensors and losses lie under `key` in
    RESULTS/adapters.
    """

    key: str
    """Hash of what made it: cells with equal keys share it."""
    sha256: str
    """Of its tensors."""
    n_layers: int
    n_parameters: int
    """How many layers and numbers of the network were trained."""
    training_seconds: float
    """Wall clock of its training, also where it was found in its store."""
    first_loss: float | None
    last_loss: float | None
    """l_simple of the first and the last iteration; a single iteration's loss is at random t and
    says little.
    """
    k_used: int | None = None
    """Neighbours that it was trained on, where some of the K were dropped; None: all."""
    held_out: HeldOut | None = None
    """None where nothing was held out."""


class OracleError(Part):
    """The denoiser's mean squared error of eps on the ground truth at one timestep, before and
    after fine-tuning.
    """

    t: int
    """Timestep, of 1000."""
    untuned: float
    adapted: float
    """With the same noise; equal to `untuned` in a record without an adapter. Lower is better."""


class Sampling(Part):
    """What the sampler did."""

    n_steps: int
    """Steps from noise to x; 0 for a method without a network."""
    capped_steps: int
    """Steps at which the guidance was lowered to stay stable."""
    network_evaluations: int
    """Calls of the network, with and without gradient."""
    gradient_evaluations: int = 0
    """Those among them that were differentiated, which cost about three times as much."""


class Prior(Part):
    """The pretrained denoiser's past: a prior that was trained on the test set makes a score
    meaningless.
    """

    trained_on: str | None
    """Data set, as its publisher names it; None where it is not known."""


class Record(Part):
    """One image of one cell: done, failed, or (in tables only) missing."""

    schema_version: Literal[3] = Field(default=3, alias="schema")
    """`SCHEMA` of the version that wrote it; `schema` in the file."""
    status: Status
    """done, failed (see `error`), or missing: planned and without a file."""
    cell: Sha256
    """SHA-256 of `identity`: which cell this is."""
    axes: Axes
    """The cell's readable name."""
    identity: dict[str, Any]
    """Names, versions and settings of all that changes a pixel (adir.harness.cells.identity)."""
    seed: StrictInt
    """That of `axes`."""
    image: TestImage
    """Which image was restored."""
    y: Measurement | None
    """None in a record that failed or is missing."""
    restored: str | None = None
    """The restored PNG, relative to the results folder."""
    scores: dict[str, Score]
    """{metric: score}; empty in a record that failed or is missing."""
    unavailable: dict[str, str] = {}
    """{metric: why it could not be computed on that machine}"""
    sampler: Sampling | None = None
    """None in a record that failed or is missing."""
    neighbours: tuple[Neighbour, ...] = ()
    """Nearest first."""
    excluded: tuple[str, ...] = ()
    """Ids of the corpus that were left out as copies of the test image."""
    search: Search | None = None
    """None where the search was exact."""
    adapter: Adapter | None = None
    """None without adaptation."""
    oracle: tuple[OracleError, ...] = ()
    """What `oracle-eps-change` is made of, by timestep; empty where it was not measured."""
    prior: Prior | None = None
    """None where the backbone does not tell."""
    seconds: dict[str, float] = {}
    """{stage: wall-clock seconds}: measure, retrieve, adapt, sample, oracle, score.

    Near 0 where the product was stored.
    """
    process_peak_memory_mb: float | None = None
    """Of the process so far, earlier images included."""
    error: str | None = None
    """Of a failed record: the exception, on one line."""
    traceback: str | None = None
    """Of a failed record, for whoever mends it; None where the input was at fault."""
    configuration: dict[str, Any] = {}
    """The whole resolved configuration, with what changes no pixel."""
    versions: dict[str, str] = {}
    """{package: version}"""
    commit: str | None = None
    """Of the checkout that ran, `-dirty` where tracked files differ; None for an installed package.
    """
    threads: int | None = None
    """Of torch."""
    path: str = Field(default="", exclude=True)
    """Its file, relative to the folder or archive it was read from; never part of the file."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """Raise ValueError where two fields contradict each other: a row is named by one and
        grouped by the other.
        """
        if self.seed != self.axes.seed:
            raise ValueError(f"seed is {self.seed}, that of the axes {self.axes.seed}")
        for name, value in named_by(self.identity).items():
            if getattr(self.axes, name) != value:
                raise ValueError(
                    f"axis {name} is {getattr(self.axes, name)!r}, its identity says {value!r}"
                )
        if self.status == "done":
            if (
                not isinstance(self.identity.get("task"), dict)
                or "version" not in self.identity["task"]
            ):
                raise ValueError("identity.task.version is missing")
            if self.y is None or self.image.sha256 is None:
                raise ValueError("y and image.sha256 are needed in a record that is done")
        return self

    def value(self, metric: str) -> float | None:
        """The value of a metric; None where the record lacks it."""
        score = self.scores.get(metric)
        return None if score is None else score.value

    @property
    def y_file(self) -> str | None:
        """File of y, relative to the results folder; None where the record names none."""
        return None if self.y is None else self.y.file

    @property
    def sigma_y(self) -> float | None:
        """Noise of y in grey levels; None where the record does not tell."""
        residual = self.scores.get("residual")
        return None if residual is None else residual.sigma_y

    def as_json(self) -> dict[str, Any]:
        """The content of its file."""
        return self.model_dump(mode="json", by_alias=True)


def named_by(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axes that an identity tells: {axis: value}."""
    parts = {name: identity.get(name) for name in ("backbone", "task", "sampler", "adaptation")}
    told = {
        name: part["name"]
        for name, part in parts.items()
        if isinstance(part, dict) and "name" in part
    }
    adaptation = parts["adaptation"]
    if isinstance(adaptation, dict):
        told["k"] = adaptation.get("k")
        if isinstance(adapter := adaptation.get("adapter"), dict):
            told["adapter"] = adapter.get("name")
    return told | ({"seed": identity["seed"]} if "seed" in identity else {})


def scores_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Return what a scoring found as scores.

    Raises ValueError, naming the metric, for a value that is no finite number.
    """
    scores = {}
    for name, score in found.items():
        try:
            scores[name] = Score(**score)
        except ValidationError as error:
            raise ValueError(f"score {name}: {first_error(error)}") from error
    return scores


class OtherSchema(ValueError):
    """A record that another version of this program can read."""


def parse_record(content: Any, path: str = "") -> Record:
    """Return the record in a JSON value, with the path of its file.

    Fields that this version does not know are kept.

    Raises ValueError, whose text names the field, where it is none; OtherSchema where it is one of
    another schema.
    """
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if (schema := content.get("schema")) != SCHEMA:
        raise OtherSchema(
            f"a record of schema {schema!r}, this version of adir reads schema {SCHEMA}"
        )
    content = content | {"path": path}
    try:
        return Record.model_validate(content)
    except (
        ValidationError
    ):  # wrong, or with fields of a newer version; to allow these takes a third longer
        pass
    try:
        return Record.model_validate(content, extra="allow")
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def json_value(content: bytes) -> Any:
    """Return the value of a JSON file.

    Raises ValueError for what is no JSON, NaN and Infinity included.
    """
    try:
        return from_json(content, allow_inf_nan=False)  # in half of json's time
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error


def first_error(error: ValidationError) -> str:
    """Return the first fault of a record in a few words:

    `axes.k: Input should be a valid integer`.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
    return f"{place}: {message}" if place else message
