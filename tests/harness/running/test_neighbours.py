"""Neighbours of a cell: from an index on disk as from memory; copies of the test image never."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from adir.adaptation.safe import SafeFineTuning
from adir.data.domains import DOMAINS, DomainCorpus
from adir.errors import InputError
from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.running.claims import Claims
from adir.harness.running.neighbours import corpus_index, find_neighbours
from adir.harness.running.pipeline import Busy, embed_once, prepare
from adir.images import from_uint8, generator, hash_of_image, read_image, to_uint8, write_png
from adir.retrieval.index.memory import Index


@pytest.fixture
def cell(tiny: list[str], tmp_path: Path) -> Callable[..., Cell]:
    return lambda *overrides: resolve_cell(
        compose([*tiny, f"results={tmp_path}", "task=sr4", *overrides])
    )


@pytest.fixture
def index(adir: Callable, neighbourhood: Path, tmp_path: Path) -> Path:
    words = [
        f"corpus.path={neighbourhood}",
        f"out={tmp_path / 'index'}",
        "shard_size=4",
        "least_side=0",
    ]
    assert adir("index", "build", *words).status == 0
    return tmp_path / "index"


@pytest.mark.parametrize("mode", ["knn", "random"])
def test_an_index_on_disk_gives_the_cell_and_the_neighbours_of_the_corpus_in_memory(
    cell: Callable[..., Cell],
    tiny: list[str],
    index: Path,
    photographs: Path,
    tmp_path: Path,
    mode: str,
) -> None:
    memory = cell(f"adaptation={mode}")
    words = [word for word in tiny if not word.startswith("retrieval")]
    words += [f"results={tmp_path}", "task=sr4", f"adaptation={mode}", "retrieval=index"]
    disk = resolve_cell(compose([*words, f"retrieval.corpus.folder={index}"]))
    assert disk.identity.sha256 == memory.identity.sha256
    for name in memory.data.ids:
        x = memory.data.image(name)
        y = memory.task.degrade(x, generator(0, name, "y"))
        assert find_neighbours(disk, name, x, y) == find_neighbours(memory, name, x, y)


def test_a_corpus_is_embedded_by_one_worker_while_the_others_wait(
    cell: Callable[..., Cell], tmp_path: Path
) -> None:
    searching, drawing = cell("adaptation=knn"), cell("adaptation=random")
    embed_once(drawing)  # searches nothing
    folder = tmp_path / "embeddings"
    assert not folder.exists()
    name = Index.path(searching.corpus, searching.encoder, folder).stem
    with Claims(folder).claimed(name):  # as another worker's
        with pytest.raises(Busy):
            embed_once(searching)
        assert not list(folder.glob("*.safetensors"))
    embed_once(searching)
    assert [path.stem for path in folder.iterdir()] == [name]  # and no claim is left
    with Claims(folder).claimed(name):
        embed_once(searching)  # there is nothing to wait for


def test_an_index_is_made_once_for_equal_corpora_and_encoders_hashable_or_not(
    cell: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own:
        """A user's encoder, such as a plain dataclass."""

        weights_sha256 = "own"
        __hash__ = None  # type: ignore[assignment]

    made: list[object] = []
    monkeypatch.setattr(Index, "build", lambda *_: made.append(object()) or made[-1])
    corpus = cell("adaptation=knn").corpus
    assert corpus is not None
    first = corpus_index(corpus, Own(), tmp_path)
    assert corpus_index(corpus, Own(), tmp_path) is first and made == [first]


def test_a_cell_with_another_encoder_than_its_index_names_both(
    tiny: list[str], index: Path, tmp_path: Path
) -> None:
    words = [word for word in tiny if not word.startswith("retrieval")]
    words += [
        f"results={tmp_path}",
        "adaptation=pixel",
        "retrieval=index",
        f"retrieval.corpus.folder={index}",
    ]
    with pytest.raises(
        InputError, match=r"built with encoder imagenet .* configured encoder is pixel"
    ):
        resolve_cell(compose(words))


