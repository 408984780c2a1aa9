"""Steerable conditional diffusion (SCD; Barbano et al., IEEE TMI 2025; arXiv 2308.14409).

SCD tunes the network on the degraded image y during sampling. At some of the sampler's steps, a few
iterations of Adam over the weights of an adapter minimise

        mean (A x_hat - y)^2 + tv_weight TV(x_hat),

where A is the task's operator, TV the total variation, and x_hat the estimate of the clean image
that follows from the tuned network's eps by Tweedie's formula and the sampler's conjugate
gradients. Each image has its own adapter, which initially leaves the network's outputs unchanged.
The adapter and Adam's moments are kept from one sampling step to the next, and discarded when the
image is finished.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adir.adaptation.base import Adapter, adapted
from adir.adaptation.modes import Mode
from adir.checks import require_not_negative, require_positive, require_whole


def total_variation(x: Tensor) -> Tensor:
    """Return the anisotropic total variation of x (B, C, H, W), a scalar.

    It is the sum of the absolute differences of horizontally and vertically adjacent pixels, over
    all images and channels.
    """
    return x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()


@dataclass(frozen=True)
class SteerableConditional(Mode):
    """Adaptation mode SCD, with the defaults of its authors' code.

    To measure its effect, compare it with the same sampler under adaptation=none.

    Sampling counts its steps down to step 0, the cleanest. The network is tuned at step i if i is a
    multiple of `every` or below `lowest`. With the defaults and 100 steps, these are steps 80, 60,
    40, 20, 3, 2, 1, 0.

    Attributes:
        fine_tuning: ignored by this mode; present because one setting of a grid of experiments can
            apply to all modes.
        every: spacing of the tuned steps.
        lowest: number of final steps that are all tuned.
        n_iterations: number of iterations of Adam at each tuned step.
        learning_rate: learning rate of Adam, which has no weight decay.
        tv_weight: weight of the total variation, which is a sum over images in [-1, 1].
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
        require_whole(1, every=self.every)
        require_whole(0, lowest=self.lowest, n_iterations=self.n_iterations)
        require_positive(learning_rate=self.learning_rate)
        require_not_negative(tv_weight=self.tv_weight)

    def is_due(self, i: int) -> bool:
        """Return whether the network is tuned at step i; step 0 is the last and cleanest."""
        return i % self.every == 0 or i < self.lowest

    def steered(self, network: nn.Module, generator: torch.Generator) -> "SteeredNetwork":
        """Return a `SteeredNetwork` with a new adapter, for sampling one image.

        The generator draws the adapter's initial weights.
        """
        attached = self.adapter.attach(network)
        try:
            attached.initialise(generator)
            return SteeredNetwork(self, network, attached.tensors())
        finally:
            attached.remove()


class SteeredNetwork:
    """Network that is tuned to one image while this image is sampled, with the image's adapter.

    The adapter is attached to the network during tuning and applied to it during predictions.
    Between these, the network is unchanged. The class implements adir.samplers.base.Steered.
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
        """Tune the network if step i is one of the tuned steps, and return the tuned network's eps.

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
    """Return SCD's objective for one image, mean residual^2 + tv_weight TV(x_hat), a scalar.

    Args:
        x_hat: estimate of the clean image, (1, 3, H, W).
        residual: A x_hat - y, in the shape of y.
        tv_weight: weight of the total variation, which is summed over x_hat.
    """
    return residual.square().mean() + tv_weight * total_variation(x_hat)
