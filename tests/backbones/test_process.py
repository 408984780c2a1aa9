"""Networks of diffusers trained as DDPM: their schedule and prediction against diffusers' own
schedulers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.backbones.process import read_process
from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError
from adir.files import sha256_of_file
from adir.harness.cells.cell import build, resolve_cell
from adir.harness.cells.compose import compose
from adir.weights import registry

WEIGHTS = "diffusion_pytorch_model.safetensors"
# config.json of google/ddpm-celebahq-256, ddpm-cat-256 and ddpm-church-256, which are equal; fewer
# channels, norms to match.
GOOGLE = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [8, 8, 16, 16, 16, 16],
    "center_input_sample": False,
    "down_block_types": [*4 * ["DownBlock2D"], "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 256,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *4 * ["UpBlock2D"]],
}
GOOGLE_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


def network() -> UNet2DModel:
    torch.manual_seed(3)
    return UNet2DModel.from_config(GOOGLE).eval()


def as_published(
    folder: Path, layout: str, scheduler: dict[str, Any] = GOOGLE_SCHEDULER, weights: str = WEIGHTS
) -> Path:
    """A folder as the hub has it: all in one (google's), or a pipeline's unet/ and scheduler/;
    attention in its old names.
    """
    in_one = layout == "one folder"
    unet, beside = (folder, folder) if in_one else (folder / "unet", folder / "scheduler")
    network().save_pretrained(unet)
    beside.mkdir(exist_ok=True)
    (beside / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(unet / WEIGHTS)
    for now, then in old.items():
        tensors = {name.replace(now, then): tensor for name, tensor in tensors.items()}
    (unet / WEIGHTS).unlink()
    save_file(tensors, unet / weights) if weights == WEIGHTS else torch.save(
        tensors, unet / weights
    )
    return folder


def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 3, 32, 64), torch.tensor([0, 400, 999])


def one_line(do: Any) -> str:
    with pytest.raises(InputError) as raised:
        do()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("weights", [WEIGHTS, "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("layout", ["one folder", "pipeline"])
def test_a_network_of_googles_layout_predicts_what_diffusers_does(layout, weights, tmp_path):
    backbone = GuidedDiffusion(
        "church", as_published(tmp_path, layout, weights=weights), resolution=256
    )
    x, t = noisy()
    with torch.no_grad():
        expected = network()(x, t).sample
    torch.testing.assert_close(backbone.predict(x, t).eps, expected, rtol=0, atol=1e-4)
    assert backbone.stride == 32 and backbone.schedule.betas.equal(linear_schedule().betas)
    # The usual process adds nothing to the identity of a network.
    assert backbone.config_sha256 == sha256_of_file(backbone.folder / "config.json")


def test_the_folder_of_the_network_alone_finds_the_scheduler_beside_it(tmp_path):
    as_published(tmp_path, "pipeline", GOOGLE_SCHEDULER | {"prediction_type": "sample"})
    assert GuidedDiffusion(folder=tmp_path / "unet").process.predicts == "sample"


SCHEDULES = [
    {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.01, "num_train_timesteps": 300},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
    {"trained_betas": [0.1, 0.2, 0.3]},
    {},
]


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("settings", SCHEDULES, ids=str)
def test_the_schedule_is_that_of_diffusers(cls, settings, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(
        json.dumps({"_class_name": cls.__name__, **settings})
    )
    schedule, theirs = read_process(tmp_path).schedule, cls(**settings)
    # Theirs is float32: an alpha_bar of hundreds of factors is off by some 1e-5 of itself.
    torch.testing.assert_close(schedule.betas.float(), theirs.betas, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(
        schedule.alpha_bar.float(), theirs.alphas_cumprod, rtol=2e-3, atol=1e-7
    )
    assert schedule.timesteps.tolist() == list(range(len(theirs.betas)))


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_eps_is_what_diffusers_ddim_makes_of_the_same_output(predicts, beta_schedule, tmp_path):
    settings = {"prediction_type": predicts, "beta_schedule": beta_schedule, "clip_sample": False}
    backbone = GuidedDiffusion(
        folder=as_published(tmp_path, "one folder", {"_class_name": "DDPMScheduler", **settings})
    )
    scheduler = DDIMScheduler(**settings, set_alpha_to_one=True)
    scheduler.set_timesteps(1000)
    x, t = noisy()
    eps = backbone.predict(x, t).eps
    with torch.no_grad():
        output = network()(x, t).sample
    for b, step in enumerate(t.tolist()):
        theirs = scheduler.step(output[b], step, x[b])  # deterministic
        x0, ab = theirs.pred_original_sample, scheduler.alphas_cumprod[step]
        expected = (x[b] - ab.sqrt() * x0) / (1 - ab).sqrt()
        # At t = 0, 1 - alpha_bar is 1e-4 and float32, theirs, leaves three digits of it; the rest
        # is exact to 1e-4.
        torch.testing.assert_close(eps[b], expected, rtol=1e-3, atol=5e-3 if step == 0 else 2e-4)


def test_the_loss_is_that_of_the_noise_whatever_is_predicted(tmp_path):
    backbone = GuidedDiffusion(
        folder=as_published(
            tmp_path, "one folder", GOOGLE_SCHEDULER | {"prediction_type": "sample"}
        )
    )
    z, eps, t = (
        torch.randn(2, 3, 32, 32).clamp(-1, 1),
        torch.randn(2, 3, 32, 32),
        torch.tensor([300, 700]),
    )
    ab = backbone.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
    x_t = (ab.sqrt() * z + (1 - ab).sqrt() * eps).float()
    expected = ((backbone.predict(x_t, t).eps - eps) ** 2).mean()
    torch.testing.assert_close(backbone.denoising_loss((z, t, eps)), expected)


def test_another_process_is_another_cell(tmp_path):
    x, t = noisy()
    found = {}
    for predicts in ("epsilon", "v_prediction"):
        folder = as_published(
            tmp_path / predicts, "one folder", GOOGLE_SCHEDULER | {"prediction_type": predicts}
        )
        found[predicts] = GuidedDiffusion(folder=folder)
    one, two = found.values()
    assert one.weights_sha256 == two.weights_sha256 and one.config_sha256 != two.config_sha256
    assert not torch.allclose(one.predict(x, t).eps, two.predict(x, t).eps, atol=1e-3)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"_class_name": "ScoreSdeVeScheduler"},
            "scheduler ScoreSdeVeScheduler is not supported; choose a network trained as DDPM, "
            "whose scheduler is one of DDPMScheduler",
        ),
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule 'sigmoid' must be linear, scaled_linear or squaredcos_cap_v2",
        ),
        (
            {"prediction_type": "flow"},
            "prediction_type 'flow' is not supported; it must be one of epsilon, v_prediction, sample",
        ),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is not supported"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"beta_end": 1.5}, "betas must lie between 0 and 1, but they range from 0.0001 to 1.5"),
        ({"beta_start": None}, "unsupported diffusion process"),
    ],
    ids=str,
)
def test_a_process_that_does_not_fit_is_refused_in_one_line(settings, words, tmp_path):
    folder = as_published(tmp_path, "one folder", GOOGLE_SCHEDULER | settings)
    assert words in one_line(lambda: GuidedDiffusion(folder=folder))


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_scheduler_is_refused_in_one_line(content, tmp_path):
    (as_published(tmp_path, "one folder") / "scheduler_config.json").write_text(content)
    assert "scheduler_config.json: " in one_line(lambda: GuidedDiffusion(folder=tmp_path))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"in_channels": 6},
            "6 input channels and 3 output channels; give a network for RGB images, with 3 input and",
        ),
        ({"out_channels": 1}, "3 input channels and 1 output channels"),
        ({"num_class_embeds": 10}, "class-conditional networks are not supported"),
    ],
)
def test_a_network_of_other_images_is_refused_in_one_line(change, words, tmp_path):
    (as_published(tmp_path, "one folder") / "config.json").write_text(json.dumps(GOOGLE | change))
    assert words in one_line(lambda: GuidedDiffusion(folder=tmp_path))


def test_a_hub_id_is_fetched_at_its_commit_and_a_folder_of_that_name_goes_first(
    tmp_path, monkeypatch
):
    published, asked = as_published(tmp_path / "snapshot", "one folder"), []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(published)

    monkeypatch.setattr(registry.huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    words = [
        "backbone=diffusers",
        "backbone.folder=google/ddpm-church-256@0af1",
        "backbone.trained_on=LSUN church",
    ]
    backbone = build(compose(words).backbone, "backbone")
    assert (backbone.name, backbone.trained_on, backbone.folder) == (
        "diffusers",
        "LSUN church",
        published,
    )
    assert asked == [("google/ddpm-church-256", "0af1")]
    here = as_published(tmp_path / "google" / "ddpm-church-256", "one folder")
    assert (
        GuidedDiffusion(folder="google/ddpm-church-256").folder.resolve() == here
        and len(asked) == 1
    )


def test_a_hub_id_that_is_nowhere_says_so_in_one_line(monkeypatch):
    def snapshot_download(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("Cannot reach\nthe hub")

    monkeypatch.setattr(registry.huggingface_hub, "snapshot_download", snapshot_download)
    message = one_line(lambda: GuidedDiffusion(folder="google/ddpm-nowhere"))
    assert "google/ddpm-nowhere: neither an existing folder nor a reachable repository" in message


def test_imagenet256_is_gd256_before_the_identity_is_taken():
    by_one_word, by_the_other = (
        compose([f"backbone={name}", "backbone.device=cpu"]) for name in ("gd256", "imagenet256")
    )
    assert by_one_word == by_the_other and by_the_other.backbone.name == "gd256"
    with pytest.raises(InputError, match="gd256 needs"):
        resolve_cell(by_the_other)
