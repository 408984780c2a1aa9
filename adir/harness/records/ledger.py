"""The records of a cell: one JSON file per image, written once, when that image is done."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adir.errors import InputError
from adir.files import set_aside, write_json
from adir.harness.records.layout import Layout, file_name
from adir.harness.records.record import OtherSchema, Record, json_value, parse_record


class DamagedFile(ValueError):
    """A file of ours that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Ledger:
    """The records and images of one cell, in `folder`."""

    folder: Path

    def record_path(self, image_id: str) -> Path:
        """Return where the record of an image lies."""
        return self.folder / "records" / f"{file_name(image_id)}.json"

    def image_path(self, image_id: str) -> Path:
        """Return where the restored image lies, an 8-bit PNG."""
        return self.folder / "images" / f"{file_name(image_id)}.png"

    @property
    def claims(self) -> Path:
        """The folder of the workers' claims on images."""
        return self.folder / "claims"

    def read(self, image_id: str, cell_sha256: str | None = None) -> Record | None:
        """Return the record of an image, or None when there is none.

        Raises:
            DamagedFile: it is damaged, and was set aside, as its image will be done anew.
            InputError: it has another schema, or belongs to another cell than the identity's hash
                that is given.
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
                f"{path}: is the record of another cell ({record.cell[:12]}, not "
                f"{cell_sha256[:12]}); use another "
                "results folder, or move its cells' folders back to where they were"
            )
        return record

    def stamp(self, image_id: str) -> tuple[int, int] | None:
        """Return what tells one writing of an image's record from the next; None where there is
        none.
        """
        try:
            found = self.record_path(image_id).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def lacks_any(self, image_ids: list[str]) -> bool:
        """Return whether an image has no record file, by one look at the folder."""
        folder = self.folder / "records"
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return any(self.record_path(image_id).name not in there for image_id in image_ids)

    def peek(self, image_id: str) -> Record | None:
        """Return the record of an image, or None where there is none that can be read; touch
        nothing.
        """
        try:
            return read_record(self.record_path(image_id))
        except (FileNotFoundError, DamagedFile, InputError):
            return None

    def write(self, image_id: str, record: Record) -> None:
        """Write the record, atomically.

        Raises OSError when the disk is full or read-only; nothing else is touched.
        """
        write_json(self.record_path(image_id), record.as_json())


def read_record(path: Path, name: str = "") -> Record:
    """Return the record in a file, which it knows by `name`; nothing is renamed or written.

    Raises:
        DamagedFile: the file holds no record.
        InputError: it holds one of another schema, which another version of this program can read.
    """
    content = path.read_bytes()
    try:
        return parse_record(json_value(content), name)
    except OtherSchema as error:
        raise InputError(
            f"{path}: {error}; use the version that wrote it, or another results folder"
        ) from error
    except ValueError as error:
        raise DamagedFile(f"{path}: damaged record ({error})") from error


def all_records(results: Path) -> Iterator[Record | DamagedFile]:
    """Yield every record below a results folder in path order; a damaged one as the DamagedFile
    that names it.

    Raises InputError where the folder holds results of another schema.
    """
    layout = Layout(results)
    layout.is_marked()
    for path in layout.records():
        try:
            yield read_record(path, path.relative_to(results).as_posix())
        except DamagedFile as error:
            yield error
