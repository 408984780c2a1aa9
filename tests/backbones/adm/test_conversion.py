"""Checkpoints of guided-diffusion in diffusers: outputs of the reference implementation, and what
does not fit.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from made_adm import (
    NO_ARCHITECTURE,
    TINY,
    flags_of_unet,
    made_checkpoint,
    made_weights,
    sha256_of_tensors,
    values,
)
from torch import Tensor

from adir.backbones.adm.architecture import Flags
from adir.backbones.adm.conversion import (
    build_network,
    configuration,
    convert,
    read_architecture,
    split_qkv,
)
from adir.diffusion.posterior import learned_log_variance, posterior_mean, predict_x0
from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError

FIXTURES = Path(__file__).parents[2] / "fixtures"
RELEASED = {
    name: json.loads((FIXTURES / "adm" / f"{name}.json").read_text())
    for name in ("adm256_like", "adm512_like")
}
VARIANTS = json.loads((FIXTURES / "adm_variants" / "variants.json").read_text())
OUTPUTS = np.load(FIXTURES / "adm_variants" / "variants.npz")


def network_of(checkpoint: dict[str, Tensor], flags: Flags) -> UNet2DModel:
    """Converted, with its configuration through JSON as on disk."""
    configuration, tensors = convert(checkpoint, flags)
    network = build_network(json.loads(json.dumps(configuration)))
    network.load_state_dict(tensors, assign=True)
    return network.eval()


@functools.cache
def released(name: str) -> dict[str, Tensor]:
    """The made checkpoint of a golden, from the keys and shapes in its JSON."""
    golden = RELEASED[name]
    tensors = made_weights(
        golden["seed"], [(entry["key"], tuple(entry["shape"])) for entry in golden["state_dict"]]
    )
    assert sha256_of_tensors(tensors.values()) == golden["weight_check"]["sha256"]
    return tensors


def flags_from(golden: dict[str, Any]) -> Flags:
    """From `create_model_kwargs`, in the reference's flag form with its texts."""
    ignored = ("use_checkpoint", "dropout", "use_fp16")
    return Flags(
        **{key: value for key, value in golden["create_model_kwargs"].items() if key not in ignored}
    )


HEADS = Flags(num_head_channels=32)  # all else is read off the checkpoint


@pytest.mark.parametrize("stated", ["flags", "constructor arguments", "heads only"])
@pytest.mark.parametrize("name", RELEASED)
@torch.no_grad()
def test_outputs_are_the_references_to_2e_5(name, stated):
    golden = RELEASED[name]
    arrays = np.load(FIXTURES / "adm" / f"{name}.npz")
    unet = {
        k: v
        for k, v in golden["unet_model_kwargs"].items()
        if k not in ("dropout", "use_checkpoint", "use_fp16")
    }
    flags = {
        "flags": flags_from(golden),
        "constructor arguments": flags_of_unet(**unet),
        "heads only": HEADS,
    }[stated]
    network = network_of(released(name), flags)
    output = network(
        torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["t"]), return_dict=False
    )[0]
    assert (
        np.abs(output.numpy() - arrays["output"]).max()
        < golden["tolerances"]["output"]["atol"]
        == 2e-5
    )


@pytest.mark.parametrize("name", VARIANTS["variants"])
@torch.no_grad()
def test_outputs_of_other_configurations_are_the_references(name):
    variant = VARIANTS["variants"][name]
    checkpoint, flags = made_checkpoint(variant["unet_model_kwargs"], VARIANTS["seed"])
    # Names, shapes and order of the reference's state_dict: each tensor is made from its name and
    # shape.
    assert sha256_of_tensors(checkpoint.values()) == variant["state_dict_sha256"]
    x = torch.from_numpy(values(VARIANTS["seed"], "x", tuple(variant["shape"])).astype(np.float32))
    stated = replace(Flags(), **{k: getattr(flags, k) for k in UNSEEN})
    for known in (flags, stated):
        output = network_of(checkpoint, known)(x, torch.tensor(variant["t"]), return_dict=False)[0]
        assert np.abs(output.numpy() - OUTPUTS[name]).max() < VARIANTS["tolerance"]


UNSEEN = ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")
"""What no tensor's shape tells."""


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("number_of_heads", {"num_heads": 2}),
        ("new_attention_order", {"use_new_attention_order": False}),
        ("more_heads_on_the_way_up", {"num_heads_upsample": -1}),
    ],
)
@torch.no_grad()
def test_these_goldens_notice_what_shapes_do_not_tell(name, wrong):
    variant = VARIANTS["variants"][name]
    checkpoint, flags = made_checkpoint(variant["unet_model_kwargs"], VARIANTS["seed"])
    x = torch.from_numpy(values(VARIANTS["seed"], "x", tuple(variant["shape"])).astype(np.float32))
    output = network_of(checkpoint, replace(flags, **wrong))(
        x, torch.tensor(variant["t"]), return_dict=False
    )[0]
    assert np.abs(output.numpy() - OUTPUTS[name]).max() > 1e-3


