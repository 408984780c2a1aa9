"""What is trained when a backbone is adapted: all of its weights (v1 of the paper) or LoRA on its convolutions (v2)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

# peft imports bitsandbytes where it is installed, which then warns of a kernel for 4-bit weights that nobody here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402


class Attached(Protocol):
    """An adapter in place on a network. `remove` leaves the network bit-identical to what it was before."""

    layers: list[str]
    """Names of the modules that took the adapter."""

    def initialise(self, generator: torch.Generator) -> None: ...
    def parameters(self) -> list[nn.Parameter]: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor]) -> None: ...
    def remove(self) -> None: ...


class Adapter(Protocol):
    """A way to adapt a network: `attach` puts it in place, initially without effect on any output."""

    name: str

    def attach(self, network: nn.Module) -> Attached: ...


@contextmanager
def adapted(network: nn.Module, adapter: Adapter, tensors: dict[str, Tensor]) -> Iterator[nn.Module]:
    """The network with a trained adapter in place; the bare network again afterwards, also after an exception."""
    attached = adapter.attach(network)
    try:
        attached.load(tensors)
        yield network
    finally:
        attached.remove()


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


class AttachedFull:
    """Full fine-tuning in place: a copy of the base weights is kept beside the network, and put back by `remove`."""

    def __init__(self, network: nn.Module):
        self._network = network
        self._base = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        self._required_grad = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        self.layers = list(self._base)
        network.requires_grad_(True)

    def initialise(self, generator: torch.Generator) -> None:
        """Nothing to draw: full fine-tuning starts from the base weights."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return list(self._network.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """All weights as they are now, on the CPU."""
        return {name: p.detach().cpu().clone().contiguous() for name, p in self._network.named_parameters()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put stored weights into the network. Raises ValueError when names or shapes differ."""
        copy_into(dict(self._network.named_parameters()), tensors)

    def remove(self) -> None:
        """Put the base weights back."""
        copy_into(dict(self._network.named_parameters()), self._base)
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(self._required_grad[name])
            parameter.grad = None


@dataclass(frozen=True)
class Lora:
    """LoRA (Hu et al., 2021) through peft; v2 of the paper: every convolution, rank 16, alpha 8.

    The update of a layer is (alpha / rank) B A with B = 0 at first.  layers: `convolutions`, `attention` (its linear
    projections) or `all`.
    """

    rank: int = 16
    alpha: float = 8
    layers: str = "convolutions"
    name: str = "lora"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter=lora: rank={self.rank}, but a rank is at least 1")
        if self.layers not in LAYER_KINDS:
            raise ValueError(f"adapter=lora: unknown layers={self.layers!r}; choose one of {', '.join(LAYER_KINDS)}")

    def attach(self, network: nn.Module) -> "AttachedLora":
        """Wrap the chosen layers. Raises ValueError when there are none: an adapter on nothing would score like none."""
        belongs = LAYER_KINDS[self.layers]
        targets = [name for name, module in network.named_modules() if belongs(name, module)]
        if not targets:
            raise ValueError(f"adapter=lora: layers={self.layers!r} matches no layer of {type(network).__name__}")
        return AttachedLora(network, LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets), targets)


def _is_convolution(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _is_attention(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and ".attentions." in name  # diffusers' name for its attention blocks


LAYER_KINDS: dict[str, Callable[[str, nn.Module], bool]] = {
    "convolutions": _is_convolution,
    "attention": _is_attention,
    "all": lambda name, module: _is_convolution(name, module) or _is_attention(name, module),
}


class AttachedLora:
    """LoRA in place: peft has swapped the chosen layers of the network for wrapped ones."""

    def __init__(self, network: nn.Module, config: LoraConfig, layers: list[str]):
        self._network = network
        self.layers = layers
        self._required_grad = [parameter.requires_grad for parameter in network.parameters()]
        self._base_parameters = list(network.parameters())
        with torch.random.fork_rng(devices=[]):  # peft draws A from the global generator; `initialise` sets it anew
            self._peft: PeftModel = get_peft_model(network, config)
        self._peft.eval()
        self._named = {name: p for name, p in network.named_parameters() if ".lora_" in name}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw A from the given generator (uniform with bound 1/sqrt(fan_in), peft's default law); B stays 0."""
        with torch.no_grad():
            for name, parameter in self._named.items():
                if ".lora_A." in name:
                    bound = parameter[0].numel() ** -0.5
                    draw = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
                    parameter.copy_((2 * draw - 1) * bound)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: A and B of every wrapped layer."""
        return list(self._named.values())

    def tensors(self) -> dict[str, Tensor]:
        """A and B of every wrapped layer, on the CPU."""
        return {name: p.detach().cpu().clone().contiguous() for name, p in self._named.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put stored A and B in place. Raises ValueError when names or shapes differ."""
        copy_into(self._named, tensors)

    def remove(self) -> None:
        """Swap the plain layers back."""
        self._peft.unload()
        for parameter, required in zip(self._base_parameters, self._required_grad, strict=True):
            parameter.requires_grad_(required)
        self._network.__dict__.pop("peft_config", None)


@torch.no_grad()
def copy_into(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Copy tensors into parameters of the same names and shapes; ValueError names the first that differs."""
    for name in sorted(parameters.keys() | tensors.keys()):
        have = tuple(tensors[name].shape) if name in tensors else None
        want = tuple(parameters[name].shape) if name in parameters else None
        if have != want:
            raise ValueError(
                f"the adapter does not fit the network: {name} is {have} in the file, {want} in the network"
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
