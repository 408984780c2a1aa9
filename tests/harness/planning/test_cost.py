"""The cost model: lines through timed runs, the price of a cell against what it is made of, and out of memory explained."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.backbones.memory import call_bytes, weight_bytes
from adir.data.embedded import test_fields as embedded_fields
from adir.errors import InputError
from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.planning import calibration, cost
from adir.harness.planning.calibration import Call, StandIn, line_through
from adir.harness.planning.cost import estimate
from adir.harness.running import out_of_memory
from adir.harness.running.out_of_memory import candidates, explain_out_of_memory, is_out_of_memory
from adir.images import generator
from adir.samplers.editing import InpaintingSampler
from adir.samplers.latent import UpscalerSampler

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_calibrated(monkeypatch):
    monkeypatch.setattr(calibration, "LONG_ENOUGH", 0.05)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(calibration.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 1000])
def test_the_line_of_work_that_is_linear_is_found_without_doing_it_all(monkeypatch, n_steps):
    fixed, per_step, asked, clock = 0.02, 0.005, [], Clock(monkeypatch)

    def run(n: int) -> None:
        asked.append(n)
        clock.now += fixed + per_step * n

    line = line_through(run, n_steps, CPU)
    assert line.seconds(n_steps) == pytest.approx(fixed + per_step * n_steps)
    assert max(asked) <= min(n_steps, 10)


def test_runs_that_take_long_are_not_repeated(monkeypatch):
    clock, asked = Clock(monkeypatch), []

    def run(n: int) -> None:
        asked.append(n)
        clock.now += 40.0 + 30.0 * n  # such as a decoder once, and a network at each step

    assert line_through(run, 1000, CPU).seconds(1000) == pytest.approx(30_040)
    assert asked == [2, 3]


@dataclasses.dataclass
class Ticking:
    """A network that takes half a second a call, and knows no picture."""

    clock: Clock
    called: int = 0

    def __call__(self, x_t, t, return_dict):
        self.called += 1
        self.clock.now += 0.5
        return (0.1 * x_t,)


@pytest.mark.parametrize("sampler", ["adir", "ddrm", "dps"])
def test_a_sampler_is_charged_for_every_call_of_its_network_and_makes_few(tiny, tmp_path, monkeypatch, sampler):
    clock, words = Clock(monkeypatch), [*tiny, f"results={tmp_path}", f"sampler={sampler}", "sampler.n_steps=37"]
    cell = resolve_cell(compose(words))
    backbone = copy.copy(cell.backbone)
    backbone.network = network = Ticking(clock)
    cell = dataclasses.replace(cell, backbone=backbone)
    estimated = estimate(cell).seconds_per_picture["sample"]
    made = network.called
    x = cell.data.image(cell.data.ids[0])
    y = cell.task.degrade(x, generator(0, "x", "y"))[None]
    before = clock.now
    restored = cell.sampler.restore(backbone, cell.task.operator(tuple(x.shape)), y, [generator(0, "x", "sampler")])
    assert estimated == pytest.approx(clock.now - before) == pytest.approx(0.5 * restored.network_evaluations)
    assert made <= 8
    estimate(dataclasses.replace(cell, sampler=dataclasses.replace(cell.sampler, n_steps=50)))
    assert network.called == made + restored.network_evaluations  # not once more for another cell


class TickingModule(Ticking, torch.nn.Module):
    """The same with a weight, for an adapter."""

    __hash__ = torch.nn.Module.__hash__

    def __init__(self, clock: Clock) -> None:
        torch.nn.Module.__init__(self)
        self.clock, self.called = clock, 0
        self.w = torch.nn.Parameter(torch.tensor([0.1]), requires_grad=False)


def test_tuning_while_sampling_is_charged_for_every_call_where_it_falls(tiny, tmp_path, monkeypatch):
    clock, words = Clock(monkeypatch), [*tiny, f"results={tmp_path}", "sampler=dds", "adaptation=scd"]
    cell = resolve_cell(compose([*words, "sampler.n_steps=37"]))
    backbone = copy.copy(cell.backbone)
    backbone.network = network = TickingModule(clock)
    mode = dataclasses.replace(cell.mode, adapter=Full())
    cell = dataclasses.replace(cell, backbone=backbone, mode=mode)
    estimated = estimate(cell).seconds_per_picture
    assert "adapt" not in estimated and network.called <= 16
    x = cell.data.image(cell.data.ids[0])
    y, steered = (
        cell.task.degrade(x, generator(0, "x", "y"))[None],
        mode.steered(network, generator(0, "x", "adaptation")),
    )
    operator, noise = cell.task.operator(tuple(x.shape)), generator(0, "x", "sampler")
    restored = cell.sampler.restore_steered(backbone, operator, y, [noise], [steered])
    assert restored.network_evaluations == 37 + 21 + 5 * 12  # due at 20, 3, 2, 1, 0
    assert estimated["sample"] == pytest.approx(0.5 * restored.network_evaluations)


class TickingByCrop(torch.nn.Module):
    """A network that takes a second a crop, and 1.2 seconds more where it trains."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.w = clock, torch.nn.Parameter(torch.tensor([0.1]))

    def forward(self, x_t, t, return_dict):
        self.clock.now += len(x_t) * (2.2 if torch.is_grad_enabled() else 1.0)
        return (self.w * x_t,)


