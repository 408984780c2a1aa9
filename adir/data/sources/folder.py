"""Image source for a folder."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from adir.data.sources.base import Item, Source, SourceDown
from adir.errors import InputError
from adir.files import require_no_results, storable, walk
from adir.images import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES, require_supported


class FolderSource(Source):
    """Source of all images in a folder and its subfolders, listed by `adir.files.walk`.

    An id is the path relative to the folder, with forward slashes.
    """

    kind = "folder"

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(str(path))  # Hydra turns a folder called 2019 into a number
        if not self.folder.is_dir():
            raise InputError(f"corpus folder {path}: no such folder")
        require_no_results(self.folder)
        self.name = storable(self.folder.resolve().name)
        self.arguments = {"path": str(self.folder.resolve())}

    def listing(self) -> Iterator[tuple[str, int | None]]:
        empty = True
        for path in walk(self.folder, IMAGE_SUFFIXES + UNSUPPORTED_SUFFIXES):
            empty = False
            yield path.relative_to(self.folder).as_posix(), 1
        if empty:
            raise InputError(
                f"corpus folder {self.folder}: no image files ({', '.join(IMAGE_SUFFIXES)}) in "
                "the folder or its subfolders"
            )

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            yield Item(key, functools.partial(self.read, key), {})

    def read(self, image_id: str) -> bytes:
        require_supported(image_id)
        path = self.folder / image_id
        if ".." in Path(image_id).parts or Path(image_id).is_absolute():
            raise InputError(f"{image_id}: the path is outside the corpus folder {self.folder}")
        if path.is_file():  # a pipe would block
            return path.read_bytes()
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            raise SourceDown(
                f"corpus folder {self.folder}: missing or empty; run the command again when the "
                "folder is mounted again"
            )
        raise InputError(
            f"{path}: missing, a broken link, or not a file; restore the file or build the index "
            "again"
        )
