"""Adaptation modes, which choose the images that the denoiser is tuned on for a given y.

The modes are those of ADIR (arXiv 2212.03221) and its controls. conf/adaptation/NAME.yaml names the
class of a mode. To add a mode, write a class with the same attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from adir.adaptation.base import Adapter
from adir.adaptation.fine_tuning import FineTuning
from adir.errors import InputError


class Chosen(NamedTuple):
    """Image of the corpus that a mode chose for adaptation."""

    id: str
    distance: float | None
    """The distance to y in the encoder's metric; None if the mode computes no distance."""


class CorpusView(Protocol):
    """Corpus without the copies of the test image, ranked by distance to one y."""

    @property
    def ids(self) -> list[str]:
        """The ids of all images that may be chosen, sorted."""

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images nearest to y, nearest first.

        Raises:
            InputError: if there are fewer than k images.
        """


def resized(image: Tensor, scale: float) -> Tensor:
    """Return an image (3, H, W) in [-1, 1] resized by the factor `scale`.

    The filter is bicubic with antialiasing. At scale 1 the image itself is returned.
    """
    if scale == 1:
        return image
    shape = tuple(round(scale * side) for side in image.shape[-2:])
    return functional.interpolate(image[None], shape, mode="bicubic", antialias=True)[0].clamp(
        -1, 1
    )


@dataclass(frozen=True)
class Mode:
    """Base class of the adaptation modes; a subclass chooses the images.

    Attributes:
        adapter: the adapter to train.
        fine_tuning: settings of the training.
        name: name in paths and tables.
    """

    adapter: Adapter
    fine_tuning: FineTuning
    name: str

    version: ClassVar[int] = 1
    """A version number. Raise it if a change of the class alters which images are chosen."""
    trains: ClassVar[bool] = True
    """Whether the denoiser is tuned before sampling."""
    encoder: ClassVar[str | None] = None
    """The name of the retrieval encoder; None if the mode uses no corpus and ignores K."""
    on_y: ClassVar[bool] = False
    """Whether the denoiser is tuned on y itself."""
    depends_on_y: ClassVar[bool] = True
    """Whether the chosen images depend on y. If not, all tasks share the images."""

    def choose(self, surroundings: CorpusView, k: int, generator: torch.Generator) -> list[Chosen]:
        """Return the k images of the corpus to adapt to, nearest first.

        This method is called only if the mode has an `encoder`.
        """
        return surroundings.nearest(k)

    def images(self, y_image: Tensor, chosen: list[Tensor]) -> list[Tensor]:
        """Return the images (3, H, W) to adapt to.

        Args:
            y_image: y as an image (3, H, W).
            chosen: the images that `choose` returned.
        """
        return chosen

    @property
    def variant_settings(self) -> list[Any] | None:
        """The settings of `variants`, as part of an adapter's cache key.

        None means that `variants` returns the image alone.
        """
        return None

    def variants(self, image: Tensor) -> list[Tensor]:
        """Return the versions of an image (3, H, W) to train on.

        The base class returns the image alone.
        """
        return [image]


@dataclass(frozen=True)
class NoAdaptation(Mode):
    """Mode that samples with the pretrained denoiser, without adaptation."""

    name: str = "none"
    trains: ClassVar[bool] = False


@dataclass(frozen=True)
class SelfAdaptation(Mode):
    """Mode that tunes on y itself, which is one of the two options in ADIR's paper.

    The paper does not say how y is augmented.

    Attributes:
        scales: factors by which y is resized, each at most 1. With several factors the network sees
            details of several sizes.
        turns: True trains on the image turned by 0, 90, 180 and 270 degrees. With
            `fine_tuning.flip` this gives all eight symmetries of the square.
    """

    name: str = "self"
    scales: Sequence[float] = (1.0,)
    turns: bool = False
    version: ClassVar[int] = 2
    on_y: ClassVar[bool] = True

    def images(self, y_image: Tensor, chosen: list[Tensor]) -> list[Tensor]:
        """Return y alone."""
        return [y_image]

    @property
    def variant_settings(self) -> list[Any] | None:
        """The scales and turns."""
        return [list(self.scales), self.turns]

    def variants(self, image: Tensor) -> list[Tensor]:
        """Return an image (3, H, W) at all scales, each with its quarter turns if `turns`."""
        scaled = [resized(image, scale) for scale in self.scales]
        return [
            turned
            for one in scaled
            for turned in ([one.rot90(n, (1, 2)) for n in range(4)] if self.turns else [one])
        ]


@dataclass(frozen=True)
class NearestNeighbours(Mode):
    """Mode that tunes on the K images nearest to y in the encoder's space: ADIR."""

    name: str = "knn"
    encoder: ClassVar[str | None] = "knn"


@dataclass(frozen=True)
class NearestPixels(Mode):
    """Control mode that tunes on the K images nearest to y by pixel distance."""

    name: str = "pixel"
    encoder: ClassVar[str | None] = "pixel"


@dataclass(frozen=True)
class RandomImages(Mode):
    """Control mode that tunes on K images drawn at random, the same for every task."""

    name: str = "random"
    # Its distances are not used, but a mode without an encoder has no corpus.
    encoder: ClassVar[str | None] = "knn"
    depends_on_y: ClassVar[bool] = False

    def choose(self, surroundings: CorpusView, k: int, generator: torch.Generator) -> list[Chosen]:
        """Return k images drawn without replacement.

        The images for a smaller k are the first ones of the images for a larger k.
        """
        ids = surroundings.ids
        if k > len(ids):
            raise InputError(
                f"K={k} images requested, but only {len(ids)} different ones remain after "
                "excluding copies of the test image: lower K or extend the corpus"
            )
        return [
            Chosen(ids[row], None)
            for row in torch.randperm(len(ids), generator=generator)[:k].tolist()
        ]
