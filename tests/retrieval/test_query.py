"""How y is shown: against dense linear algebra, and on every task of conf/."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from adir.configuration import config_dir
from adir.data.embedded import test_fields
from adir.errors import InputError
from adir.images import generator
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.query import LEAST_RIDGE, QUERIES, SIGNAL, query_image, ridge
from adir.tasks.operators import BoxBlur, SuperResolution
from adir.tasks.restoration import RestorationTask

TASKS = sorted(path.stem for path in (config_dir() / "task").glob("*.yaml"))


def task_named(name):
    return instantiate(OmegaConf.load(config_dir() / "task" / f"{name}.yaml"))


def restorations():
    """The tasks of conf/ that have a linear operator for any image, each with a y and its x."""
    (_, x), *_ = test_fields()
    for name in TASKS:
        task = task_named(name)
        if isinstance(task, RestorationTask):
            yield name, task, x, task.degrade(x, generator(0, "x", "y"))


@pytest.mark.parametrize(
    "degradation, sigma",
    [(SuperResolution(2), 0.0), (SuperResolution(2), 10.0), (BoxBlur(3), 10.0)],
)
def test_the_ridge_image_solves_the_normal_equations(degradation, sigma):
    task = RestorationTask("made", 1, degradation, sigma, 1.0)
    operator = task.operator((3, 12, 16))
    x = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = operator.A(x)
    basis = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, 3, 12, 16)
    A = operator.A(basis).flatten(1).T
    r = max((operator.sigma_y / SIGNAL) ** 2, LEAST_RIDGE)
    expected = torch.linalg.solve(
        A.T @ A + r * torch.eye(A.shape[1], dtype=A.dtype), A.T @ y.double().flatten()
    )
    # 30 steps of conjugate gradients; super-resolution without noise has a condition number of 1 /
    # LEAST_RIDGE
    torch.testing.assert_close(ridge(operator, y).flatten().double(), expected, rtol=0, atol=2e-3)


def test_every_way_shows_an_image_of_every_task():
    for name, task, x, y in restorations():
        shapes = {how: query_image(task, y, how, 64).shape for how in QUERIES}
        assert shapes["as_is"] == task.image_of(y).shape and shapes["resized"] == (3, 64, 64), name
        assert shapes["pseudo_inverse"] == shapes["regularised"] == x.shape, name
        for how in QUERIES:
            shown = query_image(task, y, how, 64)
            assert shown.isfinite().all() and shown.abs().max() <= 1, (name, how)


def test_as_is_is_the_image_of_y_and_resized_is_what_the_imagenet_encoder_makes_of_it():
    encoder = ImagenetEncoder()
    for _, task, _, y in restorations():
        assert torch.equal(query_image(task, y, "as_is", 64), task.image_of(y))
        vectors = [
            encoder.image(query_image(task, y, how, encoder.input_size)[None])
            for how in ("as_is", "resized")
        ]
        assert torch.equal(*vectors)


def test_the_pseudo_inverse_of_super_resolution_gives_y_back_where_it_was_not_cut_off():
    task = RestorationTask("made", 1, SuperResolution(4), 0.0, 1.0)
    x = 0.5 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.25
    operator = task.operator((3, 32, 32))
    shown = query_image(task, operator.A(x), "pseudo_inverse", 64)
    assert shown.abs().max() < 1
    torch.testing.assert_close(operator.A(shown), operator.A(x), rtol=0, atol=1e-5)


def test_noise_ruins_the_pseudo_inverse_of_a_blur_and_hardly_the_ridge_image():
    (_, x), *_ = test_fields()
    task = task_named("deblur")
    y = task.degrade(x, generator(0, "x", "y"))
    error = {
        how: (query_image(task, y, how, 64) - x).square().mean().sqrt()
        for how in QUERIES
        if how != "resized"
    }
    assert error["regularised"] < 0.2 and error["pseudo_inverse"] > 0.5


def test_an_unknown_way_is_answered_with_the_choices():
    with pytest.raises(
        InputError,
        match="unknown query preparation 'raw'; choose one of as_is, resized, pseudo_inverse, "
        "regularised",
    ):
        query_image(task_named("sr4"), torch.zeros(3, 8, 8), "raw", 64)
