"""One-dimensional kernels of blurs and downsamplings, and their circular singular values."""

import math

import torch
from torch import Tensor


def bicubic_kernel(factor: int, centre: float) -> Tensor:
    """Return 1-D bicubic weights (Keys, 1981, a = -0.5) for downsampling: (n,) float64, n even.

    The weights sum to one. Entry j weighs the pixel at offset n/2 - j from the sample's own pixel,
    which is deepinv's convention for an even filter.

    Args:
        factor: factor by which the kernel is stretched; its support is 4 * factor pixels.
        centre: centre of the support, an offset in pixels of the large image.
    """
    reach = max(math.ceil(2 * factor + centre) - 1, math.ceil(2 * factor - centre))
    offset = reach - torch.arange(2 * reach, dtype=torch.float64)
    t = ((offset - centre) / factor).abs()
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t <= 1, inner, torch.where(t < 2, outer, 0.0))
    return weights / weights.sum()


def gaussian_kernel(std: float, size: int) -> Tensor:
    """Return a 1-D Gaussian sampled at `size` centred integers: (size,) float64, sum 1.

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

    Filtering and taking every factor-th sample happen in both directions. In Fourier space A A^T is
    diagonal: entry k is the mean of |F|^2 over the `factor` frequencies that alias to k. The norm
    of one direction is therefore the square root of the largest entry. The norm of A is the product
    of the norms of the two directions.

    Args:
        kernel: 1-D weights of the filter, with Fourier transform F.
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


def filter_2d(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.outer(kernel, kernel)[None, None].to(dtype)
