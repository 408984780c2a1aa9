"""The baselines against the library's own calls, the papers' listings as dense matrices, and closed
forms.
"""

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import deepinv
import numpy as np
import pytest
import torch
from deepinv.physics import GaussianNoise
from PIL import Image
from torch import Tensor

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.modes import NearestNeighbours, NoAdaptation
from adir.backbones.base import Prediction
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.diffusion.schedule import linear_schedule
from adir.images import from_uint8
from adir.samplers.adir import ADIR
from adir.samplers.base import ROUNDING, noise_level
from adir.samplers.daps import DAPS
from adir.samplers.ddnm import DDNM
from adir.samplers.ddpg import DDPG
from adir.samplers.dds import DDS
from adir.samplers.deepinv_samplers import DDRM, DPS, BackboneDenoiser
from adir.samplers.diffpir import DiffPIR
from adir.samplers.direct import Direct
from adir.samplers.dmsp import DMSP, blind_precision, energy
from adir.samplers.likelihoods import DataTermSampler, PiGDM
from adir.samplers.pnp_dm import PnPDM
from adir.samplers.red_diff import REDDiff
from adir.samplers.svd import back_projection, full_svd
from adir.tasks.editing import EditTask
from adir.tasks.operators import (
    BoxBlur,
    BoxInpainting,
    Colorization,
    GaussianBlur,
    MeanDownsampling,
    Operator,
    RandomInpainting,
    ReflectiveSuperResolution,
    SuperResolution,
)
from adir.tasks.operators.kernels import bicubic_kernel
from adir.tasks.restoration import RestorationTask

KNN = NearestNeighbours(Full(), FineTuning())
NONE = NoAdaptation(Full(), FineTuning())

SHAPE = (3, 32, 32)
SR = RestorationTask("sr4", 1, SuperResolution(4), 0, 100)
DEBLUR = RestorationTask("deblur", 1, BoxBlur(5), 10, 30)
COLOR = RestorationTask("colorization", 1, Colorization(), 0, 100)
HOLE = RestorationTask("inpaint_box", 1, BoxInpainting(0.5), 0, 100)
TASKS = [SR, DEBLUR, COLOR, HOLE]
LEARNED = [
    DPS(n_steps=3),
    DDRM(n_steps=3),
    DiffPIR(n_steps=4),
    DDPG(n_steps=3),
    DMSP(n_steps=3),
    DDS(n_steps=3),
    DDNM(n_steps=3),
    PiGDM(n_steps=3),
    DAPS(n_steps=3, n_ode_steps=1, n_langevin=3),
    PnPDM(n_steps=3, n_prior_steps=1),
    REDDiff(n_steps=3),
    DataTermSampler("ald", n_steps=3),
    DataTermSampler("score_sde", n_steps=3),
]
DIRECT = [Direct("bicubic"), Direct("adjoint"), Direct("pseudo_inverse")]


@pytest.fixture(scope="module")
def backbone() -> GuidedDiffusion:
    return GuidedDiffusion()


@pytest.fixture(scope="module")
def x(photographs) -> Tensor:
    with Image.open(photographs / "0.png") as image:
        return from_uint8(np.array(image.convert("RGB")))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_name(value: object) -> str | None:
    return getattr(value, "name", None)


# ---- the adapters --------------------------------------------------------------------------------


def test_a_backbone_as_a_denoiser_is_what_deepinv_makes_of_the_same_network():
    theirs = deepinv.models.DiffUNet(in_channels=3, out_channels=6, pretrained=None).eval()
    with torch.no_grad():
        theirs.out[-1].weight.normal_(std=0.02)  # zero as it comes
        ours = SimpleNamespace(
            schedule=linear_schedule(),
            predict=lambda x_t, t: Prediction(theirs.forward_diffusion(x_t, t)[:, :3], None),
        )
        alpha_bar = linear_schedule().alpha_bar
        for t in (
            0,
            300,
        ):  # at these noise levels; between two of them DiffUNet mixes one's scale and the other's
            sigma = ((1 - alpha_bar[t]) / alpha_bar[t]).sqrt().item() / 2
            noisy = torch.rand(1, *SHAPE) + sigma * torch.randn(1, *SHAPE)
            expected = theirs(noisy, sigma, type_t="noise_level")
            assert expected.std() > 0.01
            torch.testing.assert_close(
                BackboneDenoiser(ours)(noisy, sigma), expected, rtol=0, atol=2e-5
            )


