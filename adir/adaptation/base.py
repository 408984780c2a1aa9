"""Interfaces of adapters, and context managers that apply a trained adapter to a network.

An adapter adds trainable tensors to a network, or makes the network's own weights trainable. It is
*attached* to a network for training, and *applied* to a network for inference. Attaching and
applying replace the network's tensors or modules by others, and never write into the base weights.
Full fine-tuning trains a copy of the weights. Removing an
adapter therefore restores the base weights bit for bit, in any precision and memory layout, and at
no cost.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from adir.backbones.base import Backbone


class Attached(Protocol):
    """Adapter that is attached to a network for training."""

    layers: list[str]
    """The names of the modules that carry the adapter; for `full`, the names of the parameters."""

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the adapter's random initial values, which change no output of the network."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the adapter's tensors on the CPU, to be saved or loaded later."""

    def scaled(self, tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """Return adapter tensors that change the weights by alpha times the change by `tensors`.

        Args:
            tensors: the tensors of a trained adapter.
            alpha: factor in [0, 1]; 0 leaves the network's outputs unchanged.
        """

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved tensors into the adapter.

        Raises:
            ValueError: if names or shapes differ from those of the adapter's tensors.
        """

    def remove(self) -> None:
        """Detach the adapter and restore the network bit for bit."""


class Adapter(Protocol):
    """Method of adapting a network, with its settings."""

    @property
    def name(self) -> str:
        """The adapter's name in configurations, paths and tables."""

    version: ClassVar[int]
    """The version of the class, to be raised when a change of the class changes its result.

    A cell's identity contains the version, the name and the settings of the adapter.
    """
    trains_every_weight: ClassVar[bool]
    """Whether the adapter trains all of the network's own weights.

    If true, a trained adapter adds no computation to the network, and its tensors are as large as
    the network. If false, the adapter is computed beside the weights, which takes time unless it is
    merged into them.
    """

    def attach(self, network: nn.Module) -> Attached:
        """Attach a new adapter for training; before training, it changes no output of the network.

        Raises:
            ValueError: if the adapter fits no layer of the network.
        """

    def apply(self, network: nn.Module, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """Apply a trained adapter for inference, and return a function that removes it.

        Do not train the network while the adapter is applied: use `attach` for training.

        Raises:
            ValueError: if the tensors do not fit the network, which is then left unchanged.
        """


@contextmanager
def adapted(
    network: nn.Module, adapter: Adapter, tensors: dict[str, Tensor]
) -> Iterator[nn.Module]:
    """Yield the network with a trained adapter applied, and restore the bare network at the end.

    The network is restored after an exception too.
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
    """Return a context in which a backbone predicts with a trained adapter at some timesteps only.

    In the context, each call of the backbone's `predict` applies or removes the adapter, depending
    on the timestep. This works with every sampler.

    Args:
        backbone: the backbone to adapt; it is restored when the context ends.
        adapter: the adapter that the tensors belong to.
        tensors: the tensors of the trained adapter.
        ranges: (first, last) timesteps, both inclusive, at which the adapter is applied.

    Raises:
        ValueError: from `predict`, if a batch has timesteps inside and outside the ranges.
    """
    remove: Callable[[], None] | None = None

    def gate(t: Tensor) -> None:
        nonlocal remove
        wanted = {any(first <= step <= last for first, last in ranges) for step in t.tolist()}
        if len(wanted) > 1:
            raise ValueError(
                f"the adapter applies to only some of the timesteps {t.tolist()} of this batch: "
                "use the same timestep for all images of a batch"
            )
        # The state stays until a call needs the other one, because a gradient of the last call
        # still needs these weights.
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
    """Return a context in which a backbone predicts with a trained adapter.

    Args:
        backbone: the backbone to adapt; it is restored when the context ends.
        adapter: the adapter that the tensors belong to.
        tensors: the tensors of the trained adapter.
        strata: one dictionary per range of timesteps, as in the field `strata` of
            adir.adaptation.fine_tuning.HeldOut. The adapter is applied only in the ranges whose
            held-out loss with the adapter, `adapted`, is below the loss without it, `untuned`. None
            applies the adapter at every timestep.
    """
    if strata is None:
        return adapted(backbone.network, adapter, tensors)
    helped = [
        (int(one["t_first"]), int(one["t_last"]))
        for one in strata
        if one["adapted"] < one["untuned"]
    ]
    return adapted_at(backbone, adapter, tensors, helped)
