"""Stable Diffusion as parts: against diffusers' own pipelines, and what a folder that is not one is
told.
"""

import contextlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from live_bytes import LiveBytes
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from adir.backbones.stable_diffusion import (
    GRADIENT_TILE,
    StableDiffusionInpaint,
    StableDiffusionX4,
    recompute_in_backward,
)
from adir.errors import InputError


@pytest.fixture(scope="module")
def folder(made_stable_diffusion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny x4 upscaler, read only."""
    return made_stable_diffusion.saved(
        made_stable_diffusion.upscaler(), tmp_path_factory.mktemp("sd_x4")
    )


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> StableDiffusionX4:
    return StableDiffusionX4(folder=folder)


def test_it_says_what_it_is(backbone: StableDiffusionX4) -> None:
    assert backbone.kind == "latent" and not backbone.learns_variance
    assert backbone.stride == 4 and backbone.latent_shape((3, 64, 32)) == (4, 16, 8)
    assert len(backbone.schedule) == 1000 and backbone.max_noise_level == 350
    assert (
        not any(p.requires_grad for p in backbone.network.parameters())
        and not backbone.network.training
    )
    # ᾱ of the scaled-linear schedule: the product of 1 - beta with sqrt(beta) evenly spaced.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(
        backbone.schedule.alpha_bar, torch.cumprod(1 - betas, 0), rtol=1e-5, atol=0
    )


def test_prompts_become_what_the_pipeline_makes_of_them(
    made_stable_diffusion: ModuleType, backbone: StableDiffusionX4
) -> None:
    pipeline = made_stable_diffusion.upscaler()
    for prompt in ("", "A cat, a tat!", "déjà vu"):
        expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        assert torch.equal(backbone.text([prompt]), expected)
    both = backbone.text(["a", "b"])
    assert both.shape == (2, 12, 16) and not torch.equal(both[0], both[1])


def test_a_long_prompt_is_cut_as_the_pipeline_cuts_it_and_says_so(
    made_stable_diffusion: ModuleType, backbone: StableDiffusionX4
) -> None:
    prompt = (
        "cat sat on a mat and more"  # 10 tokens of 12 are left for words; most letters are one each
    )
    with pytest.warns(UserWarning, match="ignored: .*more"):
        ours = backbone.text([prompt])
    assert torch.equal(
        ours, made_stable_diffusion.upscaler().encode_prompt(prompt, "cpu", 1, False)[0]
    )


# z is the VAE's own latent times 0.08333 and back, a rounding of 6e-8, which encoder and decoder
# pass on: 0.6e-5 was seen of images of about 1.
ROUNDING = {"rtol": 0, "atol": 1e-4}


def test_the_latent_is_the_vae_s_posterior_scaled_and_decoding_undoes_the_scale(
    made_stable_diffusion: ModuleType, backbone: StableDiffusionX4
) -> None:
    vae = made_stable_diffusion.upscaler().vae
    image, noise = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
        torch.testing.assert_close(backbone.encode(image), 0.08333 * posterior.mean, **ROUNDING)
        torch.testing.assert_close(
            backbone.encode(image, noise),
            0.08333 * (posterior.mean + posterior.std * noise),
            **ROUNDING,
        )
        z = backbone.encode(image)
        torch.testing.assert_close(
            backbone.decode(z), vae.decode(posterior.mean).sample, **ROUNDING
        )


def test_images_up_to_the_tile_pass_the_vae_whole_and_larger_ones_in_diffusers_tiles(
    made_stable_diffusion: ModuleType, folder: Path
) -> None:
    # The VAE's own sample_size is 32 pixels, where diffusers' tiles would begin.
    tiled, whole = (
        StableDiffusionX4(folder=folder, vae_tile=64),
        StableDiffusionX4(folder=folder, vae_tile=None),
    )
    theirs = made_stable_diffusion.upscaler().vae
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 64, 16
    image, larger = torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        z = whole.encode(image)
        assert torch.equal(tiled.encode(image), z) and torch.equal(tiled.decode(z), whole.decode(z))
        z = whole.encode(larger)
        assert not torch.equal(tiled.encode(larger), z)
        torch.testing.assert_close(
            tiled.encode(larger), 0.08333 * theirs.encode(larger).latent_dist.mean, **ROUNDING
        )
        assert tiled.decode(z).shape == larger.shape and not torch.equal(
            tiled.decode(z), whole.decode(z)
        )
        torch.testing.assert_close(tiled.decode(z), theirs.decode(z / 0.08333).sample, **ROUNDING)


def test_the_papers_1024_pixels_pass_the_vae_whole(folder: Path) -> None:
    backbone, sizes = StableDiffusionX4(folder=folder), []
    backbone.vae.decoder.forward = lambda z: (
        sizes.append(tuple(z.shape[2:])) or torch.zeros(1, 3, 8, 8)
    )
    with torch.no_grad():
        backbone.decode(torch.zeros(1, 4, 256, 256))
        assert sizes == [(256, 256)]
        with contextlib.suppress(RuntimeError):  # no images to blend
            backbone.decode(torch.zeros(1, 4, 256, 260))
    assert len(sizes) > 2 and max(map(max, sizes)) == 256


def test_a_gradient_goes_through_small_tiles(folder: Path) -> None:
    backbone, sizes = StableDiffusionX4(folder=folder), []
    decoder = backbone.vae.decoder.forward
    backbone.vae.decoder.forward = lambda z: sizes.append(tuple(z.shape[2:])) or decoder(z)
    z = torch.randn(1, 4, 64, 80, requires_grad=True)
    backbone.decode(z).sum().backward()
    assert max(map(max, sizes)) == 64 and z.grad.isfinite().all()  # 256 pixels


@pytest.mark.parametrize("tile", [0, -16, 40])
def test_a_tile_that_the_vae_cannot_take_is_refused(folder: Path, tile: int) -> None:
    with pytest.raises(InputError, match=f"vae_tile={tile} must be a multiple of 16, or null"):
        StableDiffusionX4(folder=folder, vae_tile=tile)


def test_noise_and_velocity_are_two_names_of_one_prediction(backbone: StableDiffusionX4) -> None:
    z0, eps, alpha_bar = (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.tensor([0.9, 0.1]).reshape(2, 1, 1, 1),
    )
    z_t = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * eps
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z0
    torch.testing.assert_close(backbone.eps_of(v, z_t, alpha_bar), eps)


def test_predict_gives_the_noise(backbone: StableDiffusionX4) -> None:
    low, level = torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([20, 300])
    condition = backbone.condition(low, torch.randn(2, 3, 8, 8), level, ["", "a cat"])
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    prediction = backbone.predict(z_t, t, condition)
    with torch.no_grad():
        v = backbone.output(z_t, t, condition)
    for b in range(2):
        alpha_bar = backbone.schedule.alpha_bar[t[b]].item()
        expected = alpha_bar**0.5 * v[b] + (1 - alpha_bar) ** 0.5 * z_t[b]
        torch.testing.assert_close(prediction.eps[b], expected, rtol=1e-4, atol=1e-5)


def test_hashes_tell_weights_and_settings_apart_and_not_places(folder: Path, copy: Path) -> None:
    one, other = StableDiffusionX4(folder=folder), StableDiffusionX4(folder=copy)
    assert (one.weights_sha256, one.config_sha256) == (other.weights_sha256, other.config_sha256)
    settings = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    (copy / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(settings | {"set_alpha_to_one": True})
    )
    changed = StableDiffusionX4(folder=copy)
    assert (
        changed.weights_sha256 == one.weights_sha256 and changed.config_sha256 != one.config_sha256
    )
    for part in ("unet", "vae", "text_encoder"):
        file = next((copy / part).glob("*.safetensors"))
        tensors = load_file(file)
        name = sorted(tensors)[0]
        save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
        before, changed = changed.weights_sha256, StableDiffusionX4(folder=copy)
        assert changed.weights_sha256 != before, part


def test_half_precision_files_are_read_as_float32(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(
        tensors,
        file.with_name("diffusion_pytorch_model.fp16.safetensors"),
        metadata={"format": "pt"},
    )
    backbone = StableDiffusionX4(folder=copy)
    state = backbone.network.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in tensors.items())
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_older_checkpoints_of_pickled_tensors_are_read_too(folder: Path, copy: Path) -> None:
    for part, name in (
        ("unet", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ):
        file = next((copy / part).glob("*.safetensors"))
        torch.save(load_file(file), copy / part / name)
        file.unlink()
    ours, expected = StableDiffusionX4(folder=copy), StableDiffusionX4(folder=folder)
    assert torch.equal(ours.text(["a cat"]), expected.text(["a cat"]))
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.network.parameters(), expected.network.parameters(), strict=True)
    )


def test_names_of_earlier_releases_are_understood(folder: Path, copy: Path) -> None:
    # As the published files have them: CLIP below `text_model.` with its position numbers, and the
    # VAE's first attention.
    text = copy / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(text).items()}
    save_file(
        tensors | {"text_model.embeddings.position_ids": torch.arange(12)[None]},
        text,
        metadata={"format": "pt"},
    )
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in load_file(vae).items():
        for new, former in old.items():
            name = name.replace(new, former)
        renamed[name] = tensor
    assert any(".query." in name for name in renamed)
    save_file(renamed, vae, metadata={"format": "pt"})
    ours, expected = StableDiffusionX4(folder=copy), StableDiffusionX4(folder=folder)
    assert torch.equal(ours.text(["a cat"]), expected.text(["a cat"]))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours.decode(z), expected.decode(z))


def spoil_tensor(part: str, change: str):
    """A way to spoil a folder: a tensor that is missing, of another shape, or one too many."""

    def spoil(copy: Path) -> None:
        file = next((copy / part).glob("*.safetensors"))
        tensors = load_file(file)
        name = sorted(tensors)[0]
        if change == "missing":
            del tensors[name]
        elif change == "shape":
            tensors[name] = torch.zeros(3, 5)
        else:
            tensors["aaa.weight"] = torch.zeros(2)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def spoil_json(path: str, **settings: object):
    def spoil(copy: Path) -> None:
        (copy / path).write_text(json.dumps(json.loads((copy / path).read_text()) | settings))

    return spoil


def truncate(copy: Path) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


class Trap:
    """A pickle of it would create a file when opened by pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def trapped(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({"state": Trap(copy / "opened")}, file.with_suffix(".bin"))
    file.unlink()


def without_weights(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def without_vocabulary(copy: Path) -> None:
    for file in (copy / "tokenizer").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "spoil, words",
    [
        (spoil_tensor("unet", "missing"), "class_embedding.weight is missing in the file"),
        (spoil_tensor("unet", "shape"), r"class_embedding.weight is \(3, 5\) in the file, but "
                                        r"\(1000, 64\) in the network"),
        (spoil_tensor("vae", "extra"), "aaa.weight is present in the file, but missing in the "
                                       "network"),
        (spoil_tensor("text_encoder", "missing"), "is missing in the file"),
        (spoil_tensor("text_encoder", "shape"), r"is \(3, 5\) in the file"),
        (truncate, "vae: damaged or unsuitable AutoencoderKL"),
        (trapped, "unet: damaged or unsuitable UNet2DConditionModel"),
        (without_weights, "vae: no weights; the folder must contain one of diffusion_pytorch_model.safetensors, "),
        (without_vocabulary, "no vocabulary"),
        (spoil_json("scheduler/scheduler_config.json", _class_name="MagicScheduler"), "unknown scheduler "
                                                                                      "'MagicSch.*DDIM"),
        (spoil_json("scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"), "'EDMEulerScheduler'; choose"),
        (spoil_json("scheduler/scheduler_config.json", prediction_type="sample"), "epsilon or v_prediction"),
        (spoil_json("unet/config.json", _class_name="UNet2DModel"), "describes a UNet2DModel; give a "
                                                                    "folder with a UNet2DConditionModel"),
        (spoil_json("vae/config.json", _class_name=None), "describes a model of no class; give a folder with a AutoencoderKL"),
        (spoil_json("text_encoder/config.json", architectures=7), "describes a 7; give a folder with a CLIPTextModel"),
        (spoil_json("text_encoder/config.json", num_attention_heads=0), "damaged or unsuitable CLIPTextModel"),
        (lambda copy: shutil.rmtree(copy / "vae"), "the folder has no vae; give"),
        (lambda copy: (copy / "unet" / "config.json").write_text("{"), "config.json: damaged"),
        (lambda copy: (copy / "unet" / "config.json").unlink(), "config.json: no such file"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused_in_one_line(spoil, words: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=words) as raised:
        StableDiffusionX4(folder=copy)
    assert "\n" not in str(raised.value)
    assert not (copy / "opened").exists()


def test_a_schedule_whose_last_step_contains_nothing_of_the_image_is_accepted(copy: Path) -> None:
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    spoil_json("scheduler/scheduler_config.json", **settings)(copy)
    assert StableDiffusionX4(folder=copy).schedule.alpha_bar[-1].item() == pytest.approx(
        0, abs=1e-9
    )


def test_a_checkpoint_of_the_other_family_is_named(
    folder: Path, made_stable_diffusion: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match="has 7 input channels instead of 9, so it is the x4 upscaler"
    ):
        StableDiffusionInpaint(folder=folder)
    other = made_stable_diffusion.saved(made_stable_diffusion.inpainter(), tmp_path)
    with pytest.raises(InputError, match="the folder has no low_res_scheduler; give"):
        StableDiffusionX4(folder=other)
    shutil.copytree(other / "scheduler", other / "low_res_scheduler")
    with pytest.raises(
        InputError, match="has 9 input channels instead of 7, so it is an inpainting model"
    ):
        StableDiffusionX4(folder=other)
    with pytest.raises(InputError, match="no such folder"):
        StableDiffusionX4(folder=tmp_path / "nowhere")


def test_1024_pixels_with_two_texts_fit_in_12_gb_by_the_tensors_of_the_real_architecture() -> None:
    text_blocks = ["CrossAttn{}Block2D"] * 3
    with FakeTensorMode(), torch.no_grad():
        unet = UNet2DConditionModel(
            in_channels=7,
            out_channels=4,
            block_out_channels=(256, 512, 512, 1024),
            down_block_types=("DownBlock2D", *(name.format("Down") for name in text_blocks)),
            up_block_types=(*(name.format("Up") for name in text_blocks), "UpBlock2D"),
            only_cross_attention=(True, True, True, False),
            cross_attention_dim=1024,
            attention_head_dim=8,
            use_linear_projection=True,
            num_class_embeds=1000,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            sample_size=256,
        )
        weights = sum(4 * p.numel() for network in (unet, vae) for p in network.parameters())
        step, decoding = LiveBytes(), LiveBytes()
        with step:
            t, labels = torch.zeros(2), torch.zeros(2, dtype=torch.long)
            unet(torch.empty(2, 7, 256, 256), t, torch.empty(2, 77, 1024), class_labels=labels)
        with decoding:
            vae.decode(torch.empty(1, 4, 256, 256))
        guiding = (
            LiveBytes()
        )  # the option measurement_scale, of which one tile's insides live at a time
        recompute_in_backward(vae.decoder)
        place = GRADIENT_TILE // 4
        with guiding, torch.enable_grad():
            vae.decode(torch.empty(1, 4, place, place, requires_grad=True))[0].sum().backward()
        whole_image = 4 * 3 * 1024 * 1024
    assert 1.8e9 < 4 * 473e6 < weights < 2.2e9  # 473 M parameters of the UNet alone
    assert weights + max(step.peak, decoding.peak, guiding.peak + 25 * whole_image) < 12e9
