"""A folder of edits: what is read, and what is refused before anything runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adir.data.corpus import folder_corpus
from adir.data.edits import EditSet
from adir.errors import InputError
from adir.tasks.editing import EditTask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, three edits."""
    for name, height in (("cat", 16), ("dog", 24)):
        pixels = np.random.randint(0, 256, (height, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        mask = np.zeros((height, 16), np.uint8)
        mask[4:9, 4:12] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    (tmp_path / "prompts.csv").write_text(
        'image,prompt\ncat,"a tiger, asleep"\ndog.png,a wolf\ncat,a lynx\n'
    )
    return tmp_path


def test_each_prompt_is_a_test_image_with_its_mask(folder: Path) -> None:
    edits = EditSet(folder)
    assert sorted((i.rsplit("-", 1)[0], edits.prompt(i)) for i in edits.ids) == [
        ("cat", "a lynx"), ("cat", "a tiger, asleep"), ("dog", "a wolf")
    ]  # fmt: skip
    for image_id in edits.ids:
        assert edits.mask(image_id).shape == edits.image(image_id).shape[1:]
        assert edits.mask(image_id).sum() == 5 * 8
        bound = EditTask().bound(edits, image_id)
        assert bound.prompt == edits.prompt(image_id) and torch.equal(
            bound.mask, edits.mask(image_id)
        )


def test_json_holds_the_same_prompts(folder: Path) -> None:
    from_csv = EditSet(folder)
    (folder / "prompts.csv").unlink()
    (folder / "prompts.json").write_text(
        json.dumps({"cat": ["a tiger, asleep", "a lynx"], "dog": "a wolf"})
    )
    assert EditSet(folder).ids == from_csv.ids and EditSet(folder).sha256 == from_csv.sha256


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["prompts.csv", "prompts.json"])
def test_prompts_are_read_as_other_programs_write_them(
    folder: Path, name: str, encoding: str
) -> None:
    plain = EditSet(folder)
    text = (folder / "prompts.csv").read_text()
    (folder / "prompts.csv").unlink()
    if name == "prompts.json":
        text = json.dumps({"cat": ["a tiger, asleep", "a lynx"], "dog": "a wolf"}, indent=1)
    (folder / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert EditSet(folder).ids == plain.ids


@pytest.mark.parametrize(
    "suffix, mask_suffix",
    [(".PNG", ".png"), (".png", ".Png"), (".TIFF", ".BMP"), (".WebP", ".GIF")],
)
def test_images_and_masks_are_found_whatever_the_case_of_their_suffixes(
    folder: Path, suffix: str, mask_suffix: str
) -> None:
    before = EditSet(folder)
    expected = {image_id: before.image(image_id) for image_id in before.ids}
    for name, ending in (("cat", suffix), ("cat_mask", mask_suffix)):
        with Image.open(folder / f"{name}.png") as image:
            image.load()
        (folder / f"{name}.png").unlink()
        image.save(folder / f"{name}{ending}", **({"lossless": True} if ending == ".WebP" else {}))
    (folder / f"._cat{suffix}").write_bytes(b"")
    found = EditSet(folder)
    assert found.ids == before.ids
    assert all(torch.equal(found.image(i), expected[i]) for i in found.ids)


def test_of_two_images_of_one_name_the_png_is_taken(folder: Path) -> None:
    before = EditSet(folder)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "cat.webp", lossless=True)
    assert EditSet(folder).sha256 == before.sha256


def test_another_prompt_mask_or_image_is_another_set(folder: Path) -> None:
    before = EditSet(folder)
    (folder / "prompts.csv").write_text("image,prompt\ncat,a tiger\n")
    assert set(EditSet(folder).ids).isdisjoint(before.ids)
    after = EditSet(folder)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "cat.png")
    assert EditSet(folder).ids == after.ids and EditSet(folder).sha256 != after.sha256


def test_a_set_without_masks_is_refused_by_the_task(photographs: Path) -> None:
    with pytest.raises(InputError, match=r"no masks and prompts; use data=edit"):
        EditTask().bound(folder_corpus(photographs), "0.png")


def grey_mask(size: tuple[int, int], level: int):
    return lambda folder: Image.new("L", size, level).save(folder / "cat_mask.png")


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (grey_mask((16, 12), 255), "all white"),
        (grey_mask((16, 16), 0), "cat_mask.png: the mask is all black"),
        (text("prompts.csv", "image,prompt\ncat,\n"), ", image cat: the prompt is empty"),
        (text("prompts.csv", "image,prompt\nbird,a tit\n"), "no image bird.png"),
        (text("prompts.csv", "image,prompt\n"), "the prompt file is empty"),
        (text("prompts.csv", "name;text\ncat;a tiger\n"), "prompts.csv: wrong content"),
        (lambda folder: (folder / "dog_mask.png").unlink(), "no image dog_mask.png"),
        (
            lambda folder: (folder / "prompts.csv").unlink(),
            "no prompts.csv or prompts.json; a set of edits needs",
        ),
        (text("cat.png", "no image"), "cat.png"),
    ],
)
def test_a_folder_that_is_not_one_is_refused_in_one_line(folder: Path, spoil, words: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=words) as raised:
        EditSet(folder)
    assert "\n" not in str(raised.value)


def test_a_mask_of_another_size_is_refused(folder: Path) -> None:
    mask = Image.new("L", (12, 16), 0)
    mask.paste(255, (2, 2, 6, 6))
    mask.save(folder / "cat_mask.png")
    with pytest.raises(InputError, match="the mask is 12x16, the image 16x16"):
        EditSet(folder)


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        EditSet(tmp_path / "nowhere")
