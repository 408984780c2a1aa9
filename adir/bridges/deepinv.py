"""deepinv's linear physics as our tasks, and our methods as its reconstructors; docs/deepinv.md has
an example of each.

deepinv's images are in [0, 1], ours in [-1, 1]: x there is (x + 1) / 2 here, y there (y + A 1) / 2,
and noise is half as large.
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
from adir.errors import InputError, first_line
from adir.images import generator, hash_of_image
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.memory import Index
from adir.samplers.base import Sampler, SteerableSampler, Steering
from adir.tasks.operators import Operator, Shape
from adir.tasks.restoration import RestorationTask


@dataclass(frozen=True, eq=False)
class PhysicsOperator:
    """A linear physics of deepinv on RGB images as the operator of a task.

    Its y must be an image too.

    Each value of y must weigh values of x by numbers that sum to one, or see none of them (the hole
    of inpainting): then grey stays grey, and y fits into the 8 bits of an image file. What the
    physics draws, such as a mask, follows from `seed` and is part of the task.

    Args:
        physics: import path of a class of physics, such as deepinv.physics.Downsampling.
        settings: its arguments, `img_size` aside, which is the image's shape; tensors by `_target_`
            of what makes them.
        factor: sides of x over those of y.
        seed: of what it draws when it is made.
    """

    name: ClassVar[str] = "deepinv_physics"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = False
    """Not known of a physics, so large images are not restored in tiles."""
    physics: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    factor: int = 1
    seed: int = 0

    def __call__(self, image_shape: Shape) -> Operator:
        """A for images (3, H, W).

        Raises InputError for settings that the class refuses, and for a y as excluded above.
        """
        operator = operator_of(
            functools.partial(self.made, image_shape), image_shape, f"{self.physics}"
        )
        if tuple(self.factor * side for side in operator.y_shape[1:]) != tuple(image_shape[1:]):
            raise InputError(
                f"{self.physics}: y of {tuple(image_shape)} is {operator.y_shape}, and "
                f"factor={self.factor}: state the factor "
                "between their sides; a y of other sides is not supported"
            )
        if operator.y_shape[0] not in (1, 3):
            raise InputError(
                f"{self.physics}: y has {operator.y_shape[0]} channels; 1 or 3 make an image"
            )
        weights = operator.A(torch.ones(image_shape))
        if not ((weights - 1).abs().minimum(weights.abs()) < 1e-3).all():
            raise InputError(
                f"{self.physics}: its weights sum to {weights.min():.3g} to "
                f"{weights.max():.3g}, and 1 (or 0, where y "
                "sees nothing) is needed: normalise its filter, and take circular, reflect or "
                "replicate borders"
            )
        return operator

    def made(self, image_shape: Shape, dtype: torch.dtype) -> LinearPhysics:
        """Return the physics for images of a shape, in float32 or float64."""
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
                warnings.filterwarnings("error", "Arguments .* ignored")  # a typo
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
            raise InputError(f"{self.physics} cannot be made: {first_line(error)}") from error
        if not isinstance(physics, LinearPhysics):
            raise InputError(f"{self.physics} is no LinearPhysics of deepinv")
        return in_precision(physics, dtype)

    def image_shape(self, y_shape: Shape) -> Shape:
        """(C, h, w) to (3, factor * h, factor * w)."""
        return (3, y_shape[1] * self.factor, y_shape[2] * self.factor)


def is_real(value: Any) -> bool:
    """Whether it is a tensor of real numbers, which has a precision."""
    return isinstance(value, Tensor) and value.is_floating_point()


def in_precision(physics: LinearPhysics, dtype: torch.dtype) -> LinearPhysics:
    """Return a copy with its real tensors in float32 or float64; `.to` would drop the imaginary
    part of the others.
    """
    result: LinearPhysics = copy.deepcopy(physics)._apply(
        lambda tensor: tensor.to(dtype) if is_real(tensor) else tensor
    )
    return result


def operator_of(build: Any, image_shape: Shape, what: str, sigma_y: float = 0.0) -> Operator:
    """Return the operator around a physics.

    Args:
        build: the physics for a dtype, on the CPU.
        image_shape: (3, H, W), else InputError.
        what: the name of the physics, for errors.
        sigma_y: of images in [-1, 1].
    """
    if len(image_shape) != 3 or image_shape[0] != 3:
        raise InputError(f"{what}: images are RGB, (3, H, W), here, got {tuple(image_shape)}")
    try:
        physics = build(torch.float64)
        x = torch.randn(
            1, *image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        y = physics.A(x)
        if not (isinstance(y, Tensor) and y.ndim == 4 and y.is_floating_point()):
            raise ValueError("y is no image (C, h, w)")
        norm = largest_singular_value(physics, x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{what} does not take images {tuple(image_shape)}: {first_line(error)}"
        ) from error
    return Operator(build, tuple(image_shape), tuple(y.shape[1:]), norm=norm, sigma_y=sigma_y)


def largest_singular_value(physics: LinearPhysics, x: Tensor) -> float:
    """Return |A|, to 1e-4 of itself, by Lanczos on A^T A (ARPACK) from x (1, 3, H, W) in float64."""

    def gram(v: np.ndarray) -> np.ndarray:
        applied = physics.A_adjoint(physics.A(torch.from_numpy(v).reshape(x.shape)))
        return np.asarray(applied.reshape(-1).numpy())

    square = LinearOperator((x.numel(), x.numel()), matvec=gram, dtype=np.float64)
    (largest,) = eigsh(square, k=1, v0=x.reshape(-1).numpy(), tol=1e-4, return_eigenvectors=False)
    return math.sqrt(max(float(largest), 0.0))


@dataclass(frozen=True)
class Around:
    """A corpus as a mode of adaptation sees it from one y (adir.adaptation.modes.Surroundings)."""

    corpus: Corpus
    encoder: Encoder
    index: Index
    image: Tensor
    """y as an image (3, h, w)."""

    @property
    def ids(self) -> list[str]:
        """Every image, repeats aside, sorted."""
        return [name for name in self.corpus.ids if name not in self.corpus.repeats]

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images nearest to y, nearest first."""
        ids, distances = self.index.search(
            self.encoder.image(self.image[None]), k, exclude=[self.corpus.repeats]
        )
        return [
            Chosen(name, float(d)) for name, d in zip(ids[0], distances[0].tolist(), strict=True)
        ]


