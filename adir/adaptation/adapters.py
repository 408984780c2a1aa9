"""What is trained when a backbone is adapted: all of its weights (v1 of the paper) or LoRA on its convolutions (v2).

An adapter is *attached* to be trained and *applied* to be used. Both are switched by exchanging pointers, never by adding
and subtracting, so the base weights come back to the bit in any precision and memory layout, and at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from adir.adaptation.exchange import copy_into, exchange, like, on_cpu, require_fit
from adir.adaptation.lora import Lora

__all__ = ["Adapter", "Attached", "AttachedFull", "Full", "Lora", "adapted", "training_summary"]


class Attached(Protocol):
    """An adapter in place on a network. `remove` leaves the network bit-identical to what it was before."""

    layers: list[str]
    """Names of the modules (of `full`: the parameters) that took the adapter."""

    def initialise(self, generator: torch.Generator) -> None: ...
    def parameters(self) -> list[nn.Parameter]: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor]) -> None: ...
    def remove(self) -> None: ...


class Adapter(Protocol):
    """A way to adapt a network.

    `attach` puts it in place to be trained, initially without effect on any output. `apply` puts a trained one in place to
    be used without gradients, and gives back what undoes it; ValueError, and the network as it was, where the tensors do
    not fit.
    """

    name: str

    def attach(self, network: nn.Module) -> Attached: ...
    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]: ...


@contextmanager
def adapted(network: nn.Module, adapter: Adapter, tensors: dict[str, Tensor]) -> Iterator[nn.Module]:
    """The network with a trained adapter in place; the bare network again afterwards, also after an exception."""
    remove = adapter.apply(network, tensors)
    try:
        yield network
    finally:
        remove()


def training_summary(adapter: Adapter, layers: list[str], n_parameters: int, network: nn.Module) -> str:
    """One line for people: `lora: 8.9 M parameters train beside 529.5 M, in 124 layers (conv_in ... conv_out)`."""
    total = sum(parameter.numel() for parameter in network.parameters())
    beside = "of" if adapter.name == "full" else "beside"
    what = "tensors" if adapter.name == "full" else "layers"
    few = layers if len(layers) <= 4 else [layers[0], "...", layers[-1]]
    return (
        f"{adapter.name}: {n_parameters / 1e6:.3g} M parameters train {beside} {total / 1e6:.4g} M, "
        f"in {len(layers)} {what} ({' '.join(few)})"
    )


@dataclass(frozen=True)
class Full:
    """Train every weight, as v1 of the paper does. The stored tensors are the weights themselves, not differences:
    adding a float32 difference to a float32 weight does not give the trained weight back to the bit."""

    name: str = "full"

    def attach(self, network: nn.Module) -> "AttachedFull":
        """Every parameter of the network becomes trainable. Raises ValueError when it has none."""
        if not any(True for _ in network.parameters()):
            raise ValueError("adapter=full: this network has no parameters to train")
        return AttachedFull(network)

    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Exchange the weights for the stored ones, which the network reads where they lie when device, type and layout
        allow: on a CPU a big network is switched without a copy. Do not write to `tensors` meanwhile."""
        parameters = dict(network.named_parameters())
        require_fit({name: tuple(p.shape) for name, p in parameters.items()}, tensors)
        with torch.no_grad():
            return exchange([(p, like(p, tensors[name])) for name, p in parameters.items()])


class AttachedFull:
    """Full fine-tuning in place: the weights that train are copies, the base weights wait, and `remove` puts them back."""

    def __init__(self, network: nn.Module):
        self._network = network
        self._required_grad = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
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

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put stored weights into the network. Raises ValueError when names or shapes differ."""
        copy_into(dict(self._network.named_parameters()), tensors)

    def remove(self) -> None:
        """Put the base weights back."""
        self._put_back()
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(self._required_grad[name])
            parameter.grad = None
