"""Execution: what changes no number changes none, what saves memory saves it, and impossible
settings raise at once.
"""

import copy
import getpass
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from live_bytes import LiveBytes, call_bytes, example_inputs, fake_copy, weight_bytes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from adir.adaptation.adapters import Full
from adir.adaptation.lora import Lora
from adir.backbones.execution import Execution, offload_weights


def adm() -> UNet2DModel:
    torch.manual_seed(1)
    network = UNet2DModel(
        in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet", attention_head_dim=16,
        resnet_time_scale_shift="scale_shift", norm_eps=1e-5,
    )  # fmt: skip
    return network.eval().requires_grad_(False)


def latent_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    network = UNet2DConditionModel(
        in_channels=7, out_channels=4, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, num_class_embeds=1000, use_linear_projection=True,
    )  # fmt: skip
    return network.eval().requires_grad_(False)


NETWORKS = pytest.mark.parametrize("make", [adm, latent_unet], ids=["adm", "latent"])


def inputs(network: nn.Module, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(2)
    zeros = example_inputs(network, batch, 16, 16, "cpu")
    return {
        name: torch.randn_like(x) if x.is_floating_point() else x + 20 for name, x in zeros.items()
    }


def gradients(network: nn.Module, execution: Execution) -> dict[str, Tensor]:
    """Of LoRA's A and B, after a backward pass of the squared output."""
    attached = Lora(rank=2).attach(network)
    for parameter in attached.parameters():
        parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(parameter)))
    with execution.autocast():
        output = network(**inputs(network), return_dict=False)[0]
    output.float().square().mean().backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    attached.remove()
    return found


@NETWORKS
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_checkpointing": True}, {"channels_last": True}, {"attention": "math"}],
    ids=str,
)
def test_settings_without_effect_on_results_change_outputs_and_gradients_by_rounding_only(
    make, settings
):
    plain, execution = make(), Execution(**settings)
    network = execution.prepare(make())
    with torch.no_grad(), execution.autocast():
        output = network(**inputs(network), return_dict=False)[0]
    # Rounding: outputs of about 1, float32 rounds each sum at 6e-8; 1e-6 was seen, and 1.7e-6 of
    # the largest gradient.
    torch.testing.assert_close(
        output, plain(**inputs(plain), return_dict=False)[0], rtol=0, atol=1e-4
    )
    expected, found = gradients(plain, Execution()), gradients(network, execution)
    assert list(found) == list(expected) and len(expected) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item(), msg=name
        )


def test_preparing_a_network_switches_tf32_off():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    Execution().prepare(nn.Conv2d(3, 3, 1))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@NETWORKS
def test_bfloat16_is_the_precision_of_the_arithmetic_and_not_of_the_weights(make):
    execution = Execution(dtype="bfloat16")
    network, plain = execution.prepare(make()), make()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.no_grad():
        expected = plain(**inputs(plain), return_dict=False)[0]
        with execution.autocast():
            output = network(**inputs(network), return_dict=False)[0].float()
    error = ((output - expected).norm() / expected.norm()).item()
    assert 1e-4 < error < 0.03  # bfloat16 keeps 8 bits: 2^-9 an operation


def test_norms_under_autocast_keep_the_precision_they_are_given_and_sum_in_float32():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 32)
    nn.init.normal_(norm.weight)
    plain, x = (
        copy.deepcopy(norm),
        30 + torch.randn(2, 32, 64, 64),
    )  # a mean that a sum in bfloat16 would lose
    execution = Execution(dtype="bfloat16")
    assert execution.prepare(norm) is norm and isinstance(norm, nn.GroupNorm)
    with execution.autocast():
        assert norm(x).dtype == torch.float32 and torch.equal(norm(x), plain(x))
        half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    exact = plain(x.bfloat16().float())
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)
    assert list(norm.state_dict()) == list(plain.state_dict())
    assert type(Execution().prepare(plain)) is nn.GroupNorm


def test_checkpointing_and_bfloat16_save_memory_by_the_count_of_live_tensors():
    network = adm()
    attached = Lora(rank=2).attach(network)
    plain = call_bytes(network, 4, 32, 32, torch.float32, train=True)
    half = call_bytes(network, 4, 32, 32, torch.bfloat16, train=True)
    assert 0.4 * plain < half < 0.9 * plain
    Execution(gradient_checkpointing=True).prepare(network)
    assert call_bytes(network, 4, 32, 32, torch.float32, train=True) < 0.8 * plain
    attached.remove()


