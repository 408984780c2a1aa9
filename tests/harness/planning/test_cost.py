"""The cost model: short runs extrapolated, the price of a cell against what it is made of, and out
of memory explained.
"""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.data.embedded import test_fields as embedded_fields
from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.planning import cost
from adir.harness.planning.cost import estimate, extrapolated, part_of_corpus
from adir.harness.running.out_of_memory import (
    OutOfMemory,
    is_out_of_memory,
    out_of_memory_explained,
)
from adir.harness.running.worker import Options, run_cell
from adir.images import generator

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "short runs").mkdir()
    return tmp_path / "short runs"


@pytest.mark.parametrize("n", [0, 1, 2, 14, 1000])
def test_work_that_is_linear_is_extrapolated_exactly(n):
    def seconds(work):
        return 3 * work[0] + 0.25 * work[1]

    work = [(1, min(n, 2)), (1, min(n, 14)), (1, n)]
    assert extrapolated(work, *map(seconds, work[:2])) == pytest.approx(3 + 0.25 * n)


def test_an_extrapolation_is_never_below_what_was_timed():
    assert extrapolated([(1, 2), (1, 4), (1, 100)], 1.1, 1.0) == 1.1  # another process woke up


@dataclasses.dataclass
class Ticking:
    """A network that takes half a second a call, and knows no image."""

    clock: Clock
    called: int = 0

    def __call__(self, x_t, t, return_dict):
        self.called += 1
        self.clock.now += 0.5
        return (0.1 * x_t,)


@pytest.mark.parametrize("sampler", ["adir", "ddrm", "dps"])
def test_a_sampler_is_charged_for_every_call_of_its_network_and_makes_few(
    tiny, tmp_path, folder, monkeypatch, sampler
):
    clock, words = (
        Clock(monkeypatch),
        [*tiny, f"results={tmp_path}", f"sampler={sampler}", "sampler.n_steps=37"],
    )
    cell = resolve_cell(compose(words))
    backbone = copy.copy(cell.backbone)
    backbone.network = network = Ticking(clock)
    cell = dataclasses.replace(cell, backbone=backbone)
    estimated = estimate(cell, folder).seconds_per_image["sample"]
    assert network.called <= 20
    x = cell.data.image(cell.data.ids[0])
    y = cell.task.degrade(x, generator(0, "x", "y"))[None]
    before = clock.now
    restored = cell.sampler.restore(
        backbone, cell.task.operator(tuple(x.shape)), y, [generator(0, "x", "sampler")]
    )
    assert (
        estimated
        == pytest.approx(clock.now - before)
        == pytest.approx(0.5 * restored.network_evaluations)
    )


class TickingModule(Ticking, torch.nn.Module):
    """The same with a weight, for an adapter."""

    __hash__ = torch.nn.Module.__hash__

    def __init__(self, clock: Clock) -> None:
        torch.nn.Module.__init__(self)
        self.clock, self.called = clock, 0
        self.w = torch.nn.Parameter(torch.tensor([0.1]), requires_grad=False)


def test_tuning_while_sampling_is_charged_for_every_call_where_it_falls(
    tiny, tmp_path, folder, monkeypatch
):
    clock, words = (
        Clock(monkeypatch),
        [*tiny, f"results={tmp_path}", "sampler=dds", "adaptation=scd"],
    )
    cell = resolve_cell(compose([*words, "sampler.n_steps=37"]))
    backbone = copy.copy(cell.backbone)
    backbone.network = network = TickingModule(clock)
    mode = dataclasses.replace(cell.mode, adapter=Full())
    cell = dataclasses.replace(cell, backbone=backbone, mode=mode)
    estimated = estimate(cell, folder).seconds_per_image
    assert estimated["adapt"] == 0
    x = cell.data.image(cell.data.ids[0])
    y = cell.task.degrade(x, generator(0, "x", "y"))[None]
    steered = mode.steered(network, generator(0, "x", "adaptation"))
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
def test_fine_tuning_is_charged_for_its_held_out_work(
    tiny, tmp_path, folder, monkeypatch, n_iterations
):
    clock, words = Clock(monkeypatch), [*tiny, f"results={tmp_path}", "adaptation=random"]
    words += [
        f"adaptation.fine_tuning.n_iterations={n_iterations}",
        "adaptation.fine_tuning.batch_size=6",
    ]
    cell = resolve_cell(compose([*words, "adaptation/fine_tuning=safe"]))
    backbone = copy.copy(cell.backbone)
    backbone.network = TickingByCrop(clock)
    cell = dataclasses.replace(cell, backbone=backbone)
    estimated = estimate(cell, folder).seconds_per_image["adapt"]
    before = clock.now
    cell.fine_tuning.fit(
        backbone,
        cell.adapter,
        [cell.corpus.image(name) for name in cell.corpus.ids[:2]],
        generator(0, "x", "fit"),
    )
    assert estimated == pytest.approx(clock.now - before, rel=0.05)


def test_what_the_first_run_waits_for_is_paid_once(tiny, tmp_path, folder, monkeypatch):
    clock, cell = (
        Clock(monkeypatch),
        resolve_cell(compose([*tiny, f"results={tmp_path}", "sampler.n_steps=37"])),
    )
    compiling = iter([90.0])

    class Compiled(Ticking):
        def __call__(self, x_t, t, return_dict):
            self.clock.now += next(compiling, 0.0)
            return super().__call__(x_t, t, return_dict)

    backbone = copy.copy(cell.backbone)
    backbone.network = Compiled(clock)
    found = estimate(dataclasses.replace(cell, backbone=backbone), folder)
    assert found.seconds_once == pytest.approx(90)
    assert found.seconds_per_image["sample"] == pytest.approx(0.5 * 37)


