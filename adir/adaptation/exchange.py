"""Tensors put into a network and taken out of it: by exchanging pointers, so the former ones come
back to the bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def exchange(pairs: list[tuple[nn.Parameter, Tensor]]) -> Callable[[], None]:
    """Let each parameter hold the tensor beside it; the function that lets it hold its former one
    again.
    """
    former = [(parameter, parameter.data) for parameter, _ in pairs]
    for parameter, tensor in pairs:
        parameter.data = tensor

    def put_back() -> None:
        for parameter, tensor in former:
            parameter.data = tensor

    return put_back


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the type, on the device and in the memory layout of the parameter; itself where
    it is so already.
    """
    same = (tensor.dtype, tensor.device, tensor.stride()) == (
        parameter.dtype,
        parameter.device,
        parameter.stride(),
    )
    return tensor if same else torch.empty_like(parameter).copy_(tensor)


def on_cpu(parameter: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return parameter.detach().cpu().clone(memory_format=torch.contiguous_format)


def require_fit(shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> None:
    """Raise ValueError, which names the first tensor that differs, unless `tensors` has these names
    and shapes.
    """
    for name in sorted(shapes.keys() | tensors.keys()):
        have = tuple(tensors[name].shape) if name in tensors else None
        want = shapes.get(name)
        if have != want:
            raise ValueError(
                f"the adapter does not fit the network: {name} is {have} in the file, {want} in "
                "the network"
            )


@torch.no_grad()
def copy_into(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Copy tensors into parameters of the same names and shapes; ValueError names the first that
    differs.
    """
    require_fit({name: tuple(parameter.shape) for name, parameter in parameters.items()}, tensors)
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
