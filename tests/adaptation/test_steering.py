"""SCD: when it tunes, what it lowers, that it keeps Adam's moments, and that each image has a
network of its own.
"""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn

from adir.adaptation.adapters import Full
from adir.adaptation.fine_tuning import FineTuning
from adir.adaptation.lora import Lora
from adir.adaptation.steering import SteerableConditional, objective, total_variation
from adir.backbones.base import Prediction
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.harness.cells.compose import compose
from adir.images import from_uint8
from adir.samplers.base import SteerableSampler, Steering
from adir.samplers.dds import DDS
from adir.samplers.tiling import restore_any_size
from adir.tasks.operators import BoxBlur, SuperResolution
from adir.tasks.restoration import RestorationTask

SR = RestorationTask("sr4", 1, SuperResolution(4), 0, 100)
DEBLUR = RestorationTask("deblur", 1, BoxBlur(5), 10, 30)
SHAPE = (3, 16, 16)
SCD: SteerableConditional = instantiate(
    compose(["adaptation=scd", "sampler=dds"]).adaptation, _convert_="all"
)
LORA = SCD.adapter
SHORT = dataclasses.replace(SCD, every=3, lowest=1, n_iterations=2, learning_rate=1e-3)
SAMPLER = DDS(n_steps=6)


@pytest.fixture(scope="module")
def backbone() -> GuidedDiffusion:
    return GuidedDiffusion()


@pytest.fixture(scope="module")
def y(photographs) -> Tensor:
    """Two measurements of 16x16 images."""
    with Image.open(photographs / "0.png") as image:
        x = from_uint8(np.array(image.convert("RGB")))
    return torch.stack(
        [DEBLUR.degrade(x[:, :16, :16], generator(0)), DEBLUR.degrade(x[:, 16:, 16:], generator(1))]
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steered(
    backbone, y: Tensor, *seeds: int, mode: SteerableConditional = SHORT, sampler: DDS = SAMPLER
):
    """(Restoration, its SteeredNetworks), image k with the seed seeds[k]."""
    steering = [mode.steered(backbone.network, generator(100 + seed)) for seed in seeds]
    noise = [generator(seed) for seed in seeds]
    return sampler.restore_steered(backbone, DEBLUR.operator(SHAPE), y, noise, steering), steering


def test_total_variation_is_the_sum_counted_by_hand() -> None:
    x = torch.zeros(1, 3, 2, 3)
    x[0, 0] = torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.0, 2.0]])
    # rows: 1 + 2, 0 + 2; columns: 0, 1, 3
    assert total_variation(x).item() == 9
    assert objective(x, torch.tensor([1.0, -2.0]), 0.1).item() == pytest.approx((1 + 4) / 2 + 0.9)


def test_the_papers_steps_are_every_20th_and_the_four_lowest_of_100() -> None:
    assert [i for i in range(100) if SCD.is_due(i)] == [0, 1, 2, 3, 20, 40, 60, 80]


def test_the_papers_adapter_is_on_all_of_the_blocks_and_on_neither_end_of_the_network(
    backbone,
) -> None:
    every = Lora(layers="all").targets(backbone.network)
    assert LORA.targets(backbone.network) == [
        name for name in every if name not in ("conv_in", "conv_out")
    ]
    assert every[0] == "conv_in" and every[-1] == "conv_out" and (LORA.rank, LORA.alpha) == (8, 8)


@pytest.mark.parametrize("name, adapter", [("full", Full()), ("lora", Lora())])
def test_another_adapter_takes_the_place_of_scds_with_settings_of_its_own(
    name: str, adapter: Full | Lora
) -> None:
    cfg = compose(["adaptation=scd", f"adaptation/adapter={name}", "sampler=dds"])
    assert instantiate(cfg.adaptation, _convert_="all").adapter == adapter


def test_the_settings_of_the_configuration_are_the_classes_own() -> None:
    assert SteerableConditional(LORA, SCD.fine_tuning) == SCD
    assert instantiate(compose(["sampler=dds"]).sampler) == DDS()


def test_the_mode_steers_and_dds_takes_it() -> None:
    assert isinstance(SCD, Steering) and isinstance(DDS(), SteerableSampler)
    assert not SCD.trains and SCD.encoder is None


def test_each_tuning_lowers_the_objective_and_evaluations_are_those_of_the_network(
    backbone, y
) -> None:
    mode = dataclasses.replace(SHORT, n_iterations=4)
    calls: list[bool] = []
    hook = backbone.network.register_forward_hook(
        lambda module, given, out: calls.append(out[0].requires_grad)
    )
    result, (one,) = steered(backbone, y[:1], 3, mode=mode)
    hook.remove()
    # Steps 3 and 0 are due. Step 0 is nearly noise-free, where no eps changes much.
    assert (
        len(one.losses) == 8
        and one.losses[3] < 0.97 * one.losses[0]
        and one.losses[7] < one.losses[4]
    )
    # 6 untuned, 8 iterations, and the tuned network at steps 3, 2, 1, 0.
    assert (result.network_evaluations, result.gradient_evaluations) == (6 + 8 + 4, 8)
    assert (len(calls), sum(calls)) == (result.network_evaluations, result.gradient_evaluations)
    assert result.errors == [None]
    plain = SAMPLER.restore(backbone, DEBLUR.operator(SHAPE), y[:1], [generator(3)])
    assert (result.x_hat - plain.x_hat).abs().max() > 1e-3


