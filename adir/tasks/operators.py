"""The operators A of y = A(x) + e, as deepinv physics with their norm; super-resolution without deepinv.

Each degradation (adir.tasks.base.Degradation) is a small frozen dataclass: its fields are the operator's parameters,
calling it with an image shape builds the `Operator`, and `image_shape(y_shape)` is the shape of the pictures that give
such a y. Borders are circular, as on the authors' pictures, unless a class says otherwise. Weights sum to one, so grey
stays grey, and A of a picture in [-1, 1] is the same picture as A of its grey levels; only where a pixel is lost to
inpainting is y 0, which is mid grey.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from adir.errors import InputError

Shape = tuple[int, ...]  # (3, H, W) of a picture, (C, h, w) of a measurement


@dataclass(frozen=True, eq=False)
class Operator:
    """A linear A from pictures (3, H, W) to measurements (C, h, w), single or batched, in float32 or float64.

    build: A for a dtype, on the CPU: a linear physics of deepinv, or any module with its A, A_adjoint and A_dagger. It is
        built per dtype because casting a deepinv physics rounds its weights and drops the imaginary part of its Fourier
        buffers; copies are kept per dtype and device.
    norm: largest singular value of A.
    sigma_y: standard deviation of e in units of [-1, 1], that is, grey levels of 255 divided by 127.5.
    `physics` is the float32 module.
    """

    build: Callable[[torch.dtype], nn.Module]
    image_shape: Shape
    y_shape: Shape
    norm: float
    sigma_y: float = 0.0
    _built: dict[tuple[torch.dtype, torch.device], nn.Module] = field(default_factory=dict, repr=False)

    @property
    def physics(self) -> nn.Module:
        """The module in float32 on the CPU."""
        return self._physics_for(torch.empty(0))

    def A(self, x: Tensor) -> Tensor:
        """A x: (B, 3, H, W) to (B, C, h, w), or without the batch axis. Raises ValueError on any other shape."""
        return self._apply("A", x, self.image_shape)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Transpose of A, applied to y."""
        return self._apply("A_adjoint", y, self.y_shape)

    def A_dagger(self, y: Tensor) -> Tensor:
        """Pseudo-inverse of A, applied to y: of the pictures with the smallest |A x - y|, the one of smallest norm.

        Exact but for the blurs: there, frequencies that A damps below 1e-5 are set to zero, and the others are
        amplified, up to 1e5 times, noise included.
        """
        return self._apply("A_dagger", y, self.y_shape)

    def known(self) -> Tensor:
        """(C, h, w) bool: the entries of y that depend on x at all. False in the hole of inpainting only."""
        return self.A(torch.ones(self.image_shape)) > 0.5  # weights sum to one, or there are none

    def _apply(self, method: str, z: Tensor, shape: Shape) -> Tensor:
        if tuple(z.shape[-3:]) != shape or z.ndim not in (3, 4):
            raise ValueError(f"{method} takes {shape}, batched or not, got shape {tuple(z.shape)}")
        apply, batch = getattr(self._physics_for(z), method), z if z.ndim == 4 else z[None]
        # On a CPU each alone: the order of a convolution's sums may follow the size of the batch, by the instruction set.
        parts = batch.split(1) if z.device.type == "cpu" else [batch]
        result = torch.cat([apply(part) for part in parts])
        return result if z.ndim == 4 else result[0]

    def _physics_for(self, z: Tensor) -> nn.Module:
        key = (z.dtype, z.device)
        if key not in self._built:
            self._built[key] = self.build(z.dtype).to(z.device)
        return self._built[key]


def bicubic_kernel(factor: int, centre: float) -> Tensor:
    """1-D bicubic weights (Keys, 1981, a = -0.5) stretched by `factor` for downsampling: (n,) float64, sum 1, n even.

    Entry j weighs the pixel at offset n/2 - j from the sample's own pixel, which is how deepinv reads an even filter.
    The support is 4 * factor pixels around `centre`, an offset in pixels of the large picture.
    """
    reach = max(math.ceil(2 * factor + centre) - 1, math.ceil(2 * factor - centre))
    offset = reach - torch.arange(2 * reach, dtype=torch.float64)
    t = ((offset - centre) / factor).abs()
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t <= 1, inner, torch.where(t < 2, outer, 0.0))
    return weights / weights.sum()


def gaussian_kernel(std: float, size: int) -> Tensor:
    """1-D Gaussian of standard deviation `std` pixels sampled at `size` centred integers: (size,) float64, sum 1."""
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(offset**2) / (2 * std**2))
    return weights / weights.sum()


