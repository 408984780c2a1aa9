"""Cells of the x4 upscaler, from images to records, with a tiny pipeline."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from adir.errors import InputError
from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.images import read_image, write_png


@pytest.fixture(scope="module")
def settings(
    made_stable_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = made_stable_diffusion.saved(
        made_stable_diffusion.upscaler(), tmp_path_factory.mktemp("sd_x4")
    )
    fine_tuning = [
        f"adaptation.fine_tuning.{item}"
        for item in ("n_iterations=1", "batch_size=1", "crop_size=16")
    ]
    return [
        "backbone=sd_x4", "sampler=sd_x4", "adaptation/fine_tuning=sd_x4", f"backbone.folder={folder}",
        "sampler.n_steps=2", *fine_tuning, "scoring.metrics=[psnr]", "k=2",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of this machine are seen."""
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in folder.rglob("records/*.json")]


def test_the_modes_run_and_share_their_noise(
    adir: Callable, settings: list[str], neighbourhood: Path, tmp_path: Path
) -> None:
    # The embedded fields are 128x128; a y of 32x32 is enough for A in adaptation=self.
    run = [
        "run", "-m", *settings, "task=sr4", "data.only=[chelsea-s1-y050-x105]", f"results={tmp_path}",
        "retrieval=folder", f"retrieval.corpus.path={neighbourhood}", "adaptation=none,self,knn",
    ]  # fmt: skip
    done = adir(*run)
    assert done.status == 0, done.err + done.out
    found = {record["axes"]["adaptation"]: record for record in records(tmp_path)}
    assert sorted(found) == ["knn", "none", "self"]
    assert len({record["y"]["sha256"] for record in found.values()}) == 1
    assert len({record["scores"]["psnr"]["value"] for record in found.values()}) == 3
    for record in found.values():
        assert record["status"] == "done" and record["sampler"]["network_evaluations"] == 2
        assert read_image(tmp_path / record["restored"]).shape == (3, 128, 128)


def test_an_adapter_of_another_operator_is_another(
    adir: Callable, settings: list[str], neighbourhood: Path, tmp_path: Path
) -> None:
    run = [
        "run", "-m", *settings, "task=sr4", "data.only=[chelsea-s1-y050-x105]", f"results={tmp_path}",
        "adaptation=self", "+task.operator.centre=1.5,0.5",
    ]  # fmt: skip
    assert adir(*run).status == 0
    assert len({record["adapter"]["key"] for record in records(tmp_path)}) == 2


def test_a_user_s_own_image_is_enlarged_four_times(
    adir: Callable, settings: list[str], tmp_path: Path
) -> None:
    write_png(tmp_path / "small.png", torch.rand(3, 30, 22) * 2 - 1)
    done = adir("restore", tmp_path / "small.png", *settings, "task=sr4", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    (file,) = (tmp_path / "out").glob("*.png")
    assert read_image(file).shape == (3, 120, 88)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["task=deblur"], "which task deblur does not need"),
        (["task=sr4", "sampler=adir"], "sampler=adir does not work with backbone=sd_x4"),
        (["task=sr4", "backbone=embedded", "sampler=sd_x4"], "is for the x4 upscaler"),
        (["task=sr4", "sampler.noise_level=400"], "noise_level=400"),
        (["task=sr4", "oracle=true"], "oracle=true needs a pixel backbone"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    adir: Callable, settings: list[str], tmp_path: Path, overrides: list[str], words: str
) -> None:
    replaced = {item.partition("=")[0] for item in overrides}
    kept = [item for item in settings if item.partition("=")[0] not in replaced]
    if "backbone" in replaced:
        kept = [item for item in kept if not item.startswith("backbone.")]
    done = adir("run", *kept, *overrides, "data=demo", f"results={tmp_path}")
    assert done.status != 0 and words in done.err + done.out, done.err + done.out
    assert "Traceback" not in done.err
    assert (
        "oracle=true" not in overrides or not (tmp_path / "grids").exists()
    )  # said before any work


@pytest.mark.parametrize("name", ["sd_x4", "sd_inpaint", "sd15_inpaint"])
def test_a_backbone_brings_what_goes_with_it(
    made_stable_diffusion: ModuleType, name: str, tmp_path: Path
) -> None:
    x4 = name == "sd_x4"
    made = made_stable_diffusion.upscaler() if x4 else made_stable_diffusion.inpainter()
    folder = made_stable_diffusion.saved(made, tmp_path / "made")
    overrides = [f"backbone={name}", *([] if x4 else ["data=demo"])]
    cell = resolve_cell(compose([*overrides, f"backbone.folder={folder}"]))
    assert (cell.backbone.name, cell.task.name) == (name, "sr4" if x4 else "edit")
    assert cell.sampler.name == ("sd_x4" if x4 else "sd_inpaint") and cell.sampler.n_steps == 50
    assert cell.fine_tuning.crop_size == (256 if x4 else 512)
    assert cell.scoring.metrics[0].name == ("psnr" if x4 else "clip-prompt")
    if not x4:
        with pytest.raises(
            InputError, match=r"data.path is missing: set data.path=.*; also: .* needs a folder"
        ):
            resolve_cell(compose([f"backbone={name}"]))
    # The weights are not here: one line that says how to get them.
    with pytest.raises(
        InputError,
        match=rf"{cell.backbone.name} needs a folder .*adir weights get {cell.backbone.name}",
    ):
        resolve_cell(compose(overrides))