def test_the_gradient_of_the_denoiser_is_that_of_finite_differences(backbone):
    denoiser = BackboneDenoiser(backbone)
    at, towards = torch.rand(1, 3, 16, 16) * 0.5 + 0.25, torch.randn(1, 3, 16, 16)

    def value(z: Tensor) -> Tensor:
        return denoiser(z, torch.tensor(0.1)).double().square().sum()

    at.requires_grad_()
    (gradient,) = torch.autograd.grad(value(at), at)
    h = 1e-2
    with torch.no_grad():
        difference = (value(at + h * towards) - value(at - h * towards)) / (2 * h)
    assert (gradient * towards).sum().item() == pytest.approx(difference.item(), rel=1e-2)
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


# ---- the library's own calls ---------------------------------------------------------------------

# Two orders of the same float32 sums: a rounding is 6e-8, the first x0_hat = x_T /
# sqrt(alpha_bar_T) multiplies it by 157, and the later steps by a few more. The instruction set
# chooses the orders: 0.7e-5 to 2.4e-5 were seen.
LIKE_DEEPINV = {"rtol": 0, "atol": 1e-4}


def deepinvs_downsampling(dtype: torch.dtype) -> deepinv.physics.Downsampling:
    """A of SR as deepinv has it, with the noise of 8 bits."""
    kernel = bicubic_kernel(4, centre=1.5)
    weights = torch.outer(kernel, kernel)[None, None].to(dtype)
    return deepinv.physics.Downsampling(SHAPE, weights, 4, noise_model=GaussianNoise(ROUNDING))


def test_dps_of_an_operator_without_deepinv_is_deepinvs_call_too(backbone, x):
    y = SR.degrade(x, generator(0))
    ours = DPS(n_steps=3).restore(backbone, SR.operator(SHAPE), y[None], [generator(5)])
    torch.manual_seed(5)
    theirs = deepinv.sampling.DPS(BackboneDenoiser(backbone), num_steps=4)(
        (y[None] + 1) / 2, deepinvs_downsampling(torch.float32)
    )
    torch.testing.assert_close(ours.x_hat, (2 * theirs - 1).float(), **LIKE_DEEPINV)


@pytest.mark.parametrize("guidance", ["norm", "annealed"])
def test_dps_is_deepinvs_call_with_the_same_seed(backbone, x, guidance):
    operator = DEBLUR.operator(SHAPE)
    y = DEBLUR.degrade(x, generator(0))
    ours = DPS(n_steps=4, weight=7.0, guidance=guidance).restore(
        backbone, operator, y[None], [generator(5)]
    )
    blur = deepinv.physics.BlurFFT(
        SHAPE, torch.full((1, 1, 5, 5), 1 / 25), noise_model=GaussianNoise(10 / 255)
    )
    torch.manual_seed(5)
    sampler = deepinv.sampling.DPS(
        BackboneDenoiser(backbone), num_steps=5, weight=7.0, guidance=guidance
    )
    theirs = sampler((y[None] + 1) / 2, blur)
    torch.testing.assert_close(ours.x_hat, (2 * theirs - 1).float(), **LIKE_DEEPINV)


def test_ddrm_is_deepinvs_call_with_the_same_seed(backbone, x):
    y = DEBLUR.degrade(x, generator(0))
    ours = DDRM(n_steps=6).restore(backbone, DEBLUR.operator(SHAPE), y[None], [generator(5)])
    blur = deepinv.physics.BlurFFT(
        SHAPE, torch.full((1, 1, 5, 5), 1 / 25), noise_model=GaussianNoise(10 / 255)
    )
    theirs = deepinv.sampling.DDRM(BackboneDenoiser(backbone), sigmas=np.linspace(1, 0, 6))(
        (y[None] + 1) / 2, blur, seed=5
    )
    torch.testing.assert_close(ours.x_hat, 2 * theirs - 1, **LIKE_DEEPINV)


