"""Copies of a test image that the rule must find, and other images that it must not."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from adir.data.base import Corpus
from adir.data.embedded import EmbeddedCorpus, corpus_fields, test_fields
from adir.data.fields import overlap
from adir.images import from_uint8, to_uint8
from adir.retrieval import leakage
from adir.retrieval.leakage import copies

EMBEDDED = EmbeddedCorpus()
TEXTURES = ("brick", "grass", "gravel")
FIELDS = dict(test_fields())


class Images(Corpus):
    """A corpus of given images."""

    def __init__(self, images: dict[str, Tensor]) -> None:
        self.images = images
        super().__init__("images", {name: str(x.sum().item()) for name, x in images.items()}, {})

    def image(self, image_id: str) -> Tensor:
        return self.images[image_id]


def with_copy(copy: Tensor) -> Corpus:
    """Every ninth field of the embedded corpus, and a copy."""
    return Images({name: EMBEDDED.image(name) for name in EMBEDDED.ids[::9]} | {"copy": copy})


def changed(x: Tensor, *changes: Callable[[Image.Image], Image.Image]) -> Tensor:
    """An image after changes by Pillow, one after the other."""
    image = Image.fromarray(to_uint8(x))
    for change in changes:
        image = change(image)
    return from_uint8(np.array(image.convert("RGB")))


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=50)
    return Image.open(buffer)


def gamma(exponent: float) -> Callable[[Image.Image], Image.Image]:
    return lambda p: p.point([round(255 * (level / 255) ** exponent) for level in range(256)] * 3)


def cut(
    left: float, top: float, width: float, height: float
) -> Callable[[Image.Image], Image.Image]:
    """Shares of the sides."""
    return lambda p: p.crop(
        tuple(round(128 * share) for share in (left, top, left + width, top + height))
    )


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def turned(by: Image.Transpose) -> Callable[[Image.Image], Image.Image]:
    return lambda p: p.transpose(by)


KINDS: dict[str, Sequence[Callable[[Image.Image], Image.Image]]] = {
    "itself": [],
    "grey": [ImageOps.grayscale],
    "grey by the mean of the channels": [lambda p: p.convert("RGB", (1 / 3, 1 / 3, 1 / 3, 0) * 3)],
    "desaturated": [lambda p: ImageEnhance.Color(p).enhance(0.3)],
    "brighter": [lambda p: ImageEnhance.Brightness(p).enhance(1.2)],
    "darker": [lambda p: ImageEnhance.Brightness(p).enhance(0.8)],
    "more contrast": [lambda p: ImageEnhance.Contrast(p).enhance(1.2)],
    "less contrast": [lambda p: ImageEnhance.Contrast(p).enhance(0.8)],
    "gamma 0.8": [gamma(0.8)],
    "gamma 1.25": [gamma(1.25)],
    "turned left": [turned(Image.Transpose.ROTATE_90)],
    "turned over": [turned(Image.Transpose.ROTATE_180)],
    "turned right": [turned(Image.Transpose.ROTATE_270)],
    "mirrored": [ImageOps.mirror],
    "upside down": [ImageOps.flip],
    "transposed": [turned(Image.Transpose.TRANSPOSE)],
    "80 % of each side, middle": [cut(0.1, 0.1, 0.8, 0.8)],
    "80 % of each side, corner": [cut(0.2, 0, 0.8, 0.8)],
    "80 % of the area": [cut(0.05, 0.07, 0.9, 0.9)],
    "80 % of the width": [cut(0.13, 0, 0.8, 1)],
    "80 % of the height": [cut(0, 0.2, 1, 0.8)],
    "jpeg": [jpeg],
    "half": [half],
    "grey jpeg": [ImageOps.grayscale, jpeg],
    "mirrored, half": [ImageOps.mirror, half],
    "turned jpeg": [turned(Image.Transpose.ROTATE_90), jpeg],
    "brighter, half": [lambda p: ImageEnhance.Brightness(p).enhance(1.2), half],
    "crop, mirrored, jpeg": [cut(0.1, 0.05, 0.85, 0.85), ImageOps.mirror, jpeg],
    "crop, turned, grey": [
        cut(0, 0.1, 0.9, 0.9),
        turned(Image.Transpose.ROTATE_270),
        ImageOps.grayscale,
    ],
    "a thin frame": [lambda p: ImageOps.expand(p, 6, "white")],
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_a_copy_of_a_test_image_is_found(
    changes: Sequence[Callable[[Image.Image], Image.Image]],
) -> None:
    for x in (
        FIELDS["chelsea-s1-y050-x105"],
        FIELDS["brick-s2-y000-x000"],
        FIELDS["coins-s1-y020-x250"],
    ):
        assert copies(x, with_copy(changed(x, *changes))) == {"copy"}


def test_a_test_image_that_was_cut_from_a_corpus_image_is_found() -> None:
    for name in EMBEDDED.ids[20::100]:
        x = EMBEDDED.image(name)
        for crop in (cut(0, 0, 0.8, 0.8), cut(0.1, 0.15, 0.85, 0.82)):
            assert "copy" in copies(changed(x, crop, jpeg), with_copy(x))


def test_an_image_that_is_not_square_is_found_turned() -> None:
    x = EMBEDDED.image("chelsea-s1-y160-x320")[:, :80]
    assert copies(x, with_copy(x.rot90(1, (1, 2)))) == {"copy", "chelsea-s1-y160-x320"} & {
        "copy",
        *EMBEDDED.ids[::9],
    }


def test_no_test_field_has_a_copy_in_the_embedded_corpus() -> None:
    assert {name: copies(x, EMBEDDED) for name, x in FIELDS.items()} == {
        name: set() for name in FIELDS
    }


@pytest.mark.parametrize("texture", TEXTURES)
def test_other_ground_of_a_texture_is_no_copy_though_it_looks_alike_flipped_or_turned(
    texture: str,
) -> None:
    fields = [field for field in corpus_fields() if field.photograph == texture]
    for field in fields[::8]:
        others = [other.id for other in fields if not overlap(field, other)]
        corpus = Images({name: EMBEDDED.image(name) for name in others})
        assert copies(EMBEDDED.image(field.id), corpus) == set()


def test_images_of_one_thing_are_no_copies() -> None:
    # Two skies have the same shading, and other detail.
    shading = torch.linspace(-0.8, 0.8, 128).expand(3, 128, 128)
    skies = [(shading + 0.03 * torch.randn(3, 128, 128)).clamp(-1, 1) for _ in range(2)]
    assert copies(skies[0], Images({"other": skies[1], "same": skies[0]})) == {"same"}


def test_of_a_flat_image_only_equal_ones_are_copies() -> None:
    flat = torch.zeros(3, 40, 60)
    assert copies(flat, EMBEDDED) == set()
    assert copies(
        flat,
        Images({"flat": flat.clone(), "grey": flat + 0.5, "a": EMBEDDED.image(EMBEDDED.ids[0])}),
    ) == {"flat"}
    x = EMBEDDED.image(EMBEDDED.ids[0])
    assert copies(x.mean((1, 2), keepdim=True).expand_as(x), EMBEDDED) == set()


def test_more_copies_than_are_looked_at_in_any_case_are_all_found() -> None:
    x = FIELDS["chelsea-s1-y050-x105"]
    many = {f"{n:03d}": (x * (0.7 + n / 500)).clamp(-1, 1) for n in range(leakage.MOST_COARSE + 12)}
    assert copies(x, Images(many)) == set(many)


def test_correlations_at_16x16_are_those_of_numpy() -> None:
    x, other = torch.rand(64, 64), torch.rand(16, 16)
    best, (place,) = leakage.best_places(x, other[None])
    other_is_whole, view, (top, bottom), (left, right) = place
    edges = leakage.intervals(0.5)
    row, column = edges.index((top, bottom)), edges.index((left, right))
    seen = leakage.symmetries(other)[view]
    if other_is_whole:
        matrices, masks = leakage.placements(0.5)
        inside = masks[row * len(edges) + column].bool()
        here, there = (matrices[row] @ x @ matrices[column].T)[inside], seen[inside]
    else:
        here, there = leakage.cuts(0.5)[row] @ x @ leakage.cuts(0.5)[column].T, seen
    expected = np.corrcoef(here.flatten().numpy(), there.flatten().numpy())[0, 1]
    assert best.item() == pytest.approx(expected, abs=1e-4)


def test_the_eight_views_are_the_symmetries_of_the_square() -> None:
    views = leakage.symmetries(torch.arange(9.0).view(3, 3))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert all(
        view[1, 1] == 4 and set(view[::2, ::2].flatten().tolist()) == {0, 2, 6, 8} for view in views
    )
