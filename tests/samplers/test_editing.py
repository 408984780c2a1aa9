"""Editing with the inpainting model: diffusers' own pipeline is the other opinion."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import NearestNeighbours, NoAdaptation, SelfAdaptation
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.backbones.stable_diffusion import StableDiffusionInpaint
from adir.errors import InputError
from adir.samplers.editing import InpaintingSampler
from adir.tasks.editing import EditTask
from adir.tasks.operators import SuperResolution
from adir.tasks.restoration import RestorationTask

KNN = NearestNeighbours(Full(), FineTuning())
NONE = NoAdaptation(Full(), FineTuning())
SELF = SelfAdaptation(Full(), FineTuning())

SHAPE = (3, 40, 32)


@pytest.fixture(scope="module")
def backbone(
    made_stable_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> StableDiffusionInpaint:
    folder = tmp_path_factory.mktemp("sd_inpaint")
    return StableDiffusionInpaint(
        folder=made_stable_diffusion.saved(made_stable_diffusion.inpainter(), folder)
    )


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(SHAPE) * 2 - 1


@pytest.fixture
def task() -> EditTask:
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[6:29, 10:31] = True  # no multiple of a place of the latent
    return EditTask().with_mask(mask, "a cat")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "scheduler, prediction, tile",
    [
        ("pndm", "epsilon", 1024),  # the released ones
        ("pndm", "epsilon", None),
        ("pndm", "v_prediction", None),
        ("ddim", "epsilon", None),
        ("ddim", "v_prediction", None),
        ("euler", "epsilon", None),
    ],
)
def test_it_equals_the_pipeline_of_diffusers(
    made_stable_diffusion: ModuleType,
    x,
    task,
    tmp_path: Path,
    scheduler: str,
    prediction: str,
    tile: int | None,
) -> None:
    pipeline = made_stable_diffusion.inpainter(scheduler, prediction)
    backbone = StableDiffusionInpaint(
        folder=made_stable_diffusion.saved(pipeline, tmp_path), vae_tile=tile
    )
    y = task.degrade(x, seeded(9))[None]
    sampler = InpaintingSampler(n_steps=4, guidance_scale=5.0, negative_prompt="tat")
    ours = sampler.restore(backbone, task.operator(SHAPE), y, [seeded()])

    def theirs(output: str) -> torch.Tensor:
        # The pipeline is given the whole image, and makes the hole itself.
        settings = {
            "num_inference_steps": 4,
            "guidance_scale": 5.0,
            "negative_prompt": "tat",
            "output_type": output,
        }
        image, mask = ((x + 1) * 127.5).round()[None] / 255, task.mask.float()[None, None]
        size = {"height": SHAPE[1], "width": SHAPE[2]}
        return pipeline("a cat", image, mask, generator=seeded(), **size, **settings).images

    assert (((ours.x_hat + 1) / 2).clamp(0, 1) - theirs("pt")).abs().max() < 1e-4 / 2
    with torch.no_grad():
        assert (ours.x_hat - backbone.decode(theirs("latent"))).abs().max() < 1e-4
    assert ours.network_evaluations == 2 * (5 if scheduler == "pndm" else 4) and ours.errors == [
        None
    ]


def test_what_lies_in_the_hole_is_not_seen(backbone, x, task) -> None:
    other = torch.where(task.mask, torch.rand(SHAPE) * 2 - 1, x)
    results = [
        InpaintingSampler(n_steps=2).restore(
            backbone, task.operator(SHAPE), task.degrade(p, seeded())[None], [seeded()]
        )
        for p in (x, other)
    ]
    assert torch.equal(results[0].x_hat, results[1].x_hat)


def test_known_pixels_come_back_only_when_asked(backbone, x, task) -> None:
    y, operator = task.degrade(x, seeded())[None], task.operator(SHAPE)
    plain = InpaintingSampler(n_steps=2).restore(backbone, operator, y, [seeded()]).x_hat
    pasted = (
        InpaintingSampler(n_steps=2, paste=True).restore(backbone, operator, y, [seeded()]).x_hat
    )
    hole = task.mask.expand(1, 3, -1, -1)
    assert torch.equal(pasted[hole], plain[hole])
    assert torch.equal(pasted[~hole], y[~hole])
    assert (plain[~hole] - y[~hole]).abs().mean() > 0.1


def test_the_prompt_and_the_seed_matter_and_the_batch_does_not(backbone, x, task) -> None:
    operator, sampler = task.operator(SHAPE), InpaintingSampler(n_steps=2)
    y = task.degrade(x, seeded())[None]
    both = sampler.restore(backbone, operator, torch.cat([y, y]), [seeded(0), seeded(1)]).x_hat
    assert torch.equal(both[:1], sampler.restore(backbone, operator, y, [seeded(0)]).x_hat)
    assert not torch.equal(both[0], both[1])
    dog = task.with_mask(task.mask, "a dog").operator(SHAPE)
    assert not torch.equal(both[:1], sampler.restore(backbone, dog, y, [seeded(0)]).x_hat)


def test_cells_that_cannot_be_are_told_why(backbone, task) -> None:
    sampler = InpaintingSampler()
    assert sampler.not_applicable(backbone, EditTask(), KNN) is None
    assert "the hole of y" in sampler.not_applicable(backbone, EditTask(), SELF)
    assert "is for an inpainting model" in sampler.not_applicable(
        GuidedDiffusion(), EditTask(), NONE
    )
    sr4 = RestorationTask("sr4", 1, SuperResolution(4), 0, 1)
    assert "needs a mask and a prompt" in sampler.not_applicable(backbone, sr4, NONE)


def test_an_image_out_of_range_is_refused(backbone, x, task) -> None:
    with pytest.raises(InputError, match=r"takes images in \[-1, 1\], got values from .* to 255"):
        y = torch.where(task.mask, 0.0, torch.full(SHAPE, 255.0))[None]
        InpaintingSampler(n_steps=1).restore(backbone, task.operator(SHAPE), y, [seeded()])
