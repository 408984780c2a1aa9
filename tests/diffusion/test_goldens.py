"""The diffusion arithmetic against arrays made by the reference guided-diffusion code
(tests/fixtures/adm/README.md).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adir.diffusion.guidance import relaxed_gradient
from adir.diffusion.posterior import learned_log_variance, posterior_mean, predict_x0
from adir.diffusion.schedule import Schedule, linear_schedule

FIXTURES = Path(__file__).parent.parent / "fixtures" / "adm"
GOLDEN = dict(np.load(FIXTURES / "adm256_like_diffusion.npz"))
X = torch.from_numpy(np.load(FIXTURES / "adm256_like.npz")["x"])
TOLERANCES = json.loads((FIXTURES / "adm256_like.json").read_text())["diffusion"]["tolerances"][
    "from_model_output"
]
PROCESSES = {"full": linear_schedule(), "r100": linear_schedule().respaced(100)}


def assert_within(name: str, value: torch.Tensor, golden: np.ndarray) -> None:
    """|value - golden| <= atol + rtol |golden|; a list of atol is one per batch element."""
    atol = np.array(TOLERANCES[name]["atol"]).reshape(-1, 1, 1, 1)
    error = np.abs(value.numpy() - golden)
    assert (error <= atol + TOLERANCES[name]["rtol"] * np.abs(golden)).all(), (
        f"{name}: largest error {error.max():.3g}"
    )


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "table, golden",
    [
        ("betas", "betas"),
        ("alpha_bar", "alphas_cumprod"),
        ("posterior_variance", "posterior_variance"),
        ("posterior_log_variance", "posterior_log_variance_clipped"),
        ("posterior_mean_coef1", "posterior_mean_coef1"),
        ("posterior_mean_coef2", "posterior_mean_coef2"),
    ],
)
def test_schedule_tables_equal_the_reference_to_1e_12(process, table, golden):
    ours = getattr(PROCESSES[process], table)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), GOLDEN[f"{process}_{golden}"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_network_sees_the_original_timesteps(process):
    np.testing.assert_array_equal(
        PROCESSES[process].timesteps.numpy(), GOLDEN[f"{process}_timestep_map"]
    )


@pytest.mark.parametrize("clip", [False, True], ids=["noclip", "clip"])
@pytest.mark.parametrize("process", PROCESSES)
def test_diffusion_step_equals_the_reference(process, clip):
    schedule: Schedule = PROCESSES[process]
    step = torch.from_numpy(GOLDEN[f"{process}_t"])

    def at(table: torch.Tensor) -> torch.Tensor:
        return table[step].reshape(-1, 1, 1, 1)

    eps, v = torch.from_numpy(GOLDEN[f"{process}_model_output"]).chunk(2, dim=1)
    log_variance = learned_log_variance(
        (v + 1) / 2, at(schedule.posterior_log_variance), at(schedule.betas).log()
    )
    x0_hat = predict_x0(X, eps, at(schedule.alpha_bar))
    suffix = "clip" if clip else "noclip"
    if clip:
        x0_hat = x0_hat.clamp(-1, 1)
    mean = posterior_mean(
        x0_hat, X, at(schedule.posterior_mean_coef1), at(schedule.posterior_mean_coef2)
    )

    assert_within("log_variance", log_variance, GOLDEN[f"{process}_log_variance"])
    assert_within("variance", log_variance.exp(), GOLDEN[f"{process}_variance"])
    assert_within(f"pred_xstart_{suffix}", x0_hat, GOLDEN[f"{process}_pred_xstart_{suffix}"])
    assert_within(f"mean_{suffix}", mean, GOLDEN[f"{process}_mean_{suffix}"])
    if clip:  # classifier guidance is the same shift: mean + variance * gradient
        shifted = mean + log_variance.exp() * torch.from_numpy(GOLDEN["cond_gradient"])
        assert_within("cond_mean_clip", shifted, GOLDEN[f"{process}_cond_mean_clip"])


def test_relaxed_gradient_is_the_derivative_of_the_squared_residual():
    # autograd of -||A mu - y_t||^2 with y_t held fixed, on a dense random A
    torch.manual_seed(0)
    A = torch.randn(5, 12, dtype=torch.float64)
    mu, eps = torch.randn(2, 1, 12, dtype=torch.float64)
    y, alpha_bar = torch.randn(1, 5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    mu.requires_grad_()
    y_t = alpha_bar.sqrt() * y + (1 - alpha_bar).sqrt() * eps @ A.T
    (expected,) = torch.autograd.grad(-((mu @ A.T - y_t) ** 2).sum(), mu)
    ours = relaxed_gradient(mu.detach(), eps, y, alpha_bar, lambda x: x @ A.T, lambda r: r @ A)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
