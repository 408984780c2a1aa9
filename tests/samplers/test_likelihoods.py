"""Samplers by p(y | x_t): guided steps of PiGDM and DPS against azula, the others against deepinv's
own terms.
"""

from collections.abc import Callable
from types import SimpleNamespace

import azula.denoise
import azula.guidance
import deepinv
import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting
from deepinv.sampling import (
    ALDDataFidelity,
    DDPMSolver,
    ILVRDataFidelity,
    PosteriorDiffusion,
    ScoreSDEDataFidelity,
    VariancePreservingDiffusion,
)
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.base import ROUNDING, noise_level
from adir.samplers.deepinv_samplers import DPS, BackboneDenoiser, ImageNoise
from adir.samplers.likelihoods import DataTermSampler, NoisedMeasurement, PiGDM
from adir.samplers.svd import full_svd
from adir.tasks.operators import BoxBlur, BoxInpainting, SuperResolution
from adir.tasks.restoration import RestorationTask

SHAPE = (3, 8, 8)
N = 192
BLUR = RestorationTask("blur", 1, BoxBlur(3), 10, 1)
SR = RestorationTask("sr2", 1, SuperResolution(2), 0, 1)
HOLE = RestorationTask("hole", 1, BoxInpainting(0.5), 0, 1)


class Network:
    """A made-up network, which keeps what it is asked."""

    def __init__(self) -> None:
        self.schedule = linear_schedule()
        self.W = torch.randn(N, N, dtype=torch.float64) / 14
        self.asked: list[tuple[Tensor, int]] = []

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x_t.double().flatten(1) @ self.W + t.double()[:, None] / 1000).reshape(
            x_t.shape
        )

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        self.asked.append((x_t.detach().clone(), int(t[0])))
        return Prediction(self.eps(x_t, t), None)


