"""Adaptation modes: which images the denoiser is tuned on for a y (ADIR, arXiv 2212.03221, and its
controls).

conf/adaptation/NAME.yaml names the class; a mode of your own is one more class with the same
attributes.
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
    """An image of the corpus that a mode chose."""

    id: str
    distance: float | None
    """To y in the encoder's measure; None where none was taken."""


class Surroundings(Protocol):
    """The corpus as seen from one y; copies of the test image are left out."""

    @property
    def ids(self) -> list[str]:
        """Every image that may be chosen, sorted."""

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images nearest to y, nearest first.

        Raises InputError where there are fewer.
        """


def resized(image: Tensor, scale: float) -> Tensor:
    """Return an image (3, H, W) reduced by `scale`, bicubic and antialiased; the image itself at
    scale 1.
    """
    if scale == 1:
        return image
    shape = tuple(round(scale * side) for side in image.shape[-2:])
    return functional.interpolate(image[None], shape, mode="bicubic", antialias=True)[0].clamp(
        -1, 1
    )


@dataclass(frozen=True)
class Mode:
    """Base of the modes: what is trained (`adapter`) and how (`fine_tuning`); a subclass says on
    which images.
    """

    adapter: Adapter
    fine_tuning: FineTuning
    name: str

    version: ClassVar[int] = 1
    """Raise it when a change of the class changes which images are chosen."""
    trains: ClassVar[bool] = True
    """Whether the denoiser is tuned at all."""
    encoder: ClassVar[str | None] = None
    """Which of the retrieval's encoders it looks with; None: it uses no corpus, and K means
    nothing.
    """
    on_y: ClassVar[bool] = False
    """Whether the denoiser is tuned on y itself."""
    follows_y: ClassVar[bool] = True
    """Whether the images depend on y: if not, two tasks share them."""

    def choose(
        self, surroundings: Surroundings, k: int, generator: torch.Generator
    ) -> list[Chosen]:
        """Return the k images of the corpus to adapt to, nearest first; of modes that use a corpus
        only.
        """
        return surroundings.nearest(k)

    def images(self, y_image: Tensor, chosen: list[Tensor]) -> list[Tensor]:
        """Return the images (3, H, W) to adapt to, from y as an image and the images that `choose`
        chose.
        """
        return chosen

    @property
    def own_variants(self) -> list[Any] | None:
        """Settings of `variants`, for adapters to be known by; None where an image is its only
        variant.
        """
        return None

    def variants(self, image: Tensor) -> list[Tensor]:
        """Return what is trained on in place of an image (3, H, W): the image."""
        return [image]


@dataclass(frozen=True)
class NoAdaptation(Mode):
    """The pretrained denoiser as it is."""

    name: str = "none"
    trains: ClassVar[bool] = False


@dataclass(frozen=True)
class SelfAdaptation(Mode):
    """Tune on y itself: ADIR's first variant. The paper does not say how y is augmented.

    Args:
        adapter: what is trained.
        fine_tuning: how.
        name: in paths and tables.
        scales: to which y is resized, each at most 1; with several, the network sees details of
            several sizes.
        turns: train on the four quarter turns too, which with `fine_tuning.flip` are all eight
            symmetries of the square.
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
    def own_variants(self) -> list[Any] | None:
        """Scales and turns."""
        return [list(self.scales), self.turns]

    def variants(self, image: Tensor) -> list[Tensor]:
        """Return an image (3, H, W) at all scales, and turned."""
        scaled = [resized(image, scale) for scale in self.scales]
        return [
            turned
            for one in scaled
            for turned in ([one.rot90(n, (1, 2)) for n in range(4)] if self.turns else [one])
        ]


@dataclass(frozen=True)
class NearestNeighbours(Mode):
    """Tune on the K images nearest to y in the encoder's space: ADIR."""

    name: str = "knn"
    encoder: ClassVar[str | None] = "knn"


@dataclass(frozen=True)
class NearestPixels(Mode):
    """Control: tune on the K images nearest to y by pixel distance."""

    name: str = "pixel"
    encoder: ClassVar[str | None] = "pixel"


@dataclass(frozen=True)
class RandomImages(Mode):
    """Control: tune on K images drawn at random, the same for every task."""

    name: str = "random"
    encoder: ClassVar[str | None] = (
        "knn"  # its distances are not used; a mode without an encoder has no corpus
    )
    follows_y: ClassVar[bool] = False

    def choose(
        self, surroundings: Surroundings, k: int, generator: torch.Generator
    ) -> list[Chosen]:
        """Return k images drawn without replacement; for a smaller k, the first of them."""
        ids = surroundings.ids
        if k > len(ids):
            raise InputError(
                f"K={k} images asked, {len(ids)} different ones are left without copies of the "
                "test image"
            )
        return [
            Chosen(ids[row], None)
            for row in torch.randperm(len(ids), generator=generator)[:k].tolist()
        ]