def frequency_response(kernel: Tensor, n: int) -> Tensor:
    """|DFT| of a 1-D kernel at the n frequencies of a circular signal: (n,) float64."""
    return torch.fft.fft(kernel, n=n).abs()


def downsampling_norm(kernel: Tensor, factor: int, height: int, width: int) -> float:
    """Largest singular value of 'filter circularly, keep every factor-th sample' in both directions.

    A A^T is diagonal in Fourier space: entry k is the mean of |F|^2 over the `factor` frequencies that alias to k, so
    the norm of one direction is the root of the largest, and the two directions multiply.
    """

    def one_direction(n: int) -> float:
        return (frequency_response(kernel, n) ** 2).reshape(factor, n // factor).mean(0).max().sqrt().item()

    return one_direction(height) * one_direction(width)


def _filter(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.outer(kernel, kernel)[None, None].to(dtype)


def _require_rgb(shape: Shape, what: str) -> None:
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(f"{what} needs an RGB picture (3, H, W), got {tuple(shape)}: convert it to RGB")


def _require_room(image_shape: Shape, kernel: Tensor, what: str) -> None:
    smallest = len(kernel)
    if min(image_shape[1:]) < smallest:
        raise InputError(
            f"{what} reaches over {smallest} pixels, the picture has {image_shape[2]}x{image_shape[1]}: "
            f"take one of at least {smallest}x{smallest}"
        )


class CircularDownsampling(nn.Module):
    """deepinv's circular downsampling, operation by operation, so that a restoration need not import deepinv for it (2 s);
    and a closed form for A_dagger = A^T (A A^T)^-1.

    deepinv solves that by conjugate gradients, which stall where A A_dagger y is still 1e-4 to 8e-4 of y away from y
    (measured in float64, factors 4 and 8) and take minutes for a 256 x 256 picture when the tolerance is lowered.

    kernel: 1-D weights, an even number n of them; entry j weighs the pixel at offset n/2 - j.
    """

    filter: Tensor
    """(1, 1, n, n): weights of the pixels."""
    gram: Tensor
    """(H / factor, W / factor): A A^T, which is diagonal in Fourier space: see downsampling_norm."""

    def __init__(self, kernel: Tensor, factor: int, image_shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.factor, self.reach = factor, len(kernel) // 2
        _, height, width = image_shape
        self.register_buffer("filter", _filter(kernel, dtype))
        padded = functional.pad(self.filter[0, 0], (0, width - len(kernel), 0, height - len(kernel)))
        response = torch.fft.fft2(padded.roll((-self.reach, -self.reach), (0, 1)))
        power = (response.conj() * response).real
        gram = power.reshape(factor, height // factor, factor, width // factor).mean((0, 2))
        self.register_buffer("gram", gram)

    def A(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, h, w)."""
        x = functional.pad(x, (self.reach - 1, self.reach) * 2, mode="circular")
        return functional.conv2d(x, self._weights(), groups=3)[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, H, W)."""
        s, reach = self.factor, self.reach
        spread = y.new_zeros(*y.shape[:2], s * y.shape[2], s * y.shape[3])
        spread[..., ::s, ::s] = y
        x = functional.conv_transpose2d(spread, self._weights(), groups=3)
        # What lies beyond a border belongs to the opposite side: (from, to), in the order in which deepinv adds them.
        sides = (
            (slice(-reach, None), slice(None, reach)),
            (slice(reach - 1, -reach), slice(None)),
            (slice(None, reach - 1), slice(1 - reach, None)),
        )
        folded = x[..., reach - 1 : -reach, reach - 1 : -reach].clone()
        for (rows, to_rows), (columns, to_columns) in itertools.product(sides, repeat=2):
            if (rows, columns) != (sides[1][0], sides[1][0]):
                folded[..., to_rows, to_columns] += x[..., rows, columns]
        return folded

    def A_dagger(self, y: Tensor) -> Tensor:
        """(B, 3, h, w) to the (B, 3, H, W) of smallest norm with A x = y."""
        return self.A_adjoint(torch.fft.ifft2(torch.fft.fft2(y) / self.gram).real)

    def _weights(self) -> Tensor:
        """(3, 1, n, n): torch correlates where deepinv convolves."""
        return self.filter.flip(-2, -1).expand(3, -1, -1, -1).contiguous()


@dataclass(frozen=True)
class SuperResolution:
    """Bicubic downsampling by `factor`, MATLAB imresize with antialiasing: a = -0.5, support 4 * factor.

    centre: where sample 0 sits in the large picture, in its pixels; None is (factor - 1) / 2, the middle of the block
        that a low-resolution pixel covers, as in MATLAB, Pillow and OpenCV. deepinv's own "bicubic" has it at 0.5
        whatever the factor, which moves the picture by 1 pixel at factor 4 and by 3 at factor 8. On the authors' cropped
        pictures the two cannot be told apart.
    """

    name: ClassVar[str] = "super_resolution"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    factor: int
    centre: float | None = None

    def __post_init__(self) -> None:
        _require_factor(self.factor)
        if self.centre is not None and not 0 <= self.centre <= self.factor - 1:
            raise InputError(f"super-resolution centre {self.centre!r}: give a value from 0 to {self.factor - 1}")

    def __call__(self, image_shape: Shape) -> Operator:
        _require_rgb(image_shape, "super-resolution")
        _, height, width = image_shape
        if height % self.factor or width % self.factor:
            raise InputError(
                f"super-resolution x{self.factor} needs sides that are multiples of {self.factor}, "
                f"the picture has {width}x{height}: crop it"
            )
        kernel = bicubic_kernel(self.factor, (self.factor - 1) / 2 if self.centre is None else self.centre)
        _require_room(image_shape, kernel, f"super-resolution x{self.factor}")

        return Operator(
            build=lambda dtype: CircularDownsampling(kernel, self.factor, image_shape, dtype),
            image_shape=image_shape,
            y_shape=(3, height // self.factor, width // self.factor),
            norm=downsampling_norm(kernel, self.factor, height, width),
        )

    def image_shape(self, y_shape: Shape) -> Shape:
        """(3, h, w) to (3, factor * h, factor * w)."""
        _require_rgb(y_shape, f"y of super-resolution x{self.factor}")
        return (3, y_shape[1] * self.factor, y_shape[2] * self.factor)


class SeparableDownsampling(nn.Module):
    """x to rows x columns^T in each channel: for kernels whose borders are not circular, so that Fourier does not serve.

    rows: (h, H), columns: (w, W), float64, of full row rank.
    """

    rows: Tensor
    columns: Tensor
    rows_dagger: Tensor
    columns_dagger: Tensor

    def __init__(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        for name, matrix in (("rows", rows), ("columns", columns)):
            self.register_buffer(name, matrix.to(dtype))
            self.register_buffer(f"{name}_dagger", torch.linalg.pinv(matrix).to(dtype))

    def A(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, h, w)."""
        return self.rows @ x @ self.columns.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, H, W)."""
        return self.rows.T @ y @ self.columns

    def A_dagger(self, y: Tensor) -> Tensor:
        """(B, 3, h, w) to the (B, 3, H, W) of smallest norm with A x = y."""
        return self.rows_dagger @ y @ self.columns_dagger.T


def separable(image_shape: Shape, factor: int, matrix: Callable[[int], Tensor], what: str) -> Operator:
    """Return the downsampling by `factor` whose matrix (n / factor, n) along a side of n pixels is `matrix(n)`."""
    _require_rgb(image_shape, what)
    _, height, width = image_shape
    if height % factor or width % factor:
        raise InputError(
            f"{what} needs sides that are multiples of {factor}, the picture has {width}x{height}: crop it"
        )
    rows, columns = matrix(height), matrix(width)
    return Operator(
        build=lambda dtype: SeparableDownsampling(rows, columns, dtype),
        image_shape=image_shape,
        y_shape=(3, height // factor, width // factor),
        norm=(torch.linalg.matrix_norm(rows, 2) * torch.linalg.matrix_norm(columns, 2)).item(),
    )


def _require_factor(factor: int) -> None:
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        raise InputError(f"super-resolution factor {factor!r}: give a whole number of at least 2")


@dataclass(frozen=True)
class MeanDownsampling:
    """Mean of each factor x factor block: DDRM's (Kawar et al., 2022) `sr4`, whose singular values are all 1 / factor."""

    name: ClassVar[str] = "mean_downsampling"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    factor: int

    def __post_init__(self) -> None:
        _require_factor(self.factor)

    def __call__(self, image_shape: Shape) -> Operator:
        def matrix(n: int) -> Tensor:
            return torch.eye(n // self.factor, dtype=torch.float64).repeat_interleave(self.factor, 1) / self.factor

        return separable(image_shape, self.factor, matrix, f"the mean of {self.factor}x{self.factor}")

    def image_shape(self, y_shape: Shape) -> Shape:
        """(3, h, w) to (3, factor * h, factor * w)."""
        _require_rgb(y_shape, f"y of the mean of {self.factor}x{self.factor}")
        return (3, y_shape[1] * self.factor, y_shape[2] * self.factor)


@dataclass(frozen=True)
class ReflectiveSuperResolution:
    """`SuperResolution` with borders that mirror the image, the border pixel included: DDRM's `sr_bicubic4`.

    DDRM's code sets singular values along a side that are below 0.03 to zero; at factor 4 none is, the least being 0.35.
    """

    name: ClassVar[str] = "reflective_super_resolution"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    factor: int

    def __post_init__(self) -> None:
        _require_factor(self.factor)

    def __call__(self, image_shape: Shape) -> Operator:
        kernel, what = bicubic_kernel(self.factor, (self.factor - 1) / 2), f"super-resolution x{self.factor}"
        _require_rgb(image_shape, what)
        _require_room(image_shape, kernel, what)

        def matrix(n: int) -> Tensor:
            weights = torch.zeros(n // self.factor, n, dtype=torch.float64)
            rows = torch.arange(n // self.factor)
            for j, weight in enumerate(kernel):
                pixel = self.factor * rows + len(kernel) // 2 - j
                pixel = torch.where(pixel < 0, -1 - pixel, torch.where(pixel >= n, 2 * n - 1 - pixel, pixel))
                weights[rows, pixel] += weight
            return weights

        return separable(image_shape, self.factor, matrix, what)

    def image_shape(self, y_shape: Shape) -> Shape:
        """(3, h, w) to (3, factor * h, factor * w)."""
        _require_rgb(y_shape, f"y of super-resolution x{self.factor}")
        return (3, y_shape[1] * self.factor, y_shape[2] * self.factor)


def _blur(image_shape: Shape, kernel: Tensor, what: str) -> Operator:
    """Circular blur by outer(kernel, kernel), whose entry j weighs the pixel at offset len(kernel)//2 - j."""
    _require_rgb(image_shape, what)
    _require_room(image_shape, kernel, what)
    _, height, width = image_shape

    def build(dtype: torch.dtype) -> nn.Module:
        from deepinv.physics import BlurFFT  # here and below: deepinv takes 2 s to import

        return BlurFFT(img_size=image_shape, filter=_filter(kernel, dtype))

    return Operator(
        build,
        image_shape=image_shape,
        y_shape=image_shape,
        norm=(frequency_response(kernel, height).max() * frequency_response(kernel, width).max()).item(),
    )


@dataclass(frozen=True)
class BoxBlur:
    """Mean over size x size pixels: y[n] sees x[n - (size-1)//2 .. n + size//2]. 5 is centred; 4 is -1 .. +2."""

    name: ClassVar[str] = "box_blur"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    size: int

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"box blur size {self.size!r}: give a whole number of at least 1")

    def __call__(self, image_shape: Shape) -> Operator:
        kernel = torch.full((self.size,), 1 / self.size, dtype=torch.float64)
        return _blur(image_shape, kernel, f"the {self.size}x{self.size} box blur")

    def image_shape(self, y_shape: Shape) -> Shape:
        """y is as large as the picture."""
        _require_rgb(y_shape, "y of the box blur")
        return y_shape


@dataclass(frozen=True)
class GaussianBlur:
    """Centred Gaussian blur of standard deviation `std` pixels, cut to an odd size x size window."""

    name: ClassVar[str] = "gaussian_blur"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    std: float
    size: int

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise InputError(f"Gaussian blur std {self.std!r}: give a positive number of pixels")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1 or self.size % 2 == 0:
            raise InputError(f"Gaussian blur size {self.size!r}: give an odd number of pixels")

    def __call__(self, image_shape: Shape) -> Operator:
        return _blur(image_shape, gaussian_kernel(self.std, self.size), f"the {self.size}x{self.size} Gaussian blur")

    def image_shape(self, y_shape: Shape) -> Shape:
        """y is as large as the picture."""
        _require_rgb(y_shape, "y of the Gaussian blur")
        return y_shape


@dataclass(frozen=True)
class Colorization:
    """y is the grey picture, luma by Rec. 601. deepinv's own rec601 weights sum to 1.00003; these sum to one."""

    name: ClassVar[str] = "colorization"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = True
    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        if len(self.weights) != 3 or not abs(sum(self.weights) - 1) < 1e-9:
            raise InputError(f"colorization weights {tuple(self.weights)}: give three that sum to one, or grey shifts")

    def __call__(self, image_shape: Shape) -> Operator:
        _require_rgb(image_shape, "colorization")
        weights = torch.tensor(list(self.weights), dtype=torch.float64)

        def build(dtype: torch.dtype) -> nn.Module:
            from deepinv.physics import Decolorize

            physics: nn.Module = Decolorize(channels=3, srf=tuple(self.weights)).to(dtype)
            physics.srf = weights.to(dtype).view(1, 3, 1, 1)  # deepinv rounds the weights to float32 on the way in
            physics.mask = weights.norm().to(dtype).view(1, 1, 1, 1)
            return physics

        return Operator(build, image_shape, (1, *image_shape[1:]), norm=weights.norm().item())

    def image_shape(self, y_shape: Shape) -> Shape:
        """(1, H, W) to (3, H, W)."""
        if len(y_shape) != 3 or y_shape[0] != 1:
            raise InputError(f"y of colorization is a grey picture (1, H, W), got {tuple(y_shape)}: convert it to grey")
        return (3, y_shape[1], y_shape[2])


def keeping(mask: Tensor) -> nn.Module:
    """deepinv's inpainting of pictures of the mask's shape (3, H, W): 1 where a pixel is kept, 0 where it is lost."""
    from deepinv.physics import Inpainting

    physics: nn.Module = Inpainting(img_size=tuple(mask.shape), mask=mask)
    return physics


class MaskedPixels:
    """Base of the inpaintings: y is 0 where the mask is, and the image elsewhere. A subclass draws the mask."""

    def __call__(self, image_shape: Shape) -> Operator:
        """A for images (3, H, W). Raises InputError where the mask hides no pixel, or all."""
        _require_rgb(image_shape, "inpainting")
        mask = self.mask(image_shape)
        if not 0 < mask.sum() < mask.numel():
            raise InputError(f"inpainting: {self} leaves nothing to do or to go by in {tuple(image_shape)}")
        return Operator(lambda dtype: keeping(mask.to(dtype)), image_shape, image_shape, norm=1.0)

    def mask(self, image_shape: Shape) -> Tensor:
        """Return (3, H, W) float64: 1 where the pixel is known, 0 where it is not."""
        raise NotImplementedError

    def image_shape(self, y_shape: Shape) -> Shape:
        """Return the shape of x, which is that of y."""
        _require_rgb(y_shape, "y of inpainting")
        return y_shape


@dataclass(frozen=True)
class BoxInpainting(MaskedPixels):
    """A centred hole of `side` times each side of the picture; y is 0 inside it and the picture outside."""

    name: ClassVar[str] = "box_inpainting"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = False
    side: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.side < 1:
            raise InputError(f"inpainting hole of {self.side!r} of the side: give a fraction between 0 and 1")

    def mask(self, image_shape: Shape) -> Tensor:
        """(3, H, W) float64: 1 where the pixel is known, 0 in the hole."""
        mask = torch.ones(image_shape, dtype=torch.float64)
        rows, columns = (round(self.side * n) for n in image_shape[1:])
        top, left = (image_shape[1] - rows) // 2, (image_shape[2] - columns) // 2
        mask[:, top : top + rows, left : left + columns] = 0
        return mask


@dataclass(frozen=True)
class RandomInpainting(MaskedPixels):
    """Pixels lost at random, `lost` of all, in all channels alike; y is 0 there and the picture elsewhere.

    The mask is drawn once for each size of picture, by `seed`, and is the same for every picture of it: it is part of the
    task. DPS (Chung et al., 2023) and DAPS (Zhang et al., 2025) draw another for every picture.
    """

    name: ClassVar[str] = "random_inpainting"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    shift_invariant: ClassVar[bool] = False
    lost: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lost < 1:
            raise InputError(f"inpainting with {self.lost!r} of the pixels lost: give a fraction between 0 and 1")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"inpainting seed {self.seed!r}: give a whole number")

    def mask(self, image_shape: Shape) -> Tensor:
        """(3, H, W) float64: 1 where the pixel is known, 0 where it is lost, which round(lost * H * W) are."""
        _, height, width = image_shape
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(self.seed))
        mask = torch.ones(height * width, dtype=torch.float64)
        mask[order[: round(self.lost * height * width)]] = 0
        return mask.reshape(1, height, width).repeat(3, 1, 1)