@pytest.mark.parametrize("n_iterations", [0, 5, 80, 400])
def test_fine_tuning_is_charged_for_its_held_out_work(tiny, tmp_path, monkeypatch, n_iterations):
    clock, words = Clock(monkeypatch), [*tiny, f"results={tmp_path}", "adaptation=random"]
    words += [f"adaptation.fine_tuning.n_iterations={n_iterations}", "adaptation.fine_tuning.batch_size=6"]
    cell = resolve_cell(compose([*words, "adaptation/fine_tuning=safe"]))
    backbone = copy.copy(cell.backbone)
    backbone.network = TickingByCrop(clock)
    cell = dataclasses.replace(cell, backbone=backbone)
    estimated = estimate(cell).seconds_per_picture["adapt"]
    before = clock.now
    cell.fine_tuning.fit(
        backbone, cell.adapter, [cell.corpus.image(name) for name in cell.corpus.ids[:2]], generator(0, "x", "fit")
    )
    assert estimated == pytest.approx(clock.now - before, rel=0.05)


def test_what_compiles_a_network_is_not_its_price(monkeypatch):
    clock, taken = Clock(monkeypatch), iter([90.0, 0.2])

    def network(x):
        clock.now += next(taken)
        return (x,)

    stand_in = StandIn(network, CPU, lambda kind, make: make())
    stand_in(torch.zeros(1))
    (call,) = stand_in.met.values()
    assert call.seconds == pytest.approx(0.2)


def test_what_stands_in_for_a_network_lets_gradients_through():
    network = torch.nn.Linear(3, 3)
    stand_in = StandIn(lambda x: (network(x),), CPU, lambda kind, make: make())
    x = torch.ones(1, 3, requires_grad=True)
    (answer,) = stand_in(x)
    torch.testing.assert_close(answer, network(x))
    assert torch.autograd.grad(answer.sum(), x)[0].shape == x.shape
    with torch.no_grad():
        assert not stand_in(x)[0].requires_grad
    assert len(stand_in.met) == 2  # with and without a way back are two kinds


def test_a_cell_costs_its_stages_and_cells_share_calibrations(tiny, tmp_path, monkeypatch):
    calls = []
    fit, words = FineTuning.fit, [*tiny, f"results={tmp_path}", "adaptation/fine_tuning=fixed"]
    monkeypatch.setattr(FineTuning, "fit", lambda self, *a, **k: calls.append(self.n_iterations) or fit(self, *a, **k))

    def price(*overrides: str):
        return estimate(resolve_cell(compose([*words, *overrides])))

    bare = price()
    assert set(bare.seconds_per_picture) == {"measure", "sample", "score"}
    assert bare.memory_mb > 0 and bare.adapter_disk_mb == 0
    assert calls == []

    long = ["adaptation.fine_tuning.n_iterations=40", "sampler.n_steps=1000"]
    knn = price("adaptation=knn", *long)
    assert set(knn.seconds_per_picture) == {"measure", "retrieve", "adapt", "sample", "score"}
    parameters = sum(p.numel() for p in GuidedDiffusion().network.parameters())
    assert knn.adapter_disk_mb == pytest.approx(4 * parameters / 1e6)
    assert knn.disk_mb_per_picture == knn.picture_disk_mb + knn.adapter_disk_mb
    assert len(calls) == 2 and calls[0] == 2  # to warm up, and the one that counts

    more = price("adaptation=random", "task=deblur", "adaptation.fine_tuning.n_iterations=80", *long[1:], "seed=3")
    assert len(calls) == 2  # only task, seed and the numbers of steps differ
    once, twice = (cost.seconds_per_picture["adapt"] for cost in (knn, more))
    assert once < twice <= 2 * once  # of one line, whose start costs nothing or something
    price("adaptation=knn", "adaptation.fine_tuning.batch_size=2", *long)
    assert len(calls) == 4
    assert list(tmp_path.iterdir()) == []  # nothing is written


