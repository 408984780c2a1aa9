"""Conversion of guided-diffusion's ADM checkpoints (Dhariwal and Nichol, 2021) to UNet2DModel.

A checkpoint is a dictionary of tensors with the names of OpenAI's reference code, such as
`input_blocks.0.0.weight`. Most of the architecture is inferred from the shapes of the tensors. The
caller gives the number of heads and the order of queries, keys and values as `Flags`, because they
cannot be inferred.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from adir.backbones.adm.architecture import Architecture, Flags
from adir.environment import garbage_collection_paused
from adir.errors import InputError

if TYPE_CHECKING:
    from diffusers import UNet2DModel

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """Single layer, residual block or attention block of an ADM.

    Attributes:
        kind: `layer`, `residual` or `attention`.
        reference: start of the names of the block's tensors in the checkpoint.
        ours: start of the names of these tensors in diffusers.
        in_channels: number of input channels. In the upsampling half it includes the channels of
            the skip connection.
        out_channels: number of output channels.
        kernel: kernel size of a single convolution, such as (3, 3); () for other blocks.
    """

    kind: Literal["layer", "residual", "attention"]
    reference: str
    ours: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()


def blocks(a: Architecture) -> Iterator[Block]:
    """Yield the blocks of an ADM in the order of a checkpoint, except the two output layers."""
    # Time embedding and first convolution.
    embedding, last = 4 * a.model_channels, len(a.channels) - 1
    yield Block("layer", "time_embed.0", "time_embedding.linear_1", a.model_channels, embedding)
    yield Block("layer", "time_embed.2", "time_embedding.linear_2", embedding, embedding)
    yield Block("layer", "input_blocks.0.0", "conv_in", 3, a.channels[0], (3, 3))
    # Downsampling half. `skips` collects the channels of the skip connections.
    n, current, skips = 1, a.channels[0], [a.channels[0]]
    for level, width in enumerate(a.channels):
        ours = f"down_blocks.{level}"
        for j in range(a.num_res_blocks):
            yield Block("residual", f"input_blocks.{n}.0", f"{ours}.resnets.{j}", current, width)
            if a.attention[level]:
                yield Block(
                    "attention", f"input_blocks.{n}.1", f"{ours}.attentions.{j}", width, width
                )
            n, current = n + 1, width
            skips.append(width)
        if level < last:
            yield resampler(a, f"input_blocks.{n}.0", "op", f"{ours}.downsamplers.0", width)
            n += 1
            skips.append(width)
    # Middle block.
    yield Block("residual", "middle_block.0", "mid_block.resnets.0", current, current)
    yield Block("attention", "middle_block.1", "mid_block.attentions.0", current, current)
    yield Block("residual", "middle_block.2", "mid_block.resnets.1", current, current)
    # Upsampling half.
    n = 0
    for up, level in enumerate(reversed(range(len(a.channels)))):
        width, ours = a.channels[level], f"up_blocks.{up}"
        for j in range(a.num_res_blocks + 1):
            yield Block(
                "residual",
                f"output_blocks.{n}.0",
                f"{ours}.resnets.{j}",
                current + skips.pop(),
                width,
            )
            current, after = width, 1
            if a.attention[level]:
                yield Block(
                    "attention", f"output_blocks.{n}.1", f"{ours}.attentions.{j}", width, width
                )
                after = 2
            if level and j == a.num_res_blocks:
                reference = f"output_blocks.{n}.{after}"
                yield resampler(a, reference, "conv", f"{ours}.upsamplers.0", width)
            n += 1


def resampler(a: Architecture, reference: str, layer: str, ours: str, width: int) -> Block:
    """Return the block that halves or doubles the resolution between two levels.

    It is a residual block with `resblock_updown`, else a convolution. In the checkpoint, the
    convolution is the part `layer` of the block.
    """
    if a.resblock_updown:
        return Block("residual", reference, ours, width, width)
    return Block("layer", f"{reference}.{layer}", f"{ours}.conv", width, width, (3, 3))


def tensors_of(a: Architecture) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
    """Yield (name in the checkpoint, shape, name in diffusers) of every tensor of an ADM.

    The order is that of the checkpoint's `state_dict`. The name in diffusers is None for a qkv
    tensor, because it is split into queries, keys and values.
    """
    embedding = 4 * a.model_channels

    def pair(
        reference: str, ours: str, weight: tuple[int, ...]
    ) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
        yield f"{reference}.weight", weight, f"{ours}.weight"
        yield f"{reference}.bias", weight[:1], f"{ours}.bias"

    for b in blocks(a):
        if b.kind == "layer":
            yield from pair(b.reference, b.ours, (b.out_channels, b.in_channels, *b.kernel))
        elif b.kind == "residual":
            out, scale_and_shift = b.out_channels, 2 if a.use_scale_shift_norm else 1
            yield from pair(f"{b.reference}.in_layers.0", f"{b.ours}.norm1", (b.in_channels,))
            yield from pair(
                f"{b.reference}.in_layers.2", f"{b.ours}.conv1", (out, b.in_channels, 3, 3)
            )
            yield from pair(
                f"{b.reference}.emb_layers.1",
                f"{b.ours}.time_emb_proj",
                (scale_and_shift * out, embedding),
            )
            yield from pair(f"{b.reference}.out_layers.0", f"{b.ours}.norm2", (out,))
            yield from pair(f"{b.reference}.out_layers.3", f"{b.ours}.conv2", (out, out, 3, 3))
            if b.in_channels != out:
                yield from pair(
                    f"{b.reference}.skip_connection",
                    f"{b.ours}.conv_shortcut",
                    (out, b.in_channels, 1, 1),
                )
        else:
            c = b.out_channels
            yield from pair(f"{b.reference}.norm", f"{b.ours}.group_norm", (c,))
            yield f"{b.reference}.qkv.weight", (3 * c, c, 1), None
            yield f"{b.reference}.qkv.bias", (3 * c,), None
            yield from pair(f"{b.reference}.proj_out", f"{b.ours}.to_out.0", (c, c, 1))
    yield from pair("out.0", "conv_norm_out", (a.channels[0],))
    yield from pair("out.2", "conv_out", (a.out_channels, a.channels[0], 3, 3))


def read_architecture(shapes: Shapes) -> Architecture:
    """Infer the architecture of a checkpoint from {tensor name: shape}.

    Shapes do not determine the number of heads and the order of queries, keys and values. In the
    result, the fields for heads are therefore -1, and use_new_attention_order is False.

    Raises InputError if the checkpoint is not an unconditional ADM.
    """
    if "label_emb.weight" in shapes:
        raise InputError(
            f"the network is class-conditional (label_emb.weight {shapes['label_emb.weight']}), "
            "which is not supported; give an unconditional one"
        )
    for foreign, what in FOREIGN.items():
        if any(name.startswith(foreign) for name in shapes):
            raise InputError(f"not a checkpoint of guided-diffusion, but {what}")
    try:
        # Residual blocks per level: the first output block that contains an upsampler is the last
        # of its level, and each level has num_res_blocks + 1 output blocks.
        inputs = 1 + max(
            int(m[1]) for m in map(re.compile(r"input_blocks\.(\d+)\.").match, shapes) if m
        )
        up = re.compile(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight")
        ups = [int(m[1]) for m in map(up.match, shapes) if m]
        num_res_blocks = min(ups) if ups else inputs - 1
        per_level = num_res_blocks + 1
        firsts = range(1, inputs, per_level)  # the first residual block of each level
        channels = tuple(shapes[f"input_blocks.{n}.0.in_layers.2.weight"][0] for n in firsts)
        entry = shapes["input_blocks.0.0.weight"][1]
        if entry != 3:
            raise InputError(
                f"input_blocks.0.0.weight has {entry} input channels; give a network with "
                "3 input channels, not an upsampler"
            )
        return Architecture(
            model_channels=shapes["time_embed.0.weight"][1],
            channels=channels,
            num_res_blocks=num_res_blocks,
            attention=tuple(f"input_blocks.{n}.1.qkv.weight" in shapes for n in firsts),
            out_channels=shapes["out.2.weight"][0],
            use_scale_shift_norm=shapes["input_blocks.1.0.emb_layers.1.weight"][0]
            == 2 * channels[0],
            resblock_updown=not any(".0.op." in name for name in shapes),
            num_heads=-1,
            num_head_channels=-1,
            num_heads_upsample=-1,
            use_new_attention_order=False,
        )
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = (
            f"it has no tensor {error}"
            if isinstance(error, KeyError)
            else f"its {len(shapes)} tensors have other names or shapes"
        )
        raise InputError(f"not a checkpoint of guided-diffusion: {what}") from error


FOREIGN = {
    "model.diffusion_model.": "a whole Stable Diffusion checkpoint",
    "input_blocks.1.1.transformer_blocks": "a Stable Diffusion UNet",
    "down_blocks.": "a network with diffusers' tensor names (give the folder with config.json "
    "instead of this file)",
    "encoder.down_blocks.": "an autoencoder",
    "decoder.": "an autoencoder",
    "text_model.": "a text encoder",
}
"""{start of a tensor's name: model that has tensors with this name}, for error messages."""


def require_fit(shapes: Shapes, architecture: Architecture) -> None:
    """Raise InputError if a checkpoint's tensor names or shapes differ from an architecture's.

    The message names the first tensor that differs. Missing tensors and tensors of another shape
    come first, in the usual order of checkpoints, and unexpected tensors last.

    shapes: {tensor name: shape} of the checkpoint.
    """
    expected = {name: shape for name, shape, _ in tensors_of(architecture)}
    for name in [*expected, *(name for name in shapes if name not in expected)]:
        want = expected.get(name, "missing")
        have = shapes.get(name, "missing")
        if want != have:
            raise InputError(
                f"the tensors do not fit the stated architecture ({name} is {have} in the file, "
                f"but {want} in the network)"
            )


def configuration(a: Architecture) -> dict[str, Any]:
    """Return the content of config.json for the converted network.

    It contains the arguments of UNet2DModel. Settings of the ADM for which UNet2DModel has no
    argument are in a dictionary under the key "adm".
    """
    resnet = a.resblock_updown
    plain_down, plain_up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if resnet
        else ("DownBlock2D", "UpBlock2D")
    )
    return {
        "_class_name": "UNet2DModel",
        "sample_size": None,
        "in_channels": 3,
        "out_channels": a.out_channels,
        "time_embedding_type": "positional",
        "time_embedding_dim": 4 * a.model_channels,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["AttnDownBlock2D" if has else plain_down for has in a.attention],
        "up_block_types": ["AttnUpBlock2D" if has else plain_up for has in reversed(a.attention)],
        "block_out_channels": list(a.channels),
        "layers_per_block": a.num_res_blocks,
        "downsample_padding": 1,
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "dropout": 0.0,
        "act_fn": "silu",
        # If num_head_channels is unset, any divisor of all blocks' channels works here, because
        # `apply_adm` sets the heads of each block.
        "attention_head_dim": a.num_head_channels
        if a.num_head_channels != -1
        else math.gcd(*a.channels),
        "norm_num_groups": 32,
        # without it, the middle attention of a scale-shift network has no norm
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if a.use_scale_shift_norm else "default",
        "add_attention": True,
        "adm": {
            "model_channels": a.model_channels,
            "num_heads": a.num_heads,
            "num_head_channels": a.num_head_channels,
            "num_heads_upsample": a.num_heads_upsample,
            # for information: the converted tensors have separate queries, keys and values
            "use_new_attention_order": a.use_new_attention_order,
        },
    }