# ---- singular values -----------------------------------------------------------------------------

SMALL = (3, 16, 24)
DEGRADATIONS = [
    *(
        SuperResolution(2),
        MeanDownsampling(4),
        ReflectiveSuperResolution(2),
        Colorization(),
        BoxBlur(4),
    ),
    *(
        GaussianBlur(1.0, 7),
        BoxInpainting(0.5),
        RandomInpainting(0.7),
        RandomInpainting(0.9, seed=1),
    ),
]


def dense(operator: Operator) -> Tensor:
    """A as a matrix, one column per value of x."""
    n = torch.Size(operator.image_shape).numel()
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *operator.image_shape)
    return operator.A(basis).flatten(1).T


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: type(d).__name__)
def test_the_full_decomposition_is_that_of_the_operator(degradation):
    operator = degradation(SMALL)
    physics = full_svd(operator, torch.float64, torch.device("cpu"), 0.1)
    x = torch.randn(2, *SMALL, dtype=torch.float64)
    y = operator.A(torch.randn(2, *SMALL, dtype=torch.float64))
    torch.testing.assert_close(physics.A(x), operator.A(x))
    torch.testing.assert_close(physics.A_adjoint(y), operator.A_adjoint(y))
    torch.testing.assert_close(
        physics.V(physics.V_adjoint(x)), x
    )  # an economic V would lose what A is blind to
    A = dense(operator)
    inverse = torch.linalg.inv(A @ A.T + 0.03 * torch.eye(len(A), dtype=torch.float64))
    expected = (y.flatten(1) @ inverse @ A).reshape(x.shape)
    torch.testing.assert_close(back_projection(physics, y, 0.03), expected)


# ---- DDPG: the authors' listing with matrices ----------------------------------------------------


class Denoiser:
    """Any eps(x_t, t) as a backbone of pixels."""

    kind, name = "pixel", "made up"

    def __init__(self, eps: Callable[[Tensor, Tensor], Tensor]):
        self.schedule, self.eps = linear_schedule(), eps

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(self.eps(x_t, t), None)


@pytest.mark.parametrize("sigma_y", [0, 10], ids=["noise-free", "noisy"])
def test_ddpg_is_the_listing_of_the_paper(sigma_y):
    shape, n = (3, 8, 8), 7
    task = RestorationTask("sr2", 1, SuperResolution(2), sigma_y, 1)
    operator = task.operator(shape)
    A = dense(operator).numpy()
    W = torch.randn(192, 192, dtype=torch.float64) / 14

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ W + t.double()[:, None] / 1000).reshape(x.shape)

    y = torch.randn(1, *operator.y_shape, dtype=torch.float64)
    settings = {"zeta": 0.7, "zeta_noisy": 0.4, "gamma": 3.0, "eta_tilde": 0.7, "step_scale": 0.8}
    ours = DDPG(n_steps=n, **settings).restore(Denoiser(eps), operator, y, [generator(3)])

    g = generator(3)
    z = [torch.randn(shape, generator=g, dtype=torch.float64).flatten().numpy() for _ in range(n)]
    kept = np.round(np.linspace(0, 999, n)).astype(int)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[kept]
    sigma = sigma_y / 127.5
    eta = max(1e-4, 0.7 * sigma**2)
    x, measured = z[0], y.flatten().numpy()
    for i in reversed(range(n)):
        a, a_next = alpha_bar[i], alpha_bar[i - 1] if i else 1.0
        e = eps(torch.from_numpy(x).reshape(1, *shape), torch.tensor([kept[i]])).flatten().numpy()
        x0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        delta = a_next**3.0 if sigma else 0.0
        bp = A.T @ np.linalg.solve(A @ A.T + eta * np.eye(len(A)), A @ x0 - measured)
        ls = A.T @ (A @ x0 - measured)
        mu = (1 - a_next) / (1 - a) if sigma else 1.0
        x0_guided = x0 - mu * ((1 - delta) * bp + delta * 0.8 * ls)
        e_hat = (x - math.sqrt(a) * x0_guided) / math.sqrt(1 - a)
        zeta, w = (0.4, delta) if sigma else (0.7, 1.0)
        noise = z[n - i] if i else 0.0
        x = math.sqrt(a_next) * x0_guided + math.sqrt(1 - a_next) * (
            math.sqrt(zeta) * noise + math.sqrt(1 - zeta) * w * e_hat
        )
    expected = x0 if sigma else x0_guided
    np.testing.assert_allclose(ours.x_hat.flatten().numpy(), expected, rtol=1e-8, atol=1e-9)


