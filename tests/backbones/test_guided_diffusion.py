"""Reading a backbone folder, its errors, and what a prediction is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.errors import InputError

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


def noisy(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 16, 24), torch.tensor([0, 500, 999, 3])[:n]


def test_a_folder_written_by_save_pretrained_gives_the_same_outputs(folder):
    backbone = GuidedDiffusion(folder=folder)
    x, t = noisy()
    with torch.no_grad():
        expected = tiny()(x, t).sample
    prediction = backbone.predict(x, t)
    torch.testing.assert_close(prediction.eps, expected, rtol=1e-5, atol=1e-5)
    assert prediction.variance_fraction is None and not backbone.learns_variance
    assert backbone.stride == 2


def test_the_embedded_prior_is_the_default_and_serves_the_stated_sizes():
    backbone = GuidedDiffusion()
    assert backbone.stride == 8 and not backbone.learns_variance and backbone.variance == "small"
    assert len(backbone.weights_sha256) == 64
    for height, width in ((16, 24), (64, 64)):
        assert backbone.predict(torch.randn(1, 3, height, width), torch.tensor([10])).eps.isfinite().all()
    assert not backbone.network.training and not any(p.requires_grad for p in backbone.network.parameters())


def test_a_picture_gets_the_same_bits_alone_and_in_any_batch():
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
    # Channels 0-2 are eps, 3-5 are v in about [-1, 1]; the fraction is (v + 1) / 2 (Nichol and Dhariwal, 2021).
    torch.testing.assert_close(prediction.eps, output[:, :3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(2 * prediction.variance_fraction - 1, output[:, 3:], rtol=1e-5, atol=1e-5)
    assert backbone.learns_variance


def test_learned_variance_asked_of_a_network_without_one_raises(folder):
    with pytest.raises(InputError, match="variance=learned, but its network predicts none: use small or large"):
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


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not safetensors at all, but long enough to be read as such"])
def test_damaged_weights_are_an_input_error(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"damaged backbone .*fetch it again") as caught:
        GuidedDiffusion(folder=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [8, 1000, -1])
def test_truncated_weights_are_an_input_error(folder, keep):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"damaged backbone"):
        GuidedDiffusion(folder=folder)


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', '{"block_out_channels": "x"}', "\udcff"])
def test_a_damaged_configuration_is_an_input_error(folder, content):
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"damaged backbone|does not fit") as caught:
        GuidedDiffusion(folder=folder)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_another_width_names_the_first_tensor_that_differs(folder):
    config = json.loads((folder / "config.json").read_text())
    config["block_out_channels"] = [16, 32]
    (folder / "config.json").write_text(json.dumps(config))
    # The first level keeps its 16 channels; the second level's first convolution now makes 32 of them.
    first = r"down_blocks\.1\.attentions\.0\.group_norm\.bias is \(16,\) in the file, \(32,\) in the network"
    with pytest.raises(InputError, match=WEIGHTS + ".*" + first):
        GuidedDiffusion(folder=folder)


@pytest.mark.parametrize(
    "change, words", [("drop", "is missing in the file"), ("add", "no such tensor in the network")]
)
def test_a_tensor_too_few_or_too_many_is_named(folder, change, words):
    tensors = load_file(folder / WEIGHTS)
    if change == "drop":
        del tensors["conv_in.bias"]
    else:
        tensors["conv_in.bias_2"] = torch.zeros(3)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match=rf"conv_in\.bias.* .*{words}"):
        GuidedDiffusion(folder=folder)


def test_encode_and_decode_are_the_identity(folder):
    backbone, image = GuidedDiffusion(folder=folder), torch.randn(1, 3, 8, 8)
    assert torch.equal(backbone.decode(backbone.encode(image)), image)
