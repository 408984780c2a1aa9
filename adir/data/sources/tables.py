"""Image sources for tables with an image column: Parquet files, and Hugging Face `datasets`."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from adir.data.sources.base import ATTRIBUTION, Item, Source, attribution_of, fail
from adir.errors import InputError
from adir.files import walk

KEPT = tuple(spelling for spellings in ATTRIBUTION.values() for spelling in spellings)
ROWS_AT_ONCE = 64
WHOLE_GROUP = 2**28
"""Row groups of up to this many bytes are read whole and cached until another group is read.

The reason is that a row can only be read together with all earlier rows of its group, and images
are mostly read in order.
"""


class ParquetSource(Source):
    """Source of images in the rows of Parquet files.

    A cell of the image column holds the bytes of an image file, or the struct {"bytes": ...,
    "path": ...} that Hugging Face `datasets` stores. The column `category`, if it exists, holds the
    categories. If `path` is a folder, each id starts with the path of its Parquet file in that
    folder.

    Args:
        path: a file, or a folder with *.parquet files in the folder or its subfolders.
        image: name of the image column.
        column: name of a column that selects rows; None keeps all rows.
        value: value that a row must have in `column`; values are compared as text.
        id_column: name of the id column. If a file lacks this column, or a kept row has a null or
            repeated id, all ids of the file are row numbers instead, such as `row-00042`. Row
            numbers count dropped rows too. None always uses row numbers.

    Raises:
        InputError: if a file or a column is missing, or only one of `column` and `value` is set.
    """

    kind = "parquet"

    def __init__(
        self,
        path: str | Path,
        image: str = "image",
        column: str | None = None,
        value: str | int | float | bool | None = None,
        id_column: str | None = "source_file",
    ) -> None:
        path = Path(str(path))
        if not path.exists():
            raise InputError(f"Parquet corpus {path}: no such file or folder")
        if (column is None) != (value is None):
            raise InputError(
                f"Parquet corpus {path}: column={column} and value={value}; set both or neither"
            )
        self.folder, self.several = (path, True) if path.is_dir() else (path.parent, False)
        self.files = sorted(walk(path, (".parquet",))) if path.is_dir() else [path]
        if not self.files:
            raise InputError(
                f"Parquet corpus {path}: no *.parquet file in the folder or its subfolders"
            )
        self.image, self.column, self.id_column = image, column, id_column
        # Caches per source object: the files may have changed before the next one is created.
        self._opened = functools.lru_cache(maxsize=64)(opened)
        self._ids = functools.lru_cache(maxsize=4)(self._read_ids)
        self._whole_group = functools.lru_cache(maxsize=1)(self._read_group)
        for file in self.files:
            schema = self._opened(file).schema_arrow
            for needed in (image, *([column] if column is not None else [])):
                if needed not in schema.names:
                    raise InputError(
                        f"Parquet corpus {file}: no column {needed!r}; it has "
                        f"{', '.join(schema.names)}"
                    )
        self.value = None if value is None else str(value)
        self.name = path.stem if value is None else f"{path.stem}-{value}"
        self.arguments = {
            "path": str(path.resolve()),
            "image": image,
            "column": column,
            "value": self.value,
            "id_column": id_column,
        }

    def listing(self) -> Iterator[tuple[str, int | None]]:
        if self.column is not None and not any(map(self._ids, self.files)):
            found = {str(value) for file in self.files for value in self._column(file, self.column)}
            raise InputError(
                f"Parquet corpus {self.name}: no row has {self.column} = {self.value!r}; set "
                f"value to one of {', '.join(sorted(found)[:20])}"
            )
        for file in self.files:
            groups = self._opened(file).metadata
            for group in range(groups.num_row_groups):
                yield (
                    f"{file.relative_to(self.folder).as_posix()}#{group}",
                    groups.row_group(group).num_rows,
                )

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        for key in keys:
            name, _, group = key.rpartition("#")
            try:
                yield from self._rows(self.folder / name, int(group))
            except (OSError, pa.ArrowInvalid) as error:  # rows before the damage are used
                reason = f"{key}: damaged row group ({' '.join(str(error).split())})"
                yield Item(f"{key}/(unreadable)", functools.partial(fail, reason), {})

    def _rows(self, file: Path, group: int) -> Iterator[Item]:
        ids, table = self._ids(file), self._opened(file)
        row = first_row(table, group)
        columns = [
            name for name in (self.image, "category", *KEPT) if name in table.schema_arrow.names
        ]
        for batch in table.iter_batches(
            ROWS_AT_ONCE, row_groups=[group], columns=list(dict.fromkeys(columns))
        ):
            for fields in batch.to_pylist():
                if row in ids:
                    read = functools.partial(bytes_of, fields[self.image], ids[row])
                    category = fields.get("category")
                    yield Item(
                        ids[row],
                        read,
                        attribution_of(fields),
                        None if category is None else str(category),
                    )
                row += 1

    def read(self, image_id: str) -> bytes:
        place = self._places.get(image_id)
        if place is None:
            raise InputError(
                f"Parquet corpus {self.name} no longer holds {image_id!r}; build the index again"
            )
        file, row = place
        table = self._opened(file)
        group = next(g for g in reversed(range(table.num_row_groups)) if first_row(table, g) <= row)
        row -= first_row(table, group)
        if table.metadata.row_group(group).total_byte_size <= WHOLE_GROUP:
            return bytes_of(self._whole_group(file, group)[row].as_py(), image_id)
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self.image]):
            if row < len(batch):
                return bytes_of(batch.column(0)[row].as_py(), image_id)
            row -= len(batch)
        raise InputError(f"{file}: the row of {image_id!r} is missing; build the index again")

    def _read_group(self, file: Path, group: int) -> pa.ChunkedArray:
        return self._opened(file).read_row_group(group, columns=[self.image]).column(0)

    def _read_ids(self, file: Path) -> dict[int, str]:
        """Return {row number: id} for the kept rows of a file."""
        rows = list(range(self._opened(file).metadata.num_rows))
        if self.column is not None:
            rows = [
                row
                for row, value in enumerate(self._column(file, self.column))
                if str(value) == self.value
            ]
        names = [f"row-{row:05d}" for row in rows]
        if self.id_column is not None and self.id_column in self._opened(file).schema_arrow.names:
            told = self._column(file, self.id_column)
            own = [told[row] for row in rows]
            if None not in own and len(set(own)) == len(own):
                names = [str(name) for name in own]
        # The prefix is also used if the folder has one file: files may be added later.
        before = f"{file.relative_to(self.folder).as_posix()}/" if self.several else ""
        return {row: before + name for row, name in zip(rows, names, strict=True)}

    def _column(self, file: Path, name: str) -> list[Any]:
        """Return the values of a column. Raises InputError if the column is damaged."""
        try:
            return self._opened(file).read([name]).column(0).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{file}: column {name!r} is damaged ({' '.join(str(error).split())}); restore "
                "the file"
            ) from error

    @functools.cached_property
    def _places(self) -> dict[str, tuple[Path, int]]:
        return {name: (file, row) for file in self.files for row, name in self._ids(file).items()}


def opened(file: Path) -> parquet.ParquetFile:
    """Open a Parquet file. Raises InputError if the file is not a readable Parquet file."""
    try:
        return parquet.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{file}: not a readable Parquet file ({' '.join(str(error).split())})"
        ) from error


def first_row(table: parquet.ParquetFile, group: int) -> int:
    """Return the row number of the first row of a row group, counted from the start of the file."""
    return sum(table.metadata.row_group(earlier).num_rows for earlier in range(group))


def bytes_of(cell: Any, name: str) -> bytes:
    """Return the bytes of the image file that a cell of an image column holds.

    Args:
        cell: bytes, or the struct {"bytes": ..., "path": ...} that `datasets` stores.
        name: id of the image, for the error message.

    Raises:
        InputError: if the cell holds no bytes.
    """
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if not isinstance(content, bytes):
        raise InputError(f"{name}: the cell of the image column holds no image bytes")
    return content


class DatasetSource(Source):
    """Source of images in a folder that Hugging Face `datasets` wrote with `save_to_disk`.

    Rows are read when needed. Ids are row numbers, such as `row-0000042`.

    Args:
        path: the folder.
        image: name of the image column.
        split: name of the split; required if the folder holds several splits.
    """

    kind = "datasets"

    def __init__(self, path: str | Path, image: str = "image", split: str | None = None) -> None:
        import datasets  # slow to import, and only this source needs it

        try:
            saved = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise InputError(
                f"dataset {path}: not a folder written by save_to_disk ({error})"
            ) from error
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise InputError(
                    f"dataset {path}: no split {split!r}; set split to one of "
                    f"{', '.join(map(str, saved))}"
                )
            saved = saved[split]
        if image not in saved.column_names:
            raise InputError(
                f"dataset {path}: no column {image!r}; it has {', '.join(saved.column_names)}"
            )
        self._data = saved
        if isinstance(saved.features[image], datasets.Image):
            self._data = saved.cast_column(image, datasets.Image(decode=False))
        self.image, place = image, Path(str(path)).resolve()
        self.name = place.name if split is None else f"{place.name}-{split}"
        self.arguments = {"path": str(place), "image": image, "split": split}

    def listing(self) -> Iterator[tuple[str, int | None]]:
        for row in range(len(self._data)):
            yield f"row-{row:07d}", 1

    def items(self, keys: Sequence[str]) -> Iterator[Item]:
        columns = [name for name in self._data.column_names if name in KEPT]
        notes = self._data.select_columns(columns) if columns else None
        for key in keys:
            row = int(key.removeprefix("row-"))
            yield Item(
                key,
                functools.partial(self.read, key),
                attribution_of(notes[row]) if notes is not None else {},
            )

    def read(self, image_id: str) -> bytes:
        number = image_id.removeprefix("row-")
        if not number.isdigit() or int(number) >= len(self._data):
            raise InputError(f"dataset {self.name}: no image {image_id!r}; build the index again")
        cell = self._data[int(number)][self.image]
        if isinstance(cell, Mapping) and cell.get("bytes") is None and cell.get("path"):
            return Path(cell["path"]).read_bytes()
        return bytes_of(cell, image_id)
