"""Adapters: no effect when fresh, no trace when removed, and as many numbers to train as LoRA's
formula says.
"""

import copy
import gc
import re
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted
from adir.adaptation.lora import Lora

ADAPTERS = [Full(), Lora(), Lora(rank=2, alpha=2, layers="attention"), Lora(rank=3, layers="all")]
IDS = ["full", "lora", "attention", "all"]


@pytest.fixture
def network() -> UNet2DModel:
    """An ADM-like network of two levels, as a backbone hands it over: eval mode, no gradients, no
    zero-initialised layer.
    """
    torch.manual_seed(1)
    network = UNet2DModel(
        in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet", attention_head_dim=16,
        resnet_time_scale_shift="scale_shift", norm_eps=1e-5,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def output(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([10, 700]), return_dict=False)[0]


def state(network: nn.Module) -> dict:
    """Everything that an adapter could leave behind."""
    return {
        "modules": [(name, type(module)) for name, module in network.named_modules()],
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "required_grad": {name: p.requires_grad for name, p in network.named_parameters()},
        "grads": {name: p.grad for name, p in network.named_parameters()},
        "training": [module.training for module in network.modules()],
        "attributes": set(network.__dict__),
        "output": output(network),
    }


def assert_same_state(network: nn.Module, before: dict) -> None:
    after = state(network)
    for key in ("modules", "required_grad", "grads", "training", "attributes"):
        assert after[key] == before[key], key
    assert list(after["tensors"]) == list(before["tensors"])
    for name, tensor in before["tensors"].items():
        assert torch.equal(after["tensors"][name], tensor), name
    assert torch.equal(after["output"], before["output"])


def disturb(attached) -> None:
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.1)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=IDS)
def test_a_fresh_adapter_changes_no_bit_of_any_output(network, adapter):
    before = output(network)
    attached = adapter.attach(network)
    assert torch.equal(output(network), before)
    if isinstance(adapter, Lora):
        attached.initialise(torch.Generator().manual_seed(0))
        assert torch.equal(output(network), before)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=IDS)
def test_a_trained_adapter_acts_and_its_removal_leaves_no_trace(network, adapter):
    before = state(network)
    attached = adapter.attach(network)
    disturb(attached)
    assert (output(network) - before["output"]).abs().max() > 1e-3
    attached.remove()
    assert_same_state(network, before)


@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_what_required_a_gradient_before_does_so_again_and_nothing_else(network, adapter):
    network.conv_in.requires_grad_(True)
    network.mid_block.requires_grad_(True)
    before = state(network)["required_grad"]
    assert 0 < sum(before.values()) < len(before)
    adapter.attach(network).remove()
    assert state(network)["required_grad"] == before


@pytest.mark.parametrize("adapter", ADAPTERS, ids=IDS)
def test_stored_tensors_put_the_adapted_network_back_to_the_bit(network, adapter):
    before = state(network)
    attached = adapter.attach(network)
    disturb(attached)
    tensors, trained = attached.tensors(), output(network)
    attached.remove()
    with adapted(network, adapter, tensors) as same:
        assert same is network and torch.equal(output(network), trained)
    assert_same_state(network, before)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=IDS)
def test_the_network_is_bare_again_after_an_exception_and_after_tensors_that_do_not_fit(
    network, adapter
):
    before = state(network)
    attached = adapter.attach(network)
    tensors = attached.tensors()
    attached.remove()
    with pytest.raises(KeyError, match="midway"), adapted(network, adapter, tensors):
        raise KeyError("midway")
    assert_same_state(network, before)
    name = sorted(tensors)[0]
    for wrong in (
        {key: value for key, value in tensors.items() if key != name},
        {**tensors, name: torch.zeros(1, 2, 3)},
        {**tensors, "0": torch.zeros(1)},
    ):
        with (
            pytest.raises(
                ValueError,
                match="does not fit the network: tensor (0|"
                + name.replace(".", r"\.")
                + ") has shape",
            ),
            adapted(network, adapter, wrong),
        ):
            pass
        assert_same_state(network, before)


