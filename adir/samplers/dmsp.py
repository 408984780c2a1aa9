"""DMSP: restoration with a deep mean-shift prior (Bigdeli et al., NeurIPS 2017, arXiv 1709.03749)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adir.backbones.base import Backbone, Denoiser
from adir.samplers.base import (
    Adaptation,
    Restoration,
    Watch,
    draw_noise,
    needs_pixels,
    one_by_one,
    require_steps,
)
from adir.samplers.deepinv_samplers import BackboneDenoiser
from adir.samplers.direct import scaled_adjoint, upsampled
from adir.tasks.base import LinearOperator, Task
from adir.tasks.operators import Operator, SeparableDownsampling


def data_weight(data_precision: float, sigma_net: float) -> float:
    """Share of the data gradient: p / (p + 1 / sigma_net^2), the authors' `relative_weight`; the
    prior has the rest.
    """
    return data_precision / (data_precision + 1 / sigma_net**2)


def energy(operator: LinearOperator) -> tuple[int, float]:
    """(M, tr(A A^T)): the number of known values of y, and the sum of all squared entries of A.

    For a blur by k the latter is M |k|^2: rows that see anything have one norm, so one row is
    enough. Only mirrored borders make rows differ; there the matrices themselves tell.
    """
    known = operator.known()
    physics = operator.build(torch.float64) if isinstance(operator, Operator) else None
    if isinstance(physics, SeparableDownsampling):
        return int(known.sum()), 3 * float(
            physics.rows.square().sum() * physics.columns.square().sum()
        )
    delta = torch.zeros(operator.y_shape, dtype=torch.float64)
    delta[tuple(known.nonzero()[0])] = 1
    return int(known.sum()), int(known.sum()) * float(operator.A_adjoint(delta).square().sum())


def blind_precision(known: int, trace: float, residual: Tensor, sigma_net: float) -> float:
    """1 / sigma_d^2 of noise-blind restoration:

    M / (|A x - y|^2 + 2 sigma_net^2 tr(A A^T)), see `energy`.

    The expected residual under x + noise of variance 2 sigma_net^2, as the paper's Bayes risk has
    it.
    """
    return known / (float(residual.square().sum()) + 2 * sigma_net**2 * trace)


def mean_shift_step(
    x: Tensor,
    denoised: Tensor,
    data_gradient: Tensor,
    step: Tensor,
    weight: float,
    alpha: float,
    mu: float,
) -> tuple[Tensor, Tensor]:
    """(x, step) after one update with momentum mu and step length alpha, x clipped to [0, 1].

    The prior's gradient is x - D(x + noise): minus the mean-shift vector of the smoothed density,
    times sigma_net^2.
    """
    gradient = weight * data_gradient + (1 - weight) * (x - denoised)
    step = mu * step - alpha * gradient
    return (x + step).clamp(0, 1), step


@dataclass(frozen=True)
class DMSP:
    """The authors' DMSPDeblur.m on any of our operators: gradient descent with momentum on data
    term and prior.

    n_steps: iterations, one evaluation of the network each.  sigma_net: noise of the denoiser, in
        grey levels of 255.
    alpha, mu: step length and momentum.  Where y has no noise its level is estimated at each
        iteration (noise-blind, as
    in the paper), because a known level of 0 would leave the prior no weight.
    It starts from y where that is an image, else from the scaled adjoint.
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str = "dmsp"
    n_steps: int = 300
    sigma_net: float = 11.0
    alpha: float = 0.1
    mu: float = 0.9

    def __post_init__(self) -> None:
        require_steps(self.n_steps)

    @torch.no_grad()
    def restore(
        self,
        backbone: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image."""
        sigma_net, sigma_y = self.sigma_net / 255, operator.sigma_y / 2
        known, trace = energy(operator)

        def restore_one(y: Tensor, generators: list[torch.Generator]) -> Restoration:
            watch, denoiser = Watch(y), BackboneDenoiser(backbone)
            start = upsampled if operator.y_shape == operator.image_shape else scaled_adjoint
            x = (start(operator, y) + 1) / 2
            step = torch.zeros_like(x)
            for _ in range(self.n_steps):
                # In [-1, 1], where y lives: A x - y there is twice that of [0, 1].
                residual = (operator.A(2 * x - 1) - y) / 2
                precision = (
                    1 / sigma_y**2
                    if sigma_y > 0
                    else blind_precision(known, trace, residual, sigma_net)
                )
                denoised = denoiser(
                    x + sigma_net * draw_noise(operator.image_shape, generators, y), sigma_net
                )
                weight = data_weight(precision, sigma_net)
                x, step = mean_shift_step(
                    x, denoised, operator.A_adjoint(residual), step, weight, self.alpha, self.mu
                )
                watch.step(x)
            return watch.finish(2 * x - 1, "lower alpha", denoiser.evaluations)

        return one_by_one(restore_one, y, generators)

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Any linear task on pixels."""
        return needs_pixels(self.name, backbone, task)
