"""y and adapters are made once, found again, and never replaced by something else."""

import itertools
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.harness.running.stores import AdapterStore, MeasurementStore, OtherImage
from adir.images import generator, hash_of_image
from adir.tasks.operators import BoxBlur, BoxInpainting, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask

OPERATORS = {
    "sr": SuperResolution(4),
    "blur": BoxBlur(5),
    "grey": Colorization(),
    "hole": BoxInpainting(),
}


def never(message: str) -> None:
    raise AssertionError(f"no warning was due: {message}")


def store(
    results: Path, operator: str = "blur", sigma_y: float = 10, noise_seed: int = 0, **more
) -> MeasurementStore:
    task = RestorationTask("t", 1, OPERATORS[operator], sigma_y, 1)
    configuration = {
        "name": "t",
        "operator": operator,
        "sigma_y": sigma_y,
        "guidance_scale": 1,
    } | more
    return MeasurementStore(results, task, configuration, noise_seed)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(3, 32, 32) * 2 - 1


@pytest.mark.parametrize("operator", OPERATORS)
def test_y_is_made_once_and_read_back_bit_for_bit(
    tmp_path: Path, x: torch.Tensor, operator: str, monkeypatch
) -> None:
    first = store(tmp_path, operator).get("a", x, never)
    assert torch.equal(
        first.y, store(tmp_path, operator).task.degrade(x, generator(0, "a", "y t 1"))
    )
    later = store(tmp_path, operator)
    monkeypatch.setattr(later.task, "degrade", lambda *_: pytest.fail("y was made a second time"))
    second = later.get("a", x, never)
    assert torch.equal(first.y, second.y) and first.sha256 == second.sha256 == hash_of_image(
        second.y
    )


def test_another_noise_seed_or_operator_is_another_y_and_another_guidance_scale_is_not(
    tmp_path: Path, x: torch.Tensor
) -> None:
    first = store(tmp_path).get("a", x, never)
    assert store(tmp_path, guidance_scale=99).get("a", x, never).path == first.path
    assert store(tmp_path, noise_seed=1).get("a", x, never).sha256 != first.sha256
    assert (
        store(tmp_path, sigma_y=20).get("a", x, never).sha256 != first.sha256
    )  # although the version is the same
    assert store(tmp_path).get("b", x, never).sha256 != first.sha256  # its own noise


@pytest.mark.parametrize("damage", ["truncated", "other pixels", "gone"])
def test_a_damaged_y_is_set_aside_and_made_again_the_same(
    tmp_path: Path, x: torch.Tensor, damage: str
) -> None:
    first = store(tmp_path).get("a", x, never)
    content = first.path.read_bytes()
    if damage == "gone":
        first.path.unlink()
    elif damage == "truncated":
        first.path.write_bytes(content[:-50])
    else:
        store(tmp_path).task.write_y(first.path, -first.y)
    damaged = first.path.read_bytes() if damage != "gone" else None
    warnings: list[str] = []
    again = store(tmp_path).get("a", x, warnings.append)
    assert torch.equal(again.y, first.y) and again.path.read_bytes() == content
    aside = list(first.path.parent.glob("*.png.corrupt-*"))
    if damaged is None:
        assert not aside and not warnings
    else:
        assert [path.read_bytes() for path in aside] == [damaged]
        assert (
            len(warnings) == 1 and str(first.path) in warnings[0] and aside[0].name in warnings[0]
        )


def test_a_damaged_note_is_written_anew(tmp_path: Path, x: torch.Tensor) -> None:
    first = store(tmp_path).get("a", x, never)
    note = first.path.with_suffix(".json")
    before = note.read_bytes()
    note.write_text("{")
    assert store(tmp_path).get("a", x, never).sha256 == first.sha256 and note.read_bytes() == before


def test_another_image_with_the_same_id_is_refused_and_the_old_y_stays(
    tmp_path: Path, x: torch.Tensor
) -> None:
    first = store(tmp_path).get("a", x, never)
    with pytest.raises(
        InputError, match="another image with the id 'a'; use another results folder"
    ):
        store(tmp_path).get("a", -x, never)
    assert store(tmp_path).get("a", x, never).sha256 == first.sha256


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", ["y", "y damaged", "note", "note damaged"])
def test_a_y_that_cannot_be_made_as_it_was_is_refused_and_nothing_is_touched(
    tmp_path: Path, x: torch.Tensor, monkeypatch, lost: str
) -> None:
    # As after an update of a library: rows before and after it would not compare.
    first = store(tmp_path).get("a", x, never)
    path = first.path if lost.startswith("y") else first.path.with_suffix(".json")
    path.write_bytes(b"{") if lost.endswith("damaged") else path.unlink()
    before = contents(tmp_path)
    later = store(tmp_path)
    monkeypatch.setattr(later.task, "degrade", lambda *_: -first.y)
    for _ in range(2):  # it does not count as known the second time
        with pytest.raises(OtherImage, match="differs"):
            later.get("a", x, never)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("operator", ["blur", "hole"])
