"""Find, copy and check the files that belong to the records of a results folder or submission."""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from adir.files import json_bytes, write_bytes
from adir.harness.records.archive import open_archive
from adir.harness.records.layout import (
    Layout,
    is_hash,
    kind_of,
    losses_of,
    merged_losses,
    stored_images,
)
from adir.harness.records.record import Record
from adir.harness.records.sources import Sources, plans_of


def files_of(record: Record) -> list[str]:
    """Return the paths of a record's restored image, its y, and the JSON file with y's hash.

    Paths are relative to the results folder. The list is empty for a failed or missing record.
    """
    if record.status != "done":
        return []
    y = record.y_file or ""
    image = record.path.replace("/records/", "/images/").removesuffix(".json") + ".png"
    names = (image, y, y.removesuffix(".png") + ".json")
    # The check is needed because a record from elsewhere may name any file.
    return [name for name in names if kind_of(name) in ("restored", "y")]


def copy_from(source: Path, out: Path, found: Sources) -> int:
    """Copy the records of one source, with their files, to `out`; return the number of records.

    A record that an earlier source contained is not copied. The plans and the data set manifests of
    the source are copied too.
    """
    mine = [record for place, record in found.records.items() if found.origins[place] == source]
    with members_of(source) as content:
        for record in mine:
            # The record comes last, because it states that its image exists.
            for name in [*files_of(record), record.path]:
                # All modes of a task share y.
                shared = kind_of(name) == "y" and (out / name).exists()
                if not shared and (found_content := content(name)) is not None:
                    write_bytes(out / name, found_content)
        # These names contain a hash of the content, so files of one name are equal.
        for name in [
            *plans_of(found, source),
            *manifests_of(source),
            *shown_images(mine),
            *losses_names(mine),
        ]:
            if not (out / name).exists() and (found_content := content(name)) is not None:
                write_bytes(out / name, found_content)
    return len(mine)


def require_whole(source: Path) -> None:
    """Raise InputError unless every file in a submission agrees with the manifest."""
    archive = open_archive(source)
    with zipfile.ZipFile(source) as packed:
        for name in archive.files:
            archive.content(packed, name)


def losses_names(records: Iterable[Record]) -> list[str]:
    """Return the paths of the loss files of the records' adapters; the files may be missing."""
    keys = dict.fromkeys(record.adapter.key for record in records if record.adapter is not None)
    return [merged_losses(key) for key in keys if is_hash(key)]


def manifests_of(source: Path) -> list[str]:
    """Return the paths of the data set manifests in a source."""
    if not source.is_dir():
        return open_archive(source).names["data"]
    names = sorted(path.relative_to(source).as_posix() for path in Layout(source).manifests)
    return [name for name in names if kind_of(name) == "data"]


def shown_images(records: Iterable[Record]) -> list[str]:
    """Return the paths of the images that a report shows beside these records.

    They are the ground truths and the neighbours. The files may be missing.
    """
    hashes = dict.fromkeys(
        h for r in records for h in (r.image.sha256, *(near.image for near in r.neighbours))
    )
    return [name for sha256 in hashes for name in stored_images(sha256)]


@contextmanager
def members_of(source: Path) -> Iterator[Callable[[str], bytes | None]]:
    """Yield a function that reads the files of a source, a results folder or a submission.

    The function takes a path in the source and returns the file's content, or None if the file is
    missing.
    """
    if source.is_dir():
        yield lambda name: content_in(source, name)
    else:
        archive = open_archive(source)
        with zipfile.ZipFile(source) as packed:
            yield lambda name: archive.content(packed, name) if name in archive.files else None


def content_in(folder: Path, name: str) -> bytes | None:
    """Return the content of a file in a results folder, or None if it is missing.

    For the JSON file of an adapter's losses, the losses are read from the adapter's own file if the
    folder has it.
    """
    if kind_of(name) == "losses":
        losses = losses_of(folder, PurePosixPath(name).stem)
        return None if losses is None else json_bytes({"losses": losses})
    return (folder / name).read_bytes() if (folder / name).is_file() else None
