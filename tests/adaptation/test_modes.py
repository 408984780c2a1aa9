"""Which images each mode of adaptation is given."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from adir.adaptation.modes import Chosen, Mode
from adir.errors import InputError
from adir.harness.cells.compose import compose


class Corpus:
    """Ten images; the higher its number, the nearer it lies to y."""

    ids = tuple(f"{number}.png" for number in range(10))

    def nearest(self, k: int) -> list[Chosen]:
        return [Chosen(name, float(place)) for place, name in enumerate(reversed(self.ids[-k:]))]


def mode(name: str) -> Mode:
    """A mode as conf/ builds it."""
    return instantiate(compose([f"adaptation={name}"]).adaptation, _convert_="all")


def draw(name: str, k: int, seed: int = 0) -> list[str]:
    """The ids that a mode chooses."""
    corpus: Any = Corpus()
    return [one.id for one in mode(name).choose(corpus, k, torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("name", ["none", "self", "knn", "pixel", "random", "scd"])
def test_a_mode_is_called_by_the_name_of_its_file(name: str) -> None:
    assert mode(name).name == name


@pytest.mark.parametrize("name", ["knn", "pixel"])
def test_nearest_modes_take_the_nearest_first(name: str) -> None:
    assert draw(name, 3) == ["9.png", "8.png", "7.png"]


def test_random_draws_without_replacement_by_its_generator_alone() -> None:
    assert sorted(draw("random", 10)) == sorted(Corpus.ids)
    assert draw("random", 10) == draw("random", 10) != draw("random", 10, seed=1)
    assert draw("random", 3) == draw("random", 10)[:3]  # so that K is a prefix of a larger K


def test_random_has_no_distances_and_asks_for_no_more_than_there_are() -> None:
    corpus: Any = Corpus()
    chosen = mode("random").choose(corpus, 2, torch.Generator())
    assert [one.distance for one in chosen] == [None, None]
    with pytest.raises(
        InputError, match="K=11 images requested, but only 10 different ones remain"
    ):
        mode("random").choose(corpus, 11, torch.Generator())


def test_self_is_given_y_and_the_others_what_was_chosen() -> None:
    y, chosen = torch.zeros(3, 8, 8), [torch.ones(3, 8, 8)]
    assert [image is y for image in mode("self").images(y, [])] == [True]
    for name in ("knn", "pixel", "random"):
        assert mode(name).images(y, chosen) == chosen
    assert not mode("none").trains


def test_a_random_draw_is_the_same_for_every_task_and_looks_with_the_encoder_of_knn() -> None:
    assert [mode(name).depends_on_y for name in ("knn", "pixel", "random")] == [True, True, False]
    assert [mode(name).encoder for name in ("none", "self", "knn", "pixel", "random")] == [
        None,
        None,
        "knn",
        "pixel",
        "knn",
    ]
