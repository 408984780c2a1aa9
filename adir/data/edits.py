"""Test sets for text-guided editing: each image has a mask and one or more prompts."""

from pathlib import Path
from typing import Any

from torch import Tensor

from adir.data.base import Corpus
from adir.errors import InputError
from adir.files import read_csv, read_json, sha256_of_file, walk
from adir.images import IMAGE_SUFFIXES, read_image
from adir.tasks.editing import EditTask, edit_id, read_mask

FORMAT = (
    "images NAME.png, masks NAME_mask.png (white is repainted), and prompts.csv "
    "(columns image,prompt) or prompts.json"
)


class EditSet(Corpus):
    """Test set of edits from a folder of images, masks and prompts.

    An image is NAME.png. Its mask is NAME_mask.png, of the same size; white pixels are repainted.
    Other image formats are read too, but PNG is preferred. The prompts are in prompts.csv with the
    columns image and prompt, or in prompts.json as {NAME: prompt} or {NAME: [prompt, ...]}. Each
    prompt defines one test image, whose id is NAME with a hash of mask and prompt. Therefore
    results of different masks or prompts never share an id.

    The constructor reads all files. It raises InputError if a mask is missing, all black, all white
    or of another size, a prompt is empty, or an image is missing or unreadable.
    """

    def __init__(self, path: str | Path) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{path}: no such folder; a set of edits needs {FORMAT}")
        found = sorted(walk(folder, IMAGE_SUFFIXES), key=lambda file: file.suffix.lower() == ".png")
        # PNG files come last: if NAME.jpg and NAME.png exist, the dict keeps the PNG.
        files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in found}
        self._images: dict[str, Path] = {}
        self._masks: dict[str, Tensor] = {}
        self._prompts: dict[str, str] = {}
        manifest = {}
        for name, prompt in read_prompts(folder):
            for needed in (name, f"{name}_mask"):
                if needed not in files:
                    raise InputError(
                        f"{folder}: no image {needed}.png; a set of edits needs {FORMAT}"
                    )
            image, file = files[name], files[f"{name}_mask"]
            mask, x = read_mask(file), read_image(image)
            try:
                EditTask().with_mask(mask, prompt).image_shape(tuple(x.shape))
            except InputError as error:
                where = f"{file}" if prompt.strip() else f"{folder}, image {name}"
                raise InputError(f"{where}: {error}") from error
            image_id = edit_id(name, mask, prompt)
            self._images[image_id], self._masks[image_id], self._prompts[image_id] = (
                image,
                mask,
                prompt,
            )
            manifest[image_id] = sha256_of_file(image)
        super().__init__(folder.name, manifest, {})

    def image(self, image_id: str) -> Tensor:
        return read_image(self._images[image_id])

    def mask(self, image_id: str) -> Tensor:
        return self._masks[image_id]

    def prompt(self, image_id: str) -> str:
        return self._prompts[image_id]


def read_prompts(folder: Path) -> list[tuple[str, str]]:
    """Return a pair (NAME, prompt) for each prompt, in file order.

    NAME is the path of the image in the folder, without suffix. Raises InputError if there is no
    prompt file, or if it is empty or damaged.
    """
    table, mapping = folder / "prompts.csv", folder / "prompts.json"
    pairs: list[tuple[str, str]] = []
    if not table.is_file() and not mapping.is_file():
        raise InputError(f"{folder}: no prompts.csv or prompts.json; a set of edits needs {FORMAT}")
    try:
        if table.is_file():
            pairs = [(row["image"], row["prompt"] or "") for row in read_csv(table)]
        else:
            found: dict[str, Any] = read_json(mapping)
            for name, prompts in found.items():
                pairs += [
                    (name, prompt)
                    for prompt in ([prompts] if isinstance(prompts, str) else prompts)
                ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{table if table.is_file() else mapping}: wrong content; a set of edits needs {FORMAT}"
        ) from error
    if not pairs:
        raise InputError(f"{folder}: the prompt file is empty; a set of edits needs {FORMAT}")
    return [(without_suffix(name.strip()), prompt) for name, prompt in pairs]


def without_suffix(name: str) -> str:
    """Return a name without its image suffix, if the name has one."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
