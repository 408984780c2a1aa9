"""Functions that exchange, copy and compare the tensors of a network.

`exchange` swaps references, so the previous tensors can be restored bit for bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def exchange(pairs: list[tuple[nn.Parameter, Tensor]]) -> Callable[[], None]:
    """Make each parameter hold the tensor paired with it.

    Returns:
        The function that makes the parameters hold their previous tensors again.
    """
    former = [(parameter, parameter.data) for parameter, _ in pairs]
    for parameter, tensor in pairs:
        parameter.data = tensor

    def put_back() -> None:
        for parameter, tensor in former:
            parameter.data = tensor

    return put_back


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return the tensor with the dtype, device and memory layout of the parameter.

    A tensor that has these three already is returned without a copy.
    """
    same = (tensor.dtype, tensor.device, tensor.stride()) == (
        parameter.dtype,
        parameter.device,
        parameter.stride(),
    )
    return tensor if same else torch.empty_like(parameter).copy_(tensor)


def on_cpu(parameter: Tensor) -> Tensor:
    """Return a contiguous copy of a parameter on the CPU."""
    return parameter.detach().cpu().clone(memory_format=torch.contiguous_format)


def require_fit(shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless the names and shapes of the tensors are those in `shapes`.

    The message names the first tensor that differs.
    """
    for name in sorted(shapes.keys() | tensors.keys()):
        have = tuple(tensors[name].shape) if name in tensors else None
        want = shapes.get(name)
        if have != want:
            raise ValueError(
                f"the adapter does not fit the network: tensor {name} has shape {have} in the "
                f"file, but {want} in the network (None: there is no such tensor)"
            )


@torch.no_grad()
def copy_into(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Copy tensors into parameters of the same names and shapes.

    Raises:
        ValueError: if a name or shape differs; the message names the first such tensor.
    """
    require_fit({name: tuple(parameter.shape) for name, parameter in parameters.items()}, tensors)
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
