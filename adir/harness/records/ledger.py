"""Records: one JSON file per (cell, picture), written once, when that picture is done."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adir.errors import InputError
from adir.files import read_json, set_aside, write_json

SCHEMA = 1
"""Raised when a field of a record changes its meaning; records of another schema are refused."""

REQUIRED = ("schema", "status", "cell", "axes", "image", "y", "scores")


class DamagedFile(ValueError):
    """A file of ours that cannot be read; the message names it and where it was set aside."""


@dataclass(frozen=True)
class Ledger:
    """The records and pictures of one cell, in `folder`."""

    folder: Path

    def record_path(self, image_id: str) -> Path:
        """Image ids may hold any character; the file name has it percent-encoded."""
        return self.folder / "records" / f"{quote(image_id, safe='')}.json"

    def picture_path(self, image_id: str) -> Path:
        """The restored picture, an 8-bit PNG."""
        return self.folder / "pictures" / f"{quote(image_id, safe='')}.png"

    def read(self, image_id: str, cell_sha256: str | None = None) -> dict[str, Any] | None:
        """The record of a picture, or None when there is none. A damaged one is set aside and named: DamagedFile.

        Raises InputError where the record has another schema, or is not of the cell whose identity's hash is given.
        """
        path = self.record_path(image_id)
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        if cell_sha256 is not None and record["cell"] != cell_sha256:
            raise InputError(
                f"{path}: is the record of another cell ({str(record['cell'])[:12]}, not {cell_sha256[:12]}); use another "
                "results folder, or move its cells' folders back to where they were"
            )
        return record

    def stamp(self, image_id: str) -> tuple[int, int] | None:
        """What tells one writing of a picture's record from the next; None where there is none."""
        try:
            found = self.record_path(image_id).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def lacks_any(self, image_ids: list[str]) -> bool:
        """Whether a picture has no record file, by one look at the folder."""
        folder = self.folder / "records"
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return any(self.record_path(image_id).name not in there for image_id in image_ids)

    def peek(self, image_id: str) -> dict[str, Any] | None:
        """The record of a picture, or None where there is none that can be read; touches nothing."""
        try:
            record = read_json(self.record_path(image_id))
            return record if record["schema"] == SCHEMA and record["status"] in ("done", "failed") else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, image_id: str, record: dict[str, Any]) -> None:
        """Write the record, atomically. Raises OSError when the disk is full or read-only; nothing else is touched."""
        write_json(self.record_path(image_id), {"schema": SCHEMA, **record})


def read_record(path: Path) -> dict[str, Any]:
    """One record file. When it is damaged it is renamed, never deleted, and DamagedFile says where to.

    One of another schema raises InputError and stays: another version of this program can read it.
    """
    try:
        record = read_json(path)
        other_schema = isinstance(record, dict) and record.get("schema", SCHEMA) != SCHEMA
        missing = [key for key in REQUIRED if key not in record] if isinstance(record, dict) else list(REQUIRED)
        if missing and not other_schema:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValueError as error:
        raise DamagedFile(f"{path}: damaged record ({error}); {set_aside(path)}") from error
    if other_schema:
        raise InputError(
            f"{path}: a record of schema {record['schema']!r}, this version of adir reads schema {SCHEMA}; use the version "
            "that wrote it, or another results folder"
        )
    return record


def all_records(results: Path) -> Iterator[dict[str, Any] | DamagedFile]:
    """Every record below a results folder in path order; a damaged one comes as the DamagedFile that names it."""
    earlier = sorted(results.glob("cells/**/records/*.json.corrupt-*"))
    for path in sorted(results.glob("cells/**/records/*.json")):
        try:
            yield {**read_record(path), "path": str(path.relative_to(results))}
        except DamagedFile as error:
            yield error
    for aside in earlier:
        if not aside.with_name(aside.name.partition(".corrupt-")[0]).exists():
            yield DamagedFile(f"{aside}: a damaged record, set aside earlier; running its cell again replaces it")
