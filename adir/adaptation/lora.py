"""LoRA (Hu et al., 2021) on a backbone's convolutions and attention layers.

The module selects the layers, wraps them for training, and merges a trained update into them.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adir.adaptation.exchange import copy_into, exchange, on_cpu, require_fit


@dataclass(frozen=True)
class Lora:
    """LoRA adapter (Hu et al., 2021) made by peft; the defaults are those of version 2 of ADIR.

    LoRA adds the update (alpha / rank) B A to the weight of a layer, with B = 0 before training. On
    an accelerator `apply` adds the update to a copy of the weight, so that sampling takes as long
    as with the network alone. On a CPU `apply` wraps the layers in modules that compute the update,
    because a copy of a big network's weights takes a second.

    Attributes:
        rank: rank of the update.
        alpha: numerator of the update's scale, alpha / rank.
        layers: kind of layers to adapt, or a list of kinds and ends of layer names. Such an end is
            `to_q` or `mid_block.resnets.0.conv1`. The kinds are `convolutions`; `attention` (the
            projections q, k, v and out, and the projections into and out of a transformer block);
            `feed_forward` (the linear layers in the feed-forward part of a transformer block); and
            `all`, which is these three.
        name: name in paths and tables.
    """

    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    trains_every_weight: ClassVar[bool] = False
    rank: int = 16
    alpha: float = 8
    layers: str | list[str] = "convolutions"
    name: str = "lora"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(
                f"adapter=lora: rank={self.rank!r}, but a rank is a whole number of at least 1"
            )
        wanted = [self.layers] if isinstance(self.layers, str) else self.layers
        if not wanted:
            raise ValueError(
                "adapter=lora: layers=[] names no layer, so nothing would be adapted; choose from "
                f"{', '.join(LAYER_KINDS)}"
            )
        if isinstance(self.layers, str) and self.layers not in LAYER_KINDS:
            raise ValueError(
                f"adapter=lora: unknown layers={self.layers!r}; choose one of "
                f"{', '.join(LAYER_KINDS)}, or give a list of these and of suffixes of layer "
                "names, such as [to_q,to_v]"
            )

    def targets(self, network: nn.Module) -> list[str]:
        """Return the names of the layers to adapt, in the network's order.

        Raises:
            ValueError: if an entry of `layers` matches no layer. Without this error, the adapter
                would have no effect, and results would silently equal those without adaptation.
        """
        linear_or_convolution = [
            (name, module)
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        chosen: set[str] = set()
        for wanted in [self.layers] if isinstance(self.layers, str) else self.layers:
            matches = LAYER_KINDS.get(wanted) or ends_with(wanted)
            names = [name for name, module in linear_or_convolution if matches(name, module)]
            if not names:
                raise ValueError(
                    f"adapter=lora: layers={wanted!r} matches no layer of {type(network).__name__}"
                )
            chosen.update(names)
        return [name for name, _ in linear_or_convolution if name in chosen]

    def attach(self, network: nn.Module) -> "AttachedLora":
        """Wrap the layers to adapt, for training.

        Raises:
            ValueError: if an entry of `layers` matches no layer.
        """
        attached = AttachedLora(network, wrapped_layers(self, network))
        attached.initialise(torch.Generator().manual_seed(0))
        return attached

    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Apply trained A and B: wrap the layers of a network on a CPU, merge on other devices.

        To merge is to add B A to the weights.

        Returns:
            The function that restores the network.

        Raises:
            ValueError: if the tensors do not fit the network.
        """
        if next(network.parameters()).device.type != "cpu":
            return self.merge(network, tensors)
        attached = AttachedLora(network, wrapped_layers(self, network))
        try:
            attached.load(tensors)
        except BaseException:
            attached.remove()
            raise
        return attached.remove

    @torch.no_grad()
    def merge(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Replace the weight W of each layer to adapt by W + (alpha / rank) B A, summed in float32.

        Returns:
            The function that restores the weights.

        Raises:
            ValueError: if the tensors do not fit the network.
        """
        weights = {name: weight_of(network.get_submodule(name)) for name in self.targets(network)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, weight in weights.items():
            shapes[f"{name}.lora_A.default.weight"] = (self.rank, *weight.shape[1:])
            shapes[f"{name}.lora_B.default.weight"] = (weight.shape[0], self.rank) + (1,) * (
                weight.ndim - 2
            )
        require_fit(shapes, tensors)
        merged = []
        for name, weight in weights.items():
            A, B = (
                tensors[f"{name}.lora_{which}.default.weight"].to(weight.device).float()
                for which in "AB"
            )
            update = (self.alpha / self.rank) * (B.flatten(1) @ A.flatten(1)).view(weight.shape)
            merged.append((weight, torch.empty_like(weight).copy_(weight.float() + update)))
        return exchange(merged)


Matches = Callable[[str, nn.Module], bool]

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out")


def ends_with(*ends: str) -> Matches:
    """Return a function that checks whether a layer's name ends in one of `ends`.

    Only whole components of the dotted name match: `to_q` matches `to_q` and `attn1.to_q`, but not
    `into_q`.
    """
    return lambda name, module: any(f".{name}".endswith(f".{end}") for end in ends)


def _is_convolution(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _is_attention(name: str, module: nn.Module) -> bool:
    # diffusers' names of the modules
    return ".attentions." in name and ends_with(*ATTENTION_PROJECTIONS)(name, module)


def _is_feed_forward(name: str, module: nn.Module) -> bool:
    return ".attentions." in name and ".ff." in name


LAYER_KINDS: dict[str, Matches] = {
    "convolutions": _is_convolution,
    "attention": _is_attention,
    "feed_forward": _is_feed_forward,
    "all": lambda name, module: any(
        belongs(name, module) for belongs in (_is_convolution, _is_attention, _is_feed_forward)
    ),
}


@dataclass(frozen=True)
class Wrapped:
    """Layer of a network, and peft's wrapper that can take its place."""

    name: str
    plain: nn.Module
    wrapper: nn.Module


_wrapped: "weakref.WeakKeyDictionary[nn.Module, tuple[Lora, list[Wrapped]]]" = (
    weakref.WeakKeyDictionary()
)
"""The latest wrappers of each network, cached for reuse.

peft takes 0.2 s to wrap a network of 500 M parameters, and a loaded network is adapted once per
image. A compiled network is compiled again for new modules, but not for cached ones.
"""


def wrapped_layers(lora: Lora, network: nn.Module) -> list[Wrapped]:
    """Return the layers to adapt and peft's wrappers of them, and leave the network unchanged.

    The wrappers are cached in `_wrapped` for the next call.

    Raises:
        ValueError: if an entry of `lora.layers` matches no layer, or if the network already has an
            adapter of peft.
    """
    known, layers = _wrapped.get(network, (None, []))
    names = lora.targets(network)
    if (
        known == lora
        and [layer.name for layer in layers] == names
        and all(network.get_submodule(layer.name) is layer.plain for layer in layers)
    ):
        return layers
    plain = {name: network.get_submodule(name) for name in names}
    required_grad = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    if hasattr(network, "peft_config"):
        raise ValueError(
            f"adapter=lora: this {type(network).__name__} already has an adapter of peft; "
            "remove that adapter first"
        )
    # Imported here, because peft takes 3 s to import. peft imports bitsandbytes if that is
    # installed, and bitsandbytes warns of a kernel for 4-bit weights, which ADIR does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model

    # peft draws A from the global generator, and `initialise` draws A again.
    with torch.random.fork_rng(devices=[]):
        get_peft_model(
            network, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
        ).eval()
    layers = [Wrapped(name, plain[name], network.get_submodule(name)) for name in names]
    for layer in layers:
        network.set_submodule(layer.name, layer.plain)
    network.__dict__.pop("peft_config", None)
    for parameter, required in required_grad:
        parameter.requires_grad_(required)
    _wrapped[network] = (lora, layers)
    return layers


class AttachedLora:
    """LoRA adapter that is attached to a network: only A and B of the wrapped layers train."""

    def __init__(self, network: nn.Module, layers: list[Wrapped]):
        self._network, self._layers = network, layers
        self.layers = [layer.name for layer in layers]
        self._required_grad = [
            (parameter, parameter.requires_grad) for parameter in network.parameters()
        ]
        network.requires_grad_(False)
        self._named: dict[str, nn.Parameter] = {}
        for layer in layers:
            network.set_submodule(layer.name, layer.wrapper)
            for name, parameter in layer.wrapper.named_parameters():
                if name.startswith("lora_"):
                    # The network may have moved since the wrapper was cached.
                    parameter.data = parameter.data.to(weight_of(layer.plain).device)
                    parameter.requires_grad_(True)
                    self._named[f"{layer.name}.{name}"] = parameter

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw A from the generator and set B to 0.

        A is uniform with bound 1 / sqrt(fan_in), as in peft by default.
        """
        for name, parameter in self._named.items():
            if ".lora_A." in name:
                bound = parameter[0].numel() ** -0.5
                draw = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_((2 * draw - 1) * bound)
            else:
                parameter.zero_()

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters: A and B of every wrapped layer."""
        return list(self._named.values())

    def tensors(self) -> dict[str, Tensor]:
        """Return A and B of every wrapped layer, on the CPU."""
        return {name: on_cpu(parameter) for name, parameter in self._named.items()}

    def scaled(self, tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """Return A and B with B multiplied by `alpha`, because the update is linear in B."""
        return {
            name: tensor * alpha if ".lora_B." in name else tensor
            for name, tensor in tensors.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved A and B into the wrappers.

        Raises:
            ValueError: if names or shapes differ from those of the wrappers' A and B.
        """
        copy_into(self._named, tensors)

    def remove(self) -> None:
        """Put the original layers back, restore requires_grad, and clear gradients."""
        for layer in self._layers:
            self._network.set_submodule(layer.name, layer.plain)
        for parameter, required in self._required_grad:
            parameter.requires_grad_(required)
        for parameter in self._named.values():
            parameter.grad = None


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a convolution or a linear layer."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight
