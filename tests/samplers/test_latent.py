"""Super-resolution with the x4 upscaler: diffusers' own pipeline is the other opinion."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import NearestNeighbours, NoAdaptation
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.backbones.stable_diffusion import StableDiffusionX4
from adir.errors import InputError
from adir.samplers.adir import ADIR
from adir.samplers.latent import UpscalerSampler, residual_gradient
from adir.tasks.operators import BoxBlur, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask

KNN = NearestNeighbours(Full(), FineTuning())
NONE = NoAdaptation(Full(), FineTuning())

SR4 = RestorationTask("sr4", 1, SuperResolution(4), sigma_y=0, guidance_scale=1)
SHAPE = (3, 64, 48)


def loaded(made: ModuleType, folder: Path, **options: object) -> StableDiffusionX4:
    return StableDiffusionX4(folder=made.saved(made.upscaler(**options), folder))


@pytest.fixture(scope="module")
def backbone(
    made_stable_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> StableDiffusionX4:
    return loaded(made_stable_diffusion, tmp_path_factory.mktemp("sd_x4"))


@pytest.fixture
def y() -> torch.Tensor:
    return torch.rand(1, 3, 16, 12) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "scheduler, prediction, tile",
    [
        ("ddim", "v_prediction", 1024),  # the released one
        ("ddim", "v_prediction", None),
        ("ddim", "epsilon", None),
        ("pndm", "v_prediction", None),
        ("euler", "v_prediction", None),
        ("euler", "epsilon", None),
    ],
)
def test_it_equals_the_pipeline_of_diffusers(
    made_stable_diffusion: ModuleType,
    y: torch.Tensor,
    tmp_path: Path,
    scheduler: str,
    prediction: str,
    tile: int | None,
) -> None:
    pipeline = made_stable_diffusion.upscaler(scheduler, prediction)
    backbone = StableDiffusionX4(
        folder=made_stable_diffusion.saved(pipeline, tmp_path), vae_tile=tile
    )
    settings = {
        "prompt": "a cat",
        "negative_prompt": "tat",
        "guidance_scale": 5.0,
        "noise_level": 33,
    }
    sampler = UpscalerSampler(n_steps=4, **settings)
    ours = sampler.restore(backbone, SR4.operator(SHAPE), y, [seeded()])
    theirs = pipeline(
        image=y, num_inference_steps=4, generator=seeded(), output_type="pt", **settings
    ).images
    assert ours.x_hat.shape == (1, *SHAPE)
    assert (((ours.x_hat + 1) / 2).clamp(0, 1) - theirs).abs().max() < 1e-4 / 2
    # The images' range hides nothing: unclipped latents are compared, too.
    theirs = pipeline(
        image=y, num_inference_steps=4, generator=seeded(), output_type="latent", **settings
    ).images
    with torch.no_grad():
        assert (ours.x_hat - backbone.decode(theirs)).abs().max() < 1e-4
    steps = 5 if scheduler == "pndm" else 4  # PNDM takes its second step twice
    assert ours.network_evaluations == 2 * steps and ours.errors == [None]


def test_noise_in_the_steps_is_the_pipeline_s_too(
    made_stable_diffusion: ModuleType, backbone: StableDiffusionX4, y: torch.Tensor
) -> None:
    ours = UpscalerSampler(n_steps=4, prompt="a cat", eta=0.8).restore(
        backbone, SR4.operator(SHAPE), y, [seeded()]
    )
    pipeline = made_stable_diffusion.upscaler()
    theirs = pipeline(
        "a cat", y, num_inference_steps=4, eta=0.8, generator=seeded(), output_type="pt"
    ).images
    assert (((ours.x_hat + 1) / 2).clamp(0, 1) - theirs).abs().max() < 1e-4 / 2


def test_without_a_prompt_guidance_has_no_effect_and_costs_no_call(
    made_stable_diffusion: ModuleType, backbone: StableDiffusionX4, y: torch.Tensor
) -> None:
    ours = UpscalerSampler(n_steps=3).restore(backbone, SR4.operator(SHAPE), y, [seeded()])
    pipeline = made_stable_diffusion.upscaler()
    theirs = pipeline("", y, num_inference_steps=3, generator=seeded(), output_type="pt").images
    assert (((ours.x_hat + 1) / 2).clamp(0, 1) - theirs).abs().max() < 1e-4 / 2
    assert ours.network_evaluations == 3 and ours.gradient_evaluations == 0


def test_an_image_is_the_same_in_any_batch(backbone: StableDiffusionX4, y: torch.Tensor) -> None:
    other = torch.rand(1, 3, 16, 12) * 2 - 1
    sampler, operator = UpscalerSampler(n_steps=2, prompt="a cat"), SR4.operator(SHAPE)
    both = sampler.restore(backbone, operator, torch.cat([y, other]), [seeded(0), seeded(1)]).x_hat
    alone = [
        sampler.restore(backbone, operator, one, [seeded(n)]).x_hat
        for n, one in enumerate((y, other))
    ]
    assert torch.equal(both, torch.cat(alone))
    assert not torch.equal(sampler.restore(backbone, operator, y, [seeded(1)]).x_hat, alone[0])


def test_any_size_of_y_gives_an_image_four_times_as_large(backbone: StableDiffusionX4) -> None:
    y = torch.rand(1, 3, 9, 17) * 2 - 1  # diffusers' pipeline would cut this y to multiples of 4
    assert UpscalerSampler(n_steps=1).restore(backbone, SR4.operator((3, 36, 68)), y, [seeded()]).x_hat.shape == (
        1, 3, 36, 68
    )  # fmt: skip


def test_the_residual_s_gradient_is_that_of_finite_differences(
    backbone: StableDiffusionX4, y: torch.Tensor
) -> None:
    operator, z0, direction = (
        SR4.operator(SHAPE),
        torch.randn(1, 4, 16, 12),
        torch.randn(1, 4, 16, 12),
    )
    gradient = residual_gradient(backbone, operator, z0, y)
    with torch.no_grad():
        ahead, behind = (
            (operator.A(backbone.decode(z0 + h * direction)) - y).norm() for h in (1e-2, -1e-2)
        )
    assert (gradient * direction).sum().item() == pytest.approx(
        (ahead - behind).item() / 2e-2, rel=0.01
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_measurement_guidance_lowers_the_residual(
    made_stable_diffusion: ModuleType, tmp_path: Path, scheduler: str
) -> None:
    backbone = loaded(made_stable_diffusion, tmp_path, scheduler=scheduler)
    operator = SR4.operator(SHAPE)
    with torch.no_grad():  # a y that the decoder can give
        y = operator.A(backbone.decode(torch.randn(1, 4, 16, 12))).clamp(-1, 1)
    residuals = []
    for scale in (0.0, 0.3, 3.0):
        sampler = UpscalerSampler(n_steps=6, measurement_scale=scale)
        x_hat = sampler.restore(backbone, operator, y, [seeded()]).x_hat
        residuals.append((operator.A(x_hat) - y).norm().item())
    assert residuals[2] < residuals[1] < residuals[0]
    assert residuals[2] < 0.9 * residuals[0]


def test_an_image_whose_latent_is_not_finite_fails_alone(
    backbone: StableDiffusionX4, y: torch.Tensor
) -> None:
    bias = backbone.network.conv_out.bias
    before = bias.detach().clone()
    try:
        bias.data[0] = torch.inf
        broken = UpscalerSampler(n_steps=2).restore(backbone, SR4.operator(SHAPE), y, [seeded()])
    finally:
        bias.data.copy_(before)
    assert (
        "NaN or Inf at step 1 of 2: lower the guidance" in broken.errors[0]
        and broken.x_hat.isnan().all()
    )


@pytest.mark.parametrize(
    "setting", [{"dtype": "bfloat16"}, {"channels_last": True}, {"attention": "math"}], ids=str
)
def test_other_ways_to_run_the_network_give_nearly_the_same_image(
    backbone: StableDiffusionX4, y: torch.Tensor, setting: dict
) -> None:
    other = StableDiffusionX4(folder=backbone.folder, execution=Execution(**setting))
    sampler, operator = (
        UpscalerSampler(n_steps=3, prompt="a cat", guidance_scale=2),
        SR4.operator(SHAPE),
    )
    results = [sampler.restore(b, operator, y, [seeded()]).x_hat for b in (backbone, other)]
    assert (results[0] - results[1]).square().mean().sqrt() < (0.02 if "dtype" in setting else 1e-5)
    assert all(p.dtype == torch.float32 for p in other.network.parameters())


def test_cells_that_cannot_be_are_told_why(backbone: StableDiffusionX4) -> None:
    sampler = UpscalerSampler()
    assert sampler.not_applicable(backbone, SR4, NONE) is None
    for degradation in (SuperResolution(8), BoxBlur(5), Colorization()):
        task = RestorationTask("other", 1, degradation, 0, 1)
        assert "enlarges images 4 times, which task other does not need" in sampler.not_applicable(
            backbone, task, KNN
        )
    assert "is for the x4 upscaler" in sampler.not_applicable(GuidedDiffusion(), SR4, NONE)
    assert "works on pixels" in ADIR().not_applicable(backbone, SR4, NONE)


def test_steps_of_which_the_first_is_beyond_the_network_are_refused(
    backbone: StableDiffusionX4,
) -> None:
    # steps_offset is 1, as released: of 1000 steps the first would be at t = 1000, and the network
    # knows 0 to 999.
    reasons = {
        n: UpscalerSampler(n_steps=n).not_applicable(backbone, SR4, NONE)
        for n in (1, 50, 999, 1000)
    }
    assert (
        reasons.pop(1000)
        == "n_steps=1000 is too many for the DDIMScheduler of backbone sd_x4: use fewer than 1000"
    )
    assert set(reasons.values()) == {None}


@pytest.mark.parametrize("value", [2.0, -1.5, torch.nan])
def test_a_y_out_of_range_is_refused(
    backbone: StableDiffusionX4, y: torch.Tensor, value: float
) -> None:
    y[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"takes images in \[-1, 1\]"):
        UpscalerSampler(n_steps=1).restore(backbone, SR4.operator(SHAPE), y, [seeded()])


def test_options_out_of_range_are_refused(backbone: StableDiffusionX4, y: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"noise_level=351: .* from 0 to 350"):
        UpscalerSampler(noise_level=351).restore(backbone, SR4.operator(SHAPE), y, [seeded()])
    for options in (
        {"n_steps": 0},
        {"guidance_scale": 0.5},
        {"eta": 2},
        {"noise_level": -1},
        {"measurement_scale": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            UpscalerSampler(**options)
