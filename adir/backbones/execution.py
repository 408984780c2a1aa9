"""How a network is run: device, precision, memory layout, checkpointing, compilation, attention
kernel, offload.

Nothing here but `dtype` changes a result beyond rounding, so `dtype` alone is part of a cell's
identity.

Weights stay float32 in every precision, and autocast casts them where it pays (convolutions, matrix
products, attention). GroupNorm keeps the precision of what it is given, summing in float32. So one
loaded network trains with float32 master weights and samples in bfloat16, and what an adapter
leaves behind is compared in float32. docs/speed.md has what each setting costs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ATTENTION: dict[str, list[SDPBackend] | None] = {
    "default": None,  # torch chooses
    "math": [SDPBackend.MATH],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
}
HALF_PRECISION_ATTENTION = ("flash", "cudnn")


@dataclass(frozen=True)
class Execution:
    """Settings under which a network runs.

    Raises ValueError for values that do not exist or do not go together.

    device: a torch device.  dtype: float32, bfloat16 or float16; the last two are autocast
        precisions.  channels_last:
    NHWC memory layout, which tensor cores want.  gradient_checkpointing: recompute each residual
    block in the backward pass instead of keeping its insides: about a third more time for a
    fraction of the memory.  compile: torch.compile, one compilation (minutes for a big network) per
    image size and batch.  attention: kernel of scaled dot product attention, see ATTENTION.
    offload: weights rest in CPU memory, and each layer's are on the device only while it runs;
    training keeps them there.
    """

    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    attention: str = "default"
    offload: bool = False

    def __post_init__(self) -> None:
        for what, choices in (("dtype", DTYPES), ("attention", ATTENTION)):
            if getattr(self, what) not in choices:
                raise ValueError(
                    f"unknown {what}={getattr(self, what)!r}; choose one of {', '.join(choices)}"
                )
        for what in ("channels_last", "gradient_checkpointing", "compile", "offload"):
            if not isinstance(getattr(self, what), bool):
                raise ValueError(f"{what}={getattr(self, what)!r}: true or false is needed")
        kind = device_of(self.device).type
        if self.offload and kind == "cpu":
            raise ValueError(
                "offload=true with device=cpu: the weights are there already; use offload=false"
            )
        if self.offload and self.compile:
            raise ValueError(
                "offload=true moves weights during a call, which a compiled network cannot: "
                "choose one"
            )
        if self.attention in HALF_PRECISION_ATTENTION and self.dtype == "float32" and kind != "cpu":
            raise ValueError(
                f"attention={self.attention} has no float32 kernel: use dtype=bfloat16, or "
                "attention=default"
            )

    def prepare(self, network: nn.Module) -> nn.Module:
        """The same network, moved and set up in place.

        Raises ValueError for one that cannot be checkpointed.

        float32 is float32 from then on, in this process: TF32, torch's default for convolutions on
        a GPU, has an error of 1e-3, and devices may differ by rounding only.
        """
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.dtype != "float32":
            keep_precision_of_norms(network)
        if self.gradient_checkpointing:
            from diffusers import (
                # here: samplers import this file for a type, and diffusers takes seconds
                ModelMixin,
            )

            if not isinstance(network, ModelMixin):
                raise ValueError(
                    f"gradient_checkpointing=true: {type(network).__name__} has no blocks to "
                    "recompute"
                )
            network.enable_gradient_checkpointing(recompute)
        if self.offload:
            offload_weights(network, torch.device(self.device))
        else:
            network.to(self.device)
        if self.compile:
            network.compile(
                dynamic=False
            )  # in place: the module, its names and its adapters stay what they are
        return network

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for calls of the network: precision and attention kernel."""
        backends = ATTENTION[self.attention]
        if self.dtype == "float32" and backends is None:
            return nullcontext()
        return self._autocast(backends)

    @contextmanager
    def _autocast(self, backends: list[SDPBackend] | None) -> Any:
        with ExitStack() as stack:
            if self.dtype != "float32":
                stack.enter_context(
                    torch.autocast(torch.device(self.device).type, DTYPES[self.dtype])
                )
            if backends is not None:
                stack.enter_context(sdpa_kernel(backends))
            yield

    @property
    def trainer_precision(self) -> str:
        """Lightning's word for the precision: it scales the loss in float16, whose gradients would
        vanish.
        """
        return {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[self.dtype]


def device_of(name: str) -> torch.device:
    """The torch device of that name.

    Raises ValueError, which says what there is, for one that this machine lacks.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={name!r} is no device of torch: use cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f"device={name}: torch finds {count} CUDA devices here; use device=cpu or "
                "another index"
            )
    return device


def recompute(module: Callable[..., Any], *arguments: Any) -> Any:
    """One block under activation checkpointing (Chen et al., 2016): its insides are computed again
    in the backward pass.

    Non-reentrant: the reentrant variant gives no gradient where no input of the block needs one, as
    with LoRA on frozen weights. The state of the random generators is not kept: the networks are in
    eval mode and draw nothing.
    """
    return checkpoint(module, *arguments, use_reentrant=False, preserve_rng_state=False)


class GroupNormAsGiven(nn.GroupNorm):
    """GroupNorm whose output has its input's precision.

    Mean and variance are float32 inside of the kernel either way.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) normalised."""
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = (
                None if p is None else p.to(input.dtype) for p in (self.weight, self.bias)
            )
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)


def keep_precision_of_norms(network: nn.Module) -> None:
    """Take GroupNorm off autocast's list, in place.

    On a GPU autocast gives its output in float32, and what follows saves that for the backward
    pass: by count, an iteration of gd512's LoRA with 6 crops of 512 takes 41 GB so, and 30 without.
    Sampling stays 60 dB from float32.
    """
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNormAsGiven  # parameters, names and hooks stay


def offload_weights(network: nn.Module, device: torch.device) -> None:
    """Keep weights in CPU memory; hooks bring each layer's to `device` while it runs.

    Outputs are those of device.

    Under autograd they stay on the device, as the backward pass needs them; the next call without
    it puts them back.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # as tensors name theirs
    network.to("cpu")
    for name, buffer in network.named_buffers():
        parent, _, leaf = name.rpartition(".")
        network.get_submodule(parent)._buffers[leaf] = buffer.to(device)
    hooked: set[int] = set()

    def hook_every_layer(root: nn.Module, arguments: Any) -> None:
        """Also of the layers that an adapter has put in since the last call."""
        for module in root.modules():
            if module._parameters and id(module) not in hooked:
                hooked.add(id(module))
                resting: dict[str, nn.Parameter] = {}
                module.register_forward_pre_hook(partial(_bring, resting, device))
                module.register_forward_hook(partial(_put_back, resting))

    network.register_forward_pre_hook(hook_every_layer)


def _bring(
    resting: dict[str, nn.Parameter], device: torch.device, module: nn.Module, arguments: Any
) -> None:
    module._parameters.update(resting)  # not empty where the last call failed midway
    resting.clear()
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.device == device:
            continue
        if torch.is_grad_enabled():
            parameter.data = parameter.data.to(device)
        else:
            resting[name] = parameter
            moved = parameter.data.to(device, non_blocking=True)
            module._parameters[name] = nn.Parameter(moved, requires_grad=False)


def _put_back(
    resting: dict[str, nn.Parameter], module: nn.Module, arguments: Any, output: Any
) -> None:
    if torch.is_grad_enabled():
        return
    for name, parameter in module.named_parameters(recurse=False):
        if name not in resting:
            parameter.data = parameter.data.cpu()  # training left it on the device
    module._parameters.update(
        resting
    )  # the very parameters that rested: no copy back, and not a bit changed
    resting.clear()
