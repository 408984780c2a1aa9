"""Adapting latent backbones: losses against diffusers' own schedulers, examples against the task's
operator.
"""

import itertools
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import default_collate

from adir.adaptation import holes
from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.holes import random_hole
from adir.adaptation.latent import LatentCrops, latent_crops
from adir.adaptation.lora import Lora
from adir.backbones.execution import Execution
from adir.backbones.stable_diffusion import (
    StableDiffusion,
    StableDiffusionInpaint,
    StableDiffusionX4,
)
from adir.errors import InputError
from adir.tasks.editing import EditTask
from adir.tasks.operators import SuperResolution
from adir.tasks.restoration import RestorationTask

SR4 = RestorationTask(
    "sr4", 1, SuperResolution(4, centre=0.5), sigma_y=0, guidance_scale=1
)  # not symmetrical
EDIT = SimpleNamespace(prompt="a cat")
ADAPTERS = pytest.mark.parametrize("adapter", [Full(), Lora(rank=4)], ids=["full", "lora"])
FAMILIES = pytest.mark.parametrize("family", ["sd_x4", "sd_inpaint"])
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])


@pytest.fixture(scope="module")
def backbones(
    made_stable_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, StableDiffusion]:
    made, root = made_stable_diffusion, tmp_path_factory.mktemp("made")
    found: dict[str, StableDiffusion] = {}
    for prediction in ("epsilon", "v_prediction"):
        x4 = made.saved(made.upscaler(prediction=prediction), root / f"x4-{prediction}")
        inpaint = made.saved(made.inpainter("ddim", prediction), root / f"inpaint-{prediction}")
        found[f"sd_x4 {prediction}"] = StableDiffusionX4(folder=x4)
        found[f"sd_inpaint {prediction}"] = StableDiffusionInpaint(folder=inpaint)
    found["sd_x4"], found["sd_inpaint"] = found["sd_x4 v_prediction"], found["sd_inpaint epsilon"]
    return found


@pytest.fixture
def images() -> list[Tensor]:
    """Smooth, of two sizes, one of them no multiple of 4."""
    row = torch.linspace(-1, 1, 46)
    wave = torch.sin(6 * row)[:, None] * torch.cos(5 * row)[None]
    return [
        torch.stack([wave, -wave, wave.abs()])[:, :, :42],
        torch.stack([wave.T, 0 * wave, wave])[:, :40, :40],
    ]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(family: str) -> Any:
    return SR4 if "x4" in family else EDIT


def examples(
    backbone: StableDiffusion, images: list[Tensor], size: int = 16, seed: int = 0
) -> LatentCrops:
    return latent_crops(backbone, images, size, True, seeded(seed), task_of(backbone.name))


def batch_of(backbone: StableDiffusion, images: list[Tensor], n: int = 3) -> dict[str, Any]:
    return default_collate(list(itertools.islice(examples(backbone, images), n)))


def expected_loss(
    backbone: StableDiffusion, example: dict[str, Any], channels: Tensor, labels: Tensor | None
) -> float:
    """By diffusers' scheduler: add_noise and get_velocity, and the UNet called with everything
    spelt out.
    """
    scheduler = DDPMScheduler.from_config(backbone.scheduler.config)
    with torch.no_grad():
        posterior = backbone.vae.encode(example["z"]).latent_dist
        scale = backbone.vae.config.scaling_factor
        z = scale * (posterior.mean + posterior.std * example["posterior_noise"])
        z_t = scheduler.add_noise(z, example["eps"], example["t"])
        velocity = scheduler.get_velocity(z, example["eps"], example["t"])
        target = velocity if scheduler.config.prediction_type == "v_prediction" else example["eps"]
        text = backbone.text(example["prompt"])
        output = backbone.network(
            torch.cat([z_t, channels], 1), example["t"], text, class_labels=labels
        ).sample
        return torch.nn.functional.mse_loss(output, target).item()


@PREDICTIONS
def test_the_upscaler_s_loss_is_that_of_its_training(backbones, images, prediction) -> None:
    backbone = backbones[f"sd_x4 {prediction}"]
    example = batch_of(backbone, images)
    levels = DDPMScheduler.from_config(backbone.low_res_scheduler.config)
    low = levels.add_noise(example["low"], example["low_noise"], example["noise_level"])
    assert example["prompt"] == [""] * 3
    expected = expected_loss(backbone, example, low, example["noise_level"])
    assert backbone.denoising_loss(example).item() == pytest.approx(expected, rel=1e-4)


