"""The stream of training examples: sizes, places, flips, timesteps, and that one seed is one
stream.
"""

import itertools

import pytest
import torch
from torch import Tensor

from adir.adaptation.crops import NoisyCrops, crop_side
from adir.errors import InputError


def coordinates(height: int, width: int, number: int = 0) -> Tensor:
    """An image whose pixels say which image, row and column they are."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.full_like(rows, number), rows, columns]).float()


def crops(
    images: list[Tensor],
    size: int,
    flip: bool = True,
    seed: int = 0,
    stride: int = 8,
    n: int = 1000,
):
    return NoisyCrops(images, size, stride, n, flip, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "sizes, crop_size, expected",
    [
        ([(40, 50)], 24, 24),
        ([(40, 50)], 30, 24),
        ([(40, 50)], 256, 40),
        ([(40, 50), (64, 19)], 64, 16),
    ],
    ids=["as asked", "down to the stride", "down to the image", "down to the smallest image"],
)
def test_crops_have_the_asked_size_where_network_and_images_allow_it(sizes, crop_size, expected):
    stream = crops([coordinates(*size) for size in sizes], crop_size)
    for z, _, eps in itertools.islice(stream, 20):
        assert z.shape == eps.shape == (3, expected, expected)


def test_crops_are_contiguous_windows_of_every_image_reach_every_place_and_flip_half_the_time():
    images = [coordinates(19, 21, number) for number in range(3)]
    seen, flips, n = set(), 0, 3000
    for z, _, _ in itertools.islice(crops(images, 16), n):
        flipped = bool(z[2, 0, 0] > z[2, 0, -1])
        window = z.flip(2) if flipped else z
        number, top, left = (int(v) for v in window[:, 0, 0])
        assert torch.equal(window, images[number][:, top : top + 16, left : left + 16])
        seen.add((number, top, left))
        flips += flipped
    assert seen == set(itertools.product(range(3), range(4), range(6)))
    assert abs(flips / n - 0.5) < 4 * 0.5 / n**0.5


def test_without_flip_no_crop_is_mirrored():
    assert all(
        z[2, 0, 0] < z[2, 0, -1]
        for z, _, _ in itertools.islice(crops([coordinates(19, 21)], 16, False), 200)
    )


def test_timesteps_are_uniform_over_the_schedule_and_the_noise_is_standard_normal():
    examples = list(itertools.islice(crops([torch.zeros(3, 8, 8)], 8, n=10), 5000))
    t = torch.stack([t for _, t, _ in examples])
    assert t.dtype == torch.int64 and t.shape == (5000,)
    counts = t.bincount(minlength=10)
    assert (
        len(counts) == 10 and ((counts - 500).square() / 500).sum() < 27.9
    )  # chi^2 with 9 degrees: 0.1 %
    eps = torch.stack([eps for _, _, eps in examples])
    n = eps.numel()
    assert abs(eps.mean()) < 4 / n**0.5 and abs(eps.var() - 1) < 4 * (2 / n) ** 0.5


def test_the_same_generator_state_gives_the_same_stream():
    images = [torch.randn(3, 20, 20)]
    for seed, same in ((0, True), (1, False)):
        pairs = zip(crops(images, 16), crops(images, 16, seed=seed), strict=False)
        for a, b in itertools.islice(pairs, 5):
            assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True)) is same


def test_crops_smaller_than_asked_are_remarked_with_the_image_that_makes_them_so():
    large, small = coordinates(40, 50), coordinates(64, 19)
    assert crop_side([large, small], 16, 8) == (16, None)
    assert crop_side([large, small], 24, 8, ["a", "b"]) == (
        16,
        "crops of 16 pixels instead of crop_size=24, because image b has 19x64 pixels and the "
        "network's stride is 8",
    )
    assert "because image 2 of 2 has 19x64 pixels" in str(crops([large, small], 24).remark)
    side, remark = crop_side([large], 30, 8)
    assert (
        side == 24
        and remark
        == "crops of 24 pixels instead of crop_size=30, because 30 is not a multiple of the "
        "network's stride, 8"
    )


def test_an_image_smaller_than_the_stride_is_named():
    with pytest.raises(
        InputError,
        match="image 2 of 2 has 30x7 pixels, but adaptation needs at least 8 on each side",
    ):
        crops([coordinates(40, 40), coordinates(7, 30)], 64)
    with pytest.raises(InputError, match="image dot has 1x1 pixels"):
        crop_side([coordinates(1, 1), coordinates(40, 40)], 64, 8, ["dot", "photograph"])
    with pytest.raises(InputError, match="crop_size=7: the network needs 8 pixels or more"):
        crop_side([coordinates(40, 40)], 7, 8)
