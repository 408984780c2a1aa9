"""Submissions as files: one .zip with records, perhaps pictures, and a manifest with the SHA-256 of every member.

A submission comes from somebody else, so nothing in it is believed before it was checked: names, sizes, hashes, JSON,
every record's fields, and that a cell's hash is that of its identity. The same content gives the same bytes.
"""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from adir.errors import InputError
from adir.files import hash_of, json_bytes, replacing, sha256_of_bytes
from adir.harness.records.comparable import grouped
from adir.harness.records.layout import KINDS, file_name, kind_of
from adir.harness.records.planned import PlannedCell, plan_cells
from adir.harness.records.record import SCHEMA, Record, record_from, refuse_constant

MANIFEST = "manifest.json"
FORMAT = "adir submission"
FORMAT_VERSION = 1

MOST_MEMBERS = 2_000_000
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeDecodeError)
"""What zipfile raises for a damaged file."""

LARGEST_JSON = 16 * 2**20
LARGEST_MANIFEST = 512 * 2**20
LARGEST_PICTURE = 256 * 2**20
LARGEST_TOTAL = 64 * 2**30
HIGHEST_RATIO = 200
"""Bytes out of one byte in. Indented JSON of records reaches 10 to 20; a bomb of zeros, 1,000."""

PICTURES = ("picture", "y", "shown")

START = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the earliest a .zip knows, as a real one would change the bytes."""


def write_archive(path: Path, about: dict[str, Any], members: dict[str, Path | bytes]) -> None:
    """Write a submission: {name: file or its content}, in order of names. It is there whole or not at all. OSError as ever."""
    files: dict[str, dict[str, Any]] = {}
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
    ):
        for name in sorted(members):
            member = members[name]
            content = member if isinstance(member, bytes) else member.read_bytes()
            files[name] = {"sha256": sha256_of_bytes(content), "bytes": len(content)}
            put(archive, name, content)
        manifest = {"format": FORMAT, "version": FORMAT_VERSION, "schema": SCHEMA} | about | {"files": files}
        put(archive, MANIFEST, json_bytes(manifest))


def put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a member that depends on its name and content alone."""
    member = zipfile.ZipInfo(name, START)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, wherever it is written
    member.external_attr = 0o100644 << 16
    archive.writestr(member, content)


def is_archive(path: Path) -> bool:
    """Whether a file is a .zip."""
    return zipfile.is_zipfile(path)


@dataclass(frozen=True)
class Archive:
    """A submission whose list of members was checked; their content is, whenever it is read."""

    path: Path
    manifest: dict[str, Any]
    names: dict[str, list[str]]
    """{kind: names of the members, sorted}"""

    def records(self) -> Iterator[Record]:
        """Every record with its `path`. Raises InputError at the first that is not what it should be."""
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names["record"]:
                content = self.content(archive, name)
                try:
                    record = record_from(content, name)
                    require_placed(record)
                    yield record
                except ValueError as error:
                    raise InputError(f"{self.path}: {name}: {error}; ask whoever sent it for a whole one") from error

    def plans(self) -> Iterator[tuple[str, list[PlannedCell]]]:
        """(name, cells) of each grid's plan."""
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names["plan"]:
                try:
                    yield name, plan_cells(parse(self.path, name, self.content(archive, name)))
                except ValueError as error:
                    raise InputError(f"{self.path}: {name}: {error}") from error

    def content(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """A member's bytes, of the size and hash that the manifest says. Raises InputError otherwise."""
        told = self.manifest["files"][name]
        try:
            with archive.open(name) as member:
                found = bounded(member, told["bytes"])
        except UNREADABLE as error:
            raise InputError(f"{self.path}: {name}: cannot be read ({error}); it was damaged on the way") from error
        if len(found) != told["bytes"] or sha256_of_bytes(found) != told["sha256"]:
            raise InputError(
                f"{self.path}: {name}: its SHA-256 is not the manifest's; it was damaged or changed on the way"
            )
        return found


def open_archive(path: Path) -> Archive:
    """A submission, its members' names, number and sizes checked and held against its manifest. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_members(path, members)
            by_name = {member.filename: member for member in members}
            if MANIFEST not in by_name:
                raise InputError(f"{path}: a .zip without {MANIFEST}, so no submission; `adir submit FOLDER` makes one")
            with archive.open(MANIFEST) as file:
                manifest = parse(path, MANIFEST, bounded(file, LARGEST_MANIFEST))
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a .zip ({error}); it was damaged on the way") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: its manifest is not of an {FORMAT}, version {FORMAT_VERSION}; use the adir that wrote it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(told, dict) and isinstance(told.get("sha256"), str) and type(told.get("bytes")) is int
        for told in files.values()
    ):
        raise InputError(f"{path}: its manifest lists no files with hash and size")
    for name in sorted(set(files) ^ (set(by_name) - {MANIFEST})):
        where = "in the manifest and not in the file" if name in files else "in the file and not in the manifest"
        raise InputError(f"{path}: {name!r} is {where}; it was changed on the way")
    of_kind = grouped((kind_of(name), name) for name in sorted(files))
    return Archive(path, manifest, {kind: of_kind.get(kind, []) for kind in KINDS})


def check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise InputError for names that lead elsewhere, two members of one name, and sizes that nobody's results have."""
    if len(members) > MOST_MEMBERS:
        raise InputError(f"{path}: {len(members)} members, and {MOST_MEMBERS} are the most that are taken")
    names = Counter(member.filename for member in members)
    for member in members:
        name, size = member.filename, member.file_size
        kind = "manifest" if name == MANIFEST else kind_of(name)
        largest = LARGEST_PICTURE if kind in PICTURES else LARGEST_MANIFEST if kind == "manifest" else LARGEST_JSON
        otherwise = member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        bomb = size > HIGHEST_RATIO * max(member.compress_size, 1024)
        faults = {
            f"holds {name!r}, which is no record, picture or plan; nothing was taken from it": kind is None,
            f"holds {name} twice": names[name] > 1,
            f"{name} would be {size} bytes, and {largest} are the most that are taken": size > largest,
            f"{name} is packed {HIGHEST_RATIO}-fold or more, which no record or picture is": bomb,
            f"{name} is encrypted or packed otherwise; send it as `adir submit` wrote it": otherwise,
        }
        if (fault := next((why for why, found in faults.items() if found), None)) is not None:
            raise InputError(f"{path}: {fault}")
    total = sum(member.file_size for member in members)
    if total > LARGEST_TOTAL:
        raise InputError(f"{path}: would be {total} bytes unpacked, and {LARGEST_TOTAL} are the most that are taken")


def bounded(file: IO[bytes], most: int) -> bytes:
    """What is in the file, at most one byte more than `most`: what the list of members says of sizes may be untrue."""
    return file.read(most + 1)


def parse(path: Path, name: str, content: bytes) -> Any:
    """The value of a JSON member. Raises InputError for what is no JSON, NaN included."""
    try:
        return json.loads(content.decode(), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name}: is no JSON ({error})") from error


def require_placed(record: Record) -> None:
    """Raise ValueError where a file of its name may not hold this record."""
    if PurePosixPath(record.path).stem != file_name(record.image.id):
        raise ValueError(f"is named otherwise than its picture, {record.image.id!r}")
    if hash_of(record.identity) != record.cell:
        raise ValueError("its cell is not the hash of its identity")
