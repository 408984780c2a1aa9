"""Operators against dense float64 matrices that are built here from formulas, and against the
authors' images.
"""

import math
from pathlib import Path

import deepinv
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from adir.errors import InputError
from adir.tasks.operators import (
    BoxBlur,
    BoxInpainting,
    Colorization,
    GaussianBlur,
    MeanDownsampling,
    RandomInpainting,
    ReflectiveSuperResolution,
    SuperResolution,
)
from adir.tasks.operators.kernels import bicubic_kernel

# Small, not square, and just large enough for each filter.
CASES = {
    "sr2": (SuperResolution(2), (3, 12, 10)),
    "sr4": (SuperResolution(4), (3, 20, 24)),
    "sr4 deepinv's centre": (SuperResolution(4, centre=0.5), (3, 24, 20)),
    "sr8": (SuperResolution(8), (3, 40, 48)),
    "box5": (BoxBlur(5), (3, 7, 10)),
    "box4": (BoxBlur(4), (3, 9, 6)),
    "gauss": (GaussianBlur(2.0, 13), (3, 13, 16)),
    "colorization": (Colorization(), (3, 4, 5)),
    "inpainting": (BoxInpainting(0.5), (3, 7, 8)),
    "sr4 mean": (MeanDownsampling(4), (3, 12, 8)),
    "sr4 reflect": (ReflectiveSuperResolution(4), (3, 20, 24)),
    "random inpainting": (RandomInpainting(0.7, seed=3), (3, 7, 8)),
}
BLURS = {"box5", "box4", "gauss"}


