"""benchmarks/speed/on_gpu.py and on_gpu.sh, rehearsed on a CPU with few channels."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch

from adir.backbones.base import Prediction
from adir.backbones.execution import Execution
from adir.diffusion.schedule import linear_schedule
from benchmarks.speed import backbones, on_gpu as script


def test_each_figure_is_written_when_it_is_there_and_a_stopped_run_goes_on(
    tmp_path, monkeypatch, capsys
):
    measured: list[str] = []

    def measure(settings, figures, what):
        name = f"{what} {settings.networks[0]} {settings.modes[0]}"

        def row():
            if len(measured) == 2 and not (tmp_path / "again").exists():
                (tmp_path / "again").touch()
                raise KeyboardInterrupt
            if name == "step sd_x4 eager" and not (tmp_path / "mended").exists():
                (tmp_path / "mended").touch()
                raise RuntimeError("a bug")
            measured.append(name)
            numbers = dict.fromkeys(("over_bare", "total_s", "paper_s"), 1.02) | {
                "peak_mb": 30_000.0
            }
            return numbers | {"crop": 256}

        figures.add(
            what,
            {
                "network": settings.networks[0],
                "batch": settings.batches[0],
                "mode": settings.modes[0],
            },
            row,
        )

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script, "run_tests", lambda: {"passed": 3, "failed": 1})
    with pytest.raises(KeyboardInterrupt):
        script.main(["--out", str(tmp_path), "--small"])
    assert len(json.loads((tmp_path / "on_gpu.json").read_text())) == 2
    assert (
        script.main(["--out", str(tmp_path), "--small"]) == 1 and "step sd_x4 eager" not in measured
    )
    assert "a bug" in capsys.readouterr().out
    assert (
        script.main(["--out", str(tmp_path), "--small"]) == 0 and measured[-1] == "step sd_x4 eager"
    )
    assert len(measured) == len(set(measured)) and not any("compiled" in name for name in measured)
    text = (tmp_path / "on_gpu.md").read_text()
    assert "| step over a bare call, gd512 | 1.03 | 1.02 | yes |" in text
    assert "| LoRA, batch 6, crops of 256, GB | 24 | 30 | no |" in text
    assert "| LoRA, batch 6, crops of 512, GB | 40 | – | not measured |" in text
    assert (
        "Tests marked gpu: passed 3, failed 1." in text
        and f"torch {torch.__version__.split('+')[0]}" in text
    )


def test_the_smallest_rehearsal_measures_a_switch_with_real_networks(tmp_path):
    script.main(
        ["--out", str(tmp_path), "--small", "--only", "switch", "--weights", str(tmp_path / "made")]
    )
    rows = json.loads((tmp_path / "on_gpu.json").read_text()).values()
    assert {row["network"] for row in rows} == {"gd512", "sd_x4"}
    assert all(row["lora_base_bit_equal"] and row["full_base_bit_equal"] for row in rows)


class Ideal:
    """E[eps | x_t] of N(0, I) with a learned variance at its lower end, as raw output."""

    schedule, execution = linear_schedule(), Execution()

    def network(self, x, t, return_dict):
        alpha_bar = self.schedule.alpha_bar[t[0]]
        return (torch.cat([(1 - alpha_bar).sqrt() * x, -torch.ones_like(x)], dim=1),)


def test_the_bare_loop_is_unguided_sampling_with_learned_variance(monkeypatch):
    # The same steps by the package's sampler, whose guidance is nothing at s = 0, given the same
    # noise.
    from adir.samplers.adir import ADIR

    class Denoiser(Ideal):
        def predict(self, x, t):
            eps, v = self.network(x, t, return_dict=False)[0].chunk(2, dim=1)
            return Prediction(eps, (v + 1) / 2)

    class Nothing:
        image_shape, norm, sigma_y = (3, 4, 4), 1.0, 0.0
        A = A_adjoint = staticmethod(lambda x: x)

    drawn = torch.randn(6, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    noise = iter(drawn[1:])
    monkeypatch.setattr(torch, "randn_like", lambda x: next(noise))
    loop = backbones.ancestral_loop(Ideal(), drawn[0], 5)
    again = iter(drawn)
    monkeypatch.setattr("adir.samplers.adir.draw_noise", lambda *_: next(again))
    ours = (
        ADIR(n_steps=5, guidance_scale=0.0)
        .restore(Denoiser(), Nothing(), drawn[0], [torch.Generator()])
        .x_hat
    )
    torch.testing.assert_close(loop, ours, rtol=1e-4, atol=1e-5)


def test_the_paper_is_extrapolated_along_the_line_through_two_runs(monkeypatch, tmp_path):
    # 2 s before the first iteration and 3 ms each; 1 s before the first step and 5 ms each.
    clock = {"now": 0.0}
    monkeypatch.setattr(
        backbones, "seconds_of", lambda run, device: (run(), clock.pop("took", 0.0))[1]
    )

    class Tuning:
        def __init__(self, n, *_):
            self.n = n

        def fit(self, *_):
            clock["took"] = 2 + 0.003 * self.n
            return type("Made", (), {"tensors": {}})

    class Sampler:
        def __init__(self, n_steps, **_):
            self.n = n_steps

        def restore(self, *_):
            clock["took"] = 1 + 0.005 * self.n

    monkeypatch.setattr(backbones, "FineTuning", Tuning)
    monkeypatch.setattr(backbones, "ADIR", Sampler)
    monkeypatch.setattr(backbones, "adapted", lambda *_: __import__("contextlib").nullcontext())
    monkeypatch.setattr(backbones, "operations", lambda *_, **__: 10**9)
    monkeypatch.setattr(backbones, "matmul_rate", lambda *_: 1e12)
    row = backbones.total_row("gd256", "small", tmp_path, Execution(), 64, 2)
    # A twentieth of 100 + 100 and of 400 + 1000: 5 + 5 and 20 + 50.
    assert row["total_s"] == pytest.approx(3 + 5 * 0.003 + 5 * 0.005)
    assert row["paper_s"] == pytest.approx(3 + 20 * 0.003 + 50 * 0.005) and row[
        "paper_error_s"
    ] == pytest.approx(0, abs=1e-9)
    assert row["paper_floor_s"] == pytest.approx(70e9 / 1e12)


def test_the_shell_script_installs_wheels_and_passes_the_rest_on(repository, tmp_path):
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "x = 1\n")
        wheel.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carried-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = -m ] && exec {sys.executable} "$@"\n'
        f'{sys.executable} -c "import carried; print(carried.__file__)"\necho "called: $@"\n'
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", repository / "benchmarks/speed/on_gpu.sh", "--wheels", tmp_path, "--out", "o", "--only", "step"],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("carried.py")
    assert done.stdout.splitlines()[1] == "called: benchmarks/speed/on_gpu.py --out o --only step"


def test_the_packages_to_carry_have_versions_to_carry(repository):
    text = (repository / "benchmarks/speed/on_gpu.sh").read_text()
    names = text.split("PACKAGES=(")[1].split(")")[0].split()
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line]
    assert set(names) <= set(pins)
