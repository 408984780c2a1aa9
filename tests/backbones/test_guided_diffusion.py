"""Reading a backbone folder, its errors, and what a prediction is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from made_adm import TINY, flags_of_unet, made_checkpoint, save_checkpoint
from safetensors.torch import load_file, save_file

from adir.backbones.adm import cached as converted
from adir.backbones.adm.conversion import build_network, convert
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion, load_network
from adir.errors import InputError
from adir.files import sha256_of_file
from adir.harness.cells.cell import build, resolve_cell
from adir.harness.cells.compose import compose
from adir.weights import cache as backbone_cache
from adir.weights.registry import entry

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny(out_channels: int = 3, width: int = 16) -> UNet2DModel:
    """A random network of two levels whose output is not zero."""
    torch.manual_seed(4)
    network = UNet2DModel(
        in_channels=3, out_channels=out_channels, block_out_channels=(width, width), layers_per_block=1,
        norm_num_groups=4, down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet", attention_head_dim=8,
    )  # fmt: skip
    return network.eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A diffusers folder as save_pretrained writes it."""
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# Outputs of about 1 through the same layers, there as a batch: sums in another order, of which
# float32 rounds each at 6e-8, and the layers pass that on. 3e-6 was seen; attention in another
# order is over 1e-3 away.
SAME_NETWORK = {"rtol": 0, "atol": 1e-4}


def noisy(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 16, 24), torch.tensor([0, 500, 999, 3])[:n]


def test_a_folder_written_by_save_pretrained_gives_the_same_outputs(folder):
    backbone = GuidedDiffusion(folder=folder)
    x, t = noisy()
    with torch.no_grad():
        expected = tiny()(x, t).sample
    prediction = backbone.predict(x, t)
    torch.testing.assert_close(prediction.eps, expected, **SAME_NETWORK)
    assert prediction.variance_fraction is None and not backbone.learns_variance
    assert backbone.stride == 2


def test_the_embedded_prior_is_the_default_and_serves_the_stated_sizes():
    backbone = GuidedDiffusion()
    assert backbone.stride == 8 and not backbone.learns_variance and backbone.variance == "small"
    assert len(backbone.weights_sha256) == 64
    for height, width in ((16, 24), (64, 64)):
        assert (
            backbone.predict(torch.randn(1, 3, height, width), torch.tensor([10]))
            .eps.isfinite()
            .all()
        )
    assert not backbone.network.training and not any(
        p.requires_grad for p in backbone.network.parameters()
    )


def test_an_image_gets_the_same_bits_alone_and_in_any_batch():
    backbone = GuidedDiffusion()
    x, t = torch.randn(4, 3, 32, 32), torch.tensor([0, 500, 999, 3])
    batch = backbone.predict(x, t).eps
    order = [3, 1, 0, 2]
    assert torch.equal(backbone.predict(x[order], t[order]).eps, batch[order])
    for b in range(4):
        assert torch.equal(backbone.predict(x[b : b + 1], t[b : b + 1]).eps[0], batch[b])


def test_a_network_that_learns_its_variance_gives_eps_and_the_fraction_apart(tmp_path):
    network = tiny(out_channels=6)
    network.save_pretrained(tmp_path)
    backbone = GuidedDiffusion(folder=tmp_path, variance="learned")
    x, t = noisy()
    with torch.no_grad():
        output = network(x, t).sample
    prediction = backbone.predict(x, t)
    # Channels 0-2 are eps, 3-5 are v in about [-1, 1]; the fraction is (v + 1) / 2 (Nichol and
    # Dhariwal, 2021).
    torch.testing.assert_close(prediction.eps, output[:, :3], **SAME_NETWORK)
    torch.testing.assert_close(2 * prediction.variance_fraction - 1, output[:, 3:], **SAME_NETWORK)
    assert backbone.learns_variance


def test_learned_variance_asked_of_a_network_without_one_raises(folder):
    with pytest.raises(
        InputError,
        match="variance=learned, but the network predicts no variance; use variance=small or",
    ):
        GuidedDiffusion(folder=folder, variance="learned")