def keys_cubic(t: np.ndarray, a: float = -0.5) -> np.ndarray:
    """The convolution kernel of Keys (1981), eq. 15, written for any a."""
    t = np.abs(t)
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def circular(n: int, step: int, taps: dict[int, float]) -> np.ndarray:
    """(n // step, n) matrix whose row m weighs x[(step * m + offset) mod n] by taps[offset]."""
    matrix = np.zeros((n // step, n))
    for m in range(n // step):
        for offset, weight in taps.items():
            matrix[m, (step * m + offset) % n] += weight
    return matrix


def one_direction(name: str, n: int) -> np.ndarray:
    """The operator along one axis of length n, from its definition."""
    if name == "sr4 mean":
        return circular(n, 4, dict.fromkeys(range(4), 1 / 4))
    if (
        name == "sr4 reflect"
    ):  # an image and its mirror image, again and again, is circular: fold its matrix
        matrix = one_direction("sr4", 2 * n)[: n // 4]
        return matrix[:, :n] + matrix[:, n:][:, ::-1]
    if name.startswith("sr"):
        s = int(name[2])
        centre = 0.5 if "deepinv" in name else (s - 1) / 2
        taps = {o: float(keys_cubic(np.array((o - centre) / s))) for o in range(-3 * s, 4 * s)}
        return circular(n, s, {o: w / sum(taps.values()) for o, w in taps.items()})
    offsets = {"box5": range(-2, 3), "box4": range(-1, 3), "gauss": range(-6, 7)}[name]
    weight = {o: math.exp(-(o**2) / 8) if name == "gauss" else 1.0 for o in offsets}
    return circular(n, 1, {o: w / sum(weight.values()) for o, w in weight.items()})


def dense(name: str) -> np.ndarray:
    """The whole operator as a matrix on flattened (3, H, W), from its definition."""
    _, height, width = CASES[name][1]
    if name == "colorization":
        return np.kron([[0.299, 0.587, 0.114]], np.eye(height * width))
    if (
        name == "inpainting"
    ):  # 7 x 8: half of 7 rounds to 4, so rows 1..4 and columns 2..5 are missing
        known = np.ones((3, height, width))
        known[:, 1:5, 2:6] = 0
        return np.diag(known.ravel())
    if name == "random inpainting":
        return np.diag(CASES[name][0].mask((3, height, width)).numpy().ravel())
    return np.kron(np.eye(3), np.kron(one_direction(name, height), one_direction(name, width)))


@pytest.fixture(params=CASES, ids=str)
def case(request):
    degradation, shape = CASES[request.param]
    return request.param, degradation(shape)


def test_A_equals_the_dense_matrix_of_its_definition(case):
    name, operator = case
    x = torch.randn(operator.image_shape, dtype=torch.float64)
    expected = (dense(name) @ x.numpy().ravel()).reshape(operator.y_shape)
    np.testing.assert_allclose(operator.A(x).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(operator.A(x.float()).numpy(), expected, atol=2e-6)


def test_A_adjoint_is_the_adjoint_of_A(case):
    _, operator = case
    x = torch.randn(2, *operator.image_shape, dtype=torch.float64)
    y = torch.randn(2, *operator.y_shape, dtype=torch.float64)
    torch.testing.assert_close(
        (operator.A(x) * y).sum(), (x * operator.A_adjoint(y)).sum(), rtol=1e-12, atol=1e-12
    )


def test_A_is_linear(case):
    _, operator = case
    x1, x2 = torch.randn(2, *operator.image_shape, dtype=torch.float64)
    torch.testing.assert_close(
        operator.A(3 * x1 - x2), 3 * operator.A(x1) - operator.A(x2), rtol=0, atol=1e-12
    )


def test_norm_is_the_largest_singular_value(case):
    name, operator = case
    matrix = dense(name)
    # The Gram matrix of the smaller side has the same largest singular value, squared, and is quick
    # to take apart.
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    assert operator.norm == pytest.approx(
        math.sqrt(np.linalg.svd(gram, compute_uv=False)[0]), rel=1e-10
    )


def test_A_dagger_inverts_A_on_its_range(case):
    name, operator = case
    x = torch.randn(operator.image_shape, dtype=torch.float64)
    y = operator.A(x)
    # Blurs: frequencies damped below 1e-5 are dropped, which changes A A_dagger A x by at most 1e-5
    # |x|.
    tolerance = 1e-5 if name in BLURS else 1e-12
    assert (operator.A(operator.A_dagger(y)) - y).norm() <= tolerance * x.norm()


def test_A_dagger_is_the_pseudo_inverse(case):
    name, operator = case
    matrix = dense(name)
    if matrix.size > 1e6:
        pytest.skip("dense pseudo-inverse takes long at this size; the other cases cover the code")
    y = torch.from_numpy(matrix @ np.random.randn(matrix.shape[1])).reshape(operator.y_shape)
    expected = np.linalg.pinv(matrix, rcond=1e-5) @ y.numpy().ravel()
    # The smallest singular values that are kept are 1e-5, so rounding errors of 1e-16 in y may grow
    # to 1e-11 and more.
    np.testing.assert_allclose(operator.A_dagger(y).numpy().ravel(), expected, atol=1e-8)


def test_an_image_gives_the_same_alone_and_in_a_batch(case):
    _, operator = case
    x, y = torch.randn(3, *operator.image_shape), torch.randn(3, *operator.y_shape)
    for apply, batch in ((operator.A, x), (operator.A_adjoint, y), (operator.A_dagger, y)):
        assert torch.equal(apply(batch)[1], apply(batch[1]))


@pytest.mark.parametrize("name", sorted(set(CASES) - {"inpainting", "random inpainting"}))
def test_grey_stays_grey(name):
    degradation, shape = CASES[name]
    y = degradation(shape).A(torch.full(shape, 0.3, dtype=torch.float64))
    torch.testing.assert_close(y, torch.full_like(y, 0.3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor, centre", [(2, 0.5), (4, 1.5), (8, 3.5)])
def test_a_low_resolution_pixel_sits_in_the_middle_of_its_block(factor, centre):
    # A cubic kernel that reproduces straight lines gives, on a ramp, the position of the sample's
    # centre.
    ramp = torch.arange(10 * factor, dtype=torch.float64).expand(3, 10 * factor, 10 * factor)
    y = SuperResolution(factor)(tuple(ramp.shape)).A(ramp)
    assert y[0, 5, 5].item() == pytest.approx(5 * factor + centre, abs=1e-9)


@pytest.mark.parametrize("factor", [4, 8])
def test_with_centre_one_half_it_is_deepinvs_own_bicubic(factor):
    shape = (3, 6 * factor, 8 * factor)
    theirs = deepinv.physics.Downsampling(
        img_size=shape, filter="bicubic", factor=factor, padding="circular"
    )
    x = torch.randn(shape)
    # 2e-6: deepinv computes its weights in float32
    torch.testing.assert_close(
        SuperResolution(factor, centre=0.5)(shape).A(x), theirs.A(x[None])[0], rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(
    "factor, shape", [(2, (3, 12, 10)), (3, (3, 66, 96)), (4, (3, 64, 64)), (8, (3, 40, 48))]
)
def test_downsampling_is_deepinvs(factor, shape):
    operator, kernel = SuperResolution(factor)(shape), bicubic_kernel(factor, (factor - 1) / 2)
    for dtype, atol in (
        (torch.float32, 1e-6),
        (torch.float64, 1e-14),
    ):  # equal to the last bit with deepinv 0.5.0
        theirs = deepinv.physics.Downsampling(
            shape, torch.outer(kernel, kernel)[None, None].to(dtype), factor
        )
        x, y = torch.randn(shape, dtype=dtype), torch.randn(operator.y_shape, dtype=dtype)
        torch.testing.assert_close(operator.A(x), theirs.A(x[None])[0], rtol=0, atol=atol)
        torch.testing.assert_close(
            operator.A_adjoint(y), theirs.A_adjoint(y[None])[0], rtol=0, atol=atol
        )


def test_the_default_centre_is_pillows():
    x = torch.from_numpy(np.random.default_rng(0).random((64, 64), dtype=np.float32))
    y = SuperResolution(4)((3, 64, 64)).A(x.expand(3, 64, 64))[0]
    pillow = np.asarray(Image.fromarray(x.numpy()).resize((16, 16), Image.Resampling.BICUBIC))
    # Pillow's a is -0.5 and its support 4 x 4 too; borders differ (it renormalises), so compare
    # inside.
    np.testing.assert_allclose(y.numpy()[3:-3, 3:-3], pillow[3:-3, 3:-3], atol=1e-5)


def test_the_field_s_operators_are_those_of_scipy_and_numpy():
    x = torch.randn(3, 64, 72, dtype=torch.float64)
    channels = x.numpy()
    blur = scipy.ndimage.gaussian_filter(
        channels, 3.0, mode="wrap", radius=30, axes=(1, 2)
    )  # 61x61, std 3: DPS
    np.testing.assert_allclose(GaussianBlur(3.0, 61)(x.shape).A(x).numpy(), blur, atol=1e-12)
    mean = channels.reshape(3, 16, 4, 18, 4).mean((2, 4))
    np.testing.assert_allclose(MeanDownsampling(4)(x.shape).A(x).numpy(), mean, atol=1e-12)
    weights = keys_cubic((np.arange(16) - 7.5) / 4)  # DDRM's bicubic_kernel
    mirrored = channels
    for axis in (
        1,
        2,
    ):  # scipy's "reflect" repeats the border pixel; entry 8 of an even filter is its centre
        mirrored = scipy.ndimage.correlate1d(
            mirrored, weights / weights.sum(), axis, mode="reflect", origin=-2
        )
    expected = mirrored[:, ::4, ::4]
    np.testing.assert_allclose(
        ReflectiveSuperResolution(4)(x.shape).A(x).numpy(), expected, atol=1e-12
    )


def test_away_from_borders_reflective_and_circular_super_resolution_are_one():
    x = torch.randn(3, 64, 64, dtype=torch.float64)
    reflect, circular_ = (
        make(4)(x.shape).A(x) for make in (ReflectiveSuperResolution, SuperResolution)
    )
    torch.testing.assert_close(reflect[:, 2:-2, 2:-2], circular_[:, 2:-2, 2:-2], rtol=0, atol=1e-12)
    assert (reflect - circular_).abs().max() > 0.01


def test_the_mean_of_blocks_has_one_singular_value_and_repeats_pixels_back():
    operator = MeanDownsampling(4)((3, 16, 32))
    assert operator.norm == pytest.approx(1 / 4, rel=1e-12)
    y = torch.randn(3, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(
        operator.A_dagger(y), y.repeat_interleave(4, 1).repeat_interleave(4, 2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("lost", [0.7, 0.92])
def test_a_random_mask_loses_its_share_of_pixels_in_all_channels_and_follows_from_its_seed(lost):
    shape = (3, 64, 48)
    mask = RandomInpainting(lost)(shape).known()
    assert (
        (~mask[0]).sum() == round(lost * 64 * 48)
        and torch.equal(mask[0], mask[1])
        and torch.equal(mask[0], mask[2])
    )
    assert torch.equal(mask, RandomInpainting(lost, seed=0)(shape).known())
    other = RandomInpainting(lost, seed=1)(shape).known()
    # Two draws agree by chance alone: a pixel is known in both, or lost in both.
    assert (mask == other).float().mean().item() == pytest.approx(
        lost**2 + (1 - lost) ** 2, abs=0.03
    )


def test_the_even_box_averages_one_pixel_before_to_two_after():
    x = torch.zeros(3, 12, 12)
    x[:, 6, 6] = 16.0
    rows, columns = np.nonzero(BoxBlur(4)((3, 12, 12)).A(x)[0].numpy() > 0.5)
    # y[n] sees x[n-1 .. n+2], so the pixel 6 is seen by n = 4 .. 7.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 7, 4, 7)


@pytest.mark.parametrize(
    "degradation, shape, words",
    [
        (SuperResolution(4), (3, 30, 32), "multiples of 4.*32x30"),
        (SuperResolution(8), (3, 32, 32), "at least 38x38"),
        (GaussianBlur(2.0, 17), (3, 16, 64), "at least 17x17"),
        (BoxBlur(5), (1, 16, 16), "RGB"),
        (BoxInpainting(0.01), (3, 8, 8), "contains no pixel"),
        (MeanDownsampling(4), (3, 30, 32), "multiples of 4.*32x30"),
        (ReflectiveSuperResolution(4), (3, 30, 32), "multiples of 4.*32x30"),
        (ReflectiveSuperResolution(4), (3, 16, 12), "at least 18x18"),
        (RandomInpainting(0.001), (3, 8, 8), "contains no pixel"),
    ],
)
def test_a_shape_that_an_operator_cannot_take_is_refused(degradation, shape, words):
    with pytest.raises(InputError, match=words):
        degradation(shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SuperResolution(1),
        lambda: SuperResolution(4, centre=4),
        lambda: BoxBlur(0),
        lambda: GaussianBlur(0.0, 13),
        lambda: GaussianBlur(math.nan, 13),
        lambda: GaussianBlur(2.0, 12),
        lambda: Colorization((0.3, 0.6, 0.2)),
        lambda: BoxInpainting(1.0),
        lambda: MeanDownsampling(1),
        lambda: ReflectiveSuperResolution(4.0),
        lambda: RandomInpainting(1.0),
        lambda: RandomInpainting(0.5, seed=None),
    ],
)
def test_parameters_that_make_no_operator_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_a_wrong_shape_at_the_door_is_refused():
    operator = BoxBlur(5)((3, 8, 8))
    with pytest.raises(ValueError, match="got shape"):
        operator.A(torch.zeros(3, 8, 9))
    with pytest.raises(ValueError, match="got shape"):
        operator.A(torch.zeros(1, 1, 3, 8, 8))


def grey_levels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).double()


def best_match(gt: torch.Tensor, y: torch.Tensor, factor: int = 4, border: int = 3) -> float:
    """Rms difference, in grey levels, of A applied to a crop of gt on y's grid and the window of y
    that it is from.
    """
    best = math.inf
    for top in range(factor):
        for left in range(factor):
            crop = gt[:, top:, left:]
            crop = crop[:, : crop.shape[1] // factor * factor, : crop.shape[2] // factor * factor]
            small = SuperResolution(factor)(tuple(crop.shape)).A(crop)[
                :, border:-border, border:-border
            ]
            rows, columns = (y.shape[k] - small.shape[k] + 1 for k in (1, 2))
            corner = y.unfold(1, 12, 1).unfold(2, 12, 1)[
                :, :rows, :columns
            ]  # a corner is enough to find the place
            row, column = divmod(
                ((corner - small[:, None, None, :12, :12]) ** 2).mean((0, 3, 4)).argmin().item(),
                columns,
            )
            window = y[:, row : row + small.shape[1], column : column + small.shape[2]]
            best = min(best, (window - small).square().mean().sqrt().item())
    return best


def test_sr4_of_the_authors_image_is_their_y_up_to_rounding(authors_page):
    gt, y = (
        grey_levels(authors_page / "sr4" / name) for name in ("00014_GT.png", "00014_SRx4_y.png")
    )
    # Rounding to 8 bits alone leaves sqrt(1 / 12) = 0.289 grey levels.
    assert best_match(gt, y) == pytest.approx(math.sqrt(1 / 12), abs=0.01)


@pytest.mark.parametrize("image", ["00003", "00015", "00033"])
def test_box4_explains_the_authors_deblurring_y_up_to_noise_of_10(authors_page, image):
    gt, y = (
        grey_levels(authors_page / "deblur" / f"{image}_{name}.png") for name in ("GT", "deblur_y")
    )
    shape = tuple(gt.shape)
    visible = (
        slice(None),
        slice(4, -4),
        slice(4, -4),
    )  # the windows' borders are cut out of larger images

    def residual(degradation, flip=False):
        a = degradation(shape).A(gt.flip(1, 2) if flip else gt)
        return (y - (a.flip(1, 2) if flip else a))[visible].std().item()

    assert 9.0 < residual(BoxBlur(4)) < 10.3
    # Neither the 5x5 of the text nor the mirrored box, at offsets -2 .. +1, explains them as well.
    assert residual(BoxBlur(4)) < min(residual(BoxBlur(5)), residual(BoxBlur(4), flip=True)) - 0.2