def test_a_cell_costs_its_stages_and_the_disk_that_a_run_takes(tiny, tmp_path, folder):
    results = tmp_path / "results"
    cell = resolve_cell(compose([*tiny, f"results={results}", "adaptation=knn"]))
    found = estimate(cell, folder)
    assert not results.exists()  # nothing is written
    assert all(
        found.seconds_per_image[stage] > 0
        for stage in ("measure", "retrieve", "adapt", "sample", "score")
    )
    run_cell(cell, Options(), tell=lambda _: None)
    adapters = [path.stat().st_size for path in results.glob("adapters/*.safetensors")]
    assert found.memory_mb > 0 and found.adapter_disk_mb == pytest.approx(
        sum(adapters) / len(adapters) / 1e6, rel=0.01
    )
    parameters = sum(p.numel() for p in GuidedDiffusion().network.parameters())
    assert found.adapter_disk_mb == pytest.approx(4 * parameters / 1e6, rel=0.01)
    others = [
        path.stat().st_size
        for path in results.rglob("*.*")
        if path.parent.name not in ("adapters", "embeddings")
    ]
    assert found.image_disk_mb == pytest.approx(sum(others) / len(cell.data) / 1e6, rel=0.3)


@pytest.mark.parametrize("prompt", ["", "a house"])
def test_a_latent_cell_is_timed_too(tmp_path, folder, made_stable_diffusion, prompt):
    saved = made_stable_diffusion.saved(made_stable_diffusion.upscaler(), tmp_path / "sd_x4")
    words = [
        "backbone=sd_x4",
        "sampler=sd_x4",
        f"backbone.folder={saved}",
        f"sampler.prompt={prompt}",
        "task=sr4",
    ]
    words += [
        "adaptation=self",
        "adaptation/fine_tuning=sd_x4",
        "adaptation.fine_tuning.crop_size=16",
    ]
    words += [
        "data.only=[chelsea-s1-y050-x105]",
        "scoring.metrics=[psnr]",
        f"results={tmp_path / 'results'}",
    ]
    found = estimate(resolve_cell(compose(words)), folder)
    assert found.seconds_per_image["sample"] > 0 and found.seconds_per_image["adapt"] > 0


def test_the_corpus_is_embedded_once_and_not_where_it_is_already(
    tiny, adir, neighbourhood, tmp_path, folder
):
    def embedding(folder: Path, *overrides: str) -> float:
        cell = resolve_cell(compose([*tiny, f"results={tmp_path}", *overrides]))
        x = cell.data.image(cell.data.ids[0])
        corpus, seconds = part_of_corpus(cell, x, cell.data.cluster(cell.data.ids[0]), folder)
        assert set(corpus.ids) <= set(cell.corpus.ids) and len(corpus) >= cell.k
        return seconds

    assert embedding(folder, "adaptation=random") == 0  # which looks for nothing
    assert embedding(folder, "adaptation=knn") > 0
    assert embedding(folder, "adaptation=knn", "task=deblur") == 0
    assert (
        adir("run", *tiny, f"results={tmp_path}", "adaptation=knn", "sampler.n_steps=1").status == 0
    )
    assert embedding(tmp_path / "other", "adaptation=knn") == 0
    index = tmp_path / "index"
    assert (
        adir(
            "index", "build", f"corpus.path={neighbourhood}", f"out={index}", "least_side=0"
        ).status
        == 0
    )
    tiny = [word for word in tiny if not word.startswith("retrieval")]
    words = [
        "adaptation=knn",
        "retrieval=index",
        f"index={index}",
        f"results={tmp_path / 'elsewhere'}",
    ]
    assert embedding(tmp_path / "other", *words) == 0


# --- out of memory


@pytest.fixture
def big_cell():
    """As much of a cell as the explanation looks at."""
    backbone = SimpleNamespace(execution=Execution(), device=CPU, kind="pixel")
    return SimpleNamespace(backbone=backbone, fine_tuning=FineTuning(1, 4, 1e-4, 64))


def test_out_of_memory_is_known_on_both_kinds_of_device_and_behind_other_errors():
    assert is_out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    )
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    assert is_out_of_memory(MemoryError())
    wrapped = ValueError("in the loop")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(None)


def test_adaptation_out_of_memory_names_batch_crop_and_what_to_try(big_cell, monkeypatch):
    from adir.adaptation.denoising_module import DenoisingModule

    def fail(self, batch, index):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
            "allocate memory"
        )

    monkeypatch.setattr(DenoisingModule, "training_step", fail)
    x = embedded_fields()[0][1][:, :32, :32]
    with pytest.raises(OutOfMemory) as raised, out_of_memory_explained(big_cell, (3, 128, 128)):
        FineTuning(1, 1, 1e-4, 32).fit(GuidedDiffusion(), Lora(rank=1), [x], torch.Generator())
    assert str(raised.value) == (
        "out of memory on cpu while adapting with batch_size=4 crops of 64x64; try "
        "execution.gradient_checkpointing=true first, then a smaller "
        "adaptation.fine_tuning.batch_size or adaptation.fine_tuning.crop_size; "
        "finished work is saved, and the next run does only the rest"
    )


def test_sampling_out_of_memory_names_the_images_and_other_errors_stay(big_cell):
    with pytest.raises(OutOfMemory, match=r"while sampling 4 images of 48x64; try batch_size=1, "):
        with out_of_memory_explained(big_cell, (3, 64, 48), 4):
            raise MemoryError
    with (
        pytest.raises(ValueError, match="shapes differ"),
        out_of_memory_explained(big_cell, (3, 64, 48)),
    ):
        raise ValueError("shapes differ")
