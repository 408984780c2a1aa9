"""Subsets of a test set or corpus, optionally downsampled."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adir.data.base import Corpus
from adir.errors import InputError


class Selection(Corpus):
    """Subset of an image set, optionally with downsampled images.

    Args:
        corpus: the image set.
        size: side in pixels to which square images are downsampled (bicubic, antialiased). None
            keeps the original size.
        per_category: number of images to keep in each category, in the order of ids, after `skip`
            images. None keeps all.
        skip: number of images to drop at the start of each category, in the order of ids.

    Raises:
        InputError: if `per_category` or `skip` is set, but the image set has no categories.
    """

    def __init__(
        self,
        corpus: Corpus,
        size: int | None = None,
        per_category: int | None = None,
        skip: int = 0,
    ) -> None:
        self._corpus, self._size = corpus, size
        kept = corpus.ids
        if per_category is not None or skip:
            if not corpus.categories:
                raise InputError(
                    f"per_category={per_category} and skip={skip} need categories, but corpus "
                    f"{corpus.name} has none; leave both unset"
                )
            by_category: dict[str | None, list[str]] = {}
            for image_id in corpus.ids:
                by_category.setdefault(corpus.categories.get(image_id), []).append(image_id)
            kept = [
                image_id for ids in by_category.values() for image_id in ids[skip:][:per_category]
            ]
        name = corpus.name if size is None else f"{corpus.name}-{size}px"
        manifest = {
            i: corpus.manifest[i] if size is None else f"{corpus.manifest[i]} at {size}"
            for i in kept
        }
        super().__init__(
            name,
            manifest,
            corpus.rejects,
            {i: c for i, c in corpus.categories.items() if i in manifest},
        )
        self.withholds = corpus.withholds

    def attribution(self, image_id: str) -> dict[str, str]:
        return self._corpus.attribution(image_id)

    def cluster(self, image_id: str) -> str:
        return self._corpus.cluster(image_id)

    def withheld(self, cluster: str) -> frozenset[str]:
        return self._corpus.withheld(cluster) & self.manifest.keys()

    def image(self, image_id: str) -> Tensor:
        if image_id not in self.manifest:
            raise KeyError(image_id)
        x = self._corpus.image(image_id)
        if self._size is None or x.shape[-1] == self._size:
            return x
        if x.shape[-1] != x.shape[-2] or x.shape[-1] < self._size:
            raise InputError(
                f"{image_id} is {x.shape[-1]}x{x.shape[-2]}, but size={self._size} needs a "
                "square image that is at least as large"
            )
        small = interpolate(x[None], size=(self._size, self._size), mode="bicubic", antialias=True)[
            0
        ]
        # Round to 8 bits, as in a file. `adir.data.reduced.reduced` rounds in float64, which would
        # change a few pixels of published test sets.
        return torch.round((small.clamp(-1, 1) + 1) * 127.5) / 127.5 - 1


class Part(Corpus):
    """Subset of an image set that consists of the images with the given ids."""

    def __init__(self, corpus: Corpus, ids: list[str]) -> None:
        self._corpus = corpus
        super().__init__(corpus.name, {image_id: corpus.manifest[image_id] for image_id in ids}, {})

    def image(self, image_id: str) -> Tensor:
        return self._corpus.image(image_id)
