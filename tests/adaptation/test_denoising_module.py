"""Fine-tuning against a training loop written without Lightning, and what it leaves behind:
nothing.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted
from adir.adaptation.crops import NoisyCrops
from adir.adaptation.denoising_module import DenoisingModule
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.errors import InputError

ADAPTERS = pytest.mark.parametrize("adapter", [Full(), Lora(rank=4)], ids=["full", "lora"])
SMALL = FineTuning(n_iterations=3, batch_size=2, crop_size=16, learning_rate=1e-3)
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


@pytest.fixture(scope="module")
def backbone() -> GuidedDiffusion:
    """The embedded prior: what these tests ask of a network, a trained one must answer too."""
    return GuidedDiffusion()


@pytest.fixture
def images() -> list[Tensor]:
    """Two smooth images with an edge, unlike photographs."""
    row = torch.linspace(-1, 1, 24)
    wave = torch.sin(6 * row)[:, None] * torch.cos(5 * row)[None]
    return [torch.stack([wave, -wave, wave.sign()]), torch.stack([wave.T.sign(), wave, 0 * wave])]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def snapshot(backbone: GuidedDiffusion) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}


def assert_untouched(backbone: GuidedDiffusion, before: dict[str, Tensor]) -> None:
    after = backbone.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in backbone.network.parameters())
    assert not backbone.network.training


def test_the_loss_is_the_mean_squared_error_of_the_predicted_noise(backbone, images):
    z = torch.stack([image[:, :16, :16] for image in images])
    t, eps = torch.tensor([5, 800]), torch.randn(2, 3, 16, 16)
    module = DenoisingModule(backbone.network, backbone.denoising_loss, [], torch.optim.Adam)
    module.log = lambda *arguments, **options: None
    loss = module.training_step((z, t, eps), 0)
    # DDPM, eq. 14, image by image: the noise of z_t = sqrt(ab) z + sqrt(1 - ab) eps.
    expected = 0.0
    for k in range(2):
        ab = ALPHA_BAR[t[k]].item()
        z_t = ab**0.5 * z[k : k + 1] + (1 - ab) ** 0.5 * eps[k : k + 1]
        with torch.no_grad():
            eps_hat = backbone.network(z_t, t[k], return_dict=False)[0]
        expected += ((eps[k] - eps_hat[0]) ** 2).mean().item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert module.losses == [loss.item()]


@ADAPTERS
def test_three_iterations_equal_a_loop_without_lightning(backbone, images, adapter):
    trained = SMALL.fit(backbone, adapter, images, seeded())

    network, generator = backbone.network, seeded()
    attached = adapter.attach(network)
    try:
        if isinstance(adapter, Lora):
            attached.initialise(generator)
        optimizer = torch.optim.Adam(attached.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
        stream = iter(NoisyCrops(images, 16, 8, 1000, True, generator))
        losses = []
        for _ in range(3):
            z, t, eps = (
                torch.stack(part) for part in zip(*(next(stream) for _ in range(2)), strict=True)
            )
            ab = ALPHA_BAR[t].reshape(-1, 1, 1, 1)
            z_t = (ab.sqrt() * z + (1 - ab).sqrt() * eps).float()
            loss = torch.nn.functional.mse_loss(network(z_t, t).sample, eps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        twin = attached.tensors()
    finally:
        attached.remove()

    assert trained.losses == pytest.approx(losses, rel=1e-5)
    assert trained.tensors.keys() == twin.keys()
    # Adam moves a weight by up to lr = 1e-3 an iteration whatever its gradient; rounding turns tiny
    # gradients around.
    for name, tensor in twin.items():
        assert (trained.tensors[name] - tensor).abs().mean() < 2e-6, name


@ADAPTERS
def test_the_backbone_is_bit_identical_afterwards(backbone, images, adapter):
    before = snapshot(backbone)
    trained = SMALL.fit(backbone, adapter, images, seeded())
    assert_untouched(backbone, before)
    if adapter.name == "full":
        assert any(not torch.equal(trained.tensors[name], before[name]) for name in before)
        assert trained.n_parameters == sum(tensor.numel() for tensor in before.values())
    else:
        assert any(tensor.any() for name, tensor in trained.tensors.items() if ".lora_B." in name)
    assert len(trained.losses) == 3 and trained.layers
    assert (trained.crop_size, trained.crop_size_reason) == (16, None)


@ADAPTERS
def test_the_backbone_is_bit_identical_after_an_exception_during_training(
    backbone, images, adapter
):
    before = snapshot(backbone)
    images[0][:] = torch.nan
    images[1][:] = torch.nan
    with pytest.raises(
        FloatingPointError, match="diverged at iteration 0: lower the learning rate"
    ):
        SMALL.fit(backbone, adapter, images, seeded())
    assert_untouched(backbone, before)
    with pytest.raises(ValueError, match="at least one image"):
        SMALL.fit(backbone, adapter, [], seeded())
    with pytest.raises(ValueError, match="adaptation needs at least 8"):
        SMALL.fit(backbone, adapter, [torch.zeros(3, 4, 4)], seeded())
    with pytest.raises(InputError, match="image dot has 1x1 pixels"):
        SMALL.fit(
            backbone, adapter, [*images, torch.zeros(3, 1, 1)], seeded(), names=["a", "b", "dot"]
        )
    assert_untouched(backbone, before)


@ADAPTERS
def test_a_generator_state_gives_one_adapter_whatever_the_global_one(backbone, images, adapter):
    trained = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        trained.append(SMALL.fit(backbone, adapter, images, seeded(seed)).tensors)
    first, again, other = trained
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@ADAPTERS
def test_training_lowers_the_noise_error_on_the_training_images(backbone, images, adapter):
    def error() -> float:
        generator, total = seeded(9), 0.0
        for t in (50, 150, 300, 500):
            for image in images:
                eps = torch.randn(image.shape, generator=generator)
                x_t = (ALPHA_BAR[t].sqrt() * image + (1 - ALPHA_BAR[t]).sqrt() * eps).float()
                total += (
                    backbone.predict(x_t[None], torch.tensor([t])).eps[0] - eps
                ).square().mean().item() / 8
        return total

    bare = error()
    trained = FineTuning(n_iterations=15, batch_size=4, crop_size=24, learning_rate=1e-3).fit(
        backbone, adapter, images, seeded()
    )
    with adapted(backbone.network, adapter, trained.tensors):
        tuned = error()
    assert tuned < 0.9 * bare
    assert error() == bare


@ADAPTERS
def test_no_iterations_give_an_adapter_without_effect(backbone, images, adapter):
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    bare = backbone.predict(x, t).eps
    trained = FineTuning(n_iterations=0, crop_size=16).fit(backbone, adapter, images, seeded())
    assert trained.losses == []
    with adapted(backbone.network, adapter, trained.tensors):
        assert torch.equal(backbone.predict(x, t).eps, bare)


def test_training_writes_no_file_and_no_line(backbone, images, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    SMALL.fit(backbone, Lora(rank=1), images, seeded())
    assert list(Path(tmp_path).rglob("*")) == []
    out, err = capfd.readouterr()
    assert out == "" and err == ""


SLURM = {f"SLURM_{name}": "0" for name in ("NODEID", "PROCID", "LOCALID")}
LAUNCHERS = {
    "slurm": SLURM
    | {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "n"},
    "slurm of one task, by another name": SLURM
    | {"SLURM_JOBID": "7", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "4"},
    "torchrun": {
        "TORCHELASTIC_RUN_ID": "a",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
    },
    "by hand": {
        "MASTER_ADDR": "nowhere.invalid",
        "MASTER_PORT": "x",
        "NODE_RANK": "2",
        "WORLD_SIZE": "8",
        "RANK": "7",
    },
    "mpi": {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "PMI_RANK": "1",
        "PMI_SIZE": "2",
    },
    "lsf": {
        "LSB_JOBID": "1",
        "LSB_DJOB_RANKFILE": "nowhere",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
        "JSM_NAMESPACE_SIZE": "2",
    },
    "kubeflow": {
        "KUBERNETES_PORT": "tcp://nowhere:1",
        "MASTER_ADDR": "m",
        "MASTER_PORT": "1",
        "WORLD_SIZE": "2",
        "RANK": "1",
    },
    "Lightning's own": {
        "PL_TRAINER_LIMIT_TRAIN_BATCHES": "1",
        "PL_TRAINER_FAST_DEV_RUN": "1",
        "PL_TRAINER_DEVICES": "2",
    },
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_process_adapts_one_image_whatever_launched_it(backbone, images, launcher, monkeypatch):
    adapter = Full()
    alone = SMALL.fit(backbone, adapter, images, seeded())
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    launched = SMALL.fit(backbone, adapter, images, seeded())
    assert launched.losses == alone.losses and len(launched.losses) == 3
    assert all(
        torch.equal(launched.tensors[name], tensor) for name, tensor in alone.tensors.items()
    )
