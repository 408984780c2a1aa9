"""Submissions: one .zip with records, optionally images, and a manifest with the SHA-256 of every
member.

A submission comes from somebody else. Names, sizes, hashes, JSON, every record's fields, and each
cell's hash over its identity are checked before use. The same content gives the same bytes.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from adir.errors import InputError
from adir.files import hash_of, json_bytes, replacing, sha256_of_bytes
from adir.harness.records.comparable import grouped
from adir.harness.records.layout import KINDS, file_name, kind_of
from adir.harness.records.planned import PlannedCell, plan_cells
from adir.harness.records.record import SCHEMA, Record, first_error, json_value, parse_record

MANIFEST = "manifest.json"
FORMAT = "adir submission"
FORMAT_VERSION = 1

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
"""What zipfile raises for a damaged file."""

LARGEST_MEMBER = 256 * 2**20
LARGEST_TOTAL = 64 * 2**30
"""Limits in bytes on what is unpacked: a small file can claim any size."""

START = (1980, 1, 1, 0, 0, 0)
"""The date of every member, the earliest in a .zip: real dates would change the bytes."""


def write_archive(
    path: Path,
    about: dict[str, Any],
    names: Iterable[str],
    content_of: Callable[[str], bytes | None],
) -> list[str]:
    """Write a submission atomically, in order of names, and return the names of its members.

    Args:
        path: the .zip; replaced if it exists.
        about: entries of the manifest besides `files`.
        names: of the files to pack; duplicates count once.
        content_of: returns the content of a file; None for a missing one, which is skipped.
    """
    files: dict[str, dict[str, Any]] = {}
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
    ):
        for name in sorted(set(names)):
            if (content := content_of(name)) is not None:
                files[name] = {"sha256": sha256_of_bytes(content), "bytes": len(content)}
                put(archive, name, content)
        manifest = (
            {"format": FORMAT, "version": FORMAT_VERSION, "schema": SCHEMA}
            | about
            | {"files": files}
        )
        put(archive, MANIFEST, json_bytes(manifest))
    return list(files)


def put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a member whose bytes depend only on its name and content."""
    member = zipfile.ZipInfo(name, START)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, wherever it is written
    member.external_attr = 0o100644 << 16
    archive.writestr(member, content)


class Member(BaseModel):
    """The manifest's entry for a member."""

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """The parts of a submission's manifest that are read."""

    format: Literal["adir submission"]
    version: Literal[1]
    files: dict[str, Member]


@dataclass(frozen=True)
class Archive:
    """A submission whose list of members was checked.

    A member's content is checked when it is read.
    """

    path: Path
    files: dict[str, Member]
    names: dict[str, list[str]]
    """{kind: names of the members, sorted}"""

    def records(self) -> Iterator[Record]:
        """Yield every record with its `path`. Raises InputError at the first invalid one."""
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names["record"]:
                content = self.content(archive, name)
                try:
                    record = parse_record(json_value(content), name)
                    require_placed(record)
                    yield record
                except ValueError as error:
                    raise InputError(
                        f"{self.path}: {name}: {error}; ask whoever sent it for a whole one"
                    ) from error

    def plans(self) -> Iterator[tuple[str, list[PlannedCell]]]:
        """Yield (name, cells) of each grid's plan. Raises InputError at the first invalid one."""
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names["plan"]:
                try:
                    yield name, plan_cells(json_value(self.content(archive, name)))
                except ValueError as error:
                    raise InputError(f"{self.path}: {name}: {error}") from error

    def content(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """Return a member's content.

        Raises InputError unless it has the size and hash that the manifest states.
        """
        told = self.files[name]
        try:
            with archive.open(name) as member:
                found = member.read(
                    told.bytes + 1
                )  # no more: the .zip may hold more than it states
        except UNREADABLE as error:
            raise InputError(
                f"{self.path}: {name}: cannot be read ({error}); it was damaged on the way"
            ) from error
        if len(found) != told.bytes or sha256_of_bytes(found) != told.sha256:
            raise InputError(
                f"{self.path}: {name}: its SHA-256 is not the manifest's; it was damaged or "
                "changed on the way"
            )
        return found


def open_archive(path: Path) -> Archive:
    """Open a submission.

    Raises InputError unless names and sizes of its members are valid and agree with its manifest.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_members(path, members)
            by_name = {member.filename: member for member in members}
            if MANIFEST not in by_name:
                raise InputError(
                    f"{path}: a .zip without {MANIFEST}, so no submission; `adir submit FOLDER` "
                    "makes one"
                )
            manifest = Manifest.model_validate_json(archive.read(MANIFEST))
    except UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read as a .zip ({error}); it was damaged on the way"
        ) from error
    except ValidationError as error:
        raise InputError(
            f"{path}: its manifest is none of ours ({first_error(error)}); use the adir that "
            "wrote it"
        ) from error
    files = manifest.files
    for name in sorted(set(files) ^ (set(by_name) - {MANIFEST})):
        where = (
            "in the manifest and not in the file"
            if name in files
            else "in the file and not in the manifest"
        )
        raise InputError(f"{path}: {name!r} is {where}; it was changed on the way")
    of_kind = grouped((kind_of(name), name) for name in sorted(files))
    return Archive(path, files, {kind: of_kind.get(kind, []) for kind in KINDS})


def check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise InputError for a name that no results folder has, a duplicate name, or a size above the
    limits.
    """
    for member in members:
        name, size = member.filename, member.file_size
        if name != MANIFEST and kind_of(name) is None:
            raise InputError(
                f"{path}: holds {name!r}, which is no record, image or plan; nothing was taken "
                "from it"
            )
        if size > LARGEST_MEMBER:
            raise InputError(
                f"{path}: {name} would be {size} bytes, and {LARGEST_MEMBER} are the most that "
                "are taken"
            )
    if len({member.filename for member in members}) < len(members):
        raise InputError(f"{path}: holds a member twice")
    total = sum(member.file_size for member in members)
    if total > LARGEST_TOTAL:
        raise InputError(
            f"{path}: would be {total} bytes unpacked, and {LARGEST_TOTAL} are the most that "
            "are taken"
        )


def require_placed(record: Record) -> None:
    """Raise ValueError if the record's path does not fit its image, or its cell is not the hash of
    its identity.
    """
    if PurePosixPath(record.path).stem != file_name(record.image.id):
        raise ValueError(f"is named otherwise than its image, {record.image.id!r}")
    if hash_of(record.identity) != record.cell:
        raise ValueError("its cell is not the hash of its identity")