def test_float16_on_disk_is_float32_in_memory(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / WEIGHTS)
    network = GuidedDiffusion(folder=folder).network
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, tensors[name].half().float())


def test_the_hash_is_that_of_the_weights_file(folder, tmp_path):
    backbone = GuidedDiffusion(folder=folder)
    same = shutil.copytree(folder, tmp_path / "elsewhere")
    assert GuidedDiffusion(folder=same).weights_sha256 == backbone.weights_sha256
    tensors = load_file(same / WEIGHTS)
    tensors["conv_out.bias"][0] += 1
    save_file(tensors, same / WEIGHTS)
    assert GuidedDiffusion(folder=same).weights_sha256 != backbone.weights_sha256


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        GuidedDiffusion(folder=folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/config\.json: no such file"):
        GuidedDiffusion(folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"not safetensors at all, but long enough to be read as such"]
)
def test_damaged_weights_are_an_input_error(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"damaged backbone .*download the folder again") as caught:
        _ = GuidedDiffusion(folder=folder).network
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [8, 1000, -1])
def test_truncated_weights_are_an_input_error(folder, keep):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"damaged backbone"):
        _ = GuidedDiffusion(folder=folder).network


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', '{"block_out_channels": "x"}', "\udcff"])
def test_a_damaged_configuration_is_an_input_error(folder, content):
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"damaged backbone|do not fit") as caught:
        GuidedDiffusion(folder=folder)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_another_width_names_the_first_tensor_that_differs(folder):
    config = json.loads((folder / "config.json").read_text())
    config["block_out_channels"] = [16, 32]
    (folder / "config.json").write_text(json.dumps(config))
    # The first level keeps its 16 channels; the second level's first convolution now makes 32 of
    # them.
    first = (
        r"down_blocks\.1\.attentions\.0\.group_norm\.bias is \(16,\) in the file, but \(32,\) "
        r"in the network"
    )
    with pytest.raises(InputError, match=WEIGHTS + ".*" + first):
        _ = GuidedDiffusion(folder=folder).network


@pytest.mark.parametrize(
    "change, words", [("drop", "is missing in the file"), ("add", "but missing in the network")]
)
def test_a_tensor_too_few_or_too_many_is_named(folder, change, words):
    tensors = load_file(folder / WEIGHTS)
    if change == "drop":
        del tensors["conv_in.bias"]
    else:
        tensors["conv_in.bias_2"] = torch.zeros(3)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match=rf"conv_in\.bias.* .*{words}"):
        _ = GuidedDiffusion(folder=folder).network


# --- checkpoints of guided-diffusion


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path, cache) -> Path:
    """A file as the reference saves it, with made weights."""
    save_checkpoint(tmp_path / "made.pt")
    return tmp_path / "made.pt"


FLAGS = flags_of_unet(**TINY)


def converted_folder(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "converted").iterdir() if path.is_dir())
    return folder


