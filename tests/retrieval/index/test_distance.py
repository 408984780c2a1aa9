"""Angular distance against the angle two vectors were built to have."""

import math

import pytest
import torch

from adir.retrieval.index.distance import angular_distance


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.3, math.pi / 2, 3.0])
def test_angular_distance_is_the_angle_between_the_vectors(angle):
    a = torch.tensor([1.0, 0.0, 0.0])
    b = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    assert angular_distance(a, b).item() == pytest.approx(angle, rel=1e-4, abs=1e-9)
    assert torch.equal(angular_distance(a, b), angular_distance(b, a))


def test_opposite_vectors_are_pi_apart_even_when_rounding_makes_the_chord_longer_than_two():
    a = torch.tensor([1.0000002, 0.0])
    assert angular_distance(a, -a).item() == pytest.approx(math.pi)


def test_angular_distance_broadcasts_over_leading_dimensions():
    a = torch.nn.functional.normalize(torch.randn(4, 1, 7, dtype=torch.float64), dim=-1)
    b = torch.nn.functional.normalize(torch.randn(5, 7, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(angular_distance(a, b), torch.arccos((a * b).sum(-1)))
