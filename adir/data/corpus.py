"""Corpora (D_IA in the paper): collections of pictures with stable ids that neighbours come from."""

import hashlib
from pathlib import Path

import pyarrow.parquet as parquet
from torch import Tensor

from adir.data import embedded as pictures
from adir.data.decoding import decode
from adir.data.sources.base import ATTRIBUTION, attribution_of, storable
from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.images import PICTURE_SUFFIXES, from_uint8


def manifest_sha256(manifest: dict[str, str]) -> str:
    """SHA-256 of sorted (SHA-256 of the picture, id) lines: what a corpus is, wherever it lies."""
    digest = hashlib.sha256()
    for image_id in sorted(manifest):
        digest.update(f"{manifest[image_id]} {image_id}\n".encode())
    return digest.hexdigest()


class Corpus:
    """Pictures by id. A subclass fills `manifest` (id: SHA-256 of the picture) and `rejects`, and reads in `image`.

    name: for people.  ids: sorted.  sha256: of the manifest, so it changes with any picture, and with nothing else.
    rejects: id: reason, for the pictures that could not be read; they are no part of the corpus.
    categories: id: category, where the source names one.
    """

    def __init__(
        self, name: str, manifest: dict[str, str], rejects: dict[str, str], categories: dict[str, str] | None = None
    ) -> None:
        """Raises InputError when no picture could be read."""
        if not manifest:
            first = f"; the first of {len(rejects)} rejects: {next(iter(rejects.values()))}" if rejects else ""
            raise InputError(f"corpus {name}: no picture found{first}")
        self.name, self.manifest, self.rejects = name, manifest, rejects
        self.categories = {} if categories is None else categories
        self.ids = sorted(manifest)
        self.sha256 = manifest_sha256(manifest)

    def __len__(self) -> int:
        return len(self.ids)

    def attribution(self, image_id: str) -> dict[str, str]:
        """Licence, author and source of a picture, as far as its source names them."""
        return {}

    def recall(self, k: int) -> float | None:
        """recall@K of the search for neighbours, where that is approximate; None where it is exact."""
        return None

    def image(self, image_id: str) -> Tensor:
        """(3, H, W) in [-1, 1] of one picture, at its own size. Raises KeyError on an id that is not in `ids`."""
        raise NotImplementedError


class FolderCorpus(Corpus):
    """All pictures below a folder; an id is the path below it, with forward slashes. Hidden files are passed over.

    Every picture is decoded once here, so that a damaged one is a reject now and not an error in the middle of a run.
    least_side: pixels; pictures whose shorter side is less are rejects.
    """

    def __init__(self, path: str | Path, least_side: int = 0) -> None:
        self.folder = Path(str(path))  # of a folder called 2019, Hydra makes a number
        if not self.folder.is_dir():
            raise InputError(f"corpus folder {path}: no such folder")
        manifest, rejects = {}, {}
        for file in sorted(self.folder.rglob("*")):
            below = file.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in below.parts)
            if hidden or file.suffix.lower() not in PICTURE_SUFFIXES or not file.is_file():
                continue
            name = below.as_posix()
            if storable(name) != name:
                rejects[storable(name)] = "its name is not UTF-8 and cannot be kept; rename the file"
                continue
            try:
                content = file.read_bytes()
                decode(content, str(file), least_side=least_side)
                manifest[name] = sha256_of_bytes(content)
            except (InputError, OSError) as error:
                rejects[name] = str(error)
        if not manifest and not rejects:
            raise InputError(f"corpus folder {path}: no picture files ({', '.join(PICTURE_SUFFIXES)}) in it or below")
        super().__init__(self.folder.name, manifest, rejects)

    def image(self, image_id: str) -> Tensor:
        if image_id not in self.manifest:
            raise KeyError(image_id)
        return from_uint8(decode((self.folder / image_id).read_bytes(), str(self.folder / image_id)))


class ParquetCorpus(Corpus):
    """Rows of a parquet file with a column `image` (struct with the bytes of a picture file), as datasets do.

    column, value: keep the rows where this column has this value (3 and "3" are one), as split = corpus.  An id is the
    row's `source_file`, or `row-00042` (counted over the whole file) where there is no such column or it repeats;
    `category` is kept, and licence, author and source where there are such columns.  least_side: as of `FolderCorpus`.
    """

    def __init__(
        self, path: str | Path | None, column: str = "split", value: str | int = "corpus", least_side: int = 0
    ) -> None:
        if path is None:
            raise InputError("a Parquet file is needed: say parquet=FILE")
        path = Path(str(path))
        if not path.is_file():
            raise InputError(f"corpus file {path}: no such file")
        try:
            columns = parquet.read_schema(path).names
            origin = [name for spellings in ATTRIBUTION.values() for name in spellings]
            wanted = [name for name in ("image", column, "source_file", "category", *origin) if name in columns]
            table = parquet.read_table(path, columns=list(dict.fromkeys(wanted)))
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise InputError(f"corpus file {path}: not a readable parquet file ({error})") from error
        for name in ("image", column):
            if name not in columns:
                raise InputError(f"corpus file {path}: no column {name!r}; it has {', '.join(columns)}")
        values = table[column].to_pylist()
        rows = [row for row, found in enumerate(values) if found is not None and str(found) == str(value)]
        if not rows:
            choices = ", ".join(sorted({str(found) for found in values})[:20])
            raise InputError(f"corpus file {path}: no row has {column} = {value!r}; its values: {choices}")
        chosen = table.take(rows)
        names = chosen["source_file"].to_pylist() if "source_file" in columns else []
        unique = names and len(set(names)) == len(names) and None not in names
        ids = [str(name) for name in names] if unique else [f"row-{row:05d}" for row in rows]
        self._bytes: dict[str, bytes] = {}
        manifest, rejects = {}, {}
        for image_id, picture in zip(ids, chosen["image"].to_pylist(), strict=True):
            try:
                content = picture["bytes"]
                decode(content, image_id, least_side=least_side)
                self._bytes[image_id], manifest[image_id] = content, sha256_of_bytes(content)
            except (InputError, KeyError, TypeError) as error:  # the latter two: null, or a struct without bytes
                rejects[image_id] = str(error) or type(error).__name__
        categories = dict(zip(ids, chosen["category"].to_pylist(), strict=True)) if "category" in columns else {}
        categories = {image_id: str(name) for image_id, name in categories.items() if image_id in manifest}
        told = {name: chosen[name].to_pylist() for name in origin if name in columns}
        self._origins = {
            image_id: attribution_of({name: values[row] for name, values in told.items()})
            for row, image_id in enumerate(ids)
        }
        super().__init__(f"{path.stem}-{value}", manifest, rejects, categories)

    def attribution(self, image_id: str) -> dict[str, str]:
        return self._origins.get(image_id, {})

    def image(self, image_id: str) -> Tensor:
        return from_uint8(decode(self._bytes[image_id], image_id))


class EmbeddedCorpus(Corpus):
    """The corpus that works with no download: fields of scikit-image's photographs, none on ground of a test field."""

    def __init__(self) -> None:
        self._fields = {field.id: field for field in pictures.corpus_fields()}
        categories = {image_id: field.photograph for image_id, field in self._fields.items()}
        super().__init__("embedded", pictures.manifest(pictures.corpus_fields()), {}, categories)

    def attribution(self, image_id: str) -> dict[str, str]:
        return pictures.ORIGINS[self._fields[image_id].photograph]

    def image(self, image_id: str) -> Tensor:
        return from_uint8(pictures.cut(self._fields[image_id]))
