"""y and adapters are made once, found again, and never replaced by something else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from adir.errors import InputError
from adir.harness.ledger import DamagedFile
from adir.harness.stages import AdapterStore, MeasurementStore, hash_of_picture
from adir.images import generator
from adir.tasks.operators import BoxBlur, BoxInpainting, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask

OPERATORS = {"sr": SuperResolution(4), "blur": BoxBlur(5), "grey": Colorization(), "hole": BoxInpainting()}


def never(message: str) -> None:
    raise AssertionError(f"no warning was due: {message}")


def store(results: Path, operator: str = "blur", sigma_y: float = 10, noise_seed: int = 0, **more) -> MeasurementStore:
    task = RestorationTask("t", 1, OPERATORS[operator], sigma_y, 1)
    configuration = {"name": "t", "operator": operator, "sigma_y": sigma_y, "guidance_scale": 1} | more
    return MeasurementStore(results, task, configuration, noise_seed)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(3, 32, 32) * 2 - 1


@pytest.mark.parametrize("operator", OPERATORS)
def test_y_is_made_once_and_read_back_bit_for_bit(tmp_path: Path, x: torch.Tensor, operator: str, monkeypatch) -> None:
    first = store(tmp_path, operator).get("a", x, never)
    assert torch.equal(first.y, store(tmp_path, operator).task.degrade(x, generator(0, "a", "y t 1")))
    later = store(tmp_path, operator)
    monkeypatch.setattr(later.task, "degrade", lambda *_: pytest.fail("y was made a second time"))
    second = later.get("a", x, never)
    assert torch.equal(first.y, second.y) and first.sha256 == second.sha256 == hash_of_picture(second.y)


def test_another_noise_seed_or_operator_is_another_y_and_another_guidance_scale_is_not(
    tmp_path: Path, x: torch.Tensor
) -> None:
    first = store(tmp_path).get("a", x, never)
    assert store(tmp_path, guidance_scale=99).get("a", x, never).path == first.path
    assert store(tmp_path, noise_seed=1).get("a", x, never).sha256 != first.sha256
    assert store(tmp_path, sigma_y=20).get("a", x, never).sha256 != first.sha256  # although the version is the same
    assert store(tmp_path).get("b", x, never).sha256 != first.sha256  # its own noise


@pytest.mark.parametrize("damage", ["truncated", "other pixels", "gone"])
def test_a_damaged_y_is_set_aside_and_made_again_the_same(tmp_path: Path, x: torch.Tensor, damage: str) -> None:
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
        assert len(warnings) == 1 and str(first.path) in warnings[0] and aside[0].name in warnings[0]


def test_a_damaged_note_is_set_aside_too(tmp_path: Path, x: torch.Tensor) -> None:
    first = store(tmp_path).get("a", x, never)
    note = first.path.with_suffix(".json")
    note.write_text("{")
    warnings: list[str] = []
    assert store(tmp_path).get("a", x, warnings.append).sha256 == first.sha256
    assert str(note) in warnings[0] and len(list(note.parent.glob("*.json.corrupt-*"))) == 1


def test_another_picture_with_the_same_id_is_refused_and_the_old_y_stays(tmp_path: Path, x: torch.Tensor) -> None:
    first = store(tmp_path).get("a", x, never)
    with pytest.raises(InputError, match="another picture with the id 'a'; use another results folder"):
        store(tmp_path).get("a", -x, never)
    assert store(tmp_path).get("a", x, never).sha256 == first.sha256


def test_a_y_that_cannot_be_made_as_it_was_is_refused(tmp_path: Path, x: torch.Tensor, monkeypatch) -> None:
    # As after an update of a library: rows before and after it would not compare.
    first = store(tmp_path).get("a", x, never)
    first.path.unlink()
    later = store(tmp_path)
    monkeypatch.setattr(later.task, "degrade", lambda *_: -first.y)
    with pytest.raises(DamagedFile, match="differs"):
        later.get("a", x, never)


def test_an_adapter_comes_back_with_its_facts(tmp_path: Path) -> None:
    adapters = AdapterStore(tmp_path)
    assert adapters.find("key", never) is None
    put = adapters.put("key", {"w": torch.arange(4.0)}, {"losses": [1.0], "layers": ["w"]})
    found = adapters.find("key", never)
    assert found is not None and found.sha256 == put.sha256 and found.facts["losses"] == [1.0]
    assert torch.equal(found.tensors["w"], torch.arange(4.0))


@pytest.mark.parametrize("damage", ["truncated", "other numbers", "no facts"])
def test_a_damaged_adapter_is_set_aside_and_counts_as_missing(tmp_path: Path, damage: str) -> None:
    adapters = AdapterStore(tmp_path)
    adapters.put("key", {"w": torch.arange(4.0)}, {"losses": [], "layers": []})
    path = adapters.path("key")
    good = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(good[:-4])
    elif damage == "other numbers":  # a valid file, so only its hash tells
        path.write_bytes(save({"w": torch.ones(4)}))
    else:
        path.with_suffix(".json").write_text("{}")
    content = path.read_bytes()
    warnings: list[str] = []
    assert adapters.find("key", warnings.append) is None
    (aside,) = tmp_path.glob("adapters/*.corrupt-*")
    assert aside.read_bytes() == content and len(warnings) == 1
    assert str(path) in warnings[0] and aside.name in warnings[0]
    assert adapters.put("key", {"w": torch.arange(4.0)}, {"losses": [], "layers": []}).sha256
    assert path.read_bytes() == good
