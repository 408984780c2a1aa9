"""deep-lite0: known distances of a degraded photograph, identities, and the network's features by
timm itself.
"""

import pytest
import timm
import torch
from torch.nn import functional

from adir.data.embedded import test_fields
from adir.errors import InputError
from adir.scoring import deep
from adir.scoring.deep import DeepLite0, feature_distance
from adir.scoring.metrics import METRICS
from adir.weights.efficientnet_lite0 import load_network

METRIC = DeepLite0()
X = (dict(test_fields())["chelsea-s1-y050-x105"][None] + 1) / 2  # a cat's eye
DRAWS = torch.Generator().manual_seed(0)
"""Four draws follow one another, as when the distances were measured."""


def eight_bits(x):
    return (x.clamp(0, 1) * 255).round() / 255


def noisy(x, level, g=None):
    g = torch.Generator().manual_seed(0) if g is None else g
    return eight_bits(x + torch.randn(x.shape, generator=g) * level / 255)


def blurred(x, side):
    reach = side // 2
    return eight_bits(
        functional.avg_pool2d(functional.pad(x, (reach,) * 4, mode="reflect"), side, stride=1)
    )


@pytest.mark.parametrize(
    "changed, distance",
    [
        *(
            (noisy(X, level, DRAWS), d)
            for level, d in [(5, 0.47), (10, 1.31), (20, 2.85), (40, 4.75)]
        ),
        *((blurred(X, side), d) for side, d in [(3, 0.99), (5, 2.00), (9, 3.34)]),
        (X.roll(1, -1), 0.85),
    ],
    ids=["noise 5", "noise 10", "noise 20", "noise 40", "box 3", "box 5", "box 9", "shift"],
)
def test_the_cats_eye_has_the_distances_of_another_implementation(changed, distance):
    # Measured before this code was written. Between draws of the noise it varies by 2 to 3 %
    # (standard deviation).
    assert METRIC.score(changed, X).item() == pytest.approx(distance, rel=0.01)


def test_an_equal_image_has_distance_0_and_the_distance_is_symmetric():
    other = noisy(X, 20)
    assert METRIC.score(X, X).item() == 0
    assert METRIC.score(other, X).item() == METRIC.score(X, other).item() > 0


def test_a_distance_does_not_depend_on_its_batch():
    batch = torch.cat([noisy(X, 10), blurred(X, 5), X])
    together = METRIC.score(batch, X.expand_as(batch))
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.cat([METRIC.score(one, X) for one in batch.split(1)]))


def test_the_features_are_the_last_of_each_resolution_of_timms_network():
    whole = timm.create_model(
        "tf_efficientnet_lite0", features_only=True
    )  # stops before the last convolution
    whole.load_state_dict(load_network().state_dict(), strict=False)
    with torch.no_grad():
        expected = whole.eval()(2 * X - 1)
    METRIC.score(X, X)  # loads the network
    found = METRIC._features(X)
    assert [one.shape[2] for one in found] == [64, 32, 16, 8, 4]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_orthogonal_features_are_2_apart_opposite_ones_4_and_their_length_is_nothing():
    one, other = (
        torch.tensor([3.0, 0]).reshape(1, 2, 1, 1),
        torch.tensor([0, 0.1]).reshape(1, 2, 1, 1),
    )
    assert feature_distance([one, one], [other, -2 * one]).item() == pytest.approx(2 + 4)
    assert feature_distance([one], [5 * one]).item() == pytest.approx(0)


def test_a_map_counts_as_its_mean_over_positions_whatever_its_size():
    one = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    enlarged = [m.repeat_interleave(2, 2).repeat_interleave(3, 3) for m in (one, -one.flip(1))]
    torch.testing.assert_close(
        feature_distance(enlarged[:1], enlarged[1:]), feature_distance([one], [-one.flip(1)])
    )


def test_missing_weights_leave_the_score_empty_with_a_reason(monkeypatch):
    def missing():
        raise InputError("no weights")

    monkeypatch.setattr(deep, "verified_weights", missing)
    monkeypatch.setattr(deep, "load_network", missing)
    metric = METRICS["deep-lite0"]("cpu")
    assert metric.unavailable() == "no weights"
    with pytest.raises(InputError, match="no weights"):
        metric.score(X, X)