def test_a_crop_of_the_test_image_is_left_out_and_counted(
    tiny: list[str], neighbourhood: Path, photographs: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    for path in [*neighbourhood.glob("*.png")]:
        write_png(corpus / path.name, read_image(path))
    x = read_image(photographs / "0.png")
    write_png(corpus / "crop.png", from_uint8(to_uint8(x)[3:31, 2:30]))
    words = [word for word in tiny if not word.startswith("retrieval.corpus")]
    words += [
        f"results={tmp_path}",
        "task=sr4",
        "adaptation=knn",
        f"retrieval.corpus.path={corpus}",
    ]
    built = resolve_cell(compose(words))
    y = built.task.degrade(x, generator(0, "0.png", "y"))
    neighbours, excluded = find_neighbours(built, "0.png", x, y)
    assert excluded == ["crop.png"] and "crop.png" not in {neighbour.id for neighbour in neighbours}
    mine, none = find_neighbours(built, "0.png", None, y)  # a user's own image has no x
    assert none == [] and len(mine) == 2


def test_random_leaves_out_what_knn_leaves_out(
    tiny: list[str], neighbourhood: Path, photographs: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    for path in neighbourhood.glob("*.png"):
        write_png(corpus / path.name, read_image(path))
    x = read_image(photographs / "0.png")
    write_png(corpus / "crop.png", from_uint8(to_uint8(x)[3:31, 2:30]))
    write_png(corpus / "mirrored.png", x.flip(-1))
    words = [word for word in tiny if not word.startswith("retrieval.corpus")]
    words += [f"results={tmp_path}", "task=sr4", f"retrieval.corpus.path={corpus}", "k=6"]
    for mode in ("knn", "random"):
        built = resolve_cell(compose([*words, f"adaptation={mode}"]))
        y = built.task.degrade(x, generator(0, "0.png", "y"))
        neighbours, excluded = find_neighbours(built, "0.png", x, y)
        assert excluded == ["crop.png", "mirrored.png"]
        assert {neighbour.id for neighbour in neighbours} == {
            path.name for path in neighbourhood.iterdir()
        }


@pytest.fixture
def words(tiny: list[str], tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides for a corpus of given files."""

    def make(files: dict[str, torch.Tensor], *overrides: str) -> list[str]:
        for name, image in files.items():
            path = tmp_path / "corpus" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(to_uint8(image)).save(path)
        others = [word for word in tiny if not word.startswith(("retrieval.corpus", "k="))]
        return [
            *others,
            f"results={tmp_path / 'results'}",
            f"retrieval.corpus.path={tmp_path / 'corpus'}",
            *overrides,
        ]

    return make


def images(folder: Path) -> list[torch.Tensor]:
    return [read_image(path) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("mode", ["knn", "pixel", "random"])
def test_equal_images_of_a_corpus_count_once_and_the_smallest_id_stands_for_them(
    words: Callable, neighbourhood: Path, photographs: Path, mode: str
) -> None:
    a, b, c = images(neighbourhood)[:3]
    files = {"a.png": a, "b.png": b, "again/a.png": a, "z.bmp": a, "c.png": c, "d.png": b}
    built = resolve_cell(compose(words(files, "task=sr4", f"adaptation={mode}", "k=3")))
    for image_id in built.data.ids:
        x = built.data.image(image_id)
        y = built.task.degrade(x, generator(0, image_id, "y"))
        for image in (x, None):  # of a test, and of a user's own image
            neighbours, excluded = find_neighbours(built, image_id, image, y)
            assert excluded == [] and {neighbour.id for neighbour in neighbours} == {
                "a.png",
                "b.png",
                "c.png",
            }


@pytest.mark.parametrize("mode", ["knn", "random"])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_k_above_what_copies_and_equal_images_leave_is_refused_before_any_work(
    adir: Callable,
    words: Callable,
    neighbourhood: Path,
    photographs: Path,
    tmp_path: Path,
    command: str,
    mode: str,
) -> None:
    a, b, c = images(neighbourhood)[:3]
    grey = read_image(photographs / "1.png").mean(0, keepdim=True).expand(3, -1, -1)
    files = {"a.png": a, "b.png": b, "c.png": c, "again.png": b, "grey.png": grey}
    overrides = words(files, "task=sr4", f"adaptation={mode}", "sampler.n_steps=1")
    assert adir(command, *overrides, "k=3").status == 0
    for k, left, excluded in (
        (4, 3, "repeated images, copies of test image 1.png"),
        (5, 4, "repeated images"),
    ):
        refused = adir(command, *overrides, f"k={k}", f"results={tmp_path / 'other'}")
        said = " ".join((refused.out + refused.err).split())
        assert refused.status == 2
        assert (
            f"K={k} neighbours requested, but only {left} of 5 corpus images remain after excluding "
            f"{excluded}; lower K"
        ) in said
        assert not (tmp_path / "other" / "cells").exists()


@pytest.mark.parametrize("mode", ["pixel", "random"])
def test_without_the_own_photograph_no_neighbour_is_of_it_and_of_others_all_are_as_before(
    mode: str, tmp_path: Path
) -> None:
    name = "grass-s1-y192-x000"
    words = [
        f"data.only=[{name}]",
        "data=domains",
        "retrieval=domains",
        "task=sr4",
        f"adaptation={mode}",
        f"results={tmp_path}",
    ]
    own, control = (
        resolve_cell(compose([*words, f"retrieval.corpus.own_photograph={own}", f"k={k}"]))
        for own, k in ((True, 400), (False, 20))
    )
    x = own.data.image(name)
    y = own.task.degrade(x, generator(0, name, "y"))
    everything, chosen = (find_neighbours(cell, name, x, y)[0] for cell in (own, control))
    assert any(near.id.startswith("grass") for near in everything)
    if mode == "pixel":
        assert chosen == [near for near in everything if not near.id.startswith("grass")][:20]
    assert len(chosen) == 20 and not any(near.id.startswith("grass") for near in chosen)
    mine, _ = find_neighbours(
        control, "grass", None, y
    )  # a user's own image has no photograph here
    assert len(mine) == 20


def test_what_the_corpus_withholds_is_no_validation_image_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "data=domains",
        "retrieval=domains",
        "retrieval.corpus.own_photograph=false",
        "adaptation=random",
        "adaptation/fine_tuning=safe",
        "task=sr4",
        "k=1",
        f"results={tmp_path}",
    ]
    cell = resolve_cell(compose(words))
    seen: list[torch.Tensor] = []

    class Stop(Exception):
        pass

    def fit(self: object, *arguments: object, **keywords: object) -> None:
        seen.extend(keywords["others"])
        raise Stop

    monkeypatch.setattr(SafeFineTuning, "fit", fit)
    monkeypatch.setattr(SafeFineTuning, "n_extra_images", len(cell.corpus))  # all that may be drawn
    with pytest.raises(Stop):
        prepare(cell, "grass-s1-y192-x000", print, False)
    hashes = {hash_of_image(x) for x in seen}
    withheld = cell.corpus.withheld("grass")
    assert withheld and not any(
        hash_of_image(cell.corpus.image(name)) in hashes for name in withheld
    )
    assert len(seen) == len(cell.corpus) - len(withheld | cell.corpus.repeats) - 1


def test_k_above_what_the_corpus_does_not_withhold_is_refused(
    adir: Callable, tmp_path: Path
) -> None:
    words = [
        "data=domains",
        "retrieval=domains",
        "retrieval.corpus.own_photograph=false",
        "adaptation=random",
    ]
    left = len(DomainCorpus()) - max(
        len(DomainCorpus(own_photograph=False).withheld(name)) for name in DOMAINS
    )
    refused = adir("plan", *words, f"k={left + 1}", f"results={tmp_path}")
    said = " ".join((refused.out + refused.err).split())
    assert (
        refused.status == 2
        and "excluding repeated images, copies of test image hubble_deep_field-s1" in said
    )
    assert f"only {left} of" in said