def test_a_checkpoint_is_converted_once_and_its_hash_is_its_own(checkpoint, cache, monkeypatch):
    first = GuidedDiffusion("made", folder=checkpoint, architecture=FLAGS, variance="learned")
    written = (converted_folder(cache) / WEIGHTS).stat()
    monkeypatch.setattr(converted, "convert", None)  # a second conversion would fail
    again = GuidedDiffusion("made", folder=checkpoint, architecture=FLAGS, variance="learned")
    assert (converted_folder(cache) / WEIGHTS).stat() == written
    assert first.weights_sha256 == again.weights_sha256 == sha256_of_file(checkpoint)
    assert (
        first.config_sha256 == again.config_sha256 and first.learns_variance and first.stride == 2
    )
    x, t = noisy()
    for ours, theirs in zip(
        (first.predict(x, t).eps, first.predict(x, t).variance_fraction),
        (again.predict(x, t).eps, again.predict(x, t).variance_fraction),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_the_second_load_reads_no_large_file_through(checkpoint, monkeypatch):
    monkeypatch.setattr(
        backbone_cache, "SMALL", 100_000
    )  # the weights count as large, config.json does not
    monkeypatch.setattr(backbone_cache, "SETTLED_SECONDS", -1)
    GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    hashed: list[str] = []
    monkeypatch.setattr(
        backbone_cache,
        "sha256_of_file",
        lambda path: hashed.append(path.name) or sha256_of_file(path),
    )
    GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    assert set(hashed) == {"config.json"}


def test_the_converted_folder_is_a_backbone_of_its_own(checkpoint, cache):
    backbone = GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    x, t = noisy()
    assert torch.equal(
        GuidedDiffusion(folder=converted_folder(cache)).predict(x, t).eps,
        backbone.predict(x, t).eps,
    )


@pytest.mark.parametrize(
    "unet",
    [
        {
            "model_channels": 64,
            "channel_mult": [0.5, 1],
            "num_head_channels": 32,
        },  # the time embedding is wider
        {
            "num_heads": 4,
            "num_head_channels": -1,
            "attention_resolutions": [1, 2],
        },  # 8 and 16 channels a head
    ],
)
def test_what_diffusers_has_no_argument_for_is_there_after_loading_again(tmp_path, cache, unet):
    flags = save_checkpoint(tmp_path / "made.pt", TINY | unet)
    tensors, _ = made_checkpoint(TINY | unet)
    x, t = noisy()
    configuration, converted_tensors = convert(tensors, flags)
    direct = build_network(configuration)
    direct.load_state_dict(converted_tensors, assign=True)
    with torch.no_grad():
        expected = direct.eval()(x, t, return_dict=False)[0]
    for _ in range(2):
        backbone = GuidedDiffusion(folder=tmp_path / "made.pt", architecture=flags)
        torch.testing.assert_close(backbone.predict(x, t).eps, expected[:, :3], **SAME_NETWORK)


def test_the_order_of_attention_changes_outputs_and_identity(checkpoint):
    other = replace(FLAGS, use_new_attention_order=True, num_head_channels=16)
    one, two = (GuidedDiffusion(folder=checkpoint, architecture=flags) for flags in (FLAGS, other))
    x, t = noisy()
    assert not torch.allclose(one.predict(x, t).eps, two.predict(x, t).eps, atol=1e-3)
    assert one.weights_sha256 == two.weights_sha256 and one.config_sha256 != two.config_sha256


def test_another_checkpoint_under_the_same_name_is_converted_anew(checkpoint):
    before = GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    save_checkpoint(checkpoint, seed=2)
    after = GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    x, t = noisy()
    assert before.weights_sha256 != after.weights_sha256
    assert not torch.allclose(before.predict(x, t).eps, after.predict(x, t).eps, atol=1e-3)


@pytest.mark.parametrize("damage", ["truncated", "other weights", "no note"])
def test_a_converted_file_that_changed_is_made_again(checkpoint, cache, damage):
    x, t = noisy()
    expected = GuidedDiffusion(folder=checkpoint, architecture=FLAGS).predict(x, t).eps
    folder = converted_folder(cache)
    if damage == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    elif damage == "other weights":
        save_file(
            {name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()},
            folder / WEIGHTS,
        )
    else:
        (folder / "source.json").unlink()
    with pytest.warns(UserWarning, match="set aside .* converted again"):
        again = GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    assert torch.equal(again.predict(x, t).eps, expected)


def test_a_conversion_that_fails_leaves_nothing(checkpoint, cache, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(converted, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        GuidedDiffusion(folder=checkpoint, architecture=FLAGS)
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".lock"]


def test_float32_weights_are_mapped_and_writing_to_them_leaves_the_file_alone(folder):
    before = (folder / WEIGHTS).read_bytes()
    network = load_network(folder / "config.json", folder / WEIGHTS)
    maps = Path("/proc/self/maps")
    if maps.exists():
        spans = [
            line.split()[0].split("-")
            for line in maps.read_text().splitlines()
            if str(folder / WEIGHTS) in line
        ]
        inside = [
            any(int(a, 16) <= p.data_ptr() < int(b, 16) for a, b in spans)
            for p in network.parameters()
        ]
        assert all(inside)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    assert (folder / WEIGHTS).read_bytes() == before


# --- what cannot be used


def refused(**arguments: object) -> str:
    """The message, which is one line."""
    with pytest.raises(InputError) as raised:
        GuidedDiffusion(**arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_gd256_without_its_weights_says_what_to_get_and_where_to_put_it(cache):
    cfg = compose(["backbone=gd256"])
    with pytest.raises(InputError) as raised:
        resolve_cell(cfg)
    assert str(raised.value) == entry("gd256").missing()
    assert str(cache / "weights") in str(raised.value)


@pytest.mark.parametrize("name", ["gd256", "gd512"])
def test_the_papers_backbones_load_from_a_local_file_of_any_width(name, cache, tmp_path):
    unet = {"model_channels": 32, "num_head_channels": 32, "num_res_blocks": 2}
    mult, factors = (
        ([1, 1, 2, 2, 4, 4], [8, 16, 32]) if name == "gd256" else ([1, 1, 2, 2, 4, 4], [16, 32, 64])
    )
    save_checkpoint(
        tmp_path / "small.pt",
        TINY | unet | {"channel_mult": mult, "attention_resolutions": factors},
    )
    small = ["num_channels=32", "num_head_channels=32", "channel_mult=[1,1,2,2,4,4]"]
    cfg = compose(
        [
            f"backbone={name}",
            f"backbone.folder={tmp_path / 'small.pt'}",
            *(f"backbone.architecture.{s}" for s in small),
        ]
    )
    backbone = build(cfg.backbone, "backbone")
    assert (backbone.name, backbone.kind, backbone.variance) == (name, "pixel", "learned")
    assert backbone.stride == 32 and backbone.learns_variance
    assert backbone.predict(
        torch.randn(1, 3, 32, 64), torch.tensor([500])
    ).variance_fraction.shape == (1, 3, 32, 64)


def test_another_width_than_stated_names_the_first_tensor(checkpoint):
    message = refused(folder=checkpoint, architecture=replace(FLAGS, num_channels=64))
    assert f"{checkpoint}: the tensors do not fit" in message
    assert "time_embed.0.weight is (128, 32) in the file, but (256, 64) in the network" in message


def test_a_truncated_checkpoint_is_refused_and_nothing_is_kept(checkpoint, cache):
    checkpoint.write_bytes(checkpoint.read_bytes()[:100_000])
    assert "made.pt: damaged" in refused(folder=checkpoint, architecture=FLAGS)
    assert not [path for path in (cache / "converted").iterdir() if path.is_dir()]


def test_a_stable_diffusion_unet_is_refused_as_folder_as_pipeline_and_as_file(
    folder, tmp_path, cache
):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"_class_name": "UNet2DConditionModel"})
    )
    assert "describes a UNet2DConditionModel, but this backbone" in refused(folder=folder)
    save_file(
        {"down_blocks.0.resnets.0.norm1.weight": torch.zeros(320)}, tmp_path / "unet.safetensors"
    )
    assert (
        "unet.safetensors: not a checkpoint of guided-diffusion, but a network with diffusers' tensor names"
        in refused(folder=tmp_path / "unet.safetensors")
    )
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    assert "the folder is a pipeline of diffusers; give the folder of a pixel" in refused(
        folder=pipeline
    )


def test_an_unknown_checkpoint_lists_the_known():
    assert "unknown weights 'gd1024'; choose one of" in refused(checkpoint="gd1024")


@pytest.mark.parametrize("height, width", [(36, 64), (64, 60), (12, 12)])
def test_a_size_that_the_network_cannot_halve_names_the_multiple(height, width):
    with pytest.raises(InputError, match=rf"multiples of 8, got {width}x{height}"):
        GuidedDiffusion().predict(torch.zeros(1, 3, height, width), torch.tensor([3]))


def test_bfloat16_stays_near_float32():
    x, t = noisy()
    exact = GuidedDiffusion().predict(x, t).eps
    rounded = GuidedDiffusion(execution=Execution(dtype="bfloat16")).predict(x, t).eps
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).square().mean().sqrt() < 0.02