class Reconstruction(Reconstructor):
    """A backbone with a sampler, adapted or not, as a deepinv model: x_hat = model(y, physics),
    images in [0, 1].

    The physics is linear, on RGB images, with Gaussian noise or none; its noise level is taken from
    it. Each image is restored alone, by noise that follows from `seed` and its y, so a batch
    changes nothing. Nothing is differentiable.

    Args:
        backbone: of pixels.
        sampler: any of adir.samplers; InputError on use where it does not do the physics.
        mode: of adaptation; None adapts nothing.
        k: neighbours, of modes that have any.
        corpus: where they are from. Copies of a test image are not left out: keep them out of it.
        encoder: what they are looked for with.
        seed: of sampler and adaptation.
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
            raise InputError(f"mode {mode.name} has neighbours: give a corpus and an encoder")
        if isinstance(mode, Steering) and not isinstance(sampler, SteerableSampler):
            raise InputError(
                f"mode {mode.name} tunes the network while it samples, which {sampler.name} "
                "does not do"
            )

    @functools.cached_property
    def index(self) -> Index:
        """Of the corpus, made when it is first asked for."""
        assert self.corpus is not None and self.encoder is not None
        return Index.build(self.corpus, self.encoder)

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        """x_hat (B, 3, H, W) of measurements y (B, C, h, w) of images in [0, 1].

        Raises InputError for a physics that the sampler cannot do, FloatingPointError where
        sampling failed.
        """
        operator = measured_by(physics, y)
        task = RestorationTask("physics", 1, Fixed(operator), 0, 0)
        if (reason := self.sampler.not_applicable(self.backbone, task, self.mode)) is not None:
            raise InputError(reason)
        ones = torch.ones(operator.image_shape, dtype=y.dtype, device=y.device)
        scaled = (2 * y - operator.A(ones)).float()
        with (
            torch.enable_grad()
        ):  # deepinv's test() switches it off, and some samplers and every adaptation differentiate
            x_hat = torch.cat([self.restored(operator, one[None]) for one in scaled])
        return ((x_hat + 1) / 2).detach().to(y.device, y.dtype)

    def restored(self, operator: Operator, y: Tensor) -> Tensor:
        """Return x_hat (1, 3, H, W) in [-1, 1] of one y (1, C, h, w) of such an image."""
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
        """Return the context in which the backbone is adapted to y (C, h, w), as the mode says."""
        mode = self.mode
        if not mode.trains:
            return nullcontext()
        if y.shape[0] not in (1, 3):
            raise InputError(
                f"mode {mode.name}: y has {y.shape[0]} channels; 1 or 3 make an image to adapt to"
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
        """Return (the images to tune on, nearest first; those to judge the update by besides, if
        there is one to tune on).
        """
        assert self.corpus is not None and self.encoder is not None
        around = Around(self.corpus, self.encoder, self.index, image)
        chosen = [
            one.id
            for one in self.mode.choose(
                around, self.k, generator(self.seed, name, "random neighbours")
            )
        ]
        if self.mode.follows_y:
            chosen = chosen[: self.mode.fine_tuning.usable(len(chosen), len(around.ids))]
        left = [one for one in around.ids if one not in chosen] if len(chosen) == 1 else []
        drawn = torch.randperm(
            len(left), generator=generator(self.seed, name, "held-out images")
        ).tolist()
        others = [left[row] for row in drawn[: self.mode.fine_tuning.n_others]]
        return [self.corpus.image(one) for one in chosen], [
            self.corpus.image(one) for one in others
        ]


@dataclass(frozen=True, eq=False)
class Fixed:
    """An operator as the degradation of a task, for what a sampler asks of one."""

    name: ClassVar[str] = "fixed"
    version: ClassVar[int] = 1
    shift_invariant: ClassVar[bool] = False
    operator: Operator

    def __call__(self, image_shape: Shape) -> Operator:
        """The operator, whatever the shape."""
        return self.operator

    def image_shape(self, y_shape: Shape) -> Shape:
        """That of the operator."""
        return self.operator.image_shape


def measured_by(physics: LinearPhysics, y: Tensor) -> Operator:
    """Return our operator for the physics that gave y (B, C, h, w).

    Raises InputError for one that does not fit.
    """
    what = type(physics).__name__
    if not isinstance(physics, LinearPhysics):
        raise InputError(f"{what} is no LinearPhysics of deepinv")
    noise = physics.noise_model
    if not isinstance(noise, GaussianNoise | ZeroNoise):
        raise InputError(f"{what}: noise is Gaussian or none here, not {type(noise).__name__}")
    sigma = noise.sigma.flatten() if isinstance(noise, GaussianNoise) else torch.zeros(1)
    if not (sigma == sigma[0]).all():
        raise InputError(
            f"{what}: images of several noise levels in one batch: call the model once for each"
        )
    image_shape = getattr(physics, "img_size", None) or physics.A_adjoint(y).shape[1:]
    at_home = copy.deepcopy(physics).cpu()
    return operator_of(
        functools.partial(in_precision, at_home), tuple(image_shape), what, 2 * float(sigma[0])
    )
