"""Image source for tar shards in the WebDataset format and for tars of plain image files."""

import functools
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from adir.data.sources.base import Item, Source, attribution_of, fail
from adir.errors import InputError
from adir.files import walk
from adir.images import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES, require_supported

Place = tuple[int, int]
"""(offset, size) of a member in a tar, in bytes."""


NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")
"""KEY.SUFFIX, as WebDataset splits the name of a member: at the first dot of its last part."""


class Member(NamedTuple):
    """Member of a tar file, named KEY.SUFFIX or KEY.WORD.SUFFIX.

    As in WebDataset, the key ends at the first dot of the file name.

    Attributes:
        key: path up to this dot.
        word: text between the first and the last dot of the file name; "" if it has only one dot.
        suffix: text after the last dot, in lower case.
        place: offset and size in the tar, in bytes.
    """

    key: str
    word: str
    suffix: str
    place: Place


class TarImage(NamedTuple):
    """Image in a tar, with the position of its JSON file (None if it has no JSON file)."""

    image: Member
    note: Place | None


class TarSource(Source):
    """Source of images in tar files that hold samples such as 00017.jpg and 00017.json.

    A sample consists of the files with the same key, the path up to the first dot of the file name.
    An id is TAR/KEY or TAR/KEY.WORD, as in `train-0003.tar/00017`; see `images_in`. Licence, author
    and source come from a sample's JSON file. Nothing is unpacked to disk. A tar with a member
    whose path is absolute or contains ".." is refused with InputError.

    Args:
        path: a tar file, or a folder with tar files in the folder or its subfolders.
    """

    kind = "tar"

    def __init__(self, path: str | Path) -> None:
        path = Path(str(path))
        if not path.exists():
            raise InputError(f"tar shards {path}: no such file or folder")
        self.folder = path if path.is_dir() else path.parent
        tars = sorted(walk(path, (".tar",))) if path.is_dir() else [path]
        if not tars or tars[0].suffix.lower() != ".tar":
            raise InputError(
                f"tar shards {path}: no .tar file; decompress .tar.gz files first, because they "
                "have no random access"
            )
        self.tars = {tar.relative_to(self.folder).as_posix(): tar for tar in tars}
        self.name = path.resolve().name
        self.arguments = {"path": str(path.resolve())}
        # One cache per source object: the files may have changed before the next one is created.
        self._contents = functools.lru_cache(maxsize=32)(
            lambda key: read_headers(self.tars[key], key)
        )

    def listing(self) -> Iterator[tuple[str, int | None]]:
        for key in self.tars:
            yield key, None

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            images, problems = self._contents(key)
            for name, packed in images.items():
                image_id = f"{key}/{name}"
                yield Item(
                    image_id, functools.partial(self.read, image_id), self._attribution(key, packed)
                )
            for number, problem in enumerate(problems):
                yield Item(
                    f"{key}/(unreadable {number})", functools.partial(fail, f"{key}: {problem}"), {}
                )

    def _attribution(self, key: str, packed: TarImage) -> dict[str, str]:
        """Return licence, author and source from an image's JSON file.

        Returns {} if the JSON file is missing or damaged.
        """
        try:
            fields = json.loads(
                b"{}" if packed.note is None else bytes_at(self.tars[key], packed.note)
            )
        except ValueError:
            return {}
        return attribution_of(fields) if isinstance(fields, dict) else {}

    def read(self, image_id: str) -> bytes:
        key = next((key for key in self.tars if image_id.startswith(f"{key}/")), None)
        if key is None:
            raise InputError(
                f"{image_id}: the tar of this image is missing in {self.folder}; restore the tar "
                "or build the index again"
            )
        packed = self._contents(key)[0].get(image_id[len(key) + 1 :])
        if packed is None:
            raise InputError(
                f"{self.tars[key]} no longer holds {image_id!r}; restore the file or build the "
                "index again"
            )
        require_supported(f"{image_id}.{packed.image.suffix}")
        return bytes_at(self.tars[key], packed.image.place)


def read_headers(path: Path, tar: str) -> tuple[dict[str, TarImage], list[str]]:
    """Read a tar's headers once; return its images by name, and messages about its problems.

    Args:
        path: path of the tar.
        tar: name of the tar in error messages.

    Raises:
        InputError: if the path of a member is absolute or contains "..".
    """
    members: list[Member] = []
    problems: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                place = PurePosixPath(info.name)
                if place.is_absolute() or ".." in place.parts:
                    raise InputError(
                        f"{tar}: the path of member {info.name!r} leads out of the tar, so the "
                        "tar is not trustworthy; remove the tar"
                    )
                parts = NAME.fullmatch(info.name)
                if not info.isreg() or parts is None:
                    continue
                word, _, suffix = parts[2].rpartition(".")
                member = Member(parts[1], word, suffix.lower(), (info.offset_data, info.size))
                members.append(member)
    except tarfile.ReadError as error:
        problems.append(str(error))
    for name, times in Counter(member[:3] for member in members).items():
        if times > 1:
            problems.append(
                f"{'.'.join(filter(None, name))} occurs {times} times; the first is used"
            )
    return images_in(members), problems


def images_in(members: Sequence[Member]) -> dict[str, TarImage]:
    """Return the images among the members of a tar, by name.

    A file is KEY.SUFFIX or KEY.WORD.SUFFIX. The image files of a key are named as follows:

    - A file without a word is the image KEY (00017.jpg). If a key has such a file, its other files
      count as images KEY.WORD if the word is a number (v.2.png beside v.png). With any other word,
      they are annotations of the image KEY and are ignored (00017.seg.png).
    - If the only image file of a key has a word, it is the image KEY (00017.image.jpg).
    - If a key has several image files, and all have a word, each is the image KEY.WORD. They are
      frames of a sequence (shot.0001.png, shot.0002.png) or have names with dots (St. Peter.jpg,
      St. Paul.jpg).
    """
    samples: defaultdict[str, list[Member]] = defaultdict(list)
    for member in members:
        samples[member.key].append(member)
    found: dict[str, TarImage] = {}
    for key, sample in samples.items():
        notes = {
            member.word: member.place for member in reversed(sample) if member.suffix == "json"
        }
        # A sample whose only images have an unsupported format is listed here and rejected on
        # reading.
        images = of_kinds(sample, IMAGE_SUFFIXES) or of_kinds(sample, UNSUPPORTED_SUFFIXES)
        whole = [member for member in images if not member.word][:1]
        for member in whole + [member for member in images if not whole or member.word.isdigit()]:
            name = key if member in whole or len(images) == 1 else f"{key}.{member.word}"
            found.setdefault(name, TarImage(member, notes.get(member.word, notes.get(""))))
    return found


def of_kinds(sample: Sequence[Member], suffixes: Sequence[str]) -> list[Member]:
    """Return the members with one of these suffixes."""
    return [member for member in sample if f".{member.suffix}" in suffixes]


def bytes_at(path: Path, place: Place) -> bytes:
    """Return the bytes at (offset, size) in a file. Raises InputError if the file is too short."""
    start, size = place
    with open(path, "rb") as stream:
        stream.seek(start)
        content = stream.read(size)
    if len(content) < size:
        raise InputError(
            f"{path}: unexpected end of file; restore the file or build the index again"
        )
    return content
