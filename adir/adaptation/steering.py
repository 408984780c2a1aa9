"""Steerable conditional diffusion (SCD): the network is tuned on y while it samples (Barbano et
al., IEEE TMI 2025).

At some of the sampler's steps a few iterations of Adam lower, over the weights of an adapter,

    mean (A x_hat - y)^2 + tv_weight TV(x_hat),

where x_hat follows from the tuned network's eps by Tweedie and the sampler's conjugate gradients
(arXiv 2308.14409). The image that is being restored is all that the network is tuned to, so the
adapter belongs to it: it starts without effect, is kept with Adam's moments from one step to the
next, and is dropped with the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adir.adaptation.base import Adapter, adapted
from adir.adaptation.modes import Mode


def total_variation(x: Tensor) -> Tensor:
    """Return the sum of absolute differences between neighbours in rows and columns, over all of x
    (B, C, H, W).
    """
    return x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()


@dataclass(frozen=True)
class SteerableConditional(Mode):
    """SCD with the defaults of the authors' program; its control is the same sampler with
    adaptation=none.

    fine_tuning: not used; here as of all modes, so that a grid may set it for those that do.
    every, lowest: tune at each step whose number, counted from the cleanest, is a multiple of
        `every` or below `lowest`: of 100 steps 80, 60, 40, 20, 3, 2, 1, 0.
    n_iterations: of Adam, at each of them.
    learning_rate: of Adam; no weight decay.
    tv_weight: weight of the summed total variation, for images in [-1, 1].
    """

    trains: ClassVar[bool] = False
    on_y: ClassVar[bool] = True
    name: str = "scd"
    every: int = 20
    lowest: int = 4
    n_iterations: int = 12
    learning_rate: float = 1e-4
    tv_weight: float = 1e-6

    def __post_init__(self) -> None:
        for what, least in (("every", 1), ("lowest", 0), ("n_iterations", 0)):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{what}={value!r}: a whole number of at least {least} is needed")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r}: a positive number is needed")
        if not 0 <= self.tv_weight < math.inf:
            raise ValueError(
                f"tv_weight={self.tv_weight!r}: a number that is not negative is needed"
            )

    def is_due(self, i: int) -> bool:
        """Whether the network is tuned at step i, counted from the cleanest."""
        return i % self.every == 0 or i < self.lowest

    def steered(self, network: nn.Module, generator: torch.Generator) -> "SteeredNetwork":
        """Return the network with a fresh adapter for one image. generator: of the adapter's first
        weights.
        """
        attached = self.adapter.attach(network)
        try:
            attached.initialise(generator)
            return SteeredNetwork(self, network, attached.tensors())
        finally:
            attached.remove()


class SteeredNetwork:
    """The adapter of one image, which stands in the network only while that is tuned or asked
    (adir.samplers.base.Steered).
    """

    def __init__(
        self, mode: SteerableConditional, network: nn.Module, tensors: dict[str, Tensor]
    ) -> None:
        self._mode, self._network = mode, network
        self.tensors = tensors
        """Of the adapter, as they are now."""
        self.losses: list[float] = []
        """Before each iteration, of all steps. Lower is better within a step."""
        self.network_evaluations = self.gradient_evaluations = 0
        self._moments: dict[str, Any] | None = None

    def eps(
        self,
        i: int,
        eps: Tensor,
        predict: Callable[[], Tensor],
        outcome: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return the tuned network's eps, after the tuning that is due at step i."""
        mode = self._mode
        if mode.is_due(i):
            self._tune(lambda: objective(*outcome(predict()), mode.tv_weight))
        if not self.losses:  # a fresh adapter changes no output
            return eps
        adapter: Adapter = mode.adapter
        with adapted(self._network, adapter, self.tensors), torch.no_grad():
            self.network_evaluations += 1
            return predict()

    def _tune(self, loss: Callable[[], Tensor]) -> None:
        attached = self._mode.adapter.attach(self._network)
        try:
            attached.load(self.tensors)
            optimizer = torch.optim.Adam(attached.parameters(), lr=self._mode.learning_rate)
            if self._moments is not None:
                optimizer.load_state_dict(self._moments)
            for _ in range(self._mode.n_iterations):
                optimizer.zero_grad()
                with torch.enable_grad():
                    value = loss()
                    value.backward()
                optimizer.step()
                self.losses.append(value.item())
                self.network_evaluations += 1
                self.gradient_evaluations += 1
            self.tensors, self._moments = attached.tensors(), optimizer.state_dict()
        finally:
            attached.remove()


def objective(x_hat: Tensor, residual: Tensor, tv_weight: float) -> Tensor:
    """Return mean (A x_hat - y)^2 + tv_weight TV(x_hat) of one image x_hat (1, 3, H, W). residual:

    A x_hat - y.
    """
    return residual.square().mean() + tv_weight * total_variation(x_hat)
