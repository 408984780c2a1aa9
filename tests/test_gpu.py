"""The same walk on a GPU: adapt, restore, and the image that a CPU gives up to rounding; precision,
offload, compilation.
"""

import pytest
import torch

from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.data.embedded import test_fields as embedded_fields
from adir.harness.cells.cell import build
from adir.harness.cells.compose import compose
from adir.images import generator
from adir.samplers.adir import ADIR
from adir.samplers.tiling import restore_any_size

pytestmark = pytest.mark.gpu


def image() -> torch.Tensor:
    return embedded_fields()[0][1][:, :64, :64]


def walk(backbone: GuidedDiffusion, adapter: Full | Lora, n_iterations: int = 2) -> torch.Tensor:
    """Adapt to the image, degrade it, and restore it in a few steps: (3, 64, 64) on the CPU."""
    x = image()
    task = build(compose(["task=sr4"]).task, "task")
    y = task.degrade(x, generator(0, "gpu", "y"))[None].to(backbone.device)
    tuned = FineTuning(n_iterations, 2, 1e-4, 32).fit(
        backbone, adapter, [x], generator(0, "gpu", "adaptation")
    )
    with adapted(backbone.network, adapter, tuned.tensors):
        sampler = ADIR(n_steps=5, guidance_scale=100, variance="small")
        noise = generator(0, "gpu", "sampler")
        return sampler.restore(backbone, task.operator((3, 64, 64)), y, [noise]).x_hat[0].cpu()


@pytest.mark.parametrize("adapter", [Full(), Lora()], ids=lambda adapter: adapter.name)
def test_a_network_adapted_on_a_gpu_stays_there_and_restores(adapter) -> None:
    images = {}
    for device in ("cpu", "cuda"):
        backbone = GuidedDiffusion(device=device)
        before = {
            name: tensor.cpu().clone() for name, tensor in backbone.network.state_dict().items()
        }
        images[device] = walk(backbone, adapter)
        assert next(backbone.network.parameters()).device.type == device
        after = backbone.network.state_dict()
        assert list(after) == list(before) and all(
            torch.equal(after[name].cpu(), before[name]) for name in before
        )
    torch.testing.assert_close(images["cuda"], images["cpu"], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels_last": True},
        {"gradient_checkpointing": True},
        {"offload": True},
        {"attention": "efficient"},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("adapter", [Full(), Lora()], ids=lambda adapter: adapter.name)
def test_settings_of_execution_change_an_image_by_rounding_only(adapter, settings) -> None:
    expected = walk(GuidedDiffusion(device="cuda"), adapter)
    backbone = GuidedDiffusion(device="cuda", execution=Execution("cuda", **settings))
    before = {name: tensor.cpu().clone() for name, tensor in backbone.network.state_dict().items()}
    torch.testing.assert_close(walk(backbone, adapter), expected, rtol=0, atol=1e-2)
    after = backbone.network.state_dict()
    assert all(torch.equal(after[name].cpu(), before[name]) for name in before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adapts_and_stays_within_40_db(dtype) -> None:
    expected = walk(GuidedDiffusion(device="cuda"), Lora())
    found = walk(GuidedDiffusion(device="cuda", execution=Execution("cuda", dtype)), Lora())
    error = (found.clamp(-1, 1) - expected.clamp(-1, 1)).square().mean()
    assert -10 * (error / 4).log10() > 40  # images in [-1, 1]: the peak is 2


@pytest.mark.slow
def test_a_compiled_network_adapts_and_restores_as_before() -> None:
    expected = walk(GuidedDiffusion(device="cuda"), Lora())
    backbone = GuidedDiffusion(device="cuda", execution=Execution("cuda", compile=True))
    for _ in range(2):
        torch.testing.assert_close(walk(backbone, Lora()), expected, rtol=0, atol=1e-2)


def test_offloaded_weights_leave_the_gpu_to_activations() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    backbone = GuidedDiffusion(device="cuda", execution=Execution("cuda", offload=True))
    with torch.no_grad():
        backbone.predict(
            torch.zeros(1, 3, 64, 64, device="cuda"),
            torch.zeros(1, dtype=torch.long, device="cuda"),
        )
    weights = sum(p.nbytes for p in backbone.network.parameters())
    assert torch.cuda.memory_allocated() - before < 0.1 * weights


def test_an_inpainted_image_of_a_user_comes_back_on_the_cpu() -> None:
    task = build(compose(["task=inpaint_box"]).task, "task")
    y = task.degrade(image(), generator(0, "gpu", "y"))
    sampler = ADIR(n_steps=2, guidance_scale=10, variance="small")
    restored = restore_any_size(
        sampler, GuidedDiffusion(device="cuda"), task, y, 0, "gpu", tile=256
    )
    assert restored.x_hat.device.type == "cpu" and torch.isfinite(restored.x_hat).all()
