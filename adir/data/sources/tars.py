"""Tar shards of the WebDataset format, and tars of plain picture files."""

import functools
import itertools
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from webdataset.tariterators import base_plus_ext

from adir.data.sources.base import Item, Source, attribution_of, fail
from adir.errors import InputError
from adir.files import walk
from adir.images import NOT_TAKEN, PICTURE_SUFFIXES, require_taken

Place = tuple[int, int]
"""(first byte, bytes) of a member in a tar."""

NUMBERED = re.compile(r"\d")
NUMBER = re.compile(r"\d+([-_. ]\d+)*")


class Member(NamedTuple):
    """A file in a tar, KEY.SUFFIX or KEY.WORD.SUFFIX, as WebDataset names them: a key ends at the first dot."""

    key: str
    word: str
    suffix: str
    place: Place

    @property
    def is_taken(self) -> bool:
        return f".{self.suffix}" in PICTURE_SUFFIXES

    @property
    def is_picture(self) -> bool:
        return self.is_taken or f".{self.suffix}" in NOT_TAKEN


class Packed(NamedTuple):
    """A picture in a tar, and the JSON that goes with it."""

    name: str
    picture: Member
    note: Place | None


class TarSource(Source):
    """Tar files of samples (00017.jpg, 00017.json): an id is TAR/KEY, as in `train-0003.tar/00017`; see `pictures_in`.

    path: a tar file, or a folder with tar files in it or below.  Licence, author and source come from a sample's JSON.
    Nothing is ever unpacked to disk. A member whose path climbs out of the tar makes the whole file unusable: InputError.
    """

    kind = "tar"

    def __init__(self, path: str | Path) -> None:
        path = Path(str(path))
        if not path.exists():
            raise InputError(f"tar shards {path}: no such file or folder")
        self.folder = path if path.is_dir() else path.parent
        tars = sorted(walk(path, (".tar",))) if path.is_dir() else [path]
        if not tars or tars[0].suffix.lower() != ".tar":
            compressed = " (.tar.gz cannot be read at random: unpack it to .tar first)"
            raise InputError(f"tar shards {path}: no .tar file{compressed}")
        self.tars = {tar.relative_to(self.folder).as_posix(): tar for tar in tars}
        self.name = path.resolve().name
        self.arguments = {"path": str(path.resolve())}
        # Of each source its own: another one may be made when the files are others.
        self._pictures = functools.lru_cache(maxsize=32)(self._read_headers)
        self._named = functools.lru_cache(maxsize=32)(self._by_name)

    def listing(self) -> Iterator[tuple[str, int | None]]:
        for key in self.tars:
            yield key, None

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            pictures, problems = self._pictures(key)
            for packed in pictures:
                read = functools.partial(self._content, key, packed)
                yield Item(f"{key}/{packed.name}", read, self._attribution(key, packed))
            for number, problem in enumerate(problems):
                yield Item(f"{key}/(unreadable {number})", functools.partial(fail, f"{key}: {problem}"), {})

    def _content(self, key: str, packed: Packed) -> bytes:
        require_taken(f"{key}/{packed.name}.{packed.picture.suffix}")
        return bytes_at(self.tars[key], packed.picture.place)

    def _attribution(self, key: str, packed: Packed) -> dict[str, str]:
        """What a picture's JSON says of its origin; nothing when it has none, or a broken one."""
        try:
            fields = json.loads(b"{}" if packed.note is None else bytes_at(self.tars[key], packed.note))
        except ValueError:
            return {}
        return attribution_of(fields) if isinstance(fields, dict) else {}

    def read(self, image_id: str) -> bytes:
        ends = (place for place, letter in enumerate(image_id) if letter == "/")
        key = next((image_id[:end] for end in ends if image_id[:end] in self.tars), None)
        if key is None:
            raise InputError(f"{image_id}: no tar of that name below {self.folder}; bring it back or build anew")
        packed = self._named(key).get(image_id[len(key) + 1 :])
        if packed is None:
            raise InputError(f"{self.tars[key]}: holds no picture {image_id!r} any more; bring it back or build anew")
        return bytes_at(self.tars[key], packed.picture.place)

    def _read_headers(self, key: str) -> tuple[list[Packed], list[str]]:
        members, problems = read_headers(self.tars[key], key)
        pictures, left_out = pictures_in(members)
        return pictures, problems + left_out

    def _by_name(self, key: str) -> dict[str, Packed]:
        """Of pictures with one name the first, as when an index is built."""
        return {packed.name: packed for packed in reversed(self._pictures(key)[0])}


