"""`adir edit` and runs of task=edit with a tiny pipeline, from files to files."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from adir.files import safetensors_metadata
from adir.images import read_image, to_uint8
from adir.retrieval.encoders.clip import random_clip
from adir.samplers.editing import InpaintingSampler


@pytest.fixture(scope="module")
def folder(made_stable_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_stable_diffusion.saved(
        made_stable_diffusion.inpainter(), tmp_path_factory.mktemp("sd_inpaint")
    )


@pytest.fixture(scope="module")
def settings(
    folder: Path, neighbourhood: Path, made_clip: str, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A tiny backbone, two steps, and neighbours by a tiny CLIP with random weights, from a file."""
    checkpoint = tmp_path_factory.mktemp("clip") / "made.pt"
    torch.save(random_clip(made_clip, 3).network.state_dict(), checkpoint)
    return [
        f"backbone.folder={folder}",
        "sampler.n_steps=2",
        "adaptation.fine_tuning.n_iterations=2",
        "adaptation.fine_tuning.batch_size=2",
        "adaptation.fine_tuning.crop_size=16",
        "retrieval=folder",
        f"retrieval.corpus.path={neighbourhood}",
        "encoder=clip",
        f"encoder.architecture={made_clip}",
        "encoder.tag=null",
        f"encoder.checkpoint={checkpoint}",
        f"scoring.clip.architecture={made_clip}",
        "scoring.clip.tag=null",
        f"scoring.clip.checkpoint={checkpoint}",
        "scoring.metrics=[clip-prompt]",
        "k=2",
    ]


@pytest.fixture
def image(photographs: Path, tmp_path: Path) -> Path:
    """cat.png, with cat_mask.png beside it."""
    pixels = to_uint8(read_image(photographs / "0.png"))
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[8:22, 6:25] = 255
    Image.fromarray(mask).save(tmp_path / "cat_mask.png")
    return tmp_path / "cat.png"


def edited(out: Path, mode: str) -> tuple[np.ndarray, dict]:
    """The image and the note of a mode's only edit."""
    (file,) = out.glob(f"cat-{mode}-*.png")
    return np.array(Image.open(file)), json.loads(file.with_suffix(".json").read_text())


