"""Checkpoints of guided-diffusion with made weights, for tests: the recipe of
tests/fixtures/adm/README.md.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adir.backbones.adm.architecture import Architecture, Flags
from adir.backbones.adm.conversion import tensors_of

NO_ARCHITECTURE = Architecture(32, (32,), 1, (False,), 3, False, True, -1, -1, -1, False)
"""Every field of it that matters is stated by complete flags."""

TINY = {
    "image_size": 32,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 1,
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
"""Constructor arguments of the reference's UNetModel: 0.8 M parameters, two levels."""


def flags_of_unet(
    *,
    image_size: int,
    model_channels: int,
    out_channels: int,
    num_res_blocks: int,
    attention_resolutions: Sequence[int],
    channel_mult: Sequence[float] = (1, 2, 4, 8),
    in_channels: int = 3,
    num_classes: int | None = None,
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    resblock_updown: bool = False,
    use_new_attention_order: bool = False,
) -> Flags:
    """Build `Flags` from the constructor arguments of guided-diffusion's UNetModel.

    UNetModel's attention_resolutions are downsampling factors, while those of `Flags` are sides in
    pixels.
    """
    return Flags(
        # A size that every factor divides, so that factors and pixels denote the same levels.
        image_size=2 ** len(channel_mult),
        num_channels=model_channels,
        num_res_blocks=num_res_blocks,
        channel_mult=channel_mult,
        learn_sigma=out_channels == 6,
        class_cond=num_classes is not None,
        attention_resolutions=[
            2 ** len(channel_mult) // f
            for f in attention_resolutions
            if f <= 2 ** len(channel_mult)
        ],
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
    )


def values(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers that belong to a name."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)


def made_weights(seed: int, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """{name: float32 tensor} by the recipe."""
    tensors = {}
    for name, shape in shapes:
        w = values(seed, name, shape)
        if len(shape) > 1:
            w = w / np.sqrt(np.prod(shape[1:]))
        else:
            w = 1 + 0.1 * w if name.endswith("weight") else 0.1 * w
        tensors[name] = torch.from_numpy(w.astype(np.float32))
    return tensors


def made_checkpoint(unet: dict | None = None, seed: int = 1) -> tuple[dict[str, Tensor], Flags]:
    """(state_dict of a network with these constructor arguments (`TINY` by default), its flags)."""
    arguments = {
        name: value for name, value in (unet or TINY).items() if name not in NOT_OF_THE_NETWORK
    }
    flags = flags_of_unet(**arguments)
    shapes = [(name, shape) for name, shape, _ in tensors_of(flags.resolve(NO_ARCHITECTURE))]
    return made_weights(seed, shapes), flags


NOT_OF_THE_NETWORK = ("dropout", "use_checkpoint", "use_fp16")


def save_checkpoint(path: Path, unet: dict | None = None, seed: int = 1) -> Flags:
    """Write such a checkpoint with torch.save, as the reference does."""
    tensors, flags = made_checkpoint(unet, seed)
    torch.save(tensors, path)
    return flags


def sha256_of_tensors(tensors: Iterable[Tensor]) -> str:
    """Of their little-endian float32 bytes, one after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
