"""Execution settings of a network, which affect its speed and memory.

The settings are device, precision, memory layout, gradient checkpointing, compilation, attention
kernel, and offload of weights to CPU memory. docs/speed.md lists the cost of each. Only the
precision, `dtype`, changes results by more than rounding errors. It alone is therefore part of the
settings that identify a result.

Weights are stored in float32 whatever the precision. With bfloat16 or float16, autocast casts
copies of them for convolutions, matrix products and attention. A GroupNorm returns the dtype of its
input and computes its sums in float32. The same loaded network can therefore be trained with
float32 master weights and used for sampling in bfloat16. After an adapter is removed, the weights
can be compared in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


@dataclass(frozen=True)
class Execution:
    """Execution settings of a network.

    Attributes:
        device: torch device, such as "cuda:1".
        dtype: float32, or the autocast precision bfloat16 or float16.
        channels_last: whether to use the NHWC memory layout, which is faster on tensor cores.
        gradient_checkpointing: whether to recompute the activations of each residual block in the
            backward pass instead of storing them. Training then takes about a third more time and a
            fraction of the memory.
        compile: whether to use torch.compile. Compiling a big network takes minutes, once per image
            size and batch size.
        attention: kernel of scaled dot product attention: default (torch's choice), math,
            efficient, flash or cudnn.
        offload: whether to keep the weights in CPU memory, and each layer's weights on the device
            only while the layer runs. In training, the weights stay on the device.

    Raises:
        ValueError: if a value is unknown, or if two values cannot be combined.
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
                raise ValueError(f"{what}={getattr(self, what)!r} must be true or false")
        kind = device_of(self.device).type
        if self.offload and kind == "cpu":
            raise ValueError(
                "offload=true with device=cpu: the weights are already in CPU memory; "
                "use offload=false"
            )
        if self.offload and self.compile:
            raise ValueError(
                "offload=true and compile=true cannot be combined, because a compiled network "
                "cannot move its weights during a call; choose one of them"
            )
        if self.attention in ("flash", "cudnn") and self.dtype == "float32" and kind != "cpu":
            raise ValueError(
                f"attention={self.attention} has no float32 kernel: use dtype=bfloat16, or "
                "attention=default"
            )

    def prepare(self, network: nn.Module) -> nn.Module:
        """Apply the settings to a network in place, move it to the device, and return it.

        This function also switches off TF32 in the whole process. TF32 is torch's default precision
        of convolutions on a GPU. Its error of 1e-3 is too large, because results on two devices
        should differ only by rounding.

        Raises ValueError if gradient_checkpointing is true and the network does not support it.
        """
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.dtype != "float32":
            keep_precision_of_norms(network)
        if self.gradient_checkpointing:
            # Imported here because diffusers takes seconds, and samplers import this file for a
            # type.
            from diffusers import ModelMixin

            if not isinstance(network, ModelMixin):
                raise ValueError(
                    f"gradient_checkpointing=true: {type(network).__name__} does not support it; "
                    "use gradient_checkpointing=false"
                )
            network.enable_gradient_checkpointing(recompute)
        if self.offload:
            offload_weights(network, torch.device(self.device))
        else:
            network.to(self.device)
        if self.compile:
            # Compiles in place, so that parameter names and adapters stay valid.
            network.compile(dynamic=False)
        return network

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Return a context in which networks run with this precision and attention kernel."""
        backends = ATTENTION[self.attention]
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
        """The `precision` argument of a Lightning trainer for this dtype.

        For float16 it is "16-mixed", with which Lightning also scales the loss. This prevents
        gradients from underflowing to 0.
        """
        return {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[self.dtype]


def device_of(name: str) -> torch.device:
    """Return the torch device with a name such as "cpu" or "cuda:1".

    Raises ValueError if the name is invalid or this machine has no such CUDA device.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={name!r} is not a torch device; use cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f"device={name}: torch finds {count} CUDA device{'' if count == 1 else 's'} here; "
                "use device=cpu or another index"
            )
    return device


def recompute(module: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module with gradient checkpointing (Chen et al., 2016), and return its output.

    The backward pass recomputes the activations inside the module, which are not stored. torch's
    non-reentrant implementation is used, because the reentrant implementation gives parameters no
    gradient if no input of the module requires one, as with LoRA on frozen weights. The state of
    the random generators is not saved, because networks in eval mode draw no random numbers.
    """
    return checkpoint(module, *arguments, use_reentrant=False, preserve_rng_state=False)


class GroupNormAsGiven(nn.GroupNorm):
    """GroupNorm whose output has the dtype of its input, even under autocast.

    torch's kernel computes the mean and the variance in float32 for every input dtype.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (B, C, ...)."""
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = (
                None if p is None else p.to(input.dtype) for p in (self.weight, self.bias)
            )
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)


def keep_precision_of_norms(network: nn.Module) -> None:
    """Exempt the GroupNorms of a network from autocast, in place.

    On a GPU, a GroupNorm under autocast returns float32, and the next layer stores this output for
    the backward pass. An exempt GroupNorm returns the precision of its input, so half precision
    needs half that memory. For example, one training iteration of
    backbone gd512 with LoRA and 6 crops of 512x512 pixels takes 41 GB with GroupNorms under
    autocast, and 30 GB with exempt GroupNorms (counted from tensor sizes). With exempt GroupNorms,
    samples in half precision agree with float32 samples to 60 dB.
    """
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            # Changing the class keeps parameters, names and hooks.
            module.__class__ = GroupNormAsGiven


def offload_weights(network: nn.Module, device: torch.device) -> None:
    """Keep a network's weights in CPU memory, and on `device` only those of the running layer.

    Hooks copy the weights of a layer to `device` before the layer runs, and drop the copies
    afterwards. The outputs equal those of the whole network on `device`.

    If gradients are enabled, the weights are moved to `device` and stay there, because the backward
    pass needs them. The next call without gradients moves them back.
    """
    if device.type == "cuda" and device.index is None:
        # A tensor's device has an index, and `_bring` compares the two.
        device = torch.device("cuda", torch.cuda.current_device())
    network.to("cpu")
    for name, buffer in network.named_buffers():
        parent, _, leaf = name.rpartition(".")
        network.get_submodule(parent)._buffers[leaf] = buffer.to(device)
    hooked: set[int] = set()

    def hook_every_layer(root: nn.Module, arguments: Any) -> None:
        """Add hooks `_bring` and `_put_back` to each layer with weights that has no hooks yet.

        It runs before each call of the network, because adapters may have added layers.
        """
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
    """Replace a layer's parameters by copies on `device`, before the layer runs.

    The original parameters, which are in CPU memory, are stored in `resting` for `_put_back`. If
    gradients are enabled, the original parameters are moved to `device` instead.
    """
    module._parameters.update(resting)  # not empty if the last call failed midway
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
    """Restore a layer's original parameters, which are in `resting`, after the layer has run.

    Parameters that training left on the device are moved to CPU memory. If gradients are enabled,
    this function does nothing.
    """
    if torch.is_grad_enabled():
        return
    for name, parameter in module.named_parameters(recurse=False):
        if name not in resting:
            parameter.data = parameter.data.cpu()  # training left it on the device
    # The original objects return, so nothing is copied back and no bit changes.
    module._parameters.update(resting)
    resting.clear()