@PREDICTIONS
def test_the_inpainting_model_s_loss_is_that_of_its_training(backbones, images, prediction) -> None:
    backbone = backbones[f"sd_inpaint {prediction}"]
    example = batch_of(backbone, images)
    hole = example["hole"]
    with torch.no_grad():
        posterior = backbone.vae.encode(torch.where(hole > 0, 0.0, example["z"])).latent_dist
        masked = backbone.vae.config.scaling_factor * (
            posterior.mean + posterior.std * example["masked_noise"]
        )
    small = hole[:, :, ::4, ::4]  # nearest
    assert example["prompt"] == ["a cat"] * 3
    expected = expected_loss(backbone, example, torch.cat([small, masked], 1), None)
    assert backbone.denoising_loss(example).item() == pytest.approx(expected, rel=1e-4)


def test_the_low_resolution_twin_is_the_task_s_y_of_the_same_window_mirrored_or_not(
    backbones, images
) -> None:
    backbone, seen = backbones["sd_x4"], set()
    for example in itertools.islice(examples(backbone, images), 60):
        assert example["z"].shape == (3, 16, 16) and example["low"].shape == example[
            "low_noise"
        ].shape == (3, 4, 4)
        assert example["eps"].shape == example["posterior_noise"].shape == (4, 4, 4)
        assert 0 <= example["noise_level"] < 350
        found = False
        for k, image in enumerate(images):
            whole = image[:, : image.shape[1] // 4 * 4, : image.shape[2] // 4 * 4]
            for flipped in (False, True):
                x = whole.flip(2) if flipped else whole
                y = SR4.degrade(x, seeded())
                for top, left in itertools.product(
                    range(0, x.shape[1] - 15, 4), range(0, x.shape[2] - 15, 4)
                ):
                    if torch.equal(example["z"], x[:, top : top + 16, left : left + 16]):
                        window = y[:, top // 4 : top // 4 + 4, left // 4 : left // 4 + 4]
                        assert torch.equal(example["low"], window)
                        seen.add((k, flipped))
                        found = True
        assert found
    assert seen == set(itertools.product((0, 1), (False, True)))


@FAMILIES
def test_crops_fit_the_smallest_image_and_the_latents(backbones, images, family) -> None:
    for asked, size in ((16, 16), (18, 16), (100, 40)):
        example = next(iter(examples(backbones[family], images, asked)))
        assert example["z"].shape == (3, size, size) and example["eps"].shape == (
            4,
            size // 4,
            size // 4,
        )
    with pytest.raises(ValueError, match="crop_size=3: the network needs 4 pixels or more"):
        examples(backbones[family], images, 3)
    with pytest.raises(ValueError, match="needs the task: pass task"):
        latent_crops(backbones[family], images, 16, True, seeded(), None)
    if family == "sd_inpaint":  # an edit that is not bound to an image yet
        with pytest.raises(ValueError, match="needs the prompt of the task"):
            latent_crops(backbones[family], images, 16, True, seeded(), EditTask())


@FAMILIES
def test_an_image_smaller_than_the_stride_is_named_and_smaller_crops_are_remarked(
    backbones, images, family
) -> None:
    backbone, small, names = backbones[family], torch.zeros(3, 50, 3), ["first", "second", "third"]
    with pytest.raises(
        InputError, match="image third has 3x50 pixels, but adaptation needs at least 4"
    ):
        latent_crops(backbone, [*images, small], 16, True, seeded(), task_of(family), names)
    crops = latent_crops(backbone, images, 100, True, seeded(), task_of(family), names[:2])
    assert crops.size == 40 and "because image second has 40x40 pixels" in str(crops.remark)


@FAMILIES
def test_one_seed_is_one_stream(backbones, images, family) -> None:
    def stream(seed: int) -> list[Tensor]:
        found = itertools.islice(examples(backbones[family], images, seed=seed), 3)
        return [
            tensor for example in found for tensor in example.values() if isinstance(tensor, Tensor)
        ]

    assert all(torch.equal(a, b) for a, b in zip(stream(0), stream(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(stream(0), stream(1), strict=True))


@FAMILIES
@ADAPTERS
def test_three_iterations_equal_a_loop_without_lightning_and_leave_nothing(
    backbones, images, family, adapter
) -> None:
    backbone = backbones[family]
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    small = FineTuning(n_iterations=3, batch_size=2, crop_size=16, learning_rate=1e-3)
    trained = small.fit(backbone, adapter, images, seeded(), task=task_of(family))
    after = backbone.network.state_dict()
    assert list(after) == list(before) and all(
        torch.equal(after[name], before[name]) for name in before
    )
    assert not any(p.requires_grad or p.grad is not None for p in backbone.network.parameters())

    generator = seeded()
    attached = adapter.attach(backbone.network)
    try:
        attached.initialise(generator)
        optimizer = torch.optim.Adam(attached.parameters(), lr=1e-3)
        stream = iter(latent_crops(backbone, images, 16, True, generator, task_of(family)))
        losses = []
        for _ in range(3):
            loss = backbone.denoising_loss(default_collate([next(stream), next(stream)]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        twin = attached.tensors()
    finally:
        attached.remove()
    assert trained.losses == pytest.approx(losses, rel=1e-5)
    for name, tensor in twin.items():
        assert (trained.tensors[name] - tensor).abs().mean() < 2e-6, name


def test_recomputing_blocks_in_the_backward_pass_trains_the_same_adapter(backbones, images) -> None:
    plain = backbones["sd_x4"]
    saving = StableDiffusionX4(
        folder=plain.folder, execution=Execution(gradient_checkpointing=True)
    )
    options = FineTuning(n_iterations=2, batch_size=2, crop_size=16, learning_rate=1e-3)
    one, other = (options.fit(b, Lora(rank=2), images, seeded(), task=SR4) for b in (plain, saving))
    assert one.losses == pytest.approx(other.losses, rel=1e-6)
    assert all(
        (one.tensors[name] - tensor).abs().max() < 1e-6 for name, tensor in other.tensors.items()
    )


@FAMILIES
def test_training_lowers_the_loss_on_its_images(backbones, images, family) -> None:
    backbone, adapter = backbones[family], Full()
    held_out = batch_of(backbone, images, 24)

    def loss() -> float:
        with torch.no_grad():
            return backbone.denoising_loss(held_out).item()

    bare = loss()
    options = FineTuning(n_iterations=20, batch_size=4, crop_size=16, learning_rate=3e-3)
    trained = options.fit(backbone, adapter, images, seeded(7), task=task_of(family))
    with adapted(backbone.network, adapter, trained.tensors):
        assert loss() < 0.9 * bare
    assert loss() == bare


@FAMILIES
def test_a_loss_that_is_not_finite_stops_the_adaptation(backbones, images, family) -> None:
    images[0][:], images[1][:] = torch.nan, torch.nan
    task = SimpleNamespace(prompt="", degrade=lambda p, generator: p[:, ::4, ::4])
    with pytest.raises(FloatingPointError, match="diverged at iteration 0"):
        FineTuning(n_iterations=1, crop_size=16).fit(
            backbones[family], Lora(rank=1), images, seeded(), task=task
        )


def test_holes_are_never_empty_never_whole_and_reach_everywhere() -> None:
    generator = seeded()
    drawn = [random_hole(32, generator) for _ in range(400)]
    assert all(
        hole.shape == (1, 32, 32) and set(hole.unique().tolist()) == {0.0, 1.0} for hole in drawn
    )
    reached = torch.stack(drawn).mean(0)
    assert reached.min() > 0 and 0.1 < reached.mean() < 0.4
    assert torch.equal(random_hole(32, seeded(5)), random_hole(32, seeded(5)))
    assert random_hole(8, seeded()).shape == (1, 8, 8)


def test_a_stroke_is_where_a_brush_of_its_width_has_been(monkeypatch: pytest.MonkeyPatch) -> None:
    # One leg from the middle of the left edge to the right, half the side long and a fifth wide.
    draws = iter([0.2, 0.0, 0.5])  # width, angle, length
    monkeypatch.setattr(holes, "uniform", lambda low, high, generator: next(draws))
    monkeypatch.setattr(holes.torch, "randint", lambda *a, **k: torch.tensor(0))
    monkeypatch.setattr(holes.torch, "rand", lambda *a, **k: torch.tensor([0.5, 0.0]))
    hole = holes.random_strokes(100, seeded())
    for row, column, inside in (
        (50, 20, True),
        (42, 20, True),
        (38, 20, False),
        (50, 58, True),
        (50, 62, False),
    ):
        assert hole[row, column].item() is inside, (row, column)


def test_real_files_of_the_configuration_build(repository: Path) -> None:
    for name in ("sd_x4", "sd_inpaint"):
        options = instantiate(
            OmegaConf.load(repository / "conf" / "adaptation" / "fine_tuning" / f"{name}.yaml")
        )
        assert isinstance(options, FineTuning)
