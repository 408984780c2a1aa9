"""Steerable conditional diffusion (SCD; Barbano et al., IEEE TMI 2025; arXiv 2308.14409).

SCD tunes the network on y during sampling. At some of the sampler's steps, a few iterations of Adam
over the weights of an adapter minimise

        mean (A x_hat - y)^2 + tv_weight TV(x_hat),

in which x_hat is computed from the tuned network's eps by Tweedie's formula and the sampler's
conjugate gradients. The network is tuned to the restored image alone, so each image has its own
adapter. The adapter starts without effect on the network. It is kept from one step to the next with
Adam's moments, and dropped when the image is finished.
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
    """Return the anisotropic total variation of x (B, C, H, W), summed over all of x.

    It is the sum of absolute differences between neighbours in rows and columns.
    """
    return x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()


@dataclass(frozen=True)
class SteerableConditional(Mode):
    """Mode of adaptation by SCD, with the defaults of the authors' program.

    Its control is the same sampler with adaptation=none.

    Attributes:
        fine_tuning: ignored by this mode. All modes have this field, so that one setting of a grid
            can apply to all modes.
        every, lowest: the steps at which the network is tuned: all multiples of `every`, and all
            steps below `lowest`. Step 0 is the cleanest. Of 100 steps, the defaults tune at steps
            80, 60, 40, 20, 3, 2, 1, 0.
        n_iterations: number of iterations of Adam at each of these steps.
        learning_rate: learning rate of Adam, which has no weight decay.
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
        """Check whether the network is tuned at step i, counted from the cleanest."""
        return i % self.every == 0 or i < self.lowest

    def steered(self, network: nn.Module, generator: torch.Generator) -> "SteeredNetwork":
        """Return the network with a fresh adapter for one image.

        The generator draws the adapter's initial weights.
        """
        attached = self.adapter.attach(network)
        try:
            attached.initialise(generator)
            return SteeredNetwork(self, network, attached.tensors())
        finally:
            attached.remove()


class SteeredNetwork:
    """Network with the adapter of one image (implements adir.samplers.base.Steered).

    The adapter is in the network only while it is tuned or while the tuned network predicts.
    """

    def __init__(
        self, mode: SteerableConditional, network: nn.Module, tensors: dict[str, Tensor]
    ) -> None:
        self._mode, self._network = mode, network
        self.tensors = tensors
        """The adapter's tensors in their current state."""
        self.losses: list[float] = []
        """The objective before each iteration of all steps. Lower is better within a step."""
        self.network_evaluations = self.gradient_evaluations = 0
        self._moments: dict[str, Any] | None = None

    def eps(
        self,
        i: int,
        eps: Tensor,
        predict: Callable[[], Tensor],
        outcome: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Tune the network if that is due at step i, and return the tuned network's eps.

        For the parameters see `adir.samplers.base.Steered.eps`.
        """
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
    """Return mean residual^2 + tv_weight TV(x_hat) for one image.

    Args:
        x_hat: (1, 3, H, W) image.
        residual: A x_hat - y.
        tv_weight: weight of the summed total variation.
    """
    return residual.square().mean() + tv_weight * total_variation(x_hat)