@pytest.mark.parametrize("rank", [1, 16])
def test_lora_trains_rank_times_inputs_and_outputs_of_every_convolution(network, rank):
    attached = Lora(rank=rank).attach(network)
    # A: rank filters of the layer's own size on c_in channels; B: 1x1 from rank to c_out.
    shapes = {
        name: m for name, m in network.state_dict().items() if name.endswith(".base_layer.weight")
    }
    expected = sum(
        rank * (w.shape[1] * w.shape[2] * w.shape[3] + w.shape[0]) for w in shapes.values()
    )
    assert sum(p.numel() for p in attached.parameters()) == expected
    assert all(p.requires_grad for p in attached.parameters())
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable and all(".lora_" in name for name in trainable)


def test_lora_attaches_to_every_convolution_and_to_nothing_else(network):
    convolutions = [name for name, module in network.named_modules() if type(module) is nn.Conv2d]
    attention = [
        name
        for name, m in network.named_modules()
        if type(m) is nn.Linear and ".attentions." in name
    ]
    for layers, expected in (
        ("convolutions", convolutions), ("attention", attention), ("all", [*convolutions, *attention]),
    ):  # fmt: skip
        attached = Lora(layers=layers, rank=1).attach(network)
        assert sorted(attached.layers) == sorted(expected)
        attached.remove()
    assert (
        len(convolutions) > 10 and len(attention) == 4 * 4
    )  # q, k, v, out of 1 + 1 + 2 attention blocks


def test_the_update_of_a_layer_is_alpha_over_rank_B_A():
    layer = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1)).requires_grad_(False)
    x, weight = torch.randn(1, 2, 6, 6), layer[0].weight.clone()
    attached = Lora(rank=4, alpha=6).attach(layer)
    disturb(attached)
    tensors = attached.tensors()
    (A,) = (tensor for name, tensor in tensors.items() if ".lora_A." in name)
    (B,) = (tensor for name, tensor in tensors.items() if ".lora_B." in name)
    adapted_output = layer(x)
    merged = weight + 6 / 4 * torch.einsum("or,rikl->oikl", B[:, :, 0, 0], A)
    torch.testing.assert_close(
        adapted_output, nn.functional.conv2d(x, merged, layer[0].bias, padding=1)
    )


def test_initialisation_draws_A_uniformly_from_the_generator_alone(network):
    def drawn(seed: int, global_seed: int) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        attached = Lora(rank=8).attach(network)
        attached.initialise(torch.Generator().manual_seed(seed))
        tensors = attached.tensors()
        attached.remove()
        return tensors

    first, again, other = drawn(0, 1), drawn(0, 2), drawn(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    for name, tensor in first.items():
        if ".lora_B." in name:
            assert not tensor.any()
        elif tensor.numel() > 2000:
            bound = tensor[0].numel() ** -0.5
            assert 0.97 * bound < tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("adapter", [Full(), Lora()], ids=["full", "lora"])
def test_attaching_takes_nothing_from_the_global_generator(network, adapter):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    adapter.attach(network)
    assert torch.equal(torch.rand(3), expected)


def test_an_adapter_that_matches_no_layer_raises():
    linear = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="layers='convolutions' matches no layer of Sequential"):
        Lora().attach(linear)
    with pytest.raises(ValueError, match="layers='attention' matches no layer"):
        Lora(layers="attention").attach(nn.Sequential(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ValueError, match="no parameters"):
        Full().attach(nn.Sequential(nn.SiLU()))
    assert [type(m) for m in linear] == [nn.Linear]


@pytest.mark.parametrize(
    "arguments, message",
    [({"rank": 0}, "rank=0"), ({"layers": "conv"}, "convolutions, attention, feed_forward, all")],
)
def test_settings_that_make_no_adapter_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Lora(**arguments)


@pytest.fixture
def latent_network() -> UNet2DConditionModel:
    """A UNet of Stable Diffusion's kind, with transformer blocks."""
    torch.manual_seed(1)
    network = UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, use_linear_projection=True,
    )  # fmt: skip
    return network.eval().requires_grad_(False)


