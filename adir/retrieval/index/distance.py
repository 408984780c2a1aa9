"""Distances between embeddings."""

import torch
from torch import Tensor


def angular_distance(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit vectors, phi(a, b) = 2 arcsin(||a - b|| / 2): ADIR (Abu-Hussein et al., 2022), in radians.

    a, b: (..., D) unit vectors that broadcast.  Returns (...), in [0, pi]; smaller is nearer.
    Not arccos(a.b), which in float32 cannot tell angles below 3e-4 apart.
    """
    return chord_to_angle((a - b).norm(dim=-1))


def chord_to_angle(chord: Tensor) -> Tensor:
    """Angle, in radians, between unit vectors whose difference has length `chord`; rounding beyond 2 counts as 2."""
    return 2 * torch.arcsin((chord / 2).clamp(max=1))