@pytest.mark.parametrize("clip", [False, True], ids=["noclip", "clip"])
@pytest.mark.parametrize("process", ["full", "r100"])
@torch.no_grad()
def test_the_diffusion_step_end_to_end_is_the_references(process, clip):
    arrays = np.load(FIXTURES / "adm" / "adm256_like_diffusion.npz")
    tolerances = RELEASED["adm256_like"]["diffusion"]["tolerances"]["end_to_end"]
    x = torch.from_numpy(np.load(FIXTURES / "adm" / "adm256_like.npz")["x"])
    schedule = linear_schedule() if process == "full" else linear_schedule().respaced(100)
    step = torch.from_numpy(arrays[f"{process}_t"])
    timesteps = schedule.timesteps[step]
    np.testing.assert_array_equal(timesteps.numpy(), arrays[f"{process}_model_t"])
    network = network_of(released("adm256_like"), flags_from(RELEASED["adm256_like"]))
    output = network(x, timesteps, return_dict=False)[0]
    eps, v = output.chunk(2, dim=1)

    def at(table: Tensor) -> Tensor:
        return table[step].reshape(-1, 1, 1, 1)

    log_variance = learned_log_variance(
        (v + 1) / 2, at(schedule.posterior_log_variance), at(schedule.betas).log()
    )
    x0_hat = predict_x0(x, eps, at(schedule.alpha_bar))
    x0_hat = x0_hat.clamp(-1, 1) if clip else x0_hat
    mean = posterior_mean(
        x0_hat, x, at(schedule.posterior_mean_coef1), at(schedule.posterior_mean_coef2)
    )
    suffix = "clip" if clip else "noclip"
    found = {
        "model_output": output,
        "log_variance": log_variance,
        "variance": log_variance.exp(),
        f"pred_xstart_{suffix}": x0_hat,
        f"mean_{suffix}": mean,
    }
    if clip:
        found["cond_mean_clip"] = mean + log_variance.exp() * torch.from_numpy(
            arrays["cond_gradient"]
        )
    for name, value in found.items():
        golden, allowed = arrays[f"{process}_{name}"], tolerances[name]
        atol = np.array(allowed["atol"]).reshape(-1, 1, 1, 1)
        error = np.abs(value.numpy() - golden)
        assert (error <= atol + allowed["rtol"] * np.abs(golden)).all(), (
            f"{name}: {error.max():.3g}"
        )


def test_conversion_copies_nothing_but_queries_keys_and_values():
    checkpoint, flags = made_checkpoint()
    _, tensors = convert(checkpoint, flags)
    theirs = {tensor.data_ptr() for tensor in checkpoint.values()}
    copied = {name for name, tensor in tensors.items() if tensor.data_ptr() not in theirs}
    assert copied == {name for name in tensors if name.split(".")[-2] in ("to_q", "to_k", "to_v")}
    assert all(
        tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors.values()
    )