def test_kinds_of_layers_are_those_that_a_transformer_block_has(latent_network):
    def ends(layers) -> set[str]:
        return {
            re.sub(r".*attentions\.\d\.", "", name)
            for name in Lora(layers=layers).targets(latent_network)
        }

    block = "transformer_blocks.0"
    projections = {
        f"{block}.attn{n}.to_{which}" for n in (1, 2) for which in ("q", "k", "v", "out.0")
    }
    assert ends("attention") == projections | {"proj_in", "proj_out"}
    assert ends("feed_forward") == {f"{block}.ff.net.0.proj", f"{block}.ff.net.2"}
    convolutions = set(Lora().targets(latent_network))
    assert convolutions == {
        n for n, m in latent_network.named_modules() if isinstance(m, nn.Conv2d)
    }
    everything = set(Lora(layers="all").targets(latent_network))
    both = set(Lora(layers=["attention", "feed_forward"]).targets(latent_network))
    assert everything == convolutions | both and len(everything) == len(convolutions) + len(both)
    assert ends(["attn2.to_k", "to_v"]) == {f"{block}.attn{n}.to_v" for n in (1, 2)} | {
        f"{block}.attn2.to_k"
    }
    assert Lora(layers=["mid_block.resnets.0.conv1"]).targets(latent_network) == [
        "mid_block.resnets.0.conv1"
    ]
    with pytest.raises(ValueError, match="layers='to_w' matches no layer of UNet2DConditionModel"):
        Lora(layers=["convolutions", "to_w"]).attach(latent_network)
    with pytest.raises(ValueError, match=r"layers=\[\] names no layer"):
        Lora(layers=[])


@pytest.mark.parametrize("layers", ["convolutions", "all"])
def test_a_merged_update_is_the_wrapped_one_up_to_rounding(network, layers):
    lora = Lora(rank=3, alpha=2, layers=layers)
    attached = lora.attach(network)
    disturb(attached)
    tensors, expected = attached.tensors(), output(network)
    attached.remove()
    before = state(network)
    remove = lora.merge(network, tensors)
    torch.testing.assert_close(output(network), expected, rtol=1e-4, atol=1e-4)
    remove()
    assert_same_state(network, before)
    with pytest.raises(ValueError, match="does not fit the network"):
        lora.merge(network, dict(list(tensors.items())[1:]))
    assert_same_state(network, before)


@pytest.mark.parametrize(
    "change", [lambda n: n.bfloat16(), lambda n: n.to(memory_format=torch.channels_last)]
)
@pytest.mark.parametrize("adapter", [Full(), Lora()], ids=["full", "lora"])
def test_no_trace_is_left_in_half_precision_or_another_memory_layout(network, adapter, change):
    change(network)
    before = {
        name: (p.clone(), p.dtype, p.stride(), p.data_ptr())
        for name, p in network.named_parameters()
    }
    attached = adapter.attach(network)
    disturb(attached)
    tensors = attached.tensors()
    attached.remove()
    for apply in (adapter.apply, adapter.merge) if isinstance(adapter, Lora) else (adapter.apply,):
        remove = apply(network, tensors)
        remove()
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    for name, (tensor, dtype, stride, pointer) in before.items():
        p = after[name]
        assert torch.equal(p, tensor) and (p.dtype, p.stride(), p.data_ptr()) == (
            dtype,
            stride,
            pointer,
        ), name


def test_adapters_of_different_settings_take_turns_on_one_network(network):
    before, outputs = state(network), []
    for adapter in (Lora(), Lora(rank=2), Lora(layers="attention"), Lora(), Full(), Lora()):
        attached = adapter.attach(network)
        disturb(attached)
        outputs.append(output(network))
        attached.remove()
        assert_same_state(network, before)
    assert torch.equal(outputs[0], outputs[3]) and torch.equal(outputs[0], outputs[5])
    assert not torch.equal(outputs[0], outputs[1])


def test_a_network_that_was_adapted_is_freed_with_its_wrappers(network):
    Lora().attach(network).remove()
    twin = copy.deepcopy(network)
    Lora().attach(twin).remove()
    gone = weakref.ref(twin)
    del twin
    gc.collect()
    assert gone() is None
