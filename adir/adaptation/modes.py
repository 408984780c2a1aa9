"""Adaptation modes, which choose the images that the denoiser is tuned on before y is restored.

The degraded image is called y. The modes are those of ADIR (arXiv 2212.03221) and control modes for
comparison. The file conf/adaptation/NAME.yaml names the class of the mode NAME. To add a mode,
write a class with the attributes of `Mode`, and such a file.
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
    """Corpus without copies of the test image, ranked by distance to a degraded image y."""

    @property
    def ids(self) -> list[str]:
        """The ids of all images in this view of the corpus, sorted."""

    def nearest(self, k: int) -> list[Chosen]:
        """Return the k images nearest to y, nearest first.

        Raises:
            InputError: if `ids` has fewer than k entries.
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
        """Choose k images of the corpus to adapt to, and return them, nearest to y first.

        This method is called only if `encoder` is set, because other modes use no corpus.
        """
        return surroundings.nearest(k)

    def images(self, y_image: Tensor, chosen: list[Tensor]) -> list[Tensor]:
        """Return the images (3, H, W) to adapt to.

        Args:
            y_image: y as an image (3, H, W).
            chosen: the images (3, H, W) that `choose` selected; empty if `encoder` is None.
        """
        return chosen

    @property
    def variant_settings(self) -> list[Any] | None:
        """The settings that determine `variants`, or None if it returns the image alone.

        They are part of the cache key of a trained adapter.
        """
        return None

    def variants(self, image: Tensor) -> list[Tensor]:
        """Return the versions of an image (3, H, W) to train on.

        The base class returns the image alone.
        """
        return [image]


@dataclass(frozen=True)
class NoAdaptation(Mode):
    """Mode without adaptation, which samples with the pretrained denoiser."""

    name: str = "none"
    trains: ClassVar[bool] = False


@dataclass(frozen=True)
class SelfAdaptation(Mode):
    """Mode that tunes on the degraded image y itself, one of the two modes in the paper on ADIR.

    The paper does not say how y is augmented.

    Attributes:
        scales: factors by which y is resized, each at most 1. With several factors the network sees
            details of several sizes.
        turns: whether to train on y rotated by 0, 90, 180 and 270 degrees instead of y alone. With
            `fine_tuning.flip`, the crops then have all eight symmetries of the square.
    """

    name: str = "self"
    scales: Sequence[float] = (1.0,)
    turns: bool = False
    version: ClassVar[int] = 2
    on_y: ClassVar[bool] = True

    def images(self, y_image: Tensor, chosen: list[Tensor]) -> list[Tensor]:
        """Return a list that contains only y."""
        return [y_image]

    @property
    def variant_settings(self) -> list[Any] | None:
        """The list [scales, turns], which determines what `variants` returns."""
        return [list(self.scales), self.turns]

    def variants(self, image: Tensor) -> list[Tensor]:
        """Return an image (3, H, W) at each of the scales.

        If `turns` is set, each is returned in four rotations, by 0, 90, 180 and 270 degrees.
        """
        scaled = [resized(image, scale) for scale in self.scales]
        return [
            turned
            for one in scaled
            for turned in ([one.rot90(n, (1, 2)) for n in range(4)] if self.turns else [one])
        ]


@dataclass(frozen=True)
class NearestNeighbours(Mode):
    """ADIR's mode, which tunes on the K corpus images nearest to y in feature space."""

    name: str = "knn"
    encoder: ClassVar[str | None] = "knn"


@dataclass(frozen=True)
class NearestPixels(Mode):
    """Control mode that tunes on the K corpus images nearest to y by pixel distance."""

    name: str = "pixel"
    encoder: ClassVar[str | None] = "pixel"


@dataclass(frozen=True)
class RandomImages(Mode):
    """Control mode that tunes on K corpus images drawn at random, the same for every task."""

    name: str = "random"
    # Its distances are not used, but a mode without an encoder has no corpus.
    encoder: ClassVar[str | None] = "knn"
    depends_on_y: ClassVar[bool] = False

    def choose(self, surroundings: CorpusView, k: int, generator: torch.Generator) -> list[Chosen]:
        """Return k images drawn without replacement.

        With the same generator state, a smaller k gives the first images of a larger k.

        Raises:
            InputError: if the corpus has fewer than k images.
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
