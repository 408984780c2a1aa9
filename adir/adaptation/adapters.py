"""Adapter that trains all weights of a backbone, as in version 1 of the paper on arXiv.

LoRA, the adapter of version 2, is in lora.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adir.adaptation.exchange import copy_into, exchange, like, on_cpu, require_fit


@dataclass(frozen=True)
class Full:
    """Adapter that trains every weight of a network, as in version 1 of the paper on arXiv.

    The saved tensors are the trained weights themselves. Saved differences from the base weights
    would be inexact, because a float32 sum of base weight and difference is rounded.
    """

    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    trains_every_weight: ClassVar[bool] = True
    name: str = "full"

    def attach(self, network: nn.Module) -> "AttachedFull":
        """Make every parameter of the network trainable.

        Raises:
            ValueError: if the network has no parameters.
        """
        if not any(True for _ in network.parameters()):
            raise ValueError("adapter=full: this network has no parameters to train")
        return AttachedFull(network)

    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Replace the network's weights, and return a function that restores them.

        A tensor with the device, dtype and memory layout of its parameter is used without a copy.
        This makes it fast to apply the adapter to a big network on a CPU.

        Args:
            network: the network, with its base weights.
            tensors: {parameter name: trained weight}. Do not write to them until the returned
                function has been called.

        Raises:
            ValueError: if names or shapes differ from those of the network's parameters.
        """
        parameters = dict(network.named_parameters())
        require_fit({name: tuple(p.shape) for name, p in parameters.items()}, tensors)
        with torch.no_grad():
            return exchange([(p, like(p, tensors[name])) for name, p in parameters.items()])


class AttachedFull:
    """Full adapter that is attached to a network: the network's weights are trainable copies.

    The original weights are kept as the base weights, and `remove` restores them.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._required_grad = {
            name: parameter.requires_grad for name, parameter in network.named_parameters()
        }
        self._base = {name: parameter.data for name, parameter in network.named_parameters()}
        self._put_back = exchange([(p, p.data.clone()) for p in network.parameters()])
        self.layers = list(self._required_grad)
        network.requires_grad_(True)

    def initialise(self, generator: torch.Generator) -> None:
        """Do nothing, because full fine-tuning starts from the base weights."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters: all of the network's."""
        return list(self._network.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Return CPU copies of all weights in their current state."""
        return {name: on_cpu(parameter) for name, parameter in self._network.named_parameters()}

    def scaled(self, tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """Return the weights base + alpha (tensors - base), on the CPU; alpha is in [0, 1]."""
        return {
            name: on_cpu(self._base[name]).lerp(tensor, alpha) for name, tensor in tensors.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved weights into the network.

        Raises:
            ValueError: if names or shapes differ from those of the network's parameters.
        """
        copy_into(dict(self._network.named_parameters()), tensors)

    def remove(self) -> None:
        """Restore the base weights and each parameter's requires_grad, and clear gradients."""
        self._put_back()
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(self._required_grad[name])
            parameter.grad = None
