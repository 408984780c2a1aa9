"""The Caltech-101 images inside the package: those of the whole data set, byte by byte, and only
those.
"""

from collections import Counter
from pathlib import Path

import pytest

from adir.data.corpus import parquet_corpus, unseen_corpus
from adir.data.selection import Selection
from adir.errors import InputError

WHOLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "caltech101_128.parquet"
UNSEEN = [
    "Leopards",
    "butterfly",
    "cougar_face",
    "crab",
    "dalmatian",
    "flamingo",
    "kangaroo",
    "lotus",
    "okapi",
    "pizza",
]
UNSEEN += ["rooster", "soccer_ball", "starfish", "strawberry", "sunflower", "water_lilly"]


def test_there_are_up_to_three_test_images_of_each_category_and_a_corpus() -> None:
    test, corpus = unseen_corpus("test"), unseen_corpus("corpus")
    counts = Counter(test.categories.values())
    assert counts == {name: 2 if name in ("strawberry", "water_lilly") else 3 for name in UNSEEN}
    assert len(corpus) == 1023 and set(corpus.categories.values()) == set(UNSEEN)
    assert not test.rejects and not corpus.rejects
    assert set(test.manifest.values()).isdisjoint(corpus.manifest.values())
    assert corpus.image(corpus.ids[0]).shape == (3, 128, 128)


def test_the_attribution_is_that_of_caltech_101() -> None:
    test = unseen_corpus("test")
    told = Selection(test, size=64).attribution(test.ids[0])
    assert told["licence"] == "CC BY 4.0" and told["source"] == "https://doi.org/10.22002/D1.20086"
    assert "Perona" in told["author"]


def test_another_split_is_refused() -> None:
    with pytest.raises(InputError, match="corpus, test"):
        unseen_corpus("train")


@pytest.mark.skipif(
    not WHOLE.exists(), reason=f"needs {WHOLE.name} in ../shared/data, beside the checkout"
)
def test_the_images_are_those_of_the_whole_data_set() -> None:
    assert unseen_corpus("corpus").sha256 == parquet_corpus(WHOLE).sha256
    whole = parquet_corpus(WHOLE, value="test")
    kept, tuning = unseen_corpus("test").manifest, Selection(whole, skip=3).manifest
    assert kept == Selection(whole, per_category=3).manifest
    assert len(tuning) == 98 and kept | tuning == whole.manifest