def read_headers(path: Path, tar: str) -> tuple[list[Member], list[str]]:
    """(the files in a tar, what is wrong with it), by one pass over its headers. Each name counts once.

    Raises InputError for a member whose path leads out of the tar.
    """
    members: list[Member] = []
    problems: list[str] = []
    seen: set[tuple[str, str]] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                require_inside(info.name, tar)
                key, ending = base_plus_ext(info.name)
                if not info.isreg() or key is None:
                    continue
                if (key, ending.lower()) in seen:
                    problems.append(f"the member {info.name!r} comes twice; the first is used")
                    continue
                seen.add((key, ending.lower()))
                word, _, suffix = ending.rpartition(".")
                members.append(Member(key, word, suffix.lower(), (info.offset_data, info.size)))
    except tarfile.ReadError as error:
        problems.append(str(error))
        if members and sum(members[-1].place) > path.stat().st_size:  # the one that is cut
            members.pop()
    return members, problems


def require_inside(member: str, tar: str) -> None:
    """Raise InputError for a member whose path leads out of the tar."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{tar}: the member {member!r} climbs out of the tar; do not trust this file, take it away")


def pictures_in(members: Sequence[Member]) -> tuple[list[Packed], list[str]]:
    """(the pictures among the members of a tar, what was left out of it).

    A sample, members of one key that stand together, has one picture, called KEY: the one without a word (00017.jpg, and
    not 00017.seg.png), or else the one with the shortest ending (00017.image.jpg).  But members that are frames of a
    sequence are pictures of their own, called KEY.WORD: without one that has no word, those whose words all hold a number
    (shot.0001.png, shot.0002.png) or are no other key's either (St. Peter.jpg, St. Paul.jpg); beside it, those whose words
    are numbers alone (shot.png, shot.0001.png).
    """
    words: defaultdict[str, set[str]] = defaultdict(set)
    for kind in (filter(lambda m: m.is_taken, members), filter(lambda m: m.is_picture, members)):
        known = set(words)
        for member in kind:
            if member.key not in known:
                words[member.key].add(member.word)
    n_keys = Counter(word for of_key in words.values() for word in of_key)
    sequences = {
        key
        for key, of_key in words.items()
        if len(of_key) > 1 and "" not in of_key
        if all(map(NUMBERED.search, of_key)) or all(n_keys[word] == 1 for word in of_key)
    }

    def name_of(member: Member) -> str:
        beside = words[member.key] != {member.word} and NUMBER.fullmatch(member.word)
        return f"{member.key}.{member.word}" if beside or member.key in sequences else member.key

    pictures: list[Packed] = []
    fields: Counter[str] = Counter()
    for _, group in itertools.groupby(members, key=lambda member: member.key):
        sample = list(group)
        notes = {member.word: member.place for member in reversed(sample) if member.suffix == "json"}
        named: defaultdict[str, list[Member]] = defaultdict(list)
        for member in sample:
            if member.is_picture:
                named[name_of(member)].append(member)
        for name, choice in named.items():
            best = min(choice, key=lambda member: (not member.is_taken, len(f"{member.word}.{member.suffix}")))
            pictures.append(Packed(name, best, notes.get(best.word, notes.get(""))))
            if best.word:
                fields.update(member.word for member in choice if member.is_taken and member.word != best.word)
    left_out = f"{fields.total()} pictures are left out as further fields of their samples: {', '.join(sorted(fields))}"
    return pictures, [left_out] if fields else []


def bytes_at(path: Path, place: Place) -> bytes:
    """The bytes at a place of a file. Raises InputError where it ends before."""
    start, size = place
    with open(path, "rb") as stream:
        stream.seek(start)
        content = stream.read(size)
    if len(content) < size:
        raise InputError(f"{path}: unexpected end of data")
    return content