class Azula(azula.denoise.Denoiser):
    """The same network as azula asks for it. scales:

    (alpha, sigma) of a time; step: the network's t for it.
    """

    def __init__(
        self,
        network: Network,
        scales: Callable[[Tensor], tuple[Tensor, Tensor]],
        step: Callable[[Tensor], int],
        limit: float,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.step, self.limit = network, scales, step, limit

    def forward(self, x_t: Tensor, t: Tensor) -> azula.denoise.DiracPosterior:
        alpha, sigma = self.schedule(t)
        x0 = (x_t - sigma * self.network.eps(x_t, torch.tensor([self.step(t)]))) / alpha
        return azula.denoise.DiracPosterior(x0.clamp(-self.limit, self.limit))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(task: RestorationTask) -> Tensor:
    return task.operator(SHAPE).A(torch.rand(1, *SHAPE, dtype=torch.float64) * 2 - 1)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("task", [BLUR, SR, HOLE], ids=lambda task: task.name)
def test_a_step_of_pigdm_is_that_of_azula(task, eta):
    network, operator, y = Network(), task.operator(SHAPE), measured(task)
    result = PiGDM(n_steps=4, eta=eta).restore(network, operator, y, [generator(3)])
    assert (result.network_evaluations, result.gradient_evaluations, result.errors) == (
        4,
        4,
        [None],
    )

    A = operator.A(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).flatten(1).T
    alpha_bar = torch.cat(
        [network.schedule.alpha_bar, torch.ones(1, dtype=torch.float64)]
    )  # at -1, no noise
    times = [t for _, t in network.asked] + [-1]
    states = [x for x, _ in network.asked] + [result.x_hat]
    noise = generator(3)
    torch.randn(SHAPE, generator=noise, dtype=torch.float64)
    for k in range(4):
        t, s = torch.tensor(times[k]), torch.tensor(times[k + 1])
        sigma = (2 * noise_level(operator)) ** 2 / (1 - alpha_bar[t])
        # azula's is without noise: its pseudo-inverse is given as the one of noise sigma_y and r_t.
        inverse = torch.linalg.solve(A @ A.T + sigma * torch.eye(len(A), dtype=torch.float64), A).T
        theirs = azula.guidance.PGDMSampler(
            Azula(
                network, lambda t: (alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()), int, torch.inf
            ),
            y,
            operator.A,
            lambda v, inverse=inverse: (v.flatten(1) @ inverse.T).reshape(-1, *SHAPE),
            # Its eta scales DDPM's variance, DDIM's the standard deviation: the same at 0 and 1.
            eta=eta**2,
        )
        with ImageNoise(noise):
            expected = theirs.step(states[k], t, s)
        torch.testing.assert_close(states[k + 1], expected, rtol=0, atol=1e-8)


def test_a_step_of_dps_is_that_of_azula():
    # deepinv adds the gradient to the score, so that its step along it is zeta = (alpha_t alpha_s /
    # 2) (sigma_t^2 - sigma_s^2) times `weight` (sigma: of noise over signal), where the paper has
    # one zeta for all t; the half is from images in [0, 1].
    network, operator, y = Network(), BLUR.operator(SHAPE), measured(BLUR)
    weight = 40.0
    result = DPS(n_steps=5, weight=weight).restore(network, operator, y.float(), [generator(3)])
    times = torch.linspace(1, 0, 6, dtype=torch.float64)
    sde = VariancePreservingDiffusion()
    scale, sigma = sde.scale_t, sde.sigma_t
    noises = (1 - network.schedule.alpha_bar).sqrt()

    def scales(t: Tensor) -> tuple[Tensor, Tensor]:
        return scale(t), scale(t) * sigma(t)

    denoiser = Azula(network, scales, lambda t: int((noises - scales(t)[1]).abs().argmin()), 1.0)
    states = [x for x, _ in network.asked] + [result.x_hat]
    noise = generator(3)
    torch.randn(SHAPE, generator=noise, dtype=torch.float64)
    moved = 0.0
    for k in range(5):
        t, s = times[k], times[k + 1]
        zeta = weight / 2 * scale(t) * scale(s) * (sigma(t) ** 2 - sigma(s) ** 2)
        before = noise.get_state()
        steps = []
        for size in (zeta, 0):
            noise.set_state(before)
            with ImageNoise(noise):
                sampler = azula.guidance.DPSSampler(
                    denoiser, y.float().double(), operator.A, zeta=size
                )
                steps.append(sampler.step(states[k].double(), t, s))
        moved = max(moved, (steps[0] - steps[1]).abs().max().item())
        torch.testing.assert_close(states[k + 1].double(), steps[0], rtol=0, atol=1e-4)
    assert moved > 0.1


FIDELITIES = {"ald": ALDDataFidelity, "score_sde": ScoreSDEDataFidelity, "ilvr": ILVRDataFidelity}


@pytest.mark.parametrize("name", FIDELITIES)
def test_where_A_is_orthogonal_the_annealed_ones_are_deepinvs_calls(name):
    network, y = Network(), measured(HOLE)
    ours = DataTermSampler(name, n_steps=4, weight=0.7).restore(
        network, HOLE.operator(SHAPE), y, [generator(3)]
    )
    assert (ours.network_evaluations, ours.gradient_evaluations, ours.errors) == (4, 0, [None])

    mask = BoxInpainting(0.5).mask(SHAPE)
    physics = Inpainting(SHAPE, mask=mask, noise_model=GaussianNoise(ROUNDING))
    sampler = PosteriorDiffusion(
        FIDELITIES[name](weight=0.7),
        BackboneDenoiser(network),
        VariancePreservingDiffusion(alpha=1.0),
        DDPMSolver(torch.linspace(1, 0, 5, dtype=torch.float64)),
    )
    torch.manual_seed(3)
    with torch.no_grad():
        theirs = sampler((y + mask) / 2, physics, x_init=(1, *SHAPE))
    torch.testing.assert_close(ours.x_hat, 2 * theirs - 1, rtol=0, atol=1e-6)


def test_ald_on_any_operator_is_deepinvs_call_with_its_weight_in_units_of_the_norm():
    network, y = Network(), measured(SR)
    operator = SR.operator(SHAPE)
    ours = DataTermSampler("ald", n_steps=4).restore(network, operator, y, [generator(3)])
    physics = deepinv.physics.LinearPhysics(
        A=operator.A, A_adjoint=operator.A_adjoint, noise_model=GaussianNoise(ROUNDING)
    )
    sampler = PosteriorDiffusion(
        ALDDataFidelity(weight=1 / operator.norm**2),
        BackboneDenoiser(network),
        VariancePreservingDiffusion(alpha=1.0),
        DDPMSolver(torch.linspace(1, 0, 5, dtype=torch.float64)),
    )
    torch.manual_seed(3)
    with torch.no_grad():
        theirs = sampler((y + 1) / 2, physics, x_init=(1, *SHAPE))
    torch.testing.assert_close(ours.x_hat, 2 * theirs - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lift", ["A_adjoint", "A_dagger"])
def test_y_is_noised_as_the_operator_noises_it(lift):
    # For x_t = x0 + sigma z and y_t = A x0 + sigma A z with the same z, nothing is left to correct.
    operator, sigma = SR.operator(SHAPE), torch.tensor(0.8, dtype=torch.float64)
    x0, z = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    physics = full_svd(operator, torch.float64, torch.device("cpu"), 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: z)
        term = NoisedMeasurement(lift, 1.0)
        nothing = term.grad(x0 + sigma * z, operator.A(x0), physics, sigma)
        some = term.grad(x0, operator.A(x0), physics, sigma)
    torch.testing.assert_close(nothing, torch.zeros_like(x0), rtol=0, atol=1e-12)
    expected = -sigma * getattr(operator, lift)(operator.A(z)) / (0.1**2 + sigma**2)
    torch.testing.assert_close(some, expected)


def test_ilvr_leaves_out_an_operator_that_damps_what_it_sees():
    backbone = SimpleNamespace(kind="pixel", name="made", resolution=32)
    ilvr = DataTermSampler("ilvr")
    for task in (SR, HOLE):
        assert ilvr.not_applicable(backbone, task, SimpleNamespace()) is None
    reason = ilvr.not_applicable(
        backbone, RestorationTask("deblur", 1, BoxBlur(5), 10, 1), SimpleNamespace()
    )
    assert reason.startswith(
        "sampler ilvr applies A_dagger, which amplifies the noise of task deblur up to "
    )
    assert DataTermSampler("ald").not_applicable(backbone, BLUR, SimpleNamespace()) is None


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError, match=r"unknown likelihood 'dmps'; choose one of ald, score_sde, ilvr"
    ):
        DataTermSampler("dmps")
    with pytest.raises(ValueError, match=r"eta=-1: a number from 0 to 1"):
        PiGDM(eta=-1)