def test_a_half_precision_checkpoint_is_float32_afterwards():
    checkpoint, flags = made_checkpoint()
    _, tensors = convert({name: tensor.half() for name, tensor in checkpoint.items()}, flags)
    assert torch.equal(
        tensors["conv_in.weight"], checkpoint["input_blocks.0.0.weight"].half().float()
    )
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_queries_keys_and_values_are_told_apart_in_both_orders():
    # Row r of the bias is r. Legacy: per head, 2 q, 2 k, 2 v; new: all 4 q, all 4 k, all 4 v.
    rows = torch.arange(12.0)
    assert [part.tolist() for part in split_qkv(rows, 2, False)] == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
    ]
    assert [part.tolist() for part in split_qkv(rows, 2, True)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert [tuple(part.shape) for part in split_qkv(torch.zeros(12, 4, 1), 2, False)] == [
        (4, 4)
    ] * 3


def test_the_released_networks_have_the_parameters_they_are_known_for():
    # 552 814 086 is the published count of 256x256_diffusion_uncond.pt; its file has 4 bytes for
    # each, and 127 kB of names.
    unet = TINY | {"model_channels": 256, "num_res_blocks": 2, "num_head_channels": 64}
    flags = flags_of_unet(
        **unet | {"channel_mult": [1, 1, 2, 2, 4, 4], "attention_resolutions": [8, 16, 32]}
    )
    with torch.device("meta"):
        network = build_network(configuration_of(flags))
    assert sum(parameter.numel() for parameter in network.parameters()) == 552_814_086


def configuration_of(flags: Flags) -> dict[str, Any]:
    return configuration(flags.resolve(NO_ARCHITECTURE))


# --- what does not fit


def shapes_of(checkpoint: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}


@pytest.mark.parametrize(
    "change, words",
    [
        # The first level's 32 channels are stated as 64, so the first tensor to differ is the time
        # embedding's.
        (
            {"num_channels": 64},
            r"time_embed\.0\.weight is \(128, 32\) in the file, but \(256, 64\) in the network",
        ),
        (
            {"channel_mult": [1, 1]},
            r"input_blocks\.3\.0\.in_layers\.2\.weight is \(64, 32, 3, 3\) in the file, but \(32, 32",
        ),
        (
            {"channel_mult": [1, 2, 2]},
            r"input_blocks\.4\.0\.in_layers\.0\.weight is missing in the file, but \(64,\) in the",
        ),
        (
            {"num_res_blocks": 2},
            r"input_blocks\.3\.0\.in_layers\.2\.weight is \(64, 32, 3, 3\) in the file, but \(32, 32",
        ),
        (
            {"attention_resolutions": "4,2"},
            r"input_blocks\.1\.1\.norm\.weight is missing in the file",
        ),
        (
            {"learn_sigma": False},
            r"out\.2\.weight is \(6, 32, 3, 3\) in the file, but \(3, 32, 3, 3\) in the network",
        ),
        (
            {"use_scale_shift_norm": False},
            r"input_blocks\.1\.0\.emb_layers\.1\.weight is \(64, 128\) in the file, but \(32",
        ),
        (
            {"resblock_updown": False},
            r"input_blocks\.2\.0\.op\.weight is missing in the file, but \(32, 32, 3, 3\) in the net",
        ),
        ({"num_head_channels": 24}, "num_head_channels=24 does not divide the 64 channels"),
        ({"num_head_channels": -1, "num_heads": 3}, "num_heads=3 does not divide the 64 channels"),
        (
            {"num_head_channels": -1, "num_heads": -1},
            "cannot be inferred .*; set num_heads or num_head_channels",
        ),
        ({"channel_mult": "1,x"}, "channel_mult='1,x' must be numbers with commas"),
    ],
)
def test_another_architecture_names_the_first_tensor_that_differs(change, words):
    checkpoint, flags = made_checkpoint()
    with pytest.raises(InputError, match=words) as raised:
        convert(checkpoint, replace(flags, **change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change, words",
    [("drop", "is missing in the file"), ("add", "is .1,. in the file, but missing")],
)
def test_a_tensor_too_few_or_too_many_is_named(change, words):
    checkpoint, flags = made_checkpoint()
    name = "output_blocks.1.0.out_layers.3.bias"
    if change == "drop":
        del checkpoint[name]
    else:
        name = "another.bias"
        checkpoint[name] = torch.zeros(1)
    with pytest.raises(InputError, match=rf"{name} {words}"):
        convert(checkpoint, flags)


@pytest.mark.parametrize(
    "names, words",
    [
        (
            {"label_emb.weight": (1000, 128)},
            r"is class-conditional \(label_emb.weight \(1000, 128\)\)",
        ),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
            "a whole Stable Diffusion checkpoint",
        ),
        (
            {"down_blocks.0.resnets.0.norm1.weight": (320,)},
            "diffusers' tensor names .give the folder",
        ),
        (
            {"input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320)},
            "a Stable Diffusion UNet",
        ),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "an autoencoder"),
        (
            {"layer.weight": (3, 3)},
            "not a checkpoint of guided-diffusion: its 1 tensors have other names",
        ),
        (
            {"input_blocks.0.0.weight": (32, 3, 3, 3), "input_blocks.1.0.weight": (3,)},
            "it has no tensor 'input_blocks",
        ),
        ({}, "not a checkpoint of guided-diffusion"),
    ],
)
def test_a_checkpoint_of_another_family_is_told(names, words):
    with pytest.raises(InputError, match=words):
        read_architecture(names)


def test_a_network_with_six_input_channels_is_refused():
    shapes = shapes_of(made_checkpoint()[0])
    shapes["input_blocks.0.0.weight"] = (32, 6, 3, 3)
    with pytest.raises(
        InputError, match="has 6 input channels; give a network with 3 input channels"
    ):
        read_architecture(shapes)


def test_no_channel_mult_is_the_references_way_to_leave_it_open():
    checkpoint, flags = made_checkpoint()
    assert convert(checkpoint, replace(flags, channel_mult=""))[0] == convert(checkpoint, flags)[0]


def test_class_conditional_flags_are_refused():
    with pytest.raises(InputError, match="class-conditional networks are not supported"):
        Flags(class_cond=True)


@pytest.mark.parametrize("text", ["true", "false"])
def test_learn_sigma_as_a_text_is_refused(text):
    with pytest.raises(InputError, match=f"learn_sigma='{text}': give true, false or null"):
        Flags(learn_sigma=text)
    with pytest.raises(InputError, match="set image_size too"):
        Flags(attention_resolutions="16,8")
