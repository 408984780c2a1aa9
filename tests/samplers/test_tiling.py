"""Images of any size: the tiles cover them, the blend is a mean, and what comes out is where it
belongs.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError
from adir.samplers.adir import ADIR
from adir.samplers.deepinv_samplers import DPS
from adir.samplers.tiling import TiledBackbone, mirrored, ramp, restore_any_size, tile_offsets
from adir.tasks.operators import BoxBlur, BoxInpainting, SuperResolution
from adir.tasks.restoration import RestorationTask

# A blur over one pixel is the identity: with guidance at the cap every step takes 0.9 of x - y
# away, so x̂ must be y.
COPY = RestorationTask("copy", 1, BoxBlur(1), sigma_y=0, guidance_scale=1)
SR4 = RestorationTask("sr4", 1, SuperResolution(4), sigma_y=0, guidance_scale=1)
STRONG = ADIR(n_steps=8, guidance_scale=1e9, variance="small", clip_x0=False)
# The last step keeps 0.1 of A x0_hat - y: a few hundredths. The images are white noise of std 0.58,
# so one pixel of displacement is an error of 2.
LEFT_OVER = 0.05


class Backbone:
    """The ideal denoiser of x ~ N(0, I), which must be given images of whole strides, no larger
    than a tile.
    """

    kind, name, schedule, stride, device = (
        "pixel",
        "ideal",
        linear_schedule(),
        8,
        torch.device("cpu"),
    )

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        assert x_t.shape[2] % self.stride == x_t.shape[3] % self.stride == 0
        self.shapes.append(tuple(x_t.shape))
        alpha_bar = self.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
        return Prediction(((1 - alpha_bar).sqrt() * x_t).float(), None)


def image(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width) * 2 - 1


@pytest.mark.parametrize("unit, tiles", [(8, (32, 40, 64)), (24, (96, 120))])
def test_tiles_cover_every_side_overlap_by_a_quarter_and_lie_on_the_grid(unit, tiles):
    for tile, n in itertools.product(tiles, range(1, 40)):
        side = n * unit
        firsts = tile_offsets(side, tile, unit)
        assert firsts[0] == 0 and all(first % unit == 0 for first in firsts)
        if side <= tile:
            assert firsts == [0]
            continue
        assert firsts[-1] + tile == side
        for a, b in itertools.pairwise(firsts):
            assert 0 < b - a <= math.ceil(0.75 * tile / unit) * unit


@pytest.mark.parametrize("side", [32, 40, 64])
def test_blending_weights_are_positive_symmetric_and_flat_in_the_middle(side):
    weights = ramp(side, True)
    assert weights.min() > 0 and torch.equal(weights, weights.flip(0)) and (weights <= 1).all()
    assert (weights[side // 4 : -(side // 4)] == 1).all()
    # Linear up to the flat part: equal differences.
    rise = weights[: side // 4].diff()
    torch.testing.assert_close(rise, torch.full_like(rise, 1 / (side // 4)))
    assert (ramp(side, False) == 1).all()


def test_padding_mirrors_the_image_and_repeats_what_is_missing_to_a_whole_stride():
    y = torch.arange(20.0).reshape(1, 4, 5)
    padded = mirrored(y, 2, [1, 3])
    assert padded.shape == (1, 4 + 4 + 1, 5 + 4 + 3)
    assert torch.equal(padded[:, 2:6, 2:7], y)
    assert padded[0, 2].tolist() == [2, 1, 0, 1, 2, 3, 4, 3, 2, 2, 2, 2]
    assert torch.equal(padded[:, 8], padded[:, 7])


@pytest.mark.parametrize(
    "height, width, tile, n_tiles", [(37, 53, 128, 1), (37, 53, 64, 4), (40, 150, 64, 8)]
)
def test_an_image_of_odd_size_comes_back_in_place_whole_or_tiled(height, width, tile, n_tiles):
    # Padded: 37 + 32 -> 72 and 53 + 32 -> 88 (2 x 2 tiles of 64); 40 + 32 = 72 and 150 + 32 -> 184
    # (2 x 4).
    y, backbone = image(height, width), Backbone()
    result = restore_any_size(STRONG, backbone, COPY, y, seed=0, image_id="a", tile=tile)
    assert result.x_hat.shape == (3, height, width) and result.n_tiles == n_tiles
    assert (result.x_hat - y).abs().max() < LEFT_OVER
    assert {shape[0] for shape in backbone.shapes} == {1} and max(
        max(s[2:]) for s in backbone.shapes
    ) <= tile
    assert result.capped_steps == STRONG.n_steps


def test_super_resolution_of_an_odd_size_is_consistent_with_its_image():
    y = torch.nn.functional.interpolate(image(10, 14)[None], (37, 53), mode="bicubic")[0]
    whole, tiled = (
        restore_any_size(STRONG, Backbone(), SR4, y, 0, "a", tile) for tile in (256, 96)
    )
    assert whole.x_hat.shape == tiled.x_hat.shape == (3, 148, 212)
    assert (
        whole.n_tiles == 1 and tiled.n_tiles == 3 * 4
    )  # 184 and 248 pixels with the margin, 96 a tile
    operator = SR4.operator((3, 148, 212))
    inside = (
        slice(None),
        slice(4, -4),
        slice(4, -4),
    )  # at the border A wraps around, and the margin is gone
    for result in (whole, tiled):
        assert (operator.A(result.x_hat) - y)[inside].square().mean().sqrt() < 0.1 * y.std()


@pytest.mark.parametrize("tile", [32, 64, 96])
def test_with_a_network_that_looks_at_single_pixels_tiles_change_nothing(tile):
    y = image(70, 90)
    sampler = ADIR(n_steps=6, guidance_scale=1, variance="small", clip_x0=False)
    whole, tiled = (
        restore_any_size(sampler, Backbone(), COPY, y, 0, "a", side) for side in (256, tile)
    )
    assert whole.n_tiles == 1 < tiled.n_tiles
    torch.testing.assert_close(tiled.x_hat, whole.x_hat, rtol=0, atol=1e-4)


def test_all_tiles_share_one_field_of_noise_that_belongs_to_seed_and_image():
    y = torch.zeros(3, 32, 216)
    sampler = ADIR(n_steps=4, guidance_scale=0, variance="small")
    runs = ((0, "a", 64), (0, "a", 64), (0, "a", 128), (1, "a", 64), (0, "b", 64))
    first, again, larger, other, renamed = (
        restore_any_size(sampler, Backbone(), COPY, y, seed, name, tile).x_hat
        for seed, name, tile in runs
    )
    assert torch.equal(first, again)
    torch.testing.assert_close(first, larger, rtol=0, atol=1e-4)
    assert not torch.allclose(first, other, atol=1e-2) and not torch.allclose(
        first, renamed, atol=1e-2
    )


class Place(Backbone):
    """Predicts the mean of what it sees, so that predictions tell tiles apart; and a variance."""

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        super().predict(x_t, t)
        eps = x_t.mean((2, 3), keepdim=True).expand_as(x_t)
        return Prediction(eps, eps / 2)


def test_a_tiled_prediction_is_the_weighted_mean_of_those_of_its_tiles():
    x_t = torch.arange(96.0).expand(2, 3, 32, 96).clone()
    x_t[1] *= -1
    tiled = TiledBackbone(Place(), 64)  # two tiles, of columns 0-63 and 32-95: means 31.5 and 63.5
    prediction = tiled.predict(x_t, torch.tensor([5, 5]))
    weights = ramp(64, True)
    a, b = torch.zeros(96), torch.zeros(96)
    a[:64], b[32:] = weights, weights
    expected = (31.5 * a + 63.5 * b) / (a + b)
    torch.testing.assert_close(prediction.eps[0], expected.expand(3, 32, 96))
    torch.testing.assert_close(prediction.eps[1], -prediction.eps[0])
    torch.testing.assert_close(prediction.variance_fraction, prediction.eps / 2)
    # Alone to the left of 32 and to the right of 63; rising without a jump between.
    assert prediction.eps[0, 0, 0, 31] == 31.5 and prediction.eps[0, 0, 0, 64] == 63.5
    assert prediction.eps[0, 0, 0].diff().abs().max() < 32 / 16


class Pointwise(Backbone):
    """A network that looks at single pixels, with a gradient that depends on them."""

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        self.shapes.append(tuple(x_t.shape))
        return Prediction(torch.tanh(x_t), None)


def test_the_gradient_of_a_tiled_prediction_is_that_of_the_whole_one():
    x_t, t, towards = (
        torch.randn(1, 3, 40, 72, requires_grad=True),
        torch.tensor([5]),
        torch.randn(1, 3, 40, 72),
    )
    backbone = Pointwise()
    found, expected = (
        torch.autograd.grad((network.predict(x_t, t).eps * towards).sum(), x_t)[0]
        for network in (TiledBackbone(backbone, 32), Pointwise())
    )
    torch.testing.assert_close(found, expected)
    assert (
        len(backbone.shapes) == 2 * 2 * 3
    )  # 2 by 3 tiles, each computed again in the backward pass


def test_dps_restores_an_image_of_several_tiles_as_a_whole_one():
    y, sampler = image(40, 72), DPS(n_steps=4, guidance="annealed")
    whole, tiled = (
        restore_any_size(sampler, Pointwise(), COPY, y, 0, "a", tile) for tile in (256, 64)
    )
    assert whole.n_tiles == 1 < tiled.n_tiles
    torch.testing.assert_close(tiled.x_hat, whole.x_hat, rtol=0, atol=1e-3)


def test_tiles_cover_the_image_and_one_that_fits_is_not_cut():
    backbone = Backbone()
    tiled = TiledBackbone(backbone, 64)
    covered = torch.zeros(136, 72)
    for place in tiled.tiles(136, 72):
        covered[place] += 1
    assert covered.min() == 1 and len(tiled.tiles(136, 72)) == 3 * 2
    x_t, t = torch.randn(1, 3, 64, 40), torch.tensor([7])
    assert torch.equal(tiled.predict(x_t, t).eps, Backbone().predict(x_t, t).eps)
    assert backbone.shapes == [(1, 3, 64, 40)]


def test_inpainting_is_tiled_too_and_restored_at_the_networks_sizes_only():
    task = RestorationTask("hole", 1, BoxInpainting(0.5), 0, 1)
    operator = task.operator((3, 40, 48))
    y = operator.A(image(40, 48))
    result = restore_any_size(STRONG, Backbone(), task, y, 0, "a", 32)
    assert result.n_tiles == 2 * 2 and result.x_hat.shape == (3, 40, 48)
    known = operator.known()
    assert (result.x_hat - y)[known].abs().max() < LEFT_OVER
    with pytest.raises(InputError, match="37x53 pixels, but this backbone takes multiples of 8"):
        restore_any_size(STRONG, Backbone(), task, image(53, 37), 0, "a", 32)


@pytest.mark.parametrize("task, height, width", [(COPY, 16, 40), (COPY, 40, 1), (SR4, 4, 40)])
def test_too_small_an_image_is_refused_with_the_size_that_is_needed(task, height, width):
    needed = 17 if task is COPY else 5
    with pytest.raises(
        InputError, match=rf"{width}x{height} pixels are too few .* {needed}x{needed}|reaches over"
    ):
        restore_any_size(STRONG, Backbone(), task, image(height, width), 0, "a", 64)


def test_the_smallest_image_that_is_allowed_works():
    y = image(17, 17)
    assert (
        restore_any_size(STRONG, Backbone(), COPY, y, 0, "a", 64).x_hat - y
    ).abs().max() < LEFT_OVER


@pytest.mark.parametrize("tile", [0, -64, 24, 60])
def test_a_tile_that_is_no_multiple_of_the_stride_or_too_small_is_refused(tile):
    with pytest.raises(
        InputError, match=f"tile={tile}: this backbone needs a multiple of 8 that is at least 32"
    ):
        restore_any_size(STRONG, Backbone(), COPY, image(40, 40), 0, "a", tile)


def test_a_tile_that_diverges_raises_and_gives_no_image():
    class Broken(Backbone):
        def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
            return Prediction(x_t * torch.nan, None)

    with pytest.raises(FloatingPointError, match="step 1 of 8"):
        restore_any_size(STRONG, Broken(), COPY, image(40, 40), 0, "a", 64)