def build_network(settings: Mapping[str, Any]) -> "UNet2DModel":
    """Build the network that a config.json describes, with weights on torch's device "meta".

    Weights on this device have shapes but no values, and take no memory.

    settings: content of config.json, as written by diffusers or returned by `configuration`. A key
    "unshuffle" with value f is also allowed. It adds a pixel_unshuffle by f before the first
    convolution and a pixel_shuffle by f after the last convolution.

    Raises ValueError or TypeError if the settings are invalid.
    """
    with garbage_collection_paused():
        # Imported here because diffusers takes 4 s, and not every sampler needs the network.
        from diffusers import UNet2DModel

    settings = dict(settings)
    adm, unshuffle = settings.pop("adm", None), settings.pop("unshuffle", None)
    with torch.device("meta"):
        network = UNet2DModel.from_config(settings)
        if adm is not None:
            apply_adm(network, adm)
        if unshuffle is not None:
            first, last = network.conv_in, network.conv_out
            inside = [n * unshuffle**2 for n in (first.in_channels, last.out_channels)]
            first = nn.Conv2d(inside[0], first.out_channels, 3, padding=1)
            last = nn.Conv2d(last.in_channels, inside[1], 3, padding=1)
            network.conv_in = nn.Sequential(nn.PixelUnshuffle(unshuffle), first)
            network.conv_out = nn.Sequential(last, nn.PixelShuffle(unshuffle))
    return network


