"""Bridge to deepinv: use its linear physics as tasks, and our methods as its reconstructors.

docs/deepinv.md has an example of each. deepinv's images are in [0, 1] and ours in [-1, 1].
Therefore x becomes (x + 1) / 2 in deepinv, y becomes (y + A 1) / 2, where 1 is an image of ones,
and sigma_y becomes sigma_y / 2.
"""

import copy
import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from deepinv.models import Reconstructor
from deepinv.physics import GaussianNoise, LinearPhysics, ZeroNoise
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from adir.adaptation.adapters import Full
from adir.adaptation.base import in_place
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import Chosen, Mode, NoAdaptation
from adir.backbones.base import PixelBackbone
from adir.data.base import Corpus
from adir.errors import InputError, one_line
from adir.images import generator, hash_of_image
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.memory import Index
from adir.samplers.base import Sampler, SteerableSampler, Steering
from adir.tasks.operators import Operator, Shape
from adir.tasks.restoration import RestorationTask


@dataclass(frozen=True, eq=False)
class PhysicsOperator:
    """Degradation of a task that applies a linear physics of deepinv to RGB images.

    The measurement y must be an image with 1 or 3 channels, because it is saved as an 8-bit file.
    Each value of y is a weighted sum of values of x. Its weights must sum to 1, so that a grey
    image stays grey, or to 0, as in the hole of inpainting. Random parts of the physics, such as a
    mask, are drawn from `seed` and are part of the task.

    Args:
        physics: import path of a physics class, such as deepinv.physics.Downsampling.
        settings: arguments of the class. `img_size`, the shape of the image, may be omitted. In
            YAML, a tensor is given as a node whose `_target_` builds it.
        factor: ratio of the sides of x to the sides of y, a whole number.
        seed: seed of the random parts.
    """

    name: ClassVar[str] = "deepinv_physics"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    shift_invariant: ClassVar[bool] = False
    """False because deepinv does not declare it. Large images are therefore not tiled."""
    physics: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    factor: int = 1
    seed: int = 0

    def __call__(self, image_shape: Shape) -> Operator:
        """Return the operator A for images of shape (3, H, W).

        Raises:
            InputError: if the physics class rejects the settings or the images, if the sides of x
                are not `factor` times the sides of y, if y has neither 1 nor 3 channels, or if the
                weights of a value of y sum to neither 1 nor 0.
        """
        operator = operator_of(
            functools.partial(self.made, image_shape), image_shape, f"{self.physics}"
        )
        if tuple(self.factor * side for side in operator.y_shape[1:]) != tuple(image_shape[1:]):
            raise InputError(
                f"{self.physics}: images of shape {tuple(image_shape)} give y of shape "
                f"{operator.y_shape}, which contradicts factor={self.factor}; set factor to the "
                "ratio of their sides, which must be a whole number"
            )
        if operator.y_shape[0] not in (1, 3):
            raise InputError(
                f"{self.physics}: y has {operator.y_shape[0]} channels, but an image has 1 or 3; "
                "choose another physics"
            )
        weights = operator.A(torch.ones(image_shape))
        if not ((weights - 1).abs().minimum(weights.abs()) < 1e-3).all():
            raise InputError(
                f"{self.physics}: A applied to an image of ones must give 1 (or 0 at masked "
                f"pixels), but it gives {weights.min():.3g} to {weights.max():.3g}; normalise "
                "the filter, and use circular, reflect or replicate borders"
            )
        return operator

    def made(self, image_shape: Shape, dtype: torch.dtype) -> LinearPhysics:
        """Return the physics for images of shape (3, H, W), in float32 or float64.

        Raises:
            InputError: if the class cannot be imported, rejects the settings, or is not a
                LinearPhysics.
        """
        module, _, name = self.physics.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
            settings = {
                key: value.to(dtype) if is_real(value) else value
                for key, value in self.settings.items()
            }
            takes = inspect.signature(cls).parameters
            if "img_size" in takes:
                settings.setdefault("img_size", tuple(image_shape))
            if "rng" in takes:
                settings.setdefault("rng", torch.Generator().manual_seed(self.seed))
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                # deepinv warns about an unknown argument, which is a typo.
                warnings.filterwarnings("error", "Arguments .* ignored")
                torch.manual_seed(self.seed)
                physics = cls(**settings)
        except (
            UserWarning,
            ImportError,
            AttributeError,
            ValueError,
            TypeError,
            RuntimeError,
            AssertionError,
        ) as error:
            raise InputError(f"{self.physics} cannot be built: {one_line(error)}") from error
        if not isinstance(physics, LinearPhysics):
            raise InputError(f"{self.physics} is not a LinearPhysics of deepinv")
        return in_precision(physics, dtype)

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape of x, (3, factor * h, factor * w), for a y of shape (C, h, w)."""
        return (3, y_shape[1] * self.factor, y_shape[2] * self.factor)


def is_real(value: Any) -> bool:
    """Return whether a value is a tensor of real floating point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def in_precision(physics: LinearPhysics, dtype: torch.dtype) -> LinearPhysics:
    """Return a copy of a physics with its real tensors in `dtype`, float32 or float64.

    `physics.to(dtype)` is not used because it would also convert complex tensors, which would lose
    their imaginary parts.
    """
    result: LinearPhysics = copy.deepcopy(physics)._apply(
        lambda tensor: tensor.to(dtype) if is_real(tensor) else tensor
    )
    return result


