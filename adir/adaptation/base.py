"""What an adapter is: what is trained when a backbone is adapted, and how it is put in place to be
used.

An adapter is *attached* to be trained and *applied* to be used. Both are switched by exchanging
pointers, never by adding and subtracting, so the base weights come back to the bit in any precision
and memory layout, and at once.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from adir.backbones.base import Backbone


class Attached(Protocol):
    """An adapter in place on a network, to be trained."""

    layers: list[str]
    """Names of the modules (of `full`: the parameters) that took the adapter."""

    def initialise(self, generator: torch.Generator) -> None:
        """Draw what is random in it; still without effect on any output."""

    def parameters(self) -> list[nn.Parameter]:
        """What trains."""

    def tensors(self) -> dict[str, Tensor]:
        """What is stored of it, on the CPU."""

    def scaled(self, tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """Return the tensors of alpha times the update of these, alpha in [0, 1]; 0 is without
        effect.
        """

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put stored tensors in place. Raises ValueError when names or shapes differ."""

    def remove(self) -> None:
        """Leave the network bit-identical to what it was before."""


class Adapter(Protocol):
    """A way to adapt a network."""

    @property
    def name(self) -> str:
        """In configurations, paths and tables."""

    version: ClassVar[int]
    """Of the class, with `name` and the settings part of a cell's identity: raised when a change
    changes its result.
    """
    trains_every_weight: ClassVar[bool]
    """Whether it trains the network's own weights, all of them: then a trained one takes no time in
    the network, and its tensors are as large. Others stand beside the weights, and take time there
    unless they are merged.
    """

    def attach(self, network: nn.Module) -> Attached:
        """Put it in place to be trained, without effect on any output.

        Raises ValueError where it fits no layer.
        """

    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Put a trained one in place to be used without gradients; returns what undoes it.

        Raises ValueError, and leaves the network as it was, where the tensors do not fit.
        """


@contextmanager
def adapted(
    network: nn.Module, adapter: Adapter, tensors: dict[str, Tensor]
) -> Iterator[nn.Module]:
    """Put a trained adapter in place on a network; the bare network comes back afterwards, also
    after an exception.
    """
    remove = adapter.apply(network, tensors)
    try:
        yield network
    finally:
        remove()


@contextmanager
def adapted_at(
    backbone: Backbone,
    adapter: Adapter,
    tensors: dict[str, Tensor],
    ranges: Collection[tuple[int, int]],
) -> Iterator[None]:
    """Let a backbone predict with a trained adapter at some timesteps, and without it at all
    others.

    Args:
        backbone: whose `predict` obeys, whatever the sampler.
        adapter: of the tensors.
        tensors: trained.
        ranges: (first, last) timesteps, both inclusive, at which the adapter is in place.
    """
    remove: Callable[[], None] | None = None

    def gate(t: Tensor) -> None:
        nonlocal remove
        wanted = {any(first <= step <= last for first, last in ranges) for step in t.tolist()}
        if len(wanted) > 1:
            raise ValueError(
                f"one batch asks for timesteps {t.tolist()}, some with the adapter and some without"
            )
        # It stays until a call wants the other state: a gradient of the last call still needs these
        # weights.
        if True in wanted and remove is None:
            remove = adapter.apply(backbone.network, tensors)
        elif False in wanted and remove is not None:
            remove()
            remove = None

    backbone.gate = gate
    try:
        yield
    finally:
        backbone.gate = None
        if remove is not None:
            remove()


def in_place(
    backbone: Backbone,
    adapter: Adapter,
    tensors: dict[str, Tensor],
    strata: Sequence[dict[str, float]] | None = None,
) -> AbstractContextManager[Any]:
    """Let a backbone predict with a trained adapter, everywhere or only where its held-out loss
    fell.

    Args:
        backbone: to be adapted; as it was when the context ends.
        adapter: of the tensors.
        tensors: trained.
        strata: of `adir.adaptation.fine_tuning.HeldOut`; None: everywhere.
    """
    if strata is None:
        return adapted(backbone.network, adapter, tensors)
    helped = [
        (int(one["t_first"]), int(one["t_last"]))
        for one in strata
        if one["adapted"] < one["untuned"]
    ]
    return adapted_at(backbone, adapter, tensors, helped)