def apply_adm(network: "UNet2DModel", adm: Mapping[str, Any]) -> None:
    """Set the width of a network's sinusoidal time embedding and its numbers of heads, in place.

    This cannot be done with the arguments of UNet2DModel.

    adm: value of the key "adm" in config.json; see `configuration`.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    width = adm["model_channels"]
    if width != network.config["block_out_channels"][0]:
        network.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        network.time_embedding = TimestepEmbedding(width, 4 * width)
    if adm["num_head_channels"] == -1:
        for name, module in network.named_modules():
            if isinstance(module, Attention):
                upward = name.startswith("up_blocks.") and adm["num_heads_upsample"] != -1
                module.heads = adm["num_heads_upsample"] if upward else adm["num_heads"]
                module.sliceable_head_dim = module.heads
                module.scale = (module.inner_dim // module.heads) ** -0.5


def convert(
    checkpoint: Mapping[str, Tensor], flags: Flags
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a checkpoint of guided-diffusion to the names and shapes of diffusers.

    Returns:
        (content of config.json, {name in diffusers: tensor}). The tensors are float32 and
        contiguous. They share memory with the checkpoint where neither the dtype nor the order of
        the values changes.

    Raises:
        InputError: if the checkpoint is not an unconditional ADM, if the number of heads is not
            given, or if a tensor does not fit the flags. The message names the first such tensor.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}
    architecture = flags.resolve(read_architecture(shapes))
    require_fit(shapes, architecture)
    names = {reference: ours for reference, _, ours in tensors_of(architecture) if ours is not None}
    tensors = {
        ours: flattened(checkpoint[reference].float(), reference)
        for reference, ours in names.items()
    }
    for b in blocks(architecture):
        if b.kind == "attention":
            heads = architecture.heads(
                b.out_channels, upward=b.reference.startswith("output_blocks.")
            )
            for part in ("weight", "bias"):
                qkv = checkpoint[f"{b.reference}.qkv.{part}"].float()
                q, k, v = split_qkv(qkv, heads, architecture.use_new_attention_order)
                tensors |= {
                    f"{b.ours}.to_q.{part}": q,
                    f"{b.ours}.to_k.{part}": k,
                    f"{b.ours}.to_v.{part}": v,
                }
    return configuration(architecture), tensors


def flattened(tensor: Tensor, reference: str) -> Tensor:
    """Return a tensor of a checkpoint as a contiguous tensor in the shape that diffusers expects.

    The weight of attention's output projection is (C, C, 1) in the checkpoint, a 1D convolution. It
    is (C, C) in diffusers, a linear layer. Other tensors keep their shapes.

    reference: name of the tensor in the checkpoint.
    """
    return (tensor[:, :, 0] if reference.endswith("proj_out.weight") else tensor).contiguous()


def split_qkv(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split one qkv tensor into the tensors of queries, keys and values.

    Args:
        qkv: weight (3 C, C, 1) or bias (3 C,).
        heads: number of heads.
        new_order: whether the 3 C rows are ordered (3, heads, C / heads), as in networks with
            use_new_attention_order, instead of (heads, 3, C / heads).

    Returns:
        (q, k, v), each (C, C) or (C,), with rows ordered (heads, C / heads).
    """
    flat = qkv[:, :, 0] if qkv.ndim == 3 else qkv
    channels = len(flat) // 3
    order = (3, heads, channels // heads) if new_order else (heads, 3, channels // heads)
    split = flat.reshape(*order, *flat.shape[1:]).movedim(0 if new_order else 1, 0)
    q, k, v = (part.reshape(channels, *flat.shape[1:]).contiguous() for part in split)
    return q, k, v
