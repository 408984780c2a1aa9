"""The cost model: lines through timed runs, the price of a cell against what it is made of, and out of memory explained."""

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel

from adir.adaptation.adapters import Lora
from adir.adaptation.denoising_module import FineTuning
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.embedded.pictures import test_fields as embedded_fields
from adir.errors import InputError
from adir.harness import cost, out_of_memory
from adir.harness.cell import resolve_cell
from adir.harness.cost import Line, estimate, line_through
from adir.harness.launch import compose
from adir.harness.out_of_memory import candidates, explain_out_of_memory, is_out_of_memory
from adir.images import generator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_calibrated(monkeypatch):
    monkeypatch.setattr(cost, "_calibrations", {})
    monkeypatch.setattr(cost, "LONG_ENOUGH", 0.05)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 1000])
def test_the_line_of_work_that_is_linear_is_found_without_doing_it_all(monkeypatch, n_steps):
    fixed, per_step, asked, clock = 0.02, 0.005, [], [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def run(n: int) -> None:
        asked.append(n)
        clock[0] += fixed + per_step * n

    line = line_through(run, n_steps, CPU)
    assert line.seconds(n_steps) == pytest.approx(fixed + per_step * n_steps)
    assert max(asked) <= min(n_steps, 10)


def test_steps_that_take_long_are_run_once(monkeypatch):
    clock, asked = [0.0], []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def run(n: int) -> None:
        asked.append(n)
        clock[0] += 30.0 * n

    assert line_through(run, 1000, CPU).seconds(1000) == 30_000
    assert asked == [2]


def test_a_cell_costs_its_stages_and_cells_share_calibrations(tiny, tmp_path, monkeypatch):
    calls = []
    fit = FineTuning.fit
    monkeypatch.setattr(FineTuning, "fit", lambda self, *a, **k: calls.append(self.n_iterations) or fit(self, *a, **k))
    monkeypatch.setattr(cost, "line_through", lambda run, n, device: (run(n), Line(1.0, 2.0, 300.0))[1])

    def price(*overrides: str):
        return estimate(resolve_cell(compose([*tiny, f"results={tmp_path}", *overrides])))

    bare = price()
    assert set(bare.seconds_per_picture) == {"measure", "sample", "score"}
    assert bare.seconds_per_picture["sample"] == pytest.approx(1.0 + 2.0 * 2)  # n_steps=2
    assert bare.memory_mb == 300.0 and bare.adapter_disk_mb == 0
    assert calls == []

    knn = price("adaptation=knn")
    assert set(knn.seconds_per_picture) == {"measure", "retrieve", "adapt", "sample", "score"}
    assert knn.seconds_per_picture["adapt"] == pytest.approx(1.0 + 2.0 * 1)  # n_iterations=1
    parameters = sum(p.numel() for p in GuidedDiffusion().network.parameters())
    assert knn.adapter_disk_mb == pytest.approx(4 * parameters / 1e6)
    assert knn.disk_mb_per_picture == knn.picture_disk_mb + knn.adapter_disk_mb
    assert knn.seconds_once["embed"] > 0

    more = price("adaptation=knn", "adaptation.fine_tuning.n_iterations=40", "sampler.n_steps=1000", "seed=3")
    assert len(calls) == 1  # only the numbers of steps differ
    assert more.seconds_per_picture["adapt"] == pytest.approx(1.0 + 2.0 * 40)
    assert more.seconds_per_picture["sample"] == pytest.approx(1.0 + 2.0 * 1000)
    price("adaptation=knn", "adaptation.fine_tuning.batch_size=2")
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_what_was_estimated_is_about_what_is_measured(tiny, tmp_path, monkeypatch):
    # Loose, as the machine of a test is busy; benchmarks/speed/cost_model.py holds it to 25 %.
    monkeypatch.setattr(cost, "LONG_ENOUGH", 0.5)
    cell = resolve_cell(compose([*tiny, f"results={tmp_path}", "sampler.n_steps=60"]))
    predicted = estimate(cell).seconds_per_picture["sample"]
    x = cell.data.image(cell.data.ids[0])
    operator = cell.task.operator(tuple(x.shape))
    y = cell.task.degrade(x, generator(0, "x", "y"))[None]
    started = time.perf_counter()
    cell.sampler.restore(cell.backbone, operator, y, [generator(0, "x", "sampler")])
    assert predicted == pytest.approx(time.perf_counter() - started, rel=0.7)


# --- out of memory


@pytest.fixture(scope="module")
def big_cell():
    """As much of a cell as the explanation looks at."""
    network = UNet2DModel(
        block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    network.eval().requires_grad_(False)
    backbone = SimpleNamespace(
        network=network, execution=Execution(), device=CPU, kind="pixel", stride=2, name="embedded"
    )
    return SimpleNamespace(backbone=backbone, adapter=Lora(rank=2), fine_tuning=FineTuning(1, 4, 1e-4, 64))


def out_of_memory_while_adapting(monkeypatch) -> Exception:
    """As the allocator of the CPU raises it, from within `FineTuning.fit`."""
    message = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"

    def fail(self, batch, index):
        raise RuntimeError(message)

    from adir.adaptation.denoising_module import DenoisingModule

    monkeypatch.setattr(DenoisingModule, "training_step", fail)
    x = embedded_fields()[0][1][:, :32, :32]
    with pytest.raises(RuntimeError) as raised:
        FineTuning(1, 1, 1e-4, 32).fit(GuidedDiffusion(), Lora(rank=1), [x], torch.Generator())
    return raised.value


def test_out_of_memory_is_known_on_both_kinds_of_device_and_behind_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert is_out_of_memory(MemoryError())
    wrapped = ValueError("in the loop")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(None)


def test_adaptation_out_of_memory_names_batch_and_the_setting_that_fits(big_cell, monkeypatch):
    error = out_of_memory_while_adapting(monkeypatch)
    needs = {
        change: out_of_memory.needed_bytes(big_cell, True, batch, (64, 64), Execution(gradient_checkpointing=change))
        for change, batch in ((False, 4), (True, 4))
    }
    assert needs[True] < needs[False]
    monkeypatch.setattr(out_of_memory, "free_bytes", lambda device: needs[True] + 1)
    found = explain_out_of_memory(error, big_cell, (3, 128, 128), 1)
    assert isinstance(found, InputError) and "\n" not in str(found)
    assert "adapting with batch_size=4 crops of 64x64" in str(found)
    assert "execution.gradient_checkpointing=true would fit" in str(found)

    monkeypatch.setattr(out_of_memory, "free_bytes", lambda device: needs[True] // 3)
    assert "gradient_checkpointing=true adaptation.fine_tuning.batch_size=" in str(
        explain_out_of_memory(error, big_cell, (3, 128, 128), 1)
    )
    monkeypatch.setattr(out_of_memory, "free_bytes", lambda device: 10)
    assert "even " in (last := str(explain_out_of_memory(error, big_cell, (3, 128, 128), 1))) and "crop_size" in last
    assert not big_cell.backbone.network.is_gradient_checkpointing  # what was tried is undone


def test_sampling_out_of_memory_names_the_pictures(big_cell, monkeypatch):
    one = out_of_memory.needed_bytes(big_cell, False, 1, (64, 48), Execution())
    monkeypatch.setattr(out_of_memory, "free_bytes", lambda device: one + 1)
    message = str(explain_out_of_memory(MemoryError(), big_cell, (3, 64, 48), 4))
    assert "out of memory on cpu while sampling 4 pictures of 48x64" in message and "batch_size=1 would fit" in message


def test_settings_that_are_on_already_are_not_proposed():
    gpu = dataclasses.replace(Execution(), dtype="bfloat16", gradient_checkpointing=True)
    object.__setattr__(gpu, "device", "cuda")  # there may be none here
    assert [words for _, words in candidates(gpu, True, 4)] == [
        "adaptation.fine_tuning.batch_size=2",
        "adaptation.fine_tuning.batch_size=1",
    ]
    assert json.dumps(candidates(gpu, False, 1)) == json.dumps([({"offload": True}, "execution.offload=true")])