def test_an_image_is_edited_without_and_with_adaptation(
    adir: Callable, settings: list[str], image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mask = ["--mask", tmp_path / "cat_mask.png", "--prompt", "a tiger", "--out", out]
    notes = {}
    for mode in ("none", "knn"):
        done = adir("edit", image, *mask, *settings, f"adaptation={mode}")
        assert done.status == 0, done.err
        pixels, note = edited(out, mode)
        assert pixels.shape == (32, 32, 3) and note["prompt"] == "a tiger"
        assert note["scores"]["clip-prompt"]["value"] is not None and note["residual"] > 0
        assert "35% repainted" not in done.out and f"{14 * 19 / 1024:.0%} repainted" in done.out
        notes[mode] = note, pixels
    assert notes["none"][0]["adapter"] is None and notes["none"][0]["neighbours"] == []
    assert (
        len(notes["knn"][0]["neighbours"]) == 2 and notes["knn"][0]["adapter"]["n_parameters"] > 0
    )
    assert not np.array_equal(notes["none"][1], notes["knn"][1])
    assert (
        notes["none"][0]["y_sha256"] == notes["knn"][0]["y_sha256"]
    )  # which the noise follows from

    again = adir("edit", image, *mask, *settings, "adaptation=none")
    assert again.status == 0 and "already done" in again.out
    other = adir(
        "edit", image, *mask[:3], "a wolf", *mask[4:], *settings, "adaptation=none", "paste=true"
    )
    assert other.status == 0 and len(list(out.glob("cat-none-*.png"))) == 2


def test_pasting_and_the_way_of_looking_have_short_names(
    adir: Callable, settings: list[str], image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = adir(
        "edit", image, "--mask", tmp_path / "cat_mask.png", "--prompt", "a tiger", "--out", out,
        *settings, "adaptation=knn", "adaptation/adapter=lora", "by=image", "paste=true",
        "adaptation.fine_tuning.crop_size=400",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert (
        done.out.count("adaptation: crops of 32 pixels instead of crop_size=400, because image ")
        == 1
    )
    (adapter,) = (out / "stages" / "adapters").glob("*.safetensors")
    assert json.loads(safetensors_metadata(adapter.read_bytes())["facts"])["crop_size"] == 32
    pixels, note = edited(out, "knn")
    assert note["configuration"]["task"]["by"] == "image" and note["residual"] == 0
    known = np.array(Image.open(tmp_path / "cat_mask.png")) == 0
    assert np.array_equal(pixels[known], np.array(Image.open(image))[known])


def test_out_of_memory_is_one_line_that_keeps_what_is_done(
    adir: Callable,
    settings: list[str],
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(InpaintingSampler, "restore", exhausted)
    mask = ["--mask", tmp_path / "cat_mask.png", "--prompt", "a tiger", "--out", tmp_path / "out"]
    done = adir("edit", image, *mask, *settings)
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    for words in (
        "while sampling 1 image of 32x32",
        "execution=small_gpu or smaller images; finished work is saved",
    ):
        assert words in done.err


def black(folder: Path) -> None:
    Image.new("L", (32, 32), 0).save(folder / "cat_mask.png")


def smaller(folder: Path) -> None:
    mask = Image.new("L", (30, 32), 0)
    mask.paste(255, (2, 2, 9, 9))
    mask.save(folder / "cat_mask.png")


def cropped(folder: Path) -> None:
    for name in ("cat.png", "cat_mask.png"):
        image = Image.open(folder / name).crop((0, 0, 30, 32))
        image.save(folder / name)


def float_levels(folder: Path) -> None:
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(folder / "cat.png", format="tiff")


@pytest.mark.parametrize(
    "spoil, prompt, more, words",
    [
        (lambda folder: None, " ", [], "the prompt is empty"),
        (black, "a tiger", [], "the mask is all black"),
        (smaller, "a tiger", [], "the mask is 30x32, the image 32x32"),
        (
            cropped,
            "a tiger",
            [],
            "30x32 pixels, but this backbone needs sides that are multiples of 4",
        ),
        (float_levels, "a tiger", [], "more than 8 bits"),
        (
            lambda folder: (folder / "cat_mask.png").unlink(),
            "a tiger",
            [],
            "cat_mask.png: no such file",
        ),
        (lambda folder: None, "a tiger", ["adaptation=self"], "the hole of y"),
        (lambda folder: None, "a tiger", ["task=sr4"], "task=edit"),
        (
            lambda folder: None,
            "a tiger",
            ["backbone=sd_x4"],
            "backbone sd_x4 is not an inpainting model; use backbone=sd_inpaint",
        ),
        # No weights are there: before they are asked for, it is said that they would not help.
        (
            lambda folder: None,
            "a tiger",
            ["backbone=gd256", "backbone.folder=null"],
            "backbone gd256 is not an inpainting model; use backbone=sd_inpaint",
        ),
        (
            lambda folder: None,
            "a tiger",
            ["by=foo", "backbone.folder=null"],
            "unknown by='foo'; choose one of prompt, image",
        ),
        (
            lambda folder: None,
            "a tiger",
            ["adaptation=knn", "encoder=imagenet"],
            "cannot encode text; choose an encoder such as CLIP, or set task.by=image to search with the "
            "image instead of the prompt",
        ),
    ],
    ids=[
        "prompt",
        "black",
        "size",
        "stride",
        "bits",
        "file",
        "self",
        "task",
        "family",
        "pixels",
        "by",
        "encoder",
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    adir: Callable,
    settings: list[str],
    image: Path,
    tmp_path: Path,
    spoil,
    prompt: str,
    more: list[str],
    words: str,
) -> None:
    spoil(tmp_path)
    if "encoder=imagenet" in more:
        settings = [item for item in settings if not item.startswith("encoder")]
    mask = ["--mask", tmp_path / "cat_mask.png", "--prompt", prompt, "--out", tmp_path / "out"]
    done = adir("edit", image, *mask, *settings, *more)
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1, done.err
    assert "which is missing" not in done.err  # weights are asked for last
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_set_of_edits_runs_as_a_cell(
    adir: Callable, settings: list[str], image: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("image,prompt\ncat,a tiger\ncat,a wolf\n")
    run = [
        "run", "-m", "backbone=sd_inpaint", "task=edit", "sampler=sd_inpaint", "scoring=edit", "data=edit",
        f"data.path={tmp_path}", f"results={tmp_path / 'results'}", "adaptation=none,knn", *settings,
    ]  # fmt: skip
    done = adir(*run)
    assert done.status == 0, done.err + done.out
    records = [
        json.loads(path.read_text()) for path in (tmp_path / "results").rglob("records/*.json")
    ]
    assert len(records) == 4 and all(record["status"] == "done" for record in records)
    scores = {
        (r["axes"]["adaptation"], r["image"]["id"]): r["scores"]["clip-prompt"]["value"]
        for r in records
    }
    assert len(set(scores.values())) == 4
    assert all(
        r["scores"]["residual"]["value"] > 0 and r["sampler"]["network_evaluations"] == 6
        for r in records
    )
    neighbours = {
        r["image"]["id"]: [n["id"] for n in r["neighbours"]] for r in records if r["neighbours"]
    }
    assert len(neighbours) == 2 and all(len(found) == 2 for found in neighbours.values())
    assert adir(*run).status == 0