def test_without_iterations_it_is_dds_to_the_bit(backbone, y) -> None:
    result, _ = steered(backbone, y, 3, 4, mode=dataclasses.replace(SHORT, n_iterations=0))
    plain = SAMPLER.restore(backbone, DEBLUR.operator(SHAPE), y, [generator(3), generator(4)])
    assert (
        torch.equal(result.x_hat, plain.x_hat)
        and result.network_evaluations == plain.network_evaluations
    )


def test_an_image_is_tuned_for_by_itself(backbone, y) -> None:
    both, (first, second) = steered(backbone, y, 3, 4)
    alone, (again,) = steered(backbone, y[1:], 4)
    assert torch.equal(both.x_hat[1:], alone.x_hat)
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in again.tensors.items())
    assert any(
        not torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items()
    )


def everything(network: nn.Module) -> tuple[list, dict[str, Tensor], list[bool]]:
    """The very modules, the weights, and what of them trains."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return list(network.named_modules()), weights, [p.requires_grad for p in network.parameters()]


@pytest.mark.parametrize("adapter", [LORA, Full()], ids=lambda adapter: adapter.name)
@pytest.mark.parametrize(
    "fails_at", [None, 5, 6], ids=["no error", "while it is tuned", "while it is asked"]
)
def test_the_network_is_as_it_was_also_after_an_error(backbone, y, adapter, fails_at) -> None:
    modules, weights, trains = everything(backbone.network)
    calls = 0

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        nonlocal calls
        calls += 1  # steps 5, 4 and 3 untuned, two iterations at step 3, and then the tuned network
        if calls == fails_at:
            raise RuntimeError("no more memory")
        return backbone.predict(x_t, t)

    one = dataclasses.replace(SHORT, adapter=adapter).steered(backbone.network, generator(0))
    failing = SimpleNamespace(schedule=backbone.schedule, predict=predict)

    def restore() -> None:
        SAMPLER.restore_steered(failing, DEBLUR.operator(SHAPE), y[:1], [generator(3)], [one])

    if fails_at is None:
        restore()
    else:
        with pytest.raises(RuntimeError, match="no more memory"):
            restore()
        assert len(one.losses) == (1 if fails_at == 5 else 2)
    modules_after, weights_after, trains_after = everything(backbone.network)
    assert modules_after == modules and trains_after == trains
    assert weights_after.keys() == weights.keys() and all(
        torch.equal(weights_after[n], weights[n]) for n in weights
    )
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


class Scale(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def test_the_adapter_and_adams_moments_are_kept_from_one_step_to_the_next() -> None:
    network, n, lr = Scale(), 3, 0.05
    mode = SteerableConditional(
        Full(), FineTuning(), every=2, lowest=0, n_iterations=n, learning_rate=lr, tv_weight=0.0
    )
    one = mode.steered(network, generator(0))
    inputs = {i: torch.randn(1, 3, 2, 2, generator=generator(i)) for i in (4, 3, 2, 1, 0)}

    def outcome(eps: Tensor) -> tuple[Tensor, Tensor]:
        return eps, eps - 1

    found = []
    for x in ((i, inputs[i]) for i in (4, 3, 2, 1, 0)):
        predict: Callable[[], Tensor] = lambda x=x[1]: network(x)  # noqa: E731
        found.append(one.eps(x[0], predict(), predict, outcome))
        assert network.w.item() == 0.5

    w = torch.tensor([0.5], requires_grad=True)
    adam, expected = torch.optim.Adam([w], lr=lr), []
    for i in (4, 3, 2, 1, 0):
        for _ in range(n if i % 2 == 0 else 0):
            adam.zero_grad()
            (w * inputs[i] - 1).square().mean().backward()
            adam.step()
        expected.append((w * inputs[i]).detach())
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-6)


def test_large_images_are_steered_through_all_of_their_tiles(backbone) -> None:
    image = torch.rand(3, 48, 64, generator=generator(0)) * 2 - 1
    low = SR.degrade(image, generator(1))
    mode = dataclasses.replace(SHORT, n_iterations=1)
    sampler, arguments = DDS(n_steps=1), (backbone, SR, low, 0, "x", 64)
    plain = restore_any_size(sampler, *arguments)
    tuned = restore_any_size(sampler, *arguments, mode)
    assert tuned.n_tiles == plain.n_tiles > 1 and tuned.x_hat.shape == (3, 48, 64)
    assert (tuned.x_hat - plain.x_hat).abs().max() > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"lowest": -1},
        {"n_iterations": 1.5},
        {"learning_rate": 0.0},
        {"tv_weight": -1.0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}: a "):
        dataclasses.replace(SCD, **wrong)


def test_a_tuning_that_diverges_names_its_learning_rate(backbone, y) -> None:
    result, _ = steered(backbone, y, 3, 4, mode=dataclasses.replace(SHORT, learning_rate=1e30))
    assert result.x_hat.isnan().all()
    assert all("or the learning rate of the adaptation" in str(error) for error in result.errors)
