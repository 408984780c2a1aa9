"""Operators as deepinv's samplers ask for them: as its physics, with their full singular value
decomposition where needed.
"""

import functools

import torch
from deepinv.physics import Decolorize, DecomposablePhysics, GaussianNoise, LinearPhysics
from torch import Tensor, nn

from adir.tasks.operators import CircularDownsampling, Operator, SeparableDownsampling


class KroneckerPhysics(DecomposablePhysics):
    """An image X_c (H, W) per channel to sum_c C[d, c] R X_c K^T: channels, rows and columns mixed
    by a matrix each.

    channels: (C, 3), rows: (h, H), columns: (w, W), float64, each with no more rows than columns.
        Their full SVDs make
    that of A: V is orthogonal on the whole image, the singular values (1, 3, H, W) are 0 where A is
    blind.
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
        """(B, 3, H, W) to its coefficients (B, 3, H, W)."""
        return mixed(x, self.vh_channels, self.vh_rows, self.vh_columns)

    def V(self, x: Tensor) -> Tensor:
        """Coefficients (B, 3, H, W) to an image."""
        return mixed(x, self.vh_channels.T, self.vh_rows.T, self.vh_columns.T)

    def U(self, x: Tensor) -> Tensor:
        """Coefficients (B, 3, H, W), of which the first (C, h, w) count, to a measurement (B, C, h,
        w).
        """
        kept = x[:, : len(self.u_channels), : len(self.u_rows), : len(self.u_columns)]
        return mixed(kept, self.u_channels, self.u_rows, self.u_columns)

    def U_adjoint(self, y: Tensor) -> Tensor:
        """(B, C, h, w) to coefficients (B, 3, H, W), 0 beyond (C, h, w)."""
        short = mixed(y, self.u_channels.T, self.u_rows.T, self.u_columns.T)
        missing = [n - m for n, m in zip(self.mask.shape[1:], short.shape[1:], strict=True)]
        return torch.nn.functional.pad(short, (0, missing[2], 0, missing[1], 0, missing[0]))


def mixed(x: Tensor, channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x (B, c, h, w) with a matrix applied along each of channels, rows and columns."""
    # Two products, not one einsum of four tensors: that one may form the product of the matrices
    # first, 3 GB at 128 pixels.
    return torch.einsum("dc,bcij->bdij", channels, rows @ x @ columns.T)


def downsampling_matrix(kernel: Tensor, factor: int, n: int) -> Tensor:
    """(n // factor, n) float64: circular filtering by `kernel`, then every factor-th sample.

    Entry j of the kernel weighs the pixel at offset len(kernel) // 2 - j, as in
    adir.tasks.operators.
    """
    matrix = torch.zeros(n // factor, n, dtype=torch.float64)
    rows = torch.arange(n // factor)
    for j, weight in enumerate(kernel.double()):
        matrix[rows, (factor * rows + len(kernel) // 2 - j) % n] += weight
    return matrix


def as_physics(module: nn.Module) -> LinearPhysics:
    """A physics of deepinv as it is; any other A and A_adjoint in one, on the device where the
    module is now.
    """
    return (
        module
        if isinstance(module, LinearPhysics)
        else LinearPhysics(A=module.A, A_adjoint=module.A_adjoint)
    )


def has_full_svd(physics: nn.Module) -> bool:
    """Whether `full_svd` knows the physics: all operators of this package."""
    return isinstance(physics, DecomposablePhysics | CircularDownsampling | SeparableDownsampling)


@functools.lru_cache(maxsize=8)
def full_svd(
    operator: Operator, dtype: torch.dtype, device: torch.device, sigma: float
) -> DecomposablePhysics:
    """The operator as a physics with U, V and singular values `mask`, and Gaussian noise of
    standard deviation sigma.

    deepinv's own for blurs (Fourier) and inpainting. For super-resolution it has none; for
    colorization only an economic one, whose V cannot carry a colour, so that its `prox_l2` would
    turn every image grey. Raises TypeError for any other physics: see `has_full_svd`.
    """
    physics = operator.build(torch.float64)
    _, height, width = operator.image_shape
    eye = functools.partial(torch.eye, dtype=torch.float64)
    if isinstance(physics, CircularDownsampling):
        kernel = physics.filter[0, 0].sum(
            1
        )  # the filter is an outer product of weights that sum to one
        rows, columns = (downsampling_matrix(kernel, physics.factor, n) for n in (height, width))
        full: DecomposablePhysics = KroneckerPhysics(eye(3), rows, columns, dtype)
    elif isinstance(physics, SeparableDownsampling):
        full = KroneckerPhysics(eye(3), physics.rows, physics.columns, dtype)
    elif isinstance(physics, Decolorize):
        full = KroneckerPhysics(physics.srf.double().reshape(1, 3), eye(height), eye(width), dtype)
    elif isinstance(physics, DecomposablePhysics):
        full = operator.build(dtype)
    else:
        raise TypeError(
            f"no full singular value decomposition of {type(physics).__name__} is known"
        )
    full.set_noise_model(GaussianNoise(sigma))
    return full.to(device)


def back_projection(physics: DecomposablePhysics, residual: Tensor, eta: float) -> Tensor:
    """A^T (A A^T + eta I)^-1 residual: the back-projection of a residual (B, C, h, w), regularised
    by eta > 0.
    """
    s = physics.mask
    return physics.V(s / (s**2 + eta) * physics.U_adjoint(residual))
