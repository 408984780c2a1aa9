"""Fingerprints: what they do not depend on; and which images of a corpus are equal."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adir.data.corpus import folder_corpus
from adir.data.embedded import EmbeddedCorpus
from adir.data.fingerprints import SIDE, STEPS, fingerprint

CORPUS = EmbeddedCorpus()


def test_a_fingerprint_is_the_standardized_luma_of_pillow() -> None:
    # 128 to 16 is a reduction by 8, which Pillow's BILINEAR antialiases with the same triangles.
    x = CORPUS.image(CORPUS.ids[0])
    pixels = ((x.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    small = np.array(
        Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), float
    )
    expected = (small - small.mean()) / small.std() * STEPS
    assert np.abs(fingerprint(x) - expected).max() <= 1.0  # two roundings to grey levels


def test_brightness_and_contrast_do_not_change_a_fingerprint() -> None:
    x = CORPUS.image(CORPUS.ids[40])
    for other in (0.5 * x, 0.5 * x + 0.2, 0.9 * x - 0.05):
        assert np.abs(fingerprint(x).astype(int) - fingerprint(other)).max() <= 1


def test_a_flat_image_has_a_fingerprint_of_zeros() -> None:
    assert not fingerprint(torch.full((3, 40, 60), 0.3)).any()


def test_equal_images_repeat_the_one_with_the_smallest_id_however_they_were_saved(
    tmp_path: Path,
) -> None:
    x, other = (
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 24, 3), np.uint8))
        for n in (0, 1)
    )
    for name in ("b.png", "c.bmp", "deep/a.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        x.save(tmp_path / name)
    other.save(tmp_path / "a.png")
    x.rotate(90, expand=True).save(tmp_path / "turned.png")  # a copy, but another image
    Image.new("RGB", (9, 9), "red").save(
        tmp_path / "flat1.png"
    )  # equal fingerprints of zeros, other images
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "flat2.png")
    assert folder_corpus(tmp_path).repeats == {"c.bmp", "deep/a.tiff"}


def test_the_embedded_corpus_holds_no_image_twice() -> None:
    assert CORPUS.repeats == frozenset()
