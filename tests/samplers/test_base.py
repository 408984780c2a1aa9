"""What samplers share: the watch over a batch, counted by hand."""

import torch

from adir.samplers.base import StepCounter, separately

NAN, INF = torch.nan, torch.inf


def batch(*values: float) -> torch.Tensor:
    """One image of 3x2x2 for each value, which stands in one of its pixels; the others are 0.5."""
    images = torch.full((len(values), 3, 2, 2), 0.5)
    images[:, 1, 0, 1] = torch.tensor(values)
    return images


def test_the_watch_names_the_first_bad_step_of_each_image_also_where_a_later_one_is_good():
    watch = StepCounter(batch(0, 0, 0, 0))
    for values in ((0, 0, 0, NAN), (0, INF, 0, 0), (0, 0, 0, NAN)):
        watch.step(batch(*values))
    result = watch.finish(
        batch(0.25, 0, -INF, 0), "do this", network_evaluations=7, gradient_evaluations=2
    )
    assert result.errors == [
        None,
        "NaN or Inf at step 2 of 3: do this",
        "NaN or Inf in the result: do this",
        "NaN or Inf at step 1 of 3: do this",
    ]
    assert torch.equal(result.x_hat[0], batch(0.25)[0]) and result.x_hat[1:].isnan().all()
    assert (result.network_evaluations, result.gradient_evaluations) == (
        7,
        2,
    ) and result.capped_steps == [0, 0, 0, 0]


def test_the_watch_counts_capped_steps_of_an_image_until_it_fails():
    watch = StepCounter(batch(0, 0))
    somewhere = batch(1, 0) > 0.75  # in one pixel of the first image
    watch.step(batch(0, 0), somewhere)
    watch.step(batch(0, 0), torch.tensor(True))  # one variance for all
    watch.step(batch(NAN, 0), torch.tensor(True))  # of the failing step, too
    watch.step(batch(NAN, 0), torch.tensor(True))
    watch.step(batch(0, 0), torch.tensor(False))
    assert watch.finish(batch(0, 0), "", 5).capped_steps == [3, 3]


def test_a_result_has_the_type_of_the_measurement():
    y = batch(0, 0)
    assert StepCounter(y).finish(y.double(), "", 0).x_hat.dtype == torch.float32
    assert StepCounter(y.double()).finish(y, "", 0).x_hat.dtype == torch.float64


def test_images_restored_one_by_one_keep_their_places_and_generators():
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    expected = [
        torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6, 7)
    ]

    @separately
    def restore(self, backbone, operator, y, own):
        assert y.shape == (1, 3, 2, 2)
        watch = StepCounter(y)
        watch.step(y, torch.tensor(True))
        return watch.finish(y + torch.randn(3, 2, 2, generator=own[0]), "do this", 4, 3)

    result = restore(None, backbone=None, operator=None, y=batch(0, NAN, 2), own=generators)
    assert torch.equal(result.x_hat[0], batch(0)[0] + expected[0])
    assert torch.equal(result.x_hat[2], batch(2)[0] + expected[2])
    assert result.x_hat[1].isnan().all() and result.errors == [
        None,
        "NaN or Inf at step 1 of 1: do this",
        None,
    ]
    assert (result.network_evaluations, result.gradient_evaluations) == (
        4,
        3,
    ) and result.capped_steps == [1, 1, 1]
