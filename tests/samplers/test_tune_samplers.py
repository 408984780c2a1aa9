"""benchmarks/quality/tune_samplers.py: the rule by which settings are chosen."""

import math

import pytest

from benchmarks.quality import tune_samplers as study

VALUES = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    "best, default, tried",
    [
        (2.0, 2.0, [1.0, 2.0, 3.0]),
        (1.0, 3.0, [0.0, 1.0, 2.0, 3.0, 4.0]),  # on until the best has a worse one on either side
        (5.0, 4.0, [3.0, 4.0, 5.0]),  # or until there is no more
        (0.0, 0.0, [0.0, 1.0]),
    ],
)
def test_it_goes_on_while_the_best_is_at_an_end(best, default, tried):
    chosen, found = study.climb(
        VALUES, default, lambda value: study.Scores(-((value - best) ** 2), 0, 0)
    )
    assert (chosen, list(found)) == (best, tried)


def test_it_does_not_follow_a_plateau():
    chosen, tried = study.climb(
        VALUES, 1.0, lambda value: study.Scores(1 + value / 100 if value > 1 else value, 0, 0)
    )
    assert (chosen, list(tried)) == (1.0, [0.0, 1.0, 2.0])


def test_all_values_finds_what_lies_behind_a_plateau():
    scores = lambda value: study.Scores(1.0 if value == 5 else 0.0, 0, 0)  # noqa: E731
    assert study.climb(VALUES, 1.0, scores)[0] == 1.0
    chosen, tried = study.climb(VALUES, 1.0, scores, try_all=True)
    assert (chosen, list(tried)) == (5.0, VALUES)


@pytest.mark.parametrize("gain, chosen", [(0.09, 2.0), (0.11, 3.0)])
def test_the_default_stays_unless_another_gains_a_tenth(gain, chosen):
    assert (
        study.climb(VALUES, 2.0, lambda value: study.Scores(gain if value == 3.0 else 0.0, 0, 0))[0]
        == chosen
    )


def test_a_value_that_fails_is_never_chosen():
    line = {"psnr": 30.0, "deep_lite0": 2.0, "error": None}
    assert study.scores_of([line, {"psnr": 20.0, "deep_lite0": 4.0, "error": None}]) == (
        22.0,
        25.0,
        3.0,
    )
    failed = study.scores_of([line, line | {"error": "NaN", "psnr": math.nan}])
    assert failed.gain == -math.inf and str(failed) == "failed"
    assert (
        study.climb(VALUES, 4.0, lambda v: failed if v > 4 else study.Scores(v == 3, 0, 0))[0]
        == 3.0
    )


def test_every_setting_is_one_of_conf_and_its_default_among_the_values():
    for setting in study.SETTINGS:
        for task in setting.tasks:
            default = study.composed(setting.sampler, task).sampler[setting.key]
            assert default in setting.ladder(default) and len(setting.ladder(default)) >= 3
