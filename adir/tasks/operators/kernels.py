"""One-dimensional kernels of blurs and downsamplings, and their circular singular values."""

import math

import torch
from torch import Tensor


def bicubic_kernel(factor: int, centre: float) -> Tensor:
    """Return (n,) float64 bicubic weights for downsampling along one axis, with n even.

    The kernel is that of Keys (1981) with a = -0.5, and its weights sum to one. In sample i of the
    small image, entry j weighs pixel factor * i + n/2 - j of the large image, which is deepinv's
    convention for an even filter.

    Args:
        factor: factor of the downsampling, by which the kernel is stretched; its support is
            4 * factor pixels.
        centre: centre of the support for sample 0, in pixels of the large image.
    """
    reach = max(math.ceil(2 * factor + centre) - 1, math.ceil(2 * factor - centre))
    offset = reach - torch.arange(2 * reach, dtype=torch.float64)
    t = ((offset - centre) / factor).abs()
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t <= 1, inner, torch.where(t < 2, outer, 0.0))
    return weights / weights.sum()


def gaussian_kernel(std: float, size: int) -> Tensor:
    """Return the (size,) float64 weights of a centred 1-D Gaussian, which sum to one.

    `std` is the standard deviation in pixels.
    """
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(offset**2) / (2 * std**2))
    return weights / weights.sum()


def frequency_response(kernel: Tensor, n: int) -> Tensor:
    """Return |DFT| of a 1-D kernel at the n frequencies of a circular signal: (n,) float64."""
    return torch.fft.fft(kernel, n=n).abs()


def downsampling_norm(kernel: Tensor, factor: int, height: int, width: int) -> float:
    """Return the largest singular value of circular filtering followed by downsampling.

    Rows and columns are both filtered, and every factor-th one is kept. The norm of A is the
    product of the norms along the two directions. Along one direction A A^T is diagonal in Fourier
    space: entry k is the mean of |F|^2 over the `factor` frequencies that alias to k, where F is
    the Fourier transform of the kernel. The norm along this direction is the square root of the
    largest entry.

    Args:
        kernel: 1-D weights of the filter.
        factor: factor of the downsampling.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """

    def one_direction(n: int) -> float:
        return (
            (frequency_response(kernel, n) ** 2)
            .reshape(factor, n // factor)
            .mean(0)
            .max()
            .sqrt()
            .item()
        )

    return one_direction(height) * one_direction(width)


def downsampling_matrix(kernel: Tensor, factor: int, n: int, mirrored: bool) -> Tensor:
    """Return the (n // factor, n) float64 matrix of filtering and subsampling in 1-D.

    Every factor-th sample of the filtered signal is kept.

    Args:
        kernel: weights of the filter; entry j weighs the pixel at offset len(kernel) // 2 - j.
        factor: factor of the downsampling.
        n: number of pixels of the signal.
        mirrored: True continues the signal by its mirror image, which repeats the border pixel.
            False continues it circularly.
    """
    matrix = torch.zeros(n // factor, n, dtype=torch.float64)
    rows = torch.arange(n // factor)
    for j, weight in enumerate(kernel.double()):
        pixel = factor * rows + len(kernel) // 2 - j
        reflected = torch.where(pixel < 0, -1 - pixel, pixel).minimum(2 * n - 1 - pixel)
        matrix[rows, reflected if mirrored else pixel % n] += weight
    return matrix


def filter_2d(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.outer(kernel, kernel)[None, None].to(dtype)
