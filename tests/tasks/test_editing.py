"""The editing task: what y is, what is refused, and what neighbours are looked for with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from adir.errors import InputError
from adir.images import from_uint8, generator
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.tasks.editing import EditOperator, EditTask, edit_id, read_mask

SHAPE = (3, 24, 32)


@pytest.fixture
def mask() -> torch.Tensor:
    hole = torch.zeros(SHAPE[1:], dtype=torch.bool)
    hole[4:15, 7:30] = True
    return hole


@pytest.fixture
def task(mask: torch.Tensor) -> EditTask:
    return EditTask().with_mask(mask, "a cat")


@pytest.fixture
def x() -> torch.Tensor:
    return from_uint8(np.random.randint(0, 256, (24, 32, 3), dtype=np.uint8))


class Compass:
    """An encoder whose vectors say what they were made of."""

    metric = "angular"

    def image(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1)

    def text(self, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(len(prompt))] for prompt in prompts])


def test_y_is_the_image_outside_the_mask_and_zero_inside(task, mask, x) -> None:
    y = task.degrade(x, generator(0, "a", "y"))
    assert torch.equal(y[:, ~mask], x[:, ~mask])
    assert (y[:, mask] == 0).all()  # which no 8-bit value gives: 127 and 128 are -1/255 and 1/255


def test_y_survives_an_image_file_whatever_lies_in_the_hole(task, mask, x, tmp_path) -> None:
    y = task.degrade(x, generator(0, "a", "y"))
    task.write_y(tmp_path / "y.png", y)
    assert torch.equal(task.read_y(tmp_path / "y.png"), y)
    pixels = np.array(Image.open(tmp_path / "y.png"))
    pixels[mask.numpy()] = 255
    Image.fromarray(pixels).save(tmp_path / "y.png")
    assert torch.equal(task.read_y(tmp_path / "y.png"), y)


def test_the_operator_keeps_what_is_known_and_carries_mask_and_prompt(task, mask, x) -> None:
    operator = task.operator(SHAPE)
    assert (
        isinstance(operator, EditOperator)
        and operator.prompt == "a cat"
        and torch.equal(operator.hole, mask)
    )
    assert torch.equal(operator.A(x), torch.where(mask, 0.0, x))
    assert torch.equal(operator.known(), (~mask).expand(3, -1, -1))
    # A diagonal projection is its own adjoint and pseudo-inverse.
    assert torch.equal(operator.A_adjoint(x), operator.A(x)) and torch.equal(
        operator.A_dagger(x), operator.A(x)
    )
    assert operator is task.operator(SHAPE) and operator.sigma_y == task.sigma_y == 0


def test_a_bound_task_does_not_bind_the_one_it_came_from(mask) -> None:
    task = EditTask(by="image")
    one, other = task.with_mask(mask, "one"), task.with_mask(~mask, "other")
    assert (one.prompt, other.prompt, task.prompt, one.by) == ("one", "other", None, "image")
    assert torch.equal(one.operator(SHAPE).hole, ~other.operator(SHAPE).hole)
    with pytest.raises(InputError, match="needs a mask and a prompt"):
        task.degrade(torch.zeros(SHAPE), generator(0, "a", "y"))


def test_neighbours_are_looked_for_by_the_prompt_or_by_the_image(mask, x) -> None:
    encoder = Compass()
    for by, expected in (
        ("prompt", lambda y: torch.tensor([[5.0]])),
        ("image", lambda y: y.flatten()[None]),
    ):
        task = EditTask(by=by).with_mask(mask, "a cat")
        y = task.degrade(x, generator(0, "a", "y"))
        assert torch.equal(task.query(encoder, y), expected(y))
    encoder.metric = "euclidean"  # the pixel control
    task = EditTask(by="prompt").with_mask(mask, "a cat")
    assert torch.equal(task.query(encoder, y), y.flatten()[None])


def test_an_encoder_without_text_names_the_way_out(task, x) -> None:
    with pytest.raises(InputError, match=r"cannot encode text; .*task.by=image"):
        task.query(ImagenetEncoder(), task.degrade(x, generator(0, "a", "y")))


@pytest.mark.parametrize(
    "change, prompt, words",
    [
        (lambda mask: mask & False, "a cat", "all black, so nothing would be repainted"),
        (lambda mask: mask | True, "a cat", "all white, so nothing of the image would be kept"),
        (lambda mask: mask, "", "the prompt is empty"),
        (lambda mask: mask, " \t", "the prompt is empty"),
    ],
)
def test_an_edit_that_is_none_is_refused(mask, change, prompt, words) -> None:
    with pytest.raises(InputError, match=words):
        EditTask().with_mask(change(mask), prompt)


def test_a_mask_of_another_size_is_refused(task) -> None:
    for call in (task.operator, task.image_shape):
        with pytest.raises(
            InputError, match="the mask is 32x24, the image 24x32; make them the same size"
        ):
            call((3, 32, 24))
    with pytest.raises(InputError, match="RGB"):
        task.image_shape((1, 24, 32))


def test_values_that_make_no_task_are_refused() -> None:
    with pytest.raises(InputError, match="unknown by='mask'; choose one of prompt, image"):
        EditTask(by="mask")
    with pytest.raises(InputError, match="version"):
        EditTask(version=0)


def test_a_mask_file_is_white_where_it_is_to_be_repainted(tmp_path: Path) -> None:
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    for pixels in (levels, np.repeat(levels[:, :, None], 3, 2), levels > 127):
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]]


def test_an_id_changes_with_the_mask_its_shape_and_the_prompt(mask) -> None:
    other = mask.clone()
    other[0, 0] = True
    ids = {
        edit_id("a", m, p) for m in (mask, other, mask.reshape(32, 24)) for p in ("a cat", "a dog")
    }
    assert len(ids) == 6 and all(name.startswith("a-") for name in ids)
    assert edit_id("a", mask.clone(), "a cat") in ids


def test_the_configuration_builds(repository: Path) -> None:
    task = instantiate(OmegaConf.load(repository / "conf" / "task" / "edit.yaml"))
    assert (task.name, task.by) == ("edit", "prompt")


def test_the_mask_of_the_authors_page_marks_what_their_y_lacks(authors_page: Path) -> None:
    folder = authors_page / "editing"
    mask = read_mask(folder / "0879_mask.png")
    task = EditTask().with_mask(mask, "Taj Mahal")
    y = task.read_y(folder / "0879_inpaint_y.png")
    assert torch.equal(
        y, task.read_y(folder / "0879_GT.png")
    )  # theirs is black in the hole, and the image elsewhere
    assert 0.42 < mask.float().mean() < 0.43
