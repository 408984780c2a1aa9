"""Types of the record, the JSON file that is written for one image of one cell.

All code reads and writes records through these types.

A record holds everything needed to trust its numbers: scores with direction and version, the whole
configuration, hashes of the inputs, and the versions of the program and its libraries. A field that
is None was not measured or does not apply; None never stands for zero.
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
"""Version of the record format.

It is increased when a field is removed or changes its meaning, but not for a new optional field. A
folder of another schema is refused.
"""

Status = Literal["done", "failed", "missing"]
Direction = Literal["higher", "lower", "none"]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(strict=True, min_length=1)]


class Part(BaseModel):
    """Base class of the record's types.

    Instances are immutable, and a misspelt field raises an error.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @model_serializer(mode="wrap")
    def _with_unknown_fields(self, known: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields as a dict, including unknown ones that a newer version wrote."""
        return known(self) | (self.model_extra or {})


class Axes(Part):
    """Readable name of a cell, with one value per axis of the benchmark.

    Cells with equal axes may differ in other settings, which the cell's identity contains.
    """

    backbone: StrictStr
    """The pretrained denoiser, such as gd256."""
    task: StrictStr
    """The task, meaning an operator and its noise, such as sr4."""
    adaptation: StrictStr
    """The adaptation mode: none, self, knn, random, pixel or scd."""
    k: StrictInt | None
    """K, the requested number of neighbours; None in modes without neighbours."""
    adapter: StrictStr | None
    """The adapter, full or lora; None without adaptation."""
    sampler: StrictStr
    """The sampler, such as adir or ddrm."""
    seed: StrictInt
    """The seed of sampler, adaptation and random neighbours; 0 for methods without a network."""


class TestImage(Part):
    """Test image x, the ground truth of a restoration."""

    __test__ = False  # pytest collects classes whose names begin with Test

    id: StrictStr
    """Its name in the data set, a label for people. `sha256` identifies the image."""
    data: StrictStr | None = None
    """The name of the data set, a label for people."""
    sha256: Sha256 | None = None
    """The hash of x from `adir.images.hash_of_image`; None in a failed record."""
    cluster: StrictStr | None = None
    """The cluster that the image belongs to; None if it is alone in its cluster.

    Images of one cluster, such as crops of one photograph, count as one in means and tests.
    """
    manifest: str | None = None
    """The SHA-256 of the data set's manifest, a list of its images in RESULTS/manifests."""
    licence: str | None = None
    """The image's licence according to the data set, needed to publish the image."""
    author: str | None = None
    """The image's author according to the data set; many licences require this name."""
    source: str | None = None
    """The origin of the image according to the data set, often a URL."""


class Measurement(Part):
    """Measurement y = A x + e, shared by all methods of a task."""

    sha256: Sha256
    """The `hash_of_image` of y. Rows with different y are never compared."""
    file: str | None = None
    """The PNG of y, relative to the results folder."""


class Score(Part):
    """Score of one restored image under one metric."""

    value: Finite | None
    """The value in the metric's own unit (psnr: dB; residual: grey levels of 255).

    None if it could not be computed.
    """
    direction: Direction
    """Whether higher or lower is better; "none" for a diagnostic value, such as the residual."""
    version: StrictStr
    """The implementation and the weights. Scores of two versions are never averaged."""
    reason: str | None = None
    """The reason why `value` is None."""
    sigma_y: Finite | None = None
    """The noise level of y in grey levels, to compare the residual with; None for other metrics."""


class Neighbour(Part):
    """Corpus image that the denoiser was adapted to, called a neighbour of y."""

    id: StrictStr
    """Its name in the corpus."""
    distance: float | None
    """The distance to y in the encoder's measure (radians for unit vectors); smaller is nearer.

    None for a neighbour drawn at random.
    """
    image: str | None = None
    """The `hash_of_image` of the image that was trained on."""


class Search(Part):
    """Recall of an approximate neighbour search."""

    approximate: bool
    """Whether the search may miss neighbours."""
    recall: float
    """Measured share of the true K nearest neighbours that the search finds, in [0, 1].

    Higher is better.
    """


class Stratum(Part):
    """Error of eps on held-out images in one range of timesteps, untuned and adapted."""

    t_first: int
    t_last: int
    """The first and last of the range's timesteps, of 1000, both inclusive."""
    untuned: float
    adapted: float
    """Mean squared error of eps before and after fine-tuning, even if the update was rejected.

    Lower is better.
    """


class HeldOut(Part):
    """Losses on held-out images, by which fine-tuning chose, scaled and accepted its update.

    The ground truth is never among the held-out images. A loss is the error of eps divided by the
    untuned denoiser's error, averaged over ranges of timesteps. A loss below 1 is an improvement.
    If the loss does not clearly fall, the update is rejected (`alpha` is 0).
    """

    losses: dict[int, float]
    """{iteration: loss}"""
    kept_iteration: int
    """The iteration of lowest loss, whose weights are used."""
    alphas: dict[float, float]
    """{factor by which the update is scaled: loss}"""
    alpha: float
    """The factor in use, in [0, 1]; 0 gives the untuned denoiser."""
    gate: bool
    """Whether the adapter is used only in the ranges of timesteps in which its loss fell."""
    fall: float
    """The mean fall of the loss on crops, noise and timesteps not used to choose the update."""
    standard_error: float
    """The standard error of `fall` over the held-out images.

    `alpha` is 0 unless `fall` exceeds this error.
    """
    strata: tuple[Stratum, ...] = ()
    """The error of eps per range of timesteps: where adaptation helped and where it hurt."""


class Adapter(Part):
    """Adapter used while sampling.

    Its tensors and losses are stored under `key` in RESULTS/adapters.
    """

    key: str
    """The cache key, a hash of everything that determines the adapter.

    Cells with equal keys share the adapter.
    """
    sha256: str
    """The SHA-256 of the adapter's tensors."""
    n_layers: int
    n_parameters: int
    """The number of layers, and of parameters, that were trained."""
    training_seconds: float
    """Wall-clock time of the training, even if this cell found the adapter in the cache."""
    first_loss: float | None
    last_loss: float | None
    """`l_simple` at the first and at the last iteration.

    A single loss says little, because its timesteps are random.
    """
    k_used: int | None = None
    """The number of neighbours trained on, if some of the K were dropped; None if all were used."""
    held_out: HeldOut | None = None
    """The results on held-out images; None if no image was held out."""


class OracleError(Part):
    """Mean squared error of the predicted noise at one timestep, before and after fine-tuning.

    The network receives the ground truth with noise.
    """

    t: int
    """The timestep, of 1000."""
    untuned: float
    """The error before fine-tuning."""
    adapted: float
    """The error after fine-tuning, with the same noise as `untuned`; lower is better.

    Equal to `untuned` in a record without an adapter.
    """


class Sampling(Part):
    """Statistics of one run of the sampler."""

    n_steps: int
    """The number of steps from noise to x; 0 for a method without a network."""
    capped_steps: int
    """The number of steps at which the guidance was lowered for stability."""
    network_evaluations: int
    """The number of network calls, with or without gradient."""
    gradient_evaluations: int = 0
    """The number of network calls with gradient, which cost about three times as much as others."""


class Prior(Part):
    """Training data of the pretrained denoiser.

    Scores are meaningless if the denoiser was trained on the test set.
    """

    trained_on: str | None
    """The training data set, named as by its publisher; None if unknown."""


class Record(Part):
    """Record of one image of one cell: done, failed, or (in tables only) missing."""

    schema_version: Literal[3] = Field(default=3, alias="schema")
    """The `SCHEMA` of the version that wrote the record; the key in the file is `schema`."""
    status: Status
    """One of done, failed (see `error`), and missing (planned, but without a file)."""
    cell: Sha256
    """The SHA-256 of `identity`, which identifies the cell."""
    axes: Axes
    """The cell's readable name."""
    identity: dict[str, Any]
    """Names, versions and settings of everything that changes a pixel (harness.cells.identity)."""
    seed: StrictInt
    """The seed, equal to the one in `axes`."""
    image: TestImage
    """The test image."""
    y: Measurement | None
    """The measurement; None in a failed or missing record."""
    restored: str | None = None
    """The restored PNG, relative to the results folder."""
    scores: dict[str, Score]
    """{metric: score}; empty in a failed or missing record."""
    unavailable: dict[str, str] = {}
    """{metric: reason why this machine could not compute it}"""
    sampler: Sampling | None = None
    """The sampler's statistics; None in a failed or missing record."""
    neighbours: tuple[Neighbour, ...] = ()
    """The neighbours, nearest first."""
    excluded: tuple[str, ...] = ()
    """The ids of corpus images that were excluded as copies of the test image."""
    search: Search | None = None
    """The recall of the neighbour search; None if the search was exact."""
    adapter: Adapter | None = None
    """The adapter; None without adaptation."""
    oracle: tuple[OracleError, ...] = ()
    """The errors per timestep from which `oracle-eps-change` is computed; empty if not measured."""
    prior: Prior | None = None
    """The training data of the backbone; None if the backbone does not name them."""
    seconds: dict[str, float] = {}
    """{stage: wall-clock seconds}; stages: measure, retrieve, adapt, sample, oracle, score.

    A stage whose result was cached takes about 0 s.
    """
    process_peak_memory_mb: float | None = None
    """The peak memory of the process so far, which includes earlier images."""
    error: str | None = None
    """The exception of a failed record, on one line."""
    traceback: str | None = None
    """The traceback of a failed record, for debugging; None if the input was at fault."""
    configuration: dict[str, Any] = {}
    """The whole resolved configuration, including settings that change no pixel."""
    versions: dict[str, str] = {}
    """{package: version}"""
    commit: str | None = None
    """The commit of the checkout, with `-dirty` if tracked files differ.

    None for an installed package.
    """
    threads: int | None = None
    """The number of CPU threads that torch used."""
    path: str = Field(default="", exclude=True)
    """The record's file, relative to its folder or archive; not stored in the file."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """Return the record if it is complete and no two of its fields contradict each other.

        Tables name a row by `axes` and group it by `identity`, so both must agree. A finished
        record needs y, the hash of the image and the version of the task.

        Raises:
            ValueError: if the record is incomplete or contradicts itself.
        """
        if self.seed != self.axes.seed:
            raise ValueError(f"seed is {self.seed}, but axes.seed is {self.axes.seed}")
        for name, value in named_by(self.identity).items():
            if getattr(self.axes, name) != value:
                raise ValueError(
                    f"axes.{name} is {getattr(self.axes, name)!r}, but identity has {value!r}"
                )
        if self.status == "done":
            if (
                not isinstance(self.identity.get("task"), dict)
                or "version" not in self.identity["task"]
            ):
                raise ValueError("identity.task.version is missing")
            if self.y is None or self.image.sha256 is None:
                raise ValueError("a finished record needs y and image.sha256")
        return self

    def value(self, metric: str) -> float | None:
        """Return the value of a metric, or None if the record lacks it."""
        score = self.scores.get(metric)
        return None if score is None else score.value

    @property
    def y_file(self) -> str | None:
        """The path of y, a PNG, relative to the results folder; None if the record names none."""
        return None if self.y is None else self.y.file

    @property
    def sigma_y(self) -> float | None:
        """The noise level of y in grey levels; None if the record does not contain it."""
        residual = self.scores.get("residual")
        return None if residual is None else residual.sigma_y

    def as_json(self) -> dict[str, Any]:
        """Return the record as the JSON content of its file."""
        return self.model_dump(mode="json", by_alias=True)


def named_by(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return {field of `Axes`: value} for those fields that can be read from an identity."""
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
    """Return raw scores ({metric: fields of a `Score`}) as Score objects.

    Raises ValueError, with the metric's name, for an invalid score such as one that is not finite.
    """
    scores = {}
    for name, score in found.items():
        try:
            scores[name] = Score(**score)
        except ValidationError as error:
            raise ValueError(f"score {name}: {first_error(error)}") from error
    return scores


class OtherSchema(ValueError):
    """Error for a record of another schema, which another version of adir can read."""


def parse_record(content: Any, path: str = "") -> Record:
    """Return the record in a JSON value.

    Fields unknown to this version are kept.

    Args:
        content: the JSON value.
        path: stored as the record's `path`.

    Raises:
        OtherSchema: if the record has another schema.
        ValueError: if the value is not a valid record; the message names the field.
    """
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if (schema := content.get("schema")) != SCHEMA:
        raise OtherSchema(
            f"the record has schema {schema!r}, but this version of adir reads schema {SCHEMA}"
        )
    content = content | {"path": path}
    try:
        return Record.model_validate(content)
    except ValidationError:
        # Invalid, or with fields of a newer version. To allow those at once takes a third longer.
        pass
    try:
        return Record.model_validate(content, extra="allow")
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def json_value(content: bytes) -> Any:
    """Return the parsed content of a JSON file.

    Raises ValueError if the content is not valid JSON; NaN and Infinity are invalid.
    """
    try:
        return from_json(content, allow_inf_nan=False)  # twice as fast as json.loads
    except ValueError as error:
        raise ValueError(f"invalid JSON: {error}") from error


def first_error(error: ValidationError) -> str:
    """Return the first error of a validation as text.

    An example is `axes.k: Input should be a valid integer`.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
    return f"{place}: {message}" if place else message
