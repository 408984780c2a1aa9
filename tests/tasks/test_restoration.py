"""Tasks: what y looks like on disk, what is refused, and that every file in conf/task builds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from adir.errors import InputError
from adir.images import generator
from adir.tasks.operators import BoxBlur, BoxInpainting, Colorization, SuperResolution
from adir.tasks.restoration import RestorationTask

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "task").glob("*.yaml"))
RESTORATION_FILES = [f for f in FILES if "RestorationTask" in f.read_text()]
SR4 = RestorationTask("sr4", 1, SuperResolution(4), sigma_y=0, guidance_scale=30)
BLUR = RestorationTask("blur", 1, BoxBlur(5), sigma_y=10, guidance_scale=10)
GREY = RestorationTask("colorization", 1, Colorization(), sigma_y=0, guidance_scale=10)
HOLE = RestorationTask("hole", 1, BoxInpainting(0.5), sigma_y=5, guidance_scale=10)
TASKS = [SR4, BLUR, GREY, HOLE]


def image(height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.rand(3, height, width) * 2 - 1


def names(task: RestorationTask) -> str:
    return task.name


@pytest.mark.parametrize("file", RESTORATION_FILES, ids=lambda f: f.stem)
def test_every_task_file_builds_says_what_it_is_and_keeps_shapes(file):
    assert file.read_text().startswith("# ")
    task = instantiate(OmegaConf.load(file))
    assert task.name == file.stem
    operator = task.operator((3, 64, 96))
    y = task.degrade(image(64, 96), generator(0, "a", "y"))
    assert tuple(y.shape) == operator.y_shape
    assert task.image_shape(tuple(y.shape)) == (3, 64, 96)
    assert operator.A_adjoint(y).shape == (3, 64, 96)
    assert task.image_of(y).shape == (3, *y.shape[1:])
    assert operator.sigma_y == task.sigma_y / 127.5


@pytest.mark.parametrize("task", TASKS, ids=names)
def test_y_survives_an_image_file_exactly(task, tmp_path):
    y = task.degrade(image(), generator(0, "a", "y"))
    task.write_y(tmp_path / "y.png", y)
    assert torch.equal(task.read_y(tmp_path / "y.png"), y)


@pytest.mark.parametrize("task", TASKS, ids=names)
def test_y_is_A_x_plus_noise_in_8_bits(task):
    x = image()
    y = task.degrade(x, generator(0, "a", "y"))
    operator = task.operator(tuple(x.shape))
    noise = torch.randn(operator.y_shape, generator=generator(0, "a", "y")) * task.sigma_y
    levels = np.clip(np.rint((operator.A(x).double().numpy() + 1) * 127.5 + noise.numpy()), 0, 255)
    known = operator.A(torch.ones(x.shape)).numpy() > 0.5
    # One level of slack where the sum in float32 falls on the other side of a half.
    assert np.abs(((y.numpy() + 1) * 127.5 - levels)[known]).max() < 1.001
    assert (np.abs(((y.numpy() + 1) * 127.5 - levels)[known]) < 0.001).mean() > 0.999
    assert (y.numpy()[~known] == 0).all()


def test_the_noise_has_the_stated_grey_levels():
    x = torch.zeros(3, 256, 256)  # mid grey: nothing is clipped
    y = BLUR.degrade(x, generator(0, "a", "y"))
    # 196608 draws: the standard error of the estimate is 10 / sqrt(2 * 196608) = 0.016; rounding
    # adds 1/12 to 100.
    assert (y.std() * 127.5).item() == pytest.approx(math.sqrt(100 + 1 / 12), abs=0.07)


def test_y_depends_on_the_generator_alone():
    x = image()
    first, again, other = (BLUR.degrade(x, generator(seed, "a", "y")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unknown_pixels_are_zero_whatever_the_file_shows(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "y.png")
    y = HOLE.read_y(tmp_path / "y.png")
    assert (y[:, 2:6, 2:6] == 0).all()
    assert (y.sum() == 3 * (64 - 16)).all()


def test_grey_y_becomes_a_grey_rgb_image():
    y = GREY.degrade(image(), generator(0, "a", "y"))
    seen = GREY.image_of(y)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[:1], y)


def save(path: Path, *shape: int) -> Path:
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "task, shape, words",
    [
        (SR4, (16, 16), "RGB"),
        (GREY, (16, 16, 3), "grey"),
        (SR4, (2, 2, 3), "at least"),
        (BLUR, (4, 9, 3), "at least 5x5"),
    ],
)
def test_a_file_that_is_no_y_of_the_task_is_refused_by_name(task, shape, words, tmp_path):
    with pytest.raises(InputError, match=f"y.png: .*{words}"):
        task.read_y(save(tmp_path / "y.png", *shape))


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiples of 4"):
        SR4.degrade(image(30, 32), generator(0, "a", "y"))


@pytest.mark.parametrize("sigma_y", [-1, math.nan, math.inf])
def test_a_noise_level_that_is_none_is_refused(sigma_y):
    with pytest.raises(InputError, match="sigma_y"):
        RestorationTask("t", 1, BoxBlur(5), sigma_y, 10)


@pytest.mark.parametrize("version", [0, 1.5, "1", True])
def test_a_version_that_cannot_be_raised_is_refused(version):
    with pytest.raises(InputError, match="version"):
        RestorationTask("t", version, BoxBlur(5), 0, 10)


def test_operators_are_built_once_per_shape():
    assert SR4.operator((3, 32, 32)) is SR4.operator((3, 32, 32))
    assert SR4.operator((3, 32, 32)) is not SR4.operator((3, 32, 64))
