"""Records of a cell: one JSON file per image, written once when the image is finished."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adir.errors import InputError
from adir.files import set_aside, write_json
from adir.harness.records.layout import Layout, file_name
from adir.harness.records.record import OtherSchema, Record, json_value, parse_record


class DamagedFile(ValueError):
    """Error for an unreadable file written by adir; the message has its path and the reason."""


@dataclass(frozen=True)
class Ledger:
    """Records and restored images of one cell, stored in `folder`."""

    folder: Path

    def record_path(self, image_id: str) -> Path:
        """Return the path of an image's record."""
        return self.folder / "records" / f"{file_name(image_id)}.json"

    def image_path(self, image_id: str) -> Path:
        """Return the path of the restored image, an 8-bit PNG."""
        return self.folder / "images" / f"{file_name(image_id)}.png"

    @property
    def claims(self) -> Path:
        """The folder of claim files, each of which marks an image that a worker is restoring."""
        return self.folder / "claims"

    def read(self, image_id: str, cell_sha256: str | None = None) -> Record | None:
        """Return the record of an image, or None if there is none.

        Raises:
            DamagedFile: if the record is damaged. Its file is renamed first, so that a later call
                finds no record and the image is restored again.
            InputError: if the record has another schema, or if `cell_sha256` is given and is not
                the hash of the record's cell.
        """
        path = self.record_path(image_id)
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            raise DamagedFile(f"{error}; {set_aside(path)}") from error
        if cell_sha256 is not None and record.cell != cell_sha256:
            raise InputError(
                f"{path} belongs to another cell ({record.cell[:12]}, not {cell_sha256[:12]}); "
                "use another results folder, or move the cell folders back to where they were"
            )
        return record

    def stamp(self, image_id: str) -> tuple[int, int] | None:
        """Return (modification time, inode) of an image's record file, or None without a file.

        Every write changes them.
        """
        try:
            found = self.record_path(image_id).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def any_missing(self, image_ids: list[str]) -> bool:
        """Return whether any of these images has no record file.

        The folder is listed only once.
        """
        folder = self.folder / "records"
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return any(self.record_path(image_id).name not in there for image_id in image_ids)

    def peek(self, image_id: str) -> Record | None:
        """Return the record of an image, or None if it is missing or unreadable.

        Unlike `read`, this function never renames a damaged file.
        """
        try:
            return read_record(self.record_path(image_id))
        except (FileNotFoundError, DamagedFile, InputError):
            return None

    def write(self, image_id: str, record: Record) -> None:
        """Write the record atomically.

        Raises OSError if the disk is full or read-only; an earlier record then stays intact.
        """
        write_json(self.record_path(image_id), record.as_json())


def read_record(path: Path, name: str = "") -> Record:
    """Return the record in a file, without changing any file.

    Args:
        path: the file.
        name: stored as the record's `path`.

    Raises:
        DamagedFile: if the file holds no valid record.
        InputError: if the record has another schema, which another version of adir can read.
    """
    content = path.read_bytes()
    try:
        return parse_record(json_value(content), name)
    except OtherSchema as error:
        raise InputError(
            f"{path}: {error}; use the version that wrote it, or choose another results folder"
        ) from error
    except ValueError as error:
        raise DamagedFile(f"{path}: damaged record ({error})") from error


def all_records(results: Path) -> Iterator[Record | DamagedFile]:
    """Yield every record of a results folder in path order, and a DamagedFile for each damaged one.

    Raises InputError if the folder holds results of another schema.
    """
    layout = Layout(results)
    layout.is_marked()
    for path in layout.records():
        try:
            yield read_record(path, path.relative_to(results).as_posix())
        except DamagedFile as error:
            yield error
