"""From a configuration to the parts of a cell, and from y to its neighbours."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adir.data.base import Corpus
from adir.data.embedded import EmbeddedTestFields
from adir.errors import InputError
from adir.harness.cells.cell import CannotRun, Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.records.record import Search
from adir.harness.running.neighbours import find_neighbours
from adir.harness.running.pipeline import adaptation_images, failure_record, finish, prepare, sample
from adir.images import generator, hash_of_image, read_image, write_png


@pytest.fixture
def cell(tiny: list[str], tmp_path: Path) -> Callable[..., Cell]:
    return lambda *overrides: resolve_cell(compose([*tiny, f"results={tmp_path}", *overrides]))


def test_modes_without_neighbours_build_no_corpus_and_no_encoder(cell: Callable[..., Cell]) -> None:
    for mode in ("none", "self"):
        built = cell(f"adaptation={mode}", "retrieval.corpus.path=/nowhere")
        assert built.corpus is None and built.encoder is None
    random, knn = cell("adaptation=random"), cell("adaptation=knn")
    assert (
        random.corpus is knn.corpus and random.encoder is knn.encoder
    )  # by which both leave out the same crops
    assert (
        cell("adaptation=knn").encoder.name == "imagenet"
        and cell("adaptation=pixel").encoder.name == "pixel"
    )


def test_cells_of_one_process_share_what_is_costly(cell: Callable[..., Cell]) -> None:
    one, other = cell("adaptation=knn"), cell("adaptation=self", "seed=1", "sampler.n_steps=3")
    assert one.backbone is other.backbone and one.data is other.data


def test_zero_is_a_seed_and_a_k(cell: Callable[..., Cell]) -> None:
    built = cell("seed=0", "k=0")
    assert built.seed == 0 and built.k == 0 and built.identity.axes.k is None


def test_a_label_is_readable(cell: Callable[..., Cell]) -> None:
    assert cell("adaptation=knn", "k=3").label == "sr4 knn k=3 full seed=0"
    assert cell().label == "sr4 none seed=0"


def test_all_reasons_are_told_at_once_also_from_another_process(cell: Callable[..., Cell]) -> None:
    with pytest.raises(CannotRun) as raised:
        cell("adaptation=knn", "k=99", "backbone=gd256", "scoring.metrics=[nonsense]")
    again = pickle.loads(pickle.dumps(raised.value))
    assert str(again) == str(raised.value) and again.reasons == raised.value.reasons
    assert [reason.split()[0] for reason in again.reasons] == ["gd256", "unknown", "K=99"]


@pytest.mark.parametrize("mode", ["knn", "pixel", "random"])
def test_a_test_image_is_never_its_own_neighbour(
    cell: Callable[..., Cell], photographs: Path, neighbourhood: Path, tmp_path: Path, mode: str
) -> None:
    # A corpus that holds the test image, its mirror image and a brighter copy beside the six
    # others.
    x = read_image(photographs / "0.png")
    corpus = tmp_path / "leaking"
    for name, image in {
        "same": x,
        "mirrored": x.flip(-1),
        "brighter": (x + 0.02).clamp(-1, 1),
    }.items():
        write_png(corpus / f"{name}.png", image)
    for file in neighbourhood.iterdir():
        (corpus / file.name).write_bytes(file.read_bytes())
    built = cell(f"adaptation={mode}", "task=deblur", "k=6", f"retrieval.corpus.path={corpus}")
    y = built.task.degrade(x, generator(0, "0.png", "y"))
    neighbours, excluded = find_neighbours(built, "0.png", x, y)
    assert excluded == ["brighter.png", "mirrored.png", "same.png"]
    assert {n.id for n in neighbours} == {file.name for file in neighbourhood.iterdir()}
    # A user's own image has no ground truth to keep away: the copies are found.
    if mode != "random":
        everything = cell(
            f"adaptation={mode}", "task=deblur", "k=9", f"retrieval.corpus.path={corpus}"
        )
        found, none = find_neighbours(everything, "0.png", None, y)
        assert none == [] and {n.id for n in found} >= set(excluded)
    too_many = cell(f"adaptation={mode}", "task=deblur", "k=7", f"retrieval.corpus.path={corpus}")
    with pytest.raises(InputError, match="K=7"):
        find_neighbours(too_many, "0.png", x, y)


def test_random_neighbours_depend_on_seed_and_image_and_on_nothing_else(
    cell: Callable[..., Cell],
) -> None:
    x, y = torch.zeros(3, 32, 32), torch.zeros(3, 8, 8)

    def drawn(image_id: str, *overrides: str) -> list[str]:
        return [
            n.id
            for n in find_neighbours(cell("adaptation=random", "k=5", *overrides), image_id, x, y)[
                0
            ]
        ]

    assert drawn("a") == drawn("a", "sampler.n_steps=9") == drawn("a", "task.guidance_scale=1")
    draws = {tuple(drawn(name, f"seed={seed}")) for name in "abc" for seed in (0, 1)}
    assert len(draws) == 6  # of 720 ordered draws each
    assert all(len(set(draw)) == 5 for draw in draws)
    assert drawn("a", "k=3") == drawn("a")[:3]


def test_each_mode_is_given_its_own_images(cell: Callable[..., Cell], photographs: Path) -> None:
    y = torch.rand(3, 8, 8) * 2 - 1
    assert adaptation_images(cell(), cell().task, y, []) == []
    (itself,) = adaptation_images(cell("adaptation=self"), cell().task, y, [])
    assert torch.equal(itself, y)
    knn = cell("adaptation=knn")
    neighbours, _ = find_neighbours(knn, "0.png", read_image(photographs / "0.png"), y)
    found = adaptation_images(knn, knn.task, y, [n.id for n in neighbours])
    assert all(
        torch.equal(p, knn.corpus.image(n.id)) for p, n in zip(found, neighbours, strict=True)
    )


def test_a_record_says_how_much_an_approximate_search_finds(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Corpus, "recall", lambda self, k: 0.9 + k / 100)
    found = {}
    for mode in ("none", "random", "knn"):
        built = cell(f"adaptation={mode}", "k=2")
        prepared = prepare(built, "0.png", print, False)
        found[mode] = finish(built, prepared, sample(built, [prepared]), 0, False).search
    assert found == {"none": None, "random": None, "knn": Search(approximate=True, recall=0.92)}


def test_a_neighbour_that_is_too_large_is_made_smaller_before_it_is_tuned_on(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adir.harness.running.pipeline.reduced", lambda x: x[:, ::2, ::2])
    built = cell("adaptation=knn", "k=1")
    prepared = prepare(built, "0.png", print, False)
    chosen = [near.id for near in prepared.found.neighbours]
    (used,) = adaptation_images(built, built.task, prepared.measurement.y, chosen)
    assert used.shape == (3, 16, 16)
    assert [near.image for near in prepared.found.neighbours] == [
        hash_of_image(used)
    ]  # by which a plan knows the adapter


def test_a_record_tells_licence_and_source_of_its_image_as_far_as_they_are_known(
    cell: Callable[..., Cell],
) -> None:
    data = EmbeddedTestFields()
    built = dataclasses.replace(cell(), data=data)
    images = {name: failure_record(built, name, ValueError("no")).image for name in data.ids}
    assert {image.manifest for image in images.values()} == {data.sha256}
    told = {name.partition("-")[0]: (image.licence, image.source) for name, image in images.items()}
    assert told["retina"][0] == "CC0 1.0" and "wikimedia" in told["retina"][1]
    assert told["motorcycle_left"][0] is None and told["chelsea"] == ("CC0 1.0", None)


@pytest.mark.parametrize("task, scale", [("sr4", 1000), ("deblur", 30)])
def test_the_clean_sampler_guides_tenfold_where_y_has_no_noise(task: str, scale: float) -> None:
    literal, clean = (
        compose([f"task={task}", f"sampler={name}"]).sampler for name in ("adir", "adir_clean")
    )
    assert clean.guidance_scale == scale and literal.guidance_scale == min(scale, 100)
    # Whatever else may differ from the paper's is this alone.
    assert {key for key in literal if literal[key] != clean[key]} <= {
        "name",
        "guidance_scale",
        "temperature",
    }
    assert (literal.eta, literal.temperature, literal.back_projection) == (1, 1, False)