@pytest.mark.parametrize("prompt, rows", [("", 1), ("a house", 2)])
def test_a_latent_cell_is_charged_for_guided_calls(tmp_path, made_stable_diffusion, prompt, rows):
    folder = made_stable_diffusion.saved(made_stable_diffusion.upscaler(), tmp_path / "sd_x4")
    words = ["backbone=sd_x4", "sampler=sd_x4", f"backbone.folder={folder}", f"sampler.prompt={prompt}", "task=sr4"]
    words += ["adaptation=self", "adaptation/fine_tuning=sd_x4", "adaptation.fine_tuning.crop_size=16"]
    words += ["data.only=[chelsea-s1-y050-x105]", "scoring.metrics=[psnr]", f"results={tmp_path / 'results'}"]
    found = estimate(resolve_cell(compose(words)))
    assert found.seconds_per_picture["sample"] > 0 and found.seconds_per_picture["adapt"] > 0
    (call,) = [made for made in cost._calibrations.values() if isinstance(made, Call)]
    assert call.answer[0].shape[0] == rows


def test_iterations_of_adaptation_cost_their_median_and_the_rest_once(tiny, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    def fit(self, backbone, adapter, pictures, generator, callbacks, task, variants):
        clock.now += 3.0
        for number in range(self.n_iterations):
            clock.now += 0.01 if number != 4 else 7.0  # another process woke up
            callbacks[0].on_train_batch_end(None, None, None, None, number)
        return SimpleNamespace(tensors={})

    monkeypatch.setattr(FineTuning, "fit", fit)
    words = [*tiny, f"results={tmp_path}", "adaptation=self", "adaptation.fine_tuning.n_iterations=400"]
    words += ["adaptation/fine_tuning=fixed"]
    cell = resolve_cell(compose(words))
    line = cost.adaptation(cell, cell.task, torch.zeros(3, 32, 32)).line
    assert line.seconds(400) == pytest.approx(3.0 + 400 * 0.01)


def test_the_corpus_is_embedded_once_and_not_where_it_is_already(tiny, adir, neighbourhood, tmp_path):
    def once(*overrides: str) -> set[str]:
        words = [*tiny, f"results={tmp_path}", "adaptation=knn", *overrides]
        return {name.split()[0] for name in estimate(resolve_cell(compose(words))).seconds_once}

    assert once() == {"embeddings", "fingerprints", "metrics"}
    assert adir("run", *tiny, f"results={tmp_path}", "adaptation=knn", "sampler.n_steps=1").status == 0
    assert once() == {"fingerprints", "metrics"}
    folder = tmp_path / "index"
    assert adir("index", "build", f"corpus.path={neighbourhood}", f"out={folder}", "least_side=0").status == 0
    tiny = [word for word in tiny if not word.startswith("retrieval")]
    assert once("retrieval=index", f"index={folder}", f"results={tmp_path / 'other'}") == {"fingerprints", "metrics"}


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


def test_full_fine_tuning_is_counted_without_a_copy_of_the_weights(big_cell, monkeypatch):
    network, full = big_cell.backbone.network, Full()
    attached = full.attach(network)
    beside = call_bytes(network, 2, 64, 64, torch.float32, train=True)
    attached.remove()
    wanted = int(beside * out_of_memory.OVERHEAD) + 3 * weight_bytes(network)  # trained copy, and Adam's two moments
    monkeypatch.setattr(Full, "attach", lambda *_: pytest.fail("memory is used up already"))
    cell = SimpleNamespace(**{**vars(big_cell), "adapter": full})
    assert out_of_memory.needed_bytes(cell, True, 2, (64, 64), Execution()) == wanted
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    "sampler, rows",
    [
        (UpscalerSampler(prompt="a house"), 2),
        (UpscalerSampler(), 1),  # no prompt: nothing to tell apart
        (UpscalerSampler(prompt="a house", guidance_scale=1.0), 1),
        (InpaintingSampler(), 2),
        (InpaintingSampler(guidance_scale=1.0), 1),
    ],
)
def test_guidance_without_a_classifier_asks_for_two_rows_and_pictures_go_one_by_one(big_cell, sampler, rows):
    latent = SimpleNamespace(**{**vars(big_cell.backbone), "kind": "latent"})
    cell = SimpleNamespace(backbone=latent, sampler=sampler)
    beside = call_bytes(latent.network, rows, 32, 32, torch.float32, train=False)
    needed = out_of_memory.needed_bytes(cell, False, 4, (64, 64), Execution())
    assert needed == int(beside * out_of_memory.OVERHEAD)


def test_settings_that_are_on_already_are_not_proposed():
    gpu = dataclasses.replace(Execution(), dtype="bfloat16", gradient_checkpointing=True)
    object.__setattr__(gpu, "device", "cuda")  # there may be none here
    assert [words for _, words in candidates(gpu, True, 4)] == [
        "adaptation.fine_tuning.batch_size=2",
        "adaptation.fine_tuning.batch_size=1",
    ]
    assert json.dumps(candidates(gpu, False, 1)) == json.dumps([({"offload": True}, "execution.offload=true")])