def test_live_bytes_are_those_of_a_product_whose_tensors_a_reader_can_count():
    layers = nn.Sequential(
        nn.Linear(100, 200, bias=False), nn.ReLU(inplace=True), nn.Linear(200, 50, bias=False)
    )
    with FakeTensorMode() as mode:
        twin, x = fake_copy(layers, mode, "cpu"), torch.empty(10, 100)
        with LiveBytes() as memory, torch.no_grad():
            y = twin(x)
            assert memory.live == 4 * 10 * 50 == y.nbytes
            # (10, 200) and (10, 50) at once; the weights' transposed views are views.
            assert memory.peak == 4 * (10 * 200 + 10 * 50)
    assert weight_bytes(layers) == 4 * (100 * 200 + 200 * 50)


def test_counting_memory_leaves_the_network_as_it_is():
    network = latent_unet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert call_bytes(network, 1, 16, 16, torch.float32, train=False) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_offloaded_weights_rest_where_they_were_and_layers_compute_where_they_are_told(monkeypatch):
    # Device "meta" stands for the accelerator: a CPU can tell that every layer computed there, and
    # that its own come back.
    network = adm()
    resting = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    offload_weights(network, torch.device("meta"))
    with torch.no_grad():
        output = network(
            torch.empty(1, 3, 16, 16, device="meta"),
            torch.zeros(1, device="meta"),
            return_dict=False,
        )[0]
    assert output.device.type == "meta"
    assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == resting
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile writes C++ for a CPU: needs g++"
)
def test_a_compiled_network_computes_what_the_eager_one_does(monkeypatch):
    # One small kernel: those of the smallest UNet take g++ half a minute, and agree to 1e-6.
    # What was compiled before for other instructions would be found again, and not fit.
    kept = f"adir-compiled-{getpass.getuser()}-{torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / kept))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU()).requires_grad_(False)
    network = Execution(compile=True).prepare(copy.deepcopy(plain))
    x = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(
            network(x), plain(x), rtol=0, atol=1e-5
        )  # rounding; 1.4e-6 was seen
    assert network._compiled_call_impl is not None


def test_a_compiled_network_follows_its_adapters(monkeypatch):
    # Through dynamo, whose guards are what a switch could escape; inductor would take long and
    # changes no guard.
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_in_place(self, backend="eager", **how)
    )
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 3)).requires_grad_(False)
    network = Execution(compile=True).prepare(copy.deepcopy(plain))
    x = torch.randn(1, 3, 9, 9)

    @torch.no_grad()
    def equal() -> bool:
        return torch.allclose(network(x), plain(x), atol=1e-5)

    assert equal()
    for adapter in (Lora(rank=2), Full()):
        attached = adapter.attach(plain)
        tensors = {name: torch.randn_like(tensor) for name, tensor in attached.tensors().items()}
        attached.remove()
        for apply in (
            (adapter.apply, adapter.merge) if isinstance(adapter, Lora) else (adapter.apply,)
        ):
            for _ in range(2):
                remove = apply(network, tensors)
                assert not equal()
                remove_plain = apply(plain, tensors)
                assert equal()
                remove_plain()
                remove()
                assert equal()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"dtype": "fp8"}, "dtype='fp8'.*float32, bfloat16, float16"),
        ({"attention": "fast"}, "attention='fast'.*default, math, efficient, flash, cudnn"),
        ({"compile": "yes"}, "compile='yes' must be true or false"),
        ({"device": "gpu"}, "device='gpu'.*cpu, cuda"),
        ({"offload": True}, "offload=true with device=cpu"),
        ({"device": "cuda:99"}, "device=cuda:99: torch finds"),
    ],
)
def test_settings_that_do_not_exist_or_go_together_raise(settings, words):
    with pytest.raises(ValueError, match=words):
        Execution(**settings)


def test_a_network_without_blocks_to_recompute_cannot_be_checkpointed():
    with pytest.raises(ValueError, match="Linear does not support it"):
        Execution(gradient_checkpointing=True).prepare(nn.Linear(2, 2))
