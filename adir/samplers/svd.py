"""Operators converted to the physics of deepinv, and the base class of samplers that need an SVD.

`full_svd` returns a physics with its full singular value decomposition (SVD), and `as_physics` a
physics without it.
"""

import functools
from dataclasses import dataclass

import torch
from deepinv.physics import Decolorize, DecomposablePhysics, GaussianNoise, LinearPhysics
from torch import Tensor, nn

from adir.backbones.base import Backbone
from adir.samplers.base import Adaptation, PixelSampler
from adir.tasks.base import Task
from adir.tasks.operators import CircularDownsampling, Operator, SeparableDownsampling
from adir.tasks.operators.kernels import downsampling_matrix


class KroneckerPhysics(DecomposablePhysics):
    """Physics that multiplies the channels, rows and columns of an image by one matrix each.

    Channel d of the measurement is sum_c C[d, c] R X_c K^T, where X_c (H, W) is channel c of the
    image. The full SVDs of the three matrices make the SVD of A. V is orthogonal on the whole
    image. The singular values (1, 3, H, W) are 0 in the null space of A.

    Args:
        channels: C, (C, 3) float64, with no more rows than columns.
        rows: R, (h, H) float64, with no more rows than columns.
        columns: K, (w, W) float64, with no more rows than columns.
        dtype: dtype of images and measurements.
    """

    def __init__(self, channels: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype):
        parts = [
            torch.linalg.svd(matrix, full_matrices=True) for matrix in (channels, rows, columns)
        ]
        values = [torch.nn.functional.pad(s, (0, vh.shape[0] - len(s))) for _, s, vh in parts]
        super().__init__(mask=torch.einsum("c,h,w->chw", *values)[None].to(dtype))
        for name, (u, _, vh) in zip(("channels", "rows", "columns"), parts, strict=True):
            self.register_buffer(f"u_{name}", u.to(dtype))
            self.register_buffer(f"vh_{name}", vh.to(dtype))

    def V_adjoint(self, x: Tensor) -> Tensor:
        """Return V^T x, the SVD coefficients (B, 3, H, W) of an image x (B, 3, H, W)."""
        return mixed(x, self.vh_channels, self.vh_rows, self.vh_columns)

    def V(self, x: Tensor) -> Tensor:
        """Return V x, the image (B, 3, H, W) that has the SVD coefficients x (B, 3, H, W)."""
        return mixed(x, self.vh_channels.T, self.vh_rows.T, self.vh_columns.T)

    def U(self, x: Tensor) -> Tensor:
        """Return U x, the measurement (B, C, h, w) that has the SVD coefficients x (B, 3, H, W).

        Only the coefficients x[:, :C, :h, :w] have an effect.
        """
        kept = x[:, : len(self.u_channels), : len(self.u_rows), : len(self.u_columns)]
        return mixed(kept, self.u_channels, self.u_rows, self.u_columns)

    def U_adjoint(self, y: Tensor) -> Tensor:
        """Return U^T y, the SVD coefficients (B, 3, H, W) of a measurement y (B, C, h, w).

        All coefficients outside [:, :C, :h, :w] are 0.
        """
        short = mixed(y, self.u_channels.T, self.u_rows.T, self.u_columns.T)
        missing = [n - m for n, m in zip(self.mask.shape[1:], short.shape[1:], strict=True)]
        return torch.nn.functional.pad(short, (0, missing[2], 0, missing[1], 0, missing[0]))


def mixed(x: Tensor, channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return x (B, c, h, w) with its channels, rows and columns multiplied by a matrix each."""
    # Two products instead of one einsum of four tensors. The einsum may multiply the matrices with
    # each other first, which takes 3 GB at 128 pixels.
    return torch.einsum("dc,bcij->bdij", channels, rows @ x @ columns.T)


def as_physics(module: nn.Module) -> LinearPhysics:
    """Return the module as a physics of deepinv.

    A LinearPhysics is returned as it is. For any other module, a new LinearPhysics wraps A and
    A_adjoint of the module on its current device.
    """
    return (
        module
        if isinstance(module, LinearPhysics)
        else LinearPhysics(A=module.A, A_adjoint=module.A_adjoint)
    )


def has_full_svd(physics: nn.Module) -> bool:
    """Check whether `full_svd` supports this physics.

    It supports all operators of this package.
    """
    return isinstance(physics, DecomposablePhysics | CircularDownsampling | SeparableDownsampling)


@dataclass(frozen=True)
class SVDSampler(PixelSampler):
    """Base class of pixel samplers that need the singular value decomposition (SVD) of A."""

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are."""
        shape = (3, backbone.resolution, backbone.resolution)
        reason = super().not_applicable(backbone, task, mode)
        if reason is not None or has_full_svd(task.operator(shape).physics):
            return reason
        return (
            f"sampler {self.name} needs the singular value decomposition of A, which is unknown "
            f"for task {task.name}"
        )


@functools.lru_cache(maxsize=8)
def full_svd(
    operator: Operator, dtype: torch.dtype, device: torch.device, sigma: float
) -> DecomposablePhysics:
    """Return the operator as a physics with its full singular value decomposition (SVD).

    The physics has U, V, singular values `mask`, and Gaussian noise of standard deviation sigma.
    For blurs (with Fourier coefficients) and inpainting it is deepinv's own physics. For
    super-resolution and colorization it is a `KroneckerPhysics`, because deepinv has no SVD of
    super-resolution and only an economy-size SVD of colorization. The V of this economy-size SVD
    cannot represent colours, so deepinv's `prox_l2` would turn every image grey.

    Raises:
        TypeError: if `has_full_svd` is False for the operator's physics.
    """
    physics = operator.build(torch.float64)
    _, height, width = operator.image_shape
    eye = functools.partial(torch.eye, dtype=torch.float64)
    if isinstance(physics, CircularDownsampling):
        # The filter is an outer product of weights that sum to one.
        kernel = physics.filter[0, 0].sum(1)
        rows, columns = (
            downsampling_matrix(kernel, physics.factor, n, mirrored=False) for n in (height, width)
        )
        full: DecomposablePhysics = KroneckerPhysics(eye(3), rows, columns, dtype)
    elif isinstance(physics, SeparableDownsampling):
        full = KroneckerPhysics(eye(3), physics.rows, physics.columns, dtype)
    elif isinstance(physics, Decolorize):
        full = KroneckerPhysics(physics.srf.double().reshape(1, 3), eye(height), eye(width), dtype)
    elif isinstance(physics, DecomposablePhysics):
        full = operator.build(dtype)
    else:
        raise TypeError(
            f"no full singular value decomposition of {type(physics).__name__} is known: "
            "check has_full_svd(physics) first"
        )
    full.set_noise_model(GaussianNoise(sigma))
    return full.to(device)


def back_projection(physics: DecomposablePhysics, residual: Tensor, eta: float) -> Tensor:
    """Return A^T (A A^T + eta I)^-1 residual, the regularised back-projection of a residual.

    The residual is (B, C, h, w), and eta > 0 is the regularisation.
    """
    s = physics.mask
    return physics.V(s / (s**2 + eta) * physics.U_adjoint(residual))
