"""The Python interface (adir/api.py) does what the command line does, and the example runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adir
from adir.data.domains import DomainCorpus, DomainTestFields
from adir.images import generator, write_png

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("task=sr4", "sampler=ddrm", "sampler.n_steps=2")


@pytest.fixture(scope="module")
def y_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("y") / "y.png"
    x = DomainTestFields().image("brick-s1-y000-x000")[:, :64, :64]
    task = adir.setup(*SETTINGS).task
    task.write_y(path, task.degrade(x, generator(0, "brick", "y")))
    return path


def test_restore_equals_the_command_line(y_file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "adir",
        "restore",
        str(y_file),
        "--out",
        str(tmp_path / "out"),
        *SETTINGS,
    ]
    subprocess.run(command, check=True, capture_output=True)
    cell = adir.setup(*SETTINGS)
    adir.write_image(tmp_path / "x_hat.png", adir.restore(cell, cell.task.read_y(y_file)))
    (theirs,) = (tmp_path / "out").glob("*.png")
    assert torch.equal(adir.read_image(tmp_path / "x_hat.png"), adir.read_image(theirs))


def test_an_adapter_acts_only_in_its_context() -> None:
    cell = adir.setup(
        *SETTINGS, "adaptation/fine_tuning=fixed", "adaptation.fine_tuning.n_iterations=1"
    )
    images = [DomainCorpus().image(name) for name in DomainCorpus().ids[:2]]
    adapter = adir.adapt(cell, images)
    x_t, t = (
        torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([500]),
    )
    before = cell.backbone.predict(x_t, t).eps
    with adir.adapted(cell, adapter):
        inside = cell.backbone.predict(x_t, t).eps
    assert not torch.equal(inside, before)
    assert torch.equal(cell.backbone.predict(x_t, t).eps, before)


def test_the_example_restores_an_image(y_file: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("brick-s1-y064-x192", "brick-s1-y064-x384"):
        write_png(tmp_path / "images" / f"{name}.png", DomainCorpus().image(name))
    command = [
        sys.executable,
        str(ROOT / "examples/restore.py"),
        str(y_file),
        str(tmp_path / "images"),
    ]
    done = subprocess.run(
        [*command, str(tmp_path / "x_hat.png")], check=True, capture_output=True, text=True
    )
    assert "held-out loss" in done.stdout
    assert adir.read_image(tmp_path / "x_hat.png").shape == (3, 64, 64)


def test_what_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"no attribute .restor.; it has adapt, adapted"):
        adir.restor  # noqa: B018
