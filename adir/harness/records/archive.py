"""Submissions: one .zip with records, optionally images, and a manifest with all SHA-256 hashes.

A submission comes from somebody else, so this module checks names, sizes, hashes, JSON and the
fields of every record before anything is used. It also checks that each record's `cell` is the hash
of its identity. A submission written twice with the same content has the same bytes.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from adir.errors import InputError
from adir.files import atomic_path, hash_of, json_bytes, sha256_of_bytes
from adir.harness.records.comparable import grouped
from adir.harness.records.layout import KINDS, file_name, kind_of
from adir.harness.records.planned import PlannedCell, plan_cells
from adir.harness.records.record import SCHEMA, Record, first_error, json_value, parse_record

MANIFEST = "manifest.json"

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
"""The exceptions that zipfile raises for a damaged file."""

LARGEST_MEMBER = 256 * 2**20
LARGEST_TOTAL = 64 * 2**30
"""Limits in bytes on one unpacked member, and on all of them.

They are needed because a small .zip can unpack to any size.
"""

START = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the earliest that a .zip can hold.

Real dates would change the bytes.
"""


def write_archive(
    path: Path,
    about: dict[str, Any],
    names: Iterable[str],
    content_of: Callable[[str], bytes | None],
) -> list[str]:
    """Write a submission atomically and return the sorted names of the packed files.

    Args:
        path: the .zip; replaced if it exists.
        about: additional entries of the manifest.
        names: files to pack; duplicates count once.
        content_of: returns the content of a file, or None for a missing file, which is skipped.
    """
    files: dict[str, dict[str, Any]] = {}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "x") as archive,
    ):
        for name in sorted(set(names)):
            if (content := content_of(name)) is not None:
                files[name] = {"sha256": sha256_of_bytes(content), "bytes": len(content)}
                put(archive, name, content)
        manifest = (
            {"format": "adir submission", "version": 1, "schema": SCHEMA} | about | {"files": files}
        )
        put(archive, MANIFEST, json_bytes(manifest))
    return list(files)


def put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a member to the .zip; its bytes depend only on its name and content."""
    member = zipfile.ZipInfo(name, START)
    member.create_system = 3  # Unix, on every platform
    member.external_attr = 0o100644 << 16
    archive.writestr(member, content, zipfile.ZIP_DEFLATED)


class Member(BaseModel):
    """Manifest entry of one member: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """Manifest of a submission, with only those fields that adir reads."""

    format: Literal["adir submission"]
    version: Literal[1]
    files: dict[str, Member]


@dataclass(frozen=True)
class Archive:
    """Opened submission, whose list of members is valid.

    A member's content is checked only when it is read.
    """

    path: Path
    files: dict[str, Member]
    names: dict[str, list[str]]
    """{kind: names of its members, sorted}; the kinds are those of `layout.KINDS`."""

    def records(self) -> Iterator[Record]:
        """Yield every record with its `path`.

        Raises InputError at the first invalid record.
        """
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names["record"]:
                content = self.content(archive, name)
                try:
                    record = parse_record(json_value(content), name)
                    require_consistent(record)
                    yield record
                except ValueError as error:
                    raise InputError(
                        f"{self.path}: {name} is invalid ({error}); ask the sender for a valid "
                        "submission"
                    ) from error

    def plans(self) -> Iterator[tuple[str, list[PlannedCell]]]:
        """Yield (name, cells) of each grid's plan.

        Raises InputError at the first invalid plan.
        """
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names["plan"]:
                content = self.content(archive, name)
                try:
                    yield name, plan_cells(json_value(content))
                except ValueError as error:
                    raise InputError(
                        f"{self.path}: {name} is invalid ({error}); ask the sender for a valid "
                        "submission"
                    ) from error

    def content(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """Return a member's content.

        Raises InputError unless its size and hash are those in the manifest.
        """
        told = self.files[name]
        try:
            with archive.open(name) as member:
                # One byte more than stated shows that a member is too long, whatever its size.
                found = member.read(told.bytes + 1)
        except UNREADABLE as error:
            raise InputError(
                f"{self.path}: {name} is damaged ({error}); ask the sender for a new copy"
            ) from error
        if len(found) != told.bytes or sha256_of_bytes(found) != told.sha256:
            raise InputError(
                f"{self.path}: {name} does not have the size and SHA-256 in the manifest; "
                "ask the sender for a new copy"
            )
        return found


def open_archive(path: Path) -> Archive:
    """Open a submission.

    Raises InputError unless the members have valid names and sizes and agree with the manifest.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive.infolist())
            names = set(archive.namelist())
            if MANIFEST not in names:
                raise InputError(
                    f"{path}: this .zip has no {MANIFEST}, so it is not a submission; create one "
                    "with `adir submit FOLDER`"
                )
            files = Manifest.model_validate_json(archive.read(MANIFEST)).files
    except UNREADABLE as error:
        raise InputError(
            f"{path}: this .zip is damaged ({error}); ask the sender for a new copy"
        ) from error
    except ValidationError as error:
        raise InputError(
            f"{path}: invalid manifest ({first_error(error)}); use the version of adir that "
            "wrote this file"
        ) from error
    for name in sorted(set(files) ^ (names - {MANIFEST})):
        where = (
            "in the manifest but not in the .zip"
            if name in files
            else "in the .zip but not in the manifest"
        )
        raise InputError(f"{path}: {name!r} is {where}; ask the sender for a new copy")
    of_kind = grouped((kind_of(name), name) for name in sorted(files))
    return Archive(path, files, {kind: of_kind.get(kind, []) for kind in KINDS})


def check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise InputError for an unknown kind of file, a duplicate name or an excessive size.

    Allowed names are `manifest.json` and all names to which `layout.kind_of` assigns a kind. Sizes
    are limited per member and in total (`LARGEST_MEMBER`, `LARGEST_TOTAL`).
    """
    for member in members:
        name, size = member.filename, member.file_size
        if name != MANIFEST and kind_of(name) is None:
            raise InputError(
                f"{path}: {name!r} is not a file of a submission, such as a record, image or plan; "
                "nothing was read from this .zip"
            )
        if size > LARGEST_MEMBER:
            raise InputError(
                f"{path}: {name} would unpack to {size} bytes, but the limit is {LARGEST_MEMBER}"
            )
    if len({member.filename for member in members}) < len(members):
        raise InputError(
            f"{path}: two files in this .zip have the same name; ask the sender for a new copy"
        )
    total = sum(member.file_size for member in members)
    if total > LARGEST_TOTAL:
        raise InputError(
            f"{path}: would unpack to {total} bytes in total, but the limit is {LARGEST_TOTAL}; "
            "ask the sender for several submissions"
        )


def require_consistent(record: Record) -> None:
    """Raise ValueError if a record contradicts its file name or its own identity.

    The file name must be the one that `layout.file_name` makes of the image id, and `cell` must be
    the hash of `identity`.
    """
    if PurePosixPath(record.path).stem != file_name(record.image.id):
        raise ValueError(f"the file name does not match the image id {record.image.id!r}")
    if hash_of(record.identity) != record.cell:
        raise ValueError("`cell` is not the hash of `identity`")
