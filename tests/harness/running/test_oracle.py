"""The denoiser's error on the ground truth, before and after fine-tuning."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.diffusion.schedule import linear_schedule
from adir.harness.records.layout import Layout
from adir.harness.records.record import OracleError
from adir.harness.running.pipeline import ORACLE_TIMESTEPS, eps_errors, oracle_eps_change
from adir.images import read_image

FIELD = "chelsea-s1-y050-x105"


@pytest.mark.parametrize("n_steps", [1000, 300])
def test_a_denoiser_that_scales_has_the_error_of_the_closed_form(n_steps: int) -> None:
    # eps_hat = c x_t, so eps - eps_hat = (1 - c sqrt(1 - a)) eps - c sqrt(a) x, with a =
    # alpha_bar_t.
    x, c, schedule = torch.linspace(-1, 1, 48).reshape(3, 4, 4), 0.5, linear_schedule(n_steps)
    backbone: Any = SimpleNamespace(
        schedule=schedule, device="cpu", predict=lambda x_t, t: SimpleNamespace(eps=c * x_t)
    )
    cell: Any = SimpleNamespace(backbone=backbone)
    errors = eps_errors(cell, x)
    assert list(errors) == [t for t in ORACLE_TIMESTEPS if t < n_steps] and errors == eps_errors(
        cell, x
    )  # the same noise each time
    for t, error in errors.items():
        a = float(schedule.alpha_bar[t])
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
        wanted = ((1 - c * (1 - a) ** 0.5) * eps - c * a**0.5 * x).square().mean()
        assert error == pytest.approx(float(wanted), rel=1e-5)


def test_the_change_is_the_mean_of_the_relative_changes_and_not_of_the_errors() -> None:
    # +10 % of 0.4 and -10 % of 0.01: 0 %, where the means of the errors rise by 9.5 %.
    errors = (
        OracleError(t=10, untuned=0.4, adapted=0.44),
        OracleError(t=700, untuned=0.01, adapted=0.009),
    )
    assert oracle_eps_change(errors) == pytest.approx(0.0, abs=1e-12)
    assert oracle_eps_change((OracleError(t=10, untuned=0.3, adapted=0.3),)) == 0.0


def test_a_run_records_both_errors_by_t_and_none_changes_nothing(
    adir: Callable, tmp_path: Path
) -> None:
    tuning = [
        f"adaptation.fine_tuning.{item}"
        for item in ("n_iterations=3", "batch_size=1", "crop_size=32")
    ]
    done = adir(
        "run", "-m", "task=sr4", f"data.only=[{FIELD}]", f"results={tmp_path}", "adaptation=none,self",
        "sampler.n_steps=2", *tuning, "scoring.metrics=[psnr]", "oracle=true", "adaptation/fine_tuning=fixed",
    )  # fmt: skip
    assert done.status == 0, done.err + done.out
    found = {
        r["axes"]["adaptation"]: r
        for r in (json.loads(p.read_text()) for p in tmp_path.rglob("records/*.json"))
    }
    none, tuned = found["none"], found["self"]
    assert none["scores"]["oracle-eps-change"] == {
        "value": 0.0, "direction": "lower", "version": "1", "reason": None, "sigma_y": None
    }  # fmt: skip
    assert [e["t"] for e in none["oracle"]] == list(ORACLE_TIMESTEPS)
    assert [e["untuned"] for e in none["oracle"]] == [e["adapted"] for e in none["oracle"]]
    assert [e["untuned"] for e in none["oracle"]] == [e["untuned"] for e in tuned["oracle"]]
    # By another way: the stored weights put into a network of their own.
    backbone = GuidedDiffusion()
    tensors = load_file(tmp_path / "adapters" / f"{tuned['adapter']['key']}.safetensors")
    backbone.network.load_state_dict(tensors)
    truth = Layout(tmp_path).image(none["image"]["sha256"])
    cell: Any = SimpleNamespace(backbone=backbone)
    errors = eps_errors(cell, read_image(truth))
    assert [e["adapted"] for e in tuned["oracle"]] == pytest.approx(list(errors.values()), rel=1e-4)
    relative = [100 * (e["adapted"] / e["untuned"] - 1) for e in tuned["oracle"]]
    assert tuned["scores"]["oracle-eps-change"]["value"] == pytest.approx(
        sum(relative) / len(relative)
    )
    assert abs(tuned["scores"]["oracle-eps-change"]["value"]) > 1e-3
