"""DiffPIR: one guided step against azula, all of it against deepinv's loop."""

import math

import azula.denoise
import azula.guidance
import deepinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.samplers.base import noise_level
from adir.samplers.diffpir import DiffPIR, quadratic_steps
from adir.tasks.operators import BoxBlur, SuperResolution
from adir.tasks.restoration import RestorationTask

SHAPE = (3, 8, 8)
N = 192
TASKS = [
    RestorationTask("blur", 1, BoxBlur(3), 10, 1),
    RestorationTask("sr2", 1, SuperResolution(2), 10, 1),
]


class Network:
    """A made-up network, which keeps what it is asked."""

    def __init__(self) -> None:
        self.schedule = linear_schedule()
        self.W = torch.randn(N, N, dtype=torch.float64) / 14
        self.asked: list[tuple[Tensor, int]] = []

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x_t.flatten(1) @ self.W + t.double()[:, None] / 1000).reshape(x_t.shape)

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        self.asked.append((x_t.clone(), int(t[0])))
        return Prediction(self.eps(x_t, t), None)


class Azula(azula.denoise.Denoiser):
    """The same network as azula asks for it, its time being ours; the mean is clipped as DiffPIR's
    is.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ab = self.network.schedule.alpha_bar[t]
        return ab.sqrt(), (1 - ab).sqrt()

    def forward(self, x_t: Tensor, t: Tensor) -> azula.denoise.DiracPosterior:
        alpha, sigma = self.schedule(t)
        eps = self.network.eps(x_t.reshape(1, *SHAPE), t[None]).reshape(x_t.shape)
        return azula.denoise.DiracPosterior(((x_t - sigma * eps) / alpha).clamp(-1, 1))


# GMRES ends at the number of distinct eigenvalues; a step further divides by a residual that is
# gone.
@pytest.mark.parametrize("task, iterations", zip(TASKS, (N, 20), strict=True), ids=["blur", "sr2"])
def test_a_step_is_that_of_azula(task, iterations):
    network, operator = Network(), task.operator(SHAPE)
    y = operator.A(torch.rand(1, *SHAPE, dtype=torch.float64) * 2 - 1)
    zeta, lambda_ = 0.3, 7.0
    result = DiffPIR(n_steps=4, lambda_=lambda_, zeta=zeta).restore(
        network, operator, y, [torch.Generator().manual_seed(3)]
    )
    assert [t for _, t in network.asked] == [999, 422, 183, 0]

    solved = azula.guidance.DiffPIRDenoiser(
        Azula(network),
        y.flatten(1),
        lambda x: operator.A(x.reshape(-1, *SHAPE)).flatten(1),
        var_y=(2 * noise_level(operator)) ** 2,  # of images in [-1, 1]
        lmbda=lambda_ / 4,  # our sigma_y^2 is that of images in [0, 1]
        solver="gmres",
        iterations=iterations,
    )
    noise = torch.Generator().manual_seed(3)
    z = [torch.randn(SHAPE, generator=noise, dtype=torch.float64) for _ in range(4)]
    for k in (1, 2, 3):
        (x_t, t), (x_s, s) = network.asked[k - 1], network.asked[k]
        x0 = solved(x_t.flatten(1), torch.tensor(t)).mean.reshape(x_t.shape)
        ab, ab_s = network.schedule.alpha_bar[t], network.schedule.alpha_bar[s]
        eps = (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()
        expected = ab_s.sqrt() * x0 + (1 - ab_s).sqrt() * (
            math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * z[k]
        )
        torch.testing.assert_close(x_s, expected, rtol=0, atol=1e-9)
    last = Azula(network)(network.asked[3][0], torch.tensor(0)).mean
    torch.testing.assert_close(result.x_hat, last, rtol=0, atol=1e-12)
    assert (result.network_evaluations, result.gradient_evaluations, result.errors) == (
        4,
        0,
        [None],
    )


def test_it_is_deepinvs_loop_with_twice_the_prior_and_the_last_estimate():
    # deepinv minimises |A x - y|^2 + 2 rho |x - x0|^2, and returns the x_t whose estimate is ours.
    network, operator = Network(), TASKS[0].operator(SHAPE)
    y = operator.A(torch.rand(1, *SHAPE, dtype=torch.float64) * 2 - 1)
    DiffPIR(n_steps=5, lambda_=7.0).restore(
        network, operator, y, [torch.Generator().manual_seed(3)]
    )
    x_T = network.asked[0][0]

    ab = network.schedule.alpha_bar
    sigmas = ((1 - ab) / ab).sqrt()

    def model(x: Tensor, sigma: Tensor) -> Tensor:  # images in [0, 1]
        t = (sigmas - 2 * sigma).abs().argmin()
        x_t = (2 * x - 1) * ab[t].sqrt()
        x0 = (x_t - (1 - ab[t]).sqrt() * network.eps(x_t, t[None])) / ab[t].sqrt()
        return (x0.clamp(-1, 1) + 1) / 2

    blur = deepinv.physics.BlurFFT(SHAPE, torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64))
    blur.set_noise_model(GaussianNoise(noise_level(operator)))
    sampler = deepinv.sampling.DiffPIR(model, deepinv.optim.L2(), max_iter=5, lambda_=3.5, zeta=0.1)
    noise = torch.Generator().manual_seed(3)
    start = torch.randn(SHAPE, generator=noise, dtype=torch.float64)[None]
    torch.testing.assert_close(start, x_T)
    draws = iter(
        [
            torch.zeros_like(start),
            *(torch.randn(SHAPE, generator=noise, dtype=torch.float64)[None] for _ in range(4)),
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "randn_like", lambda like: next(draws)
        )  # its own start is without noise, and x_init ours
        theirs = 2 * sampler((y + 1) / 2, blur, x_init=(start / ab[-1].sqrt() + 1) / 2) - 1
    torch.testing.assert_close(
        theirs, network.asked[-1][0], rtol=0, atol=1e-4
    )  # its tables are float32


def test_steps_are_the_authors_and_end_at_the_cleanest():
    assert quadratic_steps(2, 1000).tolist() == [999, 0]
    assert quadratic_steps(5, 1000).tolist() == [
        999,
        499,
        292,
        133,
        0,
    ]  # 999 - int(1000 sqrt(k / 4))


@pytest.mark.parametrize(
    "wrong", [{"lambda_": 0.0}, {"lambda_": math.inf}, {"zeta": -0.1}, {"zeta": 1.5}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}: a "):
        DiffPIR(**wrong)