# ---- DMSP: a Gaussian prior ----------------------------------------------------------------------


def gaussian_eps(mean: Tensor, variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[eps | x_t] for images ~ N(mean, variance I)."""
    alpha_bar = linear_schedule().alpha_bar

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar[t].reshape(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * variance + 1 - a)

    return eps


@pytest.mark.parametrize("sigma_y", [10, 0], ids=["known noise", "blind"])
def test_dmsp_without_its_noise_descends_to_the_minimum_of_its_energy(monkeypatch, sigma_y):
    # Energy: w/2 |A x - y|^2 - (1 - w) sigma^2 log p_sigma(x), whose gradient in x is the step;
    # p_sigma = N(m, S + sigma^2).
    shape = (3, 8, 8)
    task = RestorationTask("sr2", 1, SuperResolution(2), sigma_y, 1)
    operator = task.operator(shape)
    A = dense(operator)
    t, S = 40, 0.02  # S in the units of [-1, 1]
    alpha_bar = linear_schedule().alpha_bar[t]
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt().item()
    mean = torch.rand(shape, dtype=torch.float64) * 0.4 - 0.2
    y = operator.A(torch.rand(1, *shape, dtype=torch.float64) * 0.4 - 0.2)
    monkeypatch.setattr(
        torch, "randn", lambda size, **settings: torch.zeros(size, dtype=settings["dtype"])
    )
    backbone = Denoiser(lambda x_t, t: gaussian_eps(mean, S)(x_t.double(), t))
    sampler = DMSP(n_steps=400, sigma_net=sigma / 2 * 255)
    x_hat = sampler.restore(backbone, operator, y, [generator(0)]).x_hat.flatten()

    residual = A @ x_hat - y.flatten()
    if sigma_y:
        precision = 1 / (sigma_y / 255) ** 2
    else:
        energy = residual.square().sum() / 4 + 2 * (sigma / 2) ** 2 * (A @ A.T).trace()
        precision = (len(A) / energy).item()
    w = precision / (precision + 1 / (sigma / 2) ** 2)
    minus_score = (x_hat - mean.flatten()) / (S + sigma**2)
    gradient = w * A.T @ residual + (1 - w) * sigma**2 * minus_score
    assert 0.05 < w < 0.99 and minus_score.abs().max() > 1e-2
    torch.testing.assert_close(
        gradient, torch.zeros_like(gradient), rtol=0, atol=2e-6
    )  # x_t is float32


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: type(d).__name__)
def test_the_expected_residual_of_blind_restoration_counts_all_of_A(degradation):
    operator = degradation(SMALL)
    A, sigma = dense(operator), 0.04
    residual = operator.A(torch.randn(1, *SMALL, dtype=torch.float64))
    known = (A.square().sum(1) > 0).sum()
    expected = known / (residual.square().sum() + 2 * sigma**2 * (A @ A.T).trace())
    assert blind_precision(*energy(operator), residual, sigma) == pytest.approx(
        expected.item(), rel=1e-6
    )


# ---- without a network ---------------------------------------------------------------------------


def test_bicubic_upsampling_is_pillows():
    y = torch.rand(3, 8, 12) * 2 - 1
    operator = SuperResolution(4)((3, 32, 48))
    ours = Direct("bicubic").restore(None, operator, y[None], [generator(0)]).x_hat[0]
    theirs = [
        np.asarray(Image.fromarray(band.numpy()).resize((48, 32), Image.Resampling.BICUBIC))
        for band in y
    ]
    np.testing.assert_allclose(ours.numpy(), np.stack(theirs), atol=1e-5)


def test_the_direct_methods_are_what_their_names_say(x):
    for task in TASKS:
        operator, y = task.operator(SHAPE), task.degrade(x, generator(0))[None]
        found = {s.name: s.restore(None, operator, y, [generator(0)]) for s in DIRECT}
        assert all(
            result.network_evaluations == result.gradient_evaluations == 0
            and result.errors == [None]
            for result in found.values()
        )
        assert found["adjoint"].x_hat.mean().item() == pytest.approx(y.mean().item(), abs=1e-5)
        if task is not DEBLUR:
            torch.testing.assert_close(
                operator.A(found["pseudo_inverse"].x_hat), y, rtol=0, atol=1e-4
            )
        if task is SR:
            torch.testing.assert_close(found["adjoint"].x_hat, 16 * operator.A_adjoint(y))
        else:
            torch.testing.assert_close(found["bicubic"].x_hat, y.expand(-1, 3, -1, -1))


def test_an_unknown_direct_method_is_refused():
    with pytest.raises(
        ValueError, match="unknown direct method 'lanczos'; choose one of bicubic, adjoint"
    ):
        Direct("lanczos")


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=by_name)
@pytest.mark.parametrize("sampler", [*LEARNED, ADIR(n_steps=3, variance="small")], ids=by_name)
def test_every_sampler_does_every_task_and_depends_on_the_images_generator_alone(
    backbone, x, sampler, task
):
    assert sampler.not_applicable(backbone, task, KNN) is None
    operator = task.operator(SHAPE)
    y = torch.stack([task.degrade(x, generator(0)), task.degrade(x.flip(2), generator(1))])
    calls: list[bool] = []
    hook = backbone.network.register_forward_hook(
        lambda module, given, out: calls.append(out[0].requires_grad)
    )
    before = torch.get_rng_state()
    both = sampler.restore(backbone, operator, y, [generator(3), generator(4)])
    hook.remove()
    assert torch.equal(before, torch.get_rng_state())
    assert (both.network_evaluations * 2, both.gradient_evaluations * 2) == (len(calls), sum(calls))
    assert (both.gradient_evaluations > 0) == (sampler.name in ("dps", "pigdm"))
    assert both.errors == [None, None] == [*both.errors]
    assert both.x_hat.shape == (2, *SHAPE) and both.x_hat.dtype == torch.float32
    torch.manual_seed(99)
    alone = sampler.restore(backbone, operator, y[1:], [generator(4)])
    assert torch.equal(alone.x_hat[0], both.x_hat[1])
    other = sampler.restore(backbone, operator, y[1:], [generator(5)])
    assert not torch.equal(other.x_hat, alone.x_hat)


@pytest.mark.parametrize("sampler", [DiffPIR(n_steps=4), DDRM(n_steps=4)], ids=by_name)
def test_colours_of_a_colorized_image_are_the_priors_not_grey(backbone, x, sampler):
    # deepinv's economic decomposition of the grey image gives proximal steps without colour: see
    # svd.full_svd.
    y = COLOR.degrade(x, generator(0))[None]
    x_hat = sampler.restore(backbone, COLOR.operator(SHAPE), y, [generator(3)]).x_hat
    assert (x_hat[:, 0] - x_hat[:, 2]).abs().mean() > 0.01


@pytest.mark.parametrize("sampler", [*LEARNED, ADIR(n_steps=3)], ids=by_name)
def test_a_number_of_steps_that_cannot_be_is_refused(sampler):
    for n_steps in (0, -1, 2.5, True):
        with pytest.raises(
            ValueError, match=f"n_steps={n_steps}: a whole number of at least [12] is needed"
        ):
            dataclasses.replace(sampler, n_steps=n_steps)


@pytest.mark.parametrize("task", TASKS, ids=by_name)
@pytest.mark.parametrize("sampler", LEARNED, ids=by_name)
def test_the_fewest_steps_give_an_image(backbone, x, sampler, task):
    # One of DiffPIR would be denoised noise, of which no y is seen.
    fewest = dataclasses.replace(sampler, n_steps=2 if sampler.name == "diffpir" else 1)
    y = task.degrade(x, generator(0))[None]
    result = fewest.restore(backbone, task.operator(SHAPE), y, [generator(3)])
    assert result.errors == [None] and result.network_evaluations == fewest.n_steps


@pytest.mark.parametrize("sampler", [*LEARNED, *DIRECT, ADIR(n_steps=3)], ids=by_name)
def test_latents_and_needless_modes_are_not_applicable(sampler):
    latent = SimpleNamespace(kind="latent", name="sd_x4", resolution=64)
    assert sampler.not_applicable(latent, SR, NONE) == (
        f"sampler {sampler.name} works on pixels, but backbone sd_x4 on latents: use a pixel backbone"
    )
    pixel = SimpleNamespace(kind="pixel", name="embedded", resolution=64)
    reason = sampler.not_applicable(pixel, SR, KNN)
    assert (
        (reason is not None and "uses no network" in reason)
        if sampler in DIRECT
        else reason is None
    )
    assert sampler.not_applicable(pixel, SR, NONE) is None


@pytest.mark.parametrize("sampler", [*LEARNED, *DIRECT, ADIR(n_steps=3)], ids=by_name)
def test_an_edit_is_not_applicable_to_samplers_that_see_no_prompt(sampler):
    pixel = SimpleNamespace(kind="pixel", name="embedded", resolution=64)
    assert sampler.not_applicable(pixel, EditTask(), NONE) == (
        "task edit edits images by a prompt, which neither backbone embedded nor sampler "
        f"{sampler.name} supports: use backbone=sd_inpaint sampler=sd_inpaint"
    )


def test_an_operator_without_a_known_decomposition_is_not_applicable_to_those_that_need_one():
    unknown = SimpleNamespace(
        name="mri",
        edits=False,
        operator=lambda shape: SimpleNamespace(physics=deepinv.physics.LinearPhysics()),
    )
    pixel = SimpleNamespace(kind="pixel", name="embedded", resolution=64)
    for sampler in LEARNED:
        reason = sampler.not_applicable(pixel, unknown, NONE)
        assert (reason is None) == (sampler.name in ("dps", "dmsp", "dds", "daps", "red_diff"))
        assert (
            reason is None
            or "needs the singular value decomposition of A, which is unknown for task mri"
            in reason
        )


def test_a_network_that_gives_nan_fails_its_image_and_says_so(x):
    y = SR.degrade(x, generator(0))[None]
    bad = Denoiser(lambda x_t, t: x_t * torch.nan)
    result = DDPG(n_steps=2).restore(bad, SR.operator(SHAPE), y, [generator(0)])
    assert torch.isnan(result.x_hat).all() and result.errors[0].startswith(
        "NaN or Inf at step 1 of 2: lower zeta"
    )
    result = DPS(n_steps=2).restore(
        bad, SR.operator(SHAPE), y, [generator(0)]
    )  # a library's loop: no step is known
    assert torch.isnan(result.x_hat).all() and result.errors == [
        "NaN or Inf in the result: lower weight"
    ]


def test_noise_is_never_less_than_what_rounding_leaves():
    assert noise_level(DEBLUR.operator(SHAPE)) == pytest.approx(10 / 255)
    x = torch.rand(200_000, dtype=torch.float64)
    assert (torch.round(x * 255) / 255 - x).std().item() == pytest.approx(
        noise_level(SR.operator(SHAPE)), rel=0.01
    )
