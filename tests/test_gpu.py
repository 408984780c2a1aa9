"""The same walk on a GPU: adapt, restore, and the picture that a CPU gives up to rounding."""

import pytest
import torch

from adir.adaptation.adapters import Full, Lora, adapted
from adir.adaptation.denoising_module import FineTuning
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.embedded.pictures import test_fields as embedded_fields
from adir.harness.cell import build
from adir.harness.launch import compose
from adir.images import generator
from adir.samplers.adir import ADIR
from adir.samplers.tiling import restore_any_size

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("adapter", [Full(), Lora()], ids=lambda adapter: adapter.name)
def test_a_network_adapted_on_a_gpu_stays_there_and_restores(adapter) -> None:
    x = embedded_fields()[0][1][:, :64, :64]
    task = build(compose(["task=sr4"]).task, "task")
    y = task.degrade(x, generator(0, "gpu", "y"))
    pictures = {}
    torch.backends.cudnn.allow_tf32 = False
    for device in ("cpu", "cuda"):
        backbone = GuidedDiffusion(device=device)
        tuned = FineTuning(2, 2, 1e-4, 32).fit(backbone, adapter, [x], generator(0, "gpu", "adaptation"))
        assert next(backbone.network.parameters()).device.type == device
        with adapted(backbone.network, adapter, tuned.tensors):
            sampler = ADIR(n_steps=5, guidance_scale=100, variance="small")
            noise = generator(0, "gpu", "sampler")
            restored = sampler.restore(backbone, task.operator((3, 64, 64)), y[None].to(device), [noise])
        pictures[device] = restored.x_hat.cpu()
    torch.testing.assert_close(pictures["cuda"], pictures["cpu"], rtol=0, atol=1e-2)


def test_an_inpainted_picture_of_a_user_comes_back_on_the_cpu() -> None:
    task = build(compose(["task=inpaint_box"]).task, "task")
    y = task.degrade(embedded_fields()[0][1][:, :64, :64], generator(0, "gpu", "y"))
    sampler = ADIR(n_steps=2, guidance_scale=10, variance="small")
    restored = restore_any_size(sampler, GuidedDiffusion(device="cuda"), task, y, 0, "gpu", tile=256)
    assert restored.x_hat.device.type == "cpu" and torch.isfinite(restored.x_hat).all()