def operator_of(build: Any, image_shape: Shape, what: str, sigma_y: float = 0.0) -> Operator:
    """Return an `Operator` that applies a physics of deepinv.

    Args:
        build: function that takes a dtype and returns the physics, on the CPU.
        image_shape: (3, H, W).
        what: name of the physics, for error messages.
        sigma_y: standard deviation of y's noise, for images in [-1, 1].

    Raises:
        InputError: if image_shape is not RGB, or if the physics rejects such images.
    """
    if len(image_shape) != 3 or image_shape[0] != 3:
        raise InputError(f"{what}: images must be RGB, (3, H, W), got {tuple(image_shape)}")
    try:
        physics = build(torch.float64)
        x = torch.randn(
            1, *image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        y = physics.A(x)
        if not (isinstance(y, Tensor) and y.ndim == 4 and y.is_floating_point()):
            raise ValueError("y is not an image (C, h, w)")
        norm = largest_singular_value(physics, x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{what} rejects images of shape {tuple(image_shape)}: {one_line(error)}"
        ) from error
    return Operator(build, tuple(image_shape), tuple(y.shape[1:]), norm=norm, sigma_y=sigma_y)


def largest_singular_value(physics: LinearPhysics, x: Tensor) -> float:
    """Return the largest singular value of a physics' matrix A, with a relative error of 1e-4.

    It is computed by Lanczos iterations on A^T A (ARPACK), which start at the image x (1, 3, H, W),
    float64.
    """

    def gram(v: np.ndarray) -> np.ndarray:
        """Return A^T A v for an image v that is flattened to a vector."""
        applied = physics.A_adjoint(physics.A(torch.from_numpy(v).reshape(x.shape)))
        return np.asarray(applied.reshape(-1).numpy())

    square = LinearOperator((x.numel(), x.numel()), matvec=gram, dtype=np.float64)
    (largest,) = eigsh(square, k=1, v0=x.reshape(-1).numpy(), tol=1e-4, return_eigenvectors=False)
    return math.sqrt(max(float(largest), 0.0))


@dataclass(frozen=True)
class QueryView:
    """View of a corpus in which an adaptation mode finds images similar to one query image.

    It implements adir.adaptation.modes.CorpusView.
    """

    corpus: Corpus
    encoder: Encoder
    index: Index
    image: Tensor
    """The query: y as an image (3, h, w)."""

    @property
    def ids(self) -> list[str]:
        """The sorted ids of the images of the corpus; repeated images are listed once."""
        return [name for name in self.corpus.ids if name not in self.corpus.repeats]

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images of the corpus that are nearest to the query image, nearest first."""
        ids, distances = self.index.search(
            self.encoder.image(self.image[None]), k, exclude=[self.corpus.repeats]
        )
        return [
            Chosen(name, float(d)) for name, d in zip(ids[0], distances[0].tolist(), strict=True)
        ]


class Reconstruction(Reconstructor):
    """deepinv reconstructor made of a backbone, a sampler and an adaptation mode.

    Call it as x_hat = model(y, physics), with images in [0, 1]. The physics must be linear and take
    RGB images. Its noise must be Gaussian or absent, and the noise level is read from it. Each
    image of a batch is restored alone. Its random numbers depend only on `seed` and its y, so the
    result is the same in any batch. The result is not differentiable.

    Args:
        backbone: pixel backbone.
        sampler: any sampler of adir.samplers. A call raises InputError if the sampler does not
            support the physics.
        mode: adaptation mode, which tunes the backbone's network to y. None means no adaptation.
        k: number of neighbours. k, corpus and encoder are used only by modes that retrieve
            neighbours.
        corpus: corpus in which neighbours are searched. It must be free of copies of the test
            images, because this class does not exclude them.
        encoder: encoder whose vectors are compared in the search.
        seed: seed of sampler and adaptation.

    Raises:
        InputError: if the mode needs a corpus and an encoder that are not given, or if the sampler
            does not support the mode.
    """

    def __init__(
        self,
        backbone: PixelBackbone,
        sampler: Sampler,
        mode: Mode | None = None,
        k: int = 20,
        corpus: Corpus | None = None,
        encoder: Encoder | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone, self.sampler = backbone, sampler
        self.mode = mode = NoAdaptation(Full(), FineTuning()) if mode is None else mode
        self.k, self.corpus, self.encoder, self.seed = k, corpus, encoder, seed
        if mode.encoder is not None and (corpus is None or encoder is None):
            raise InputError(f"mode {mode.name} needs neighbours: give a corpus and an encoder")
        if isinstance(mode, Steering) and not isinstance(sampler, SteerableSampler):
            raise InputError(
                f"mode {mode.name} tunes the network during sampling, which sampler "
                f"{sampler.name} does not support; choose another mode or sampler"
            )

    @functools.cached_property
    def index(self) -> Index:
        """The search index of the corpus for finding neighbours, built at first access."""
        assert self.corpus is not None and self.encoder is not None
        return Index.build(self.corpus, self.encoder)

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        """Return the restored images (B, 3, H, W), with values in about [0, 1].

        Args:
            y: (B, C, h, w) measurements of images in [0, 1].
            physics: linear physics that gave y.

        Raises:
            InputError: if the sampler does not support the physics.
            FloatingPointError: if the sampler diverges.
        """
        operator = measured_by(physics, y)
        task = RestorationTask("physics", 1, Fixed(operator), 0, 0)
        if (reason := self.sampler.not_applicable(self.backbone, task, self.mode)) is not None:
            raise InputError(reason)
        ones = torch.ones(operator.image_shape, dtype=y.dtype, device=y.device)
        scaled = (2 * y - operator.A(ones)).float()
        # deepinv's test() disables gradients, but adaptation and some samplers need them.
        with torch.enable_grad():
            x_hat = torch.cat([self.restored(operator, one[None]) for one in scaled])
        return ((x_hat + 1) / 2).detach().to(y.device, y.dtype)

    def restored(self, operator: Operator, y: Tensor) -> Tensor:
        """Return one restored image (1, 3, H, W), with values in about [-1, 1].

        y is (1, C, h, w), the measurement of an image in [-1, 1].

        Raises:
            FloatingPointError: if the sampler diverges.
        """
        name = hash_of_image(y)
        y, noise = y.to(self.backbone.device), [generator(self.seed, name, "sampler")]
        with self.adapted_to(y[0].cpu(), name):
            if isinstance(self.mode, Steering):
                assert isinstance(self.sampler, SteerableSampler)
                steered = self.mode.steered(
                    self.backbone.network, generator(self.seed, name, "adaptation")
                )
                found = self.sampler.restore_steered(self.backbone, operator, y, noise, [steered])
            else:
                found = self.sampler.restore(self.backbone, operator, y, noise)
        if found.errors[0] is not None:
            raise FloatingPointError(found.errors[0])
        return found.x_hat

    def adapted_to(self, y: Tensor, name: str) -> AbstractContextManager[Any]:
        """Return a context manager that applies an adapter for y to the backbone.

        The adapter is trained in this call. If the mode trains no adapter before sampling, the
        context manager does nothing.

        Args:
            y: measurement (C, h, w) of an image in [-1, 1].
            name: hash of y, which seeds the random numbers together with `self.seed`.

        Raises:
            InputError: if y is not an image with 1 or 3 channels.
        """
        mode = self.mode
        if not mode.trains:
            return nullcontext()
        if y.shape[0] not in (1, 3):
            raise InputError(
                f"mode {mode.name}: y has {y.shape[0]} channels, but adaptation needs 1 or 3; "
                "use mode none"
            )
        image = y.expand(3, -1, -1).clamp(-1, 1)
        found, others = self.neighbours_of(image, name) if mode.encoder is not None else ([], [])
        trained = mode.fine_tuning.fit(
            self.backbone,
            mode.adapter,
            mode.images(image, found),
            generator(self.seed, name, "adaptation"),
            others=others,
            variants=mode.variants,
        )
        return in_place(self.backbone, mode.adapter, trained.tensors, trained.gated_strata)

    def neighbours_of(self, image: Tensor, name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return the images to fine-tune on, and other images to validate the fine-tuning on.

        The images to fine-tune on are in the order of the mode's `choose`, usually nearest first.
        The second list is empty unless the first contains exactly one image.

        Args:
            image: y as an image (3, h, w).
            name: hash of y, which seeds the random numbers together with `self.seed`.
        """
        assert self.corpus is not None and self.encoder is not None
        around = QueryView(self.corpus, self.encoder, self.index, image)
        chosen = [
            one.id
            for one in self.mode.choose(
                around, self.k, generator(self.seed, name, "random neighbours")
            )
        ]
        if self.mode.depends_on_y:
            chosen = chosen[: self.mode.fine_tuning.n_training_images(len(chosen), len(around.ids))]
        left = [one for one in around.ids if one not in chosen] if len(chosen) == 1 else []
        drawn = torch.randperm(
            len(left), generator=generator(self.seed, name, "held-out images")
        ).tolist()
        others = [left[row] for row in drawn[: self.mode.fine_tuning.n_extra_images]]
        return [self.corpus.image(one) for one in chosen], [
            self.corpus.image(one) for one in others
        ]


@dataclass(frozen=True, eq=False)
class Fixed:
    """Degradation that consists of one given operator.

    It gives the operator the interface that a task requires of its degradation.
    """

    name: ClassVar[str] = "fixed"
    version: ClassVar[int] = 1
    shift_invariant: ClassVar[bool] = False
    operator: Operator

    def __call__(self, image_shape: Shape) -> Operator:
        """Return the given operator; `image_shape` is ignored."""
        return self.operator

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape (3, H, W) of the given operator's images; `y_shape` is ignored."""
        return self.operator.image_shape


def measured_by(physics: LinearPhysics, y: Tensor) -> Operator:
    """Return an `Operator` that applies the deepinv physics that gave y.

    Args:
        physics: linear physics with Gaussian noise of one level, or without noise.
        y: measurements (B, C, h, w) of images in [0, 1].

    Raises:
        InputError: if the physics is not linear, or if its noise is neither Gaussian of one level
            nor absent.
    """
    what = type(physics).__name__
    if not isinstance(physics, LinearPhysics):
        raise InputError(f"{what} is not a LinearPhysics of deepinv")
    noise = physics.noise_model
    if not isinstance(noise, GaussianNoise | ZeroNoise):
        raise InputError(
            f"{what}: {type(noise).__name__} is not supported; use GaussianNoise or ZeroNoise"
        )
    sigma = noise.sigma.flatten() if isinstance(noise, GaussianNoise) else torch.zeros(1)
    if not (sigma == sigma[0]).all():
        raise InputError(
            f"{what}: the images of the batch have different noise levels; call the model once for "
            "each level"
        )
    image_shape = getattr(physics, "img_size", None) or physics.A_adjoint(y).shape[1:]
    at_home = copy.deepcopy(physics).cpu()
    return operator_of(
        functools.partial(in_precision, at_home), tuple(image_shape), what, 2 * float(sigma[0])
    )