def test_a_y_without_its_note_gets_one_again(
    tmp_path: Path, x: torch.Tensor, operator: str
) -> None:
    # What a kill between the two leaves.
    first = store(tmp_path, operator).get("a", x, never)
    before = contents(tmp_path)
    first.path.with_suffix(".json").unlink()
    assert store(tmp_path, operator).get("a", x, never).sha256 == first.sha256
    assert contents(tmp_path) == before


def test_a_y_without_its_note_is_not_that_of_another_image(tmp_path: Path, x: torch.Tensor) -> None:
    first = store(tmp_path).get("a", x, never)
    first.path.with_suffix(".json").unlink()
    before = contents(tmp_path)
    with pytest.raises(OtherImage, match=r"another results folder"):
        store(tmp_path).get("a", -x, never)
    assert contents(tmp_path) == before


FACTS = {"losses": [1.0], "layers": ["w"], "seconds": 0.1}


def test_an_adapter_comes_back_with_its_facts(tmp_path: Path) -> None:
    adapters = AdapterStore(tmp_path)
    assert adapters.find("key", never) is None
    put = adapters.put("key", {"w": torch.arange(4.0)}, FACTS, never)
    found = adapters.find("key", never)
    assert found is not None and found.sha256 == put.sha256 and found.facts == put.facts
    assert found.facts == FACTS | {"sha256": put.sha256}
    assert torch.equal(found.tensors["w"], torch.arange(4.0))
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["key.safetensors"]
    with safe_open(adapters.path("key"), framework="pt") as file:  # what other programs see
        assert torch.equal(file.get_tensor("w"), torch.arange(4.0))
        assert json.loads(file.metadata()["facts"])["losses"] == [1.0]


def test_the_hash_of_an_adapter_is_that_of_its_tensors_alone(tmp_path: Path) -> None:
    hashes = {
        AdapterStore(tmp_path)
        .put(str(number), {name: torch.tensor([value])}, FACTS | {"seconds": number})
        .sha256
        for number, (name, value) in enumerate([("w", 1.0), ("w", 1.0), ("v", 1.0), ("w", 2.0)])
    }
    assert len(hashes) == 3 and sha256_of_bytes(save({"w": torch.tensor([1.0])})) in hashes


def test_the_adapter_that_was_stored_first_stays(tmp_path: Path) -> None:
    # Two workers trained the same key, to other numbers as on a GPU; a record names the first.
    adapters = AdapterStore(tmp_path)
    first = adapters.put("key", {"w": torch.zeros(4)}, FACTS, never)
    content = adapters.path("key").read_bytes()
    second = adapters.put("key", {"w": torch.ones(4)}, FACTS, never)
    assert adapters.path("key").read_bytes() == content
    assert second.sha256 == first.sha256 and torch.equal(second.tensors["w"], torch.zeros(4))


def test_a_reader_beside_writers_never_sees_a_damaged_adapter(tmp_path: Path) -> None:
    adapters, done = AdapterStore(tmp_path), threading.Event()

    seen: set[str] = set()
    deadline = time.monotonic() + 60

    def write() -> None:
        for number in itertools.count():
            if number >= 60 and (
                len(seen) > 1 or time.monotonic() > deadline
            ):  # on a busy machine the reader is late
                break
            adapters.path("key").unlink(missing_ok=True)  # as another process that sets it aside
            adapters.put(
                "key",
                {"w": torch.full((2000,), float(number))},
                FACTS | {"losses": [float(number)]},
                never,
            )
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        found = adapters.find("key", never)
        if found is not None:
            assert found.facts["losses"] == [found.tensors["w"][0].item()]
            seen.add(found.sha256)
    writer.join()
    assert len(seen) > 1 and not list(tmp_path.glob("adapters/*.corrupt-*"))


def test_an_adapter_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    AdapterStore(tmp_path).path("key").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        AdapterStore(tmp_path).find("key", never)


@pytest.mark.parametrize("damage", ["truncated", "empty", "other numbers", "no facts"])
def test_a_damaged_adapter_is_set_aside_and_counts_as_missing(tmp_path: Path, damage: str) -> None:
    adapters = AdapterStore(tmp_path)
    adapters.put("key", {"w": torch.arange(4.0)}, FACTS, never)
    path = adapters.path("key")
    good = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(good[:-4])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other numbers":  # a valid file, so only its hash tells
        path.write_bytes(good[:-4] + torch.tensor([4.0]).numpy().tobytes())
    else:
        path.write_bytes(save({"w": torch.arange(4.0)}))
    content = path.read_bytes()
    warnings: list[str] = []
    assert adapters.find("key", warnings.append) is None
    (aside,) = tmp_path.glob("adapters/*.corrupt-*")
    assert aside.read_bytes() == content and len(warnings) == 1
    assert str(path) in warnings[0] and aside.name in warnings[0]
    assert adapters.put("key", {"w": torch.arange(4.0)}, FACTS, never).sha256
    assert path.read_bytes() == good
