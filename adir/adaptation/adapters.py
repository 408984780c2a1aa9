"""All weights of a backbone as what is trained: v1 of the paper. (LoRA, v2's, is in lora.py.)"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adir.adaptation.exchange import copy_into, exchange, like, on_cpu, require_fit


@dataclass(frozen=True)
class Full:
    """Train every weight, as v1 of the paper does.

    The stored tensors are the weights themselves, not differences: adding a float32 difference to a
    float32 weight does not give the trained weight back to the bit.
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    trains_every_weight: ClassVar[bool] = True
    name: str = "full"

    def attach(self, network: nn.Module) -> "AttachedFull":
        """Every parameter of the network becomes trainable. Raises ValueError when it has none."""
        if not any(True for _ in network.parameters()):
            raise ValueError("adapter=full: this network has no parameters to train")
        return AttachedFull(network)

    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Exchange the weights for the stored ones, which the network reads where they lie when
        device, type and layout
        allow: on a CPU a big network is switched without a copy. Do not write to `tensors`
            meanwhile.
        """
        parameters = dict(network.named_parameters())
        require_fit({name: tuple(p.shape) for name, p in parameters.items()}, tensors)
        with torch.no_grad():
            return exchange([(p, like(p, tensors[name])) for name, p in parameters.items()])


class AttachedFull:
    """Full fine-tuning in place: the weights that train are copies, the base weights wait, and
    `remove` puts them back.
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
        """Nothing to draw: full fine-tuning starts from the base weights."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return list(self._network.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """All weights as they are now, on the CPU."""
        return {name: on_cpu(parameter) for name, parameter in self._network.named_parameters()}

    def scaled(self, tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """Return the weights that far on the way from the base weights to these."""
        return {
            name: on_cpu(self._base[name]).lerp(tensor, alpha) for name, tensor in tensors.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put stored weights into the network. Raises ValueError when names or shapes differ."""
        copy_into(dict(self._network.named_parameters()), tensors)

    def remove(self) -> None:
        """Put the base weights back."""
        self._put_back()
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(self._required_grad[name])
            parameter.grad = None
