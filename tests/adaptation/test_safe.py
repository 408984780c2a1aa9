"""The held-out rule: what is held out, what is kept, how it is scaled, when it is rejected; and the
gate by timestep.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted, adapted_at
from adir.adaptation.denoising_module import AveragedWeights
from adir.adaptation.fine_tuning import FineTuning, varied
from adir.adaptation.held_out import (
    N_STRATA,
    HeldOutCrops,
    improvement_and_error,
    relative_loss,
    split,
    strata,
)
from adir.adaptation.lora import Lora
from adir.adaptation.modes import SelfAdaptation
from adir.adaptation.safe import SafeFineTuning
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.errors import InputError

ADAPTERS = pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)], ids=["full", "lora"])
SMALL = SafeFineTuning(
    n_iterations=6, batch_size=2, crop_size=16, learning_rate=1e-3, warm_up=1, average=0.5
)


@pytest.fixture(scope="module")
def backbone() -> GuidedDiffusion:
    return GuidedDiffusion()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stripes(n: int, size: int = 32) -> list[Tensor]:
    """Images of one kind: stripes of one period, at other phases."""
    row = torch.arange(size)
    return [
        torch.sin(1.3 * row + phase).sign()[None, None].expand(3, size, size).clone()
        for phase in range(n)
    ]


def test_one_image_in_five_is_held_out():
    images = [torch.full((3, 8, 8), float(k)) for k in range(20)]
    parts = split(images, 8, 8, seeded())
    assert [int(z.mean()) for z in parts.held_out] == [2, 7, 12, 17]
    assert sorted(int(z.mean()) for z in parts.training + parts.held_out) == list(range(20))


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (64, 64), (16, 16)])
def test_of_fewer_images_a_part_of_each_is_held_out_that_no_training_crop_overlaps(shape):
    image = torch.arange(3 * shape[0] * shape[1], dtype=torch.float32).reshape(
        3, *shape
    )  # every pixel once
    parts = split([image] * 9, 32, 8, seeded())
    sides = set()
    for training, held_out in zip(parts.training, parts.held_out, strict=True):
        one, other = set(training.flatten().tolist()), set(held_out.flatten().tolist())
        assert not one & other and one | other == set(image.flatten().tolist())
        assert all(side % 8 == 0 for side in (*training.shape[1:], *held_out.shape[1:]))
        sides.add(min(other))
    assert len(sides) == 2  # now at one end, now at the other


def test_an_image_too_small_to_hold_a_part_out_is_refused():
    with pytest.raises(InputError, match="8x12 pixels is too small"):
        split([torch.zeros(3, 12, 8)], 8, 8, seeded())


def test_strata_are_all_timesteps_once():
    for n in (1000, 50, 9):
        assert [t for ts in strata(n) for t in ts] == list(range(n))
        assert len(strata(n)) == N_STRATA


def test_held_out_losses_are_those_of_the_loss_of_training_at_their_timesteps(backbone):
    crops = HeldOutCrops(backbone, stripes(3), 16, 2, seeded(), None)
    losses = crops.losses()
    assert torch.equal(losses, crops.losses())  # the same crops, noise, timesteps
    for s, row in enumerate(losses.tolist()):
        for j, loss in enumerate(row):
            z, t, eps = crops._examples[2 * s + j]
            assert t.item() in crops.strata[s]
            alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[
                t
            ]
            z_t = (alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps).float()
            with torch.no_grad():
                eps_hat = backbone.predict(z_t, t).eps
            assert loss == pytest.approx((eps - eps_hat).square().mean().item(), rel=1e-4)
    assert crops.images.flatten().bincount().tolist() == [6, 5, 5]


def test_the_relative_loss_weighs_the_strata_alike():
    untuned = torch.tensor([[10.0, 30.0], [0.1, 0.3]])
    assert relative_loss(untuned, untuned) == 1
    assert relative_loss(torch.tensor([[20.0, 20.0], [0.1, 0.1]]), untuned) == pytest.approx(
        (1 + 0.5) / 2
    )


def test_fall_and_error_are_over_the_images():
    untuned = torch.full((2, 4), 2.0)
    losses = torch.tensor(
        [[1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]]
    )  # image 0 halves, image 1 stays
    images = torch.tensor([[0, 1, 0, 1]] * 2)
    fall, error = improvement_and_error(losses, untuned, images)
    values = torch.tensor([0.5, 0.0])
    assert (fall, error) == (pytest.approx(0.25), pytest.approx(float(values.std() / 2**0.5)))
    _, over_crops = improvement_and_error(losses, untuned, torch.zeros(2, 4))
    assert over_crops == pytest.approx(float(torch.tensor([0.5, 0.0] * 4).std() / 8**0.5))


@ADAPTERS
def test_images_of_one_kind_are_learned_and_the_backbone_stays(backbone, adapter):
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    tuning = dataclasses.replace(
        SMALL, n_iterations=12, learning_rate=2e-4 if adapter.name == "full" else 1e-2
    )
    trained = tuning.fit(backbone, adapter, stripes(20), seeded())
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in backbone.network.state_dict().items()
    )
    held_out = trained.held_out
    assert (
        held_out is not None and list(held_out.losses) == [0, 5, 10, 12] and held_out.losses[0] == 1
    )
    assert held_out.losses[held_out.kept_iteration] == min(held_out.losses.values())
    assert held_out.alphas[1.0] == held_out.losses[held_out.kept_iteration]
    assert held_out.alphas[held_out.alpha] == min(held_out.alphas.values())
    assert held_out.fall > held_out.standard_error > 0
    # Judged by crops that the rule did not see, with the adapter in place.
    crops = HeldOutCrops(backbone, stripes(20)[2::5], 16, 4, seeded(1), None)
    untuned = crops.losses()
    with adapted(backbone.network, adapter, trained.tensors):
        assert relative_loss(crops.losses(), untuned) < 0.97


@ADAPTERS
def test_what_does_not_carry_over_is_rejected_and_predicts_as_the_untuned_network(
    backbone, adapter
):
    noise = [torch.randn(3, 32, 32, generator=seeded(k)).clamp(-1, 1) for k in range(16)]
    training, judges = iter(noise), iter(stripes(4))
    images = [next(judges) if k % 5 == 2 else next(training) for k in range(20)]
    trained = SMALL.fit(backbone, adapter, images, seeded())
    assert trained.held_out is not None and trained.held_out.alpha == 0
    x_t, t = torch.randn(1, 3, 16, 16, generator=seeded()), torch.tensor([300])
    with torch.no_grad():
        untuned = backbone.predict(x_t, t).eps
        with adapted(backbone.network, adapter, trained.tensors):
            assert torch.equal(backbone.predict(x_t, t).eps, untuned)


def test_no_iteration_is_the_untuned_denoiser_and_is_not_evaluated_again(backbone, monkeypatch):
    looks: list[int] = []
    losses = HeldOutCrops.losses
    monkeypatch.setattr(HeldOutCrops, "losses", lambda self: (looks.append(1), losses(self))[1])
    trained = dataclasses.replace(SMALL, n_iterations=0).fit(backbone, Full(), stripes(2), seeded())
    assert trained.held_out is not None and (
        trained.held_out.kept_iteration,
        trained.held_out.alpha,
    ) == (0, 0.0)
    assert len(looks) == 2 and trained.held_out.fall == 0


@pytest.mark.parametrize("n_iterations", [20, 40, 80, 160, 400])
def test_held_out_work_costs_at_most_a_third_of_the_training(n_iterations):
    tuning = SafeFineTuning(n_iterations=n_iterations)
    choosing, accepting = tuning.crops_per_stratum()
    looks = 1 + len(tuning.judged_at()) + 3  # untuned, the curve, three alphas more
    evaluations = N_STRATA * (choosing * looks + accepting * 2)
    assert evaluations <= 0.3 * 2.2 * tuning.batch_size * n_iterations
    assert evaluations == pytest.approx(
        tuning.held_out_share * 2.2 * tuning.batch_size * n_iterations
    )
    assert accepting >= choosing
    assert tuning.judged_at()[-1] == n_iterations


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    tuning = SafeFineTuning(n_iterations=30, warm_up=9, decay=0.2)
    _, factor = tuning.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert [factor(i) for i in range(9)] == pytest.approx([(i + 1) / 10 for i in range(9)])
    assert factor(9) == 1 and factor(30) == pytest.approx(0.2)
    assert factor(9 + 21 // 2 + 0) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(
    ("decay", "expected"), [(0.9, [1.0, 1.5, 2.0]), (0.5, [1.0, 1.5, 2.25]), (0.0, [1.0, 2.0, 3.0])]
)
def test_averaged_weights_forget_as_the_decay_says_and_start_as_a_plain_mean(decay, expected):
    parameter, seen = torch.nn.Parameter(torch.zeros(2)), {}
    watch = AveragedWeights(
        [parameter], decay, (1, 2, 3), lambda i: seen.update({i: float(parameter[0])})
    )
    for iterate in (1.0, 2.0, 3.0):
        with torch.no_grad():
            parameter.fill_(iterate)
        watch.on_train_batch_end(None, None, None, None, 0)
        assert float(parameter.detach()[0]) == iterate  # the training goes on from the iterate
    assert list(seen.values()) == pytest.approx(expected)


@ADAPTERS
def test_half_the_update_lies_half_way(backbone, adapter):
    attached = adapter.attach(backbone.network)
    try:
        base = attached.tensors()
        trained = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=seeded())
            for name, tensor in base.items()
        }
        half, none = attached.scaled(trained, 0.5), attached.scaled(trained, 0.0)
    finally:
        attached.remove()
    x_t, t = torch.randn(1, 3, 16, 16, generator=seeded()), torch.tensor([300])
    weight = next(
        name for name in dict(backbone.network.named_parameters()) if name.endswith("conv1.weight")
    )
    plain = dict(backbone.network.named_parameters())[weight].data

    def merged(tensors: dict[str, Tensor]) -> Tensor:
        if isinstance(adapter, Full):
            return tensors[weight]
        layer = weight.removesuffix(".weight")
        A, B = (tensors[f"{layer}.lora_{which}.default.weight"] for which in "AB")
        return plain + adapter.alpha / adapter.rank * (B.flatten(1) @ A.flatten(1)).reshape(
            plain.shape
        )

    torch.testing.assert_close(merged(half), (plain + merged(trained)) / 2, rtol=0, atol=1e-6)
    with torch.no_grad():
        untuned = backbone.predict(x_t, t).eps
        with adapted(backbone.network, adapter, none):
            assert torch.equal(backbone.predict(x_t, t).eps, untuned)


@ADAPTERS
def test_the_gate_uses_the_adapter_at_its_timesteps_alone(backbone, adapter):
    tuning = FineTuning(n_iterations=2, batch_size=1, crop_size=16, learning_rate=1e-2)
    trained = tuning.fit(backbone, adapter, stripes(1), seeded())
    x_t = torch.randn(1, 3, 16, 16, generator=seeded())
    steps = [torch.tensor([t]) for t in (10, 125, 249, 250, 999)]
    with torch.no_grad():
        untuned = [backbone.predict(x_t, t).eps for t in steps]
        with adapted(backbone.network, adapter, trained.tensors):
            tuned = [backbone.predict(x_t, t).eps for t in steps]
        with adapted_at(backbone, adapter, trained.tensors, [(125, 249), (999, 999)]):
            gated = [backbone.predict(x_t, t).eps for t in steps]
            with pytest.raises(ValueError, match=r"timesteps \[10, 130\]"):
                backbone.predict(x_t.expand(2, -1, -1, -1), torch.tensor([10, 130]))
        after = [backbone.predict(x_t, t).eps for t in steps]
    for one, expected in zip(
        gated, (untuned[0], tuned[1], tuned[2], untuned[3], tuned[4]), strict=True
    ):
        assert torch.equal(one, expected)
    assert all(map(torch.equal, after, untuned))
    assert not any(map(torch.equal, tuned, untuned))


def test_self_adaptation_trains_on_all_symmetries_at_all_scales():
    image = torch.rand(3, 20, 40, generator=seeded()) * 2 - 1
    mode = SelfAdaptation(Full(), SMALL, scales=(1, 0.5), turns=True)
    variants = mode.variants(image)
    assert [tuple(v.shape[1:]) for v in variants] == [(20, 40), (40, 20)] * 2 + [
        (10, 20),
        (20, 10),
    ] * 2
    assert torch.equal(variants[0], image) and torch.equal(variants[2], image.flip(1, 2))
    torch.testing.assert_close(variants[4].mean(), image.mean(), rtol=0, atol=0.01)
    assert SelfAdaptation(Full(), SMALL).variants(image) == [image]


@pytest.mark.parametrize(
    ("sides", "crop", "scales"),
    [
        ((64, 128), 64, (1, 0.9, 0.75)),
        ((16, 32), 64, (1,)),
        ((8, 8), 64, (1,)),
        ((64, 64), 32, (1, 0.9, 0.75, 0.5)),
    ],
)
def test_variants_that_would_shrink_all_crops_are_left_out(sides, crop, scales):
    mode = SelfAdaptation(Full(), SMALL, scales=(1, 0.9, 0.75, 0.5))
    kept, names = varied([torch.zeros(3, *sides)], mode.variants, crop, 8, ["a"])
    assert names == ["a"] * len(scales)
    assert [tuple(z.shape[1:]) for z in kept] == [
        tuple(round(scale * side) for side in sides) for scale in scales
    ]


@pytest.mark.parametrize(
    ("k", "n", "used"), [(20, 1000, 20), (20, 40, 20), (20, 30, 15), (1, 1, 1), (3, 4, 2)]
)
def test_no_neighbour_is_farther_than_the_median_distance(k, n, used):
    distances = torch.rand(n, generator=seeded()).double().sort().values
    assert SMALL.n_training_images(k, n) == used
    assert int((distances[:k] <= distances.quantile(0.5)).sum()) == used


@pytest.mark.parametrize(
    "wrong",
    [{"warm_up": -1}, {"decay": 0.0}, {"average": 1.0}, {"clipping": 0.0}, {"learning_rate": 0.0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SafeFineTuning(**wrong)
