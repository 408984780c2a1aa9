"""`adir submit` and `adir leaderboard merge`: records of one machine to another's table, and several folders into one."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import adir
from adir.errors import InputError
from adir.files import json_bytes, read_json, sha256_of_file, write_bytes
from adir.harness.archive import kind_of, open_archive, record_fault, write_archive
from adir.harness.planned import PLANS, plan_cells
from adir.harness.records.layout import is_hash, losses_of, merged_losses, stored_pictures
from adir.harness.sameness import Record
from adir.harness.sources import Sources, read_sources
from adir.images import decode_pixels, from_uint8, hash_of_picture, in_colour
from adir.retrieval.corpus import manifest_sha256

PART = ".part"


def submit(folder: Path, pictures: bool, out: Path | None) -> int:
    """Pack the records of a results folder and the manifests of its data, and with `pictures` what its report shows, into one
    file for another machine: restored pictures and y, ground truths, neighbours, losses of the adapters (not the adapters).

    out: the file; FOLDER-submission.zip in the current folder where None. Returns 0, or 1 where a damaged record was left
    out. Raises InputError when there is nothing to pack, a record would be refused elsewhere, or another file is there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = read_sources([folder])
    if not found.records:
        raise InputError(f"{folder}: no records below it; `adir run ... results={folder}` makes them")
    out = out or Path(f"{folder.resolve().name}-submission.zip")
    members: dict[str, Path | bytes] = {name: folder / name for name in manifests_of(folder)}
    for name in members:
        if fault := content_fault(name, (folder / name).read_bytes()):
            raise InputError(f"{folder / name}: {fault}; remove it, and `adir run` of its grid makes it anew")
    for record in found.records.values():
        name = record["path"]
        fault = record_fault(record, name) or (None if kind_of(name) == "record" else "lies where no record does")
        if fault:
            raise InputError(f"{folder / name}: {fault}; it would be refused elsewhere")
        members[name] = folder / name
        if pictures:
            shown = [*files_of(record), *shown_pictures([record])]
            members |= {name: folder / name for name in shown if (folder / name).is_file()}
    members |= {name: folder / name for name in plans_of(folder)}
    if pictures:
        with members_of(folder) as content:
            losses = {name: content(name) for name in losses_names(found.records.values())}
        members |= {name: bytes_of_it for name, bytes_of_it in losses.items() if bytes_of_it is not None}
    fresh = out.with_name(out.name + PART)
    write_archive(fresh, about(found.records.values(), pictures), members)
    try:
        if out.exists() and not (out.is_file() and sha256_of_file(out) == sha256_of_file(fresh)):
            raise InputError(f"{out}: is there already and holds something else; name another file with --out")
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    for note in found.notes:
        print(f"warning: left out: {note}")
    n_pictures = sum(kind_of(name) == "picture" for name in members)
    print(f"{len(found.records)} records, {n_pictures} pictures: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    print(f"SHA-256 {sha256_of_file(out)}; `adir leaderboard {out}` shows its table anywhere")
    return 1 if found.notes else 0


def about(records: Iterable[Record], pictures: bool) -> dict[str, Any]:
    """What a manifest says besides its files: by whom and with what the records were made."""
    records = list(records)
    versions: dict[str, set[str]] = {}
    for record in records:
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    return {
        "packed_by": f"adir {adir.__version__}",
        "records": len(records),
        "pictures": pictures,
        "commits": sorted({str(record["commit"]) for record in records if record.get("commit")}),
        "versions": {package: sorted(found) for package, found in sorted(versions.items())},
        "weights": sorted(
            {str(w) for r in records if (w := (r["identity"].get("backbone") or {}).get("weights_sha256"))}
        ),
    }


def files_of(record: Record) -> list[str]:
    """The names of a record's restored picture and y, with its note, below the results folder."""
    names = []
    if record["status"] == "done":
        names.append(record["path"].replace("/records/", "/pictures/").removesuffix(".json") + ".png")
        y = str(record["y"].get("file", ""))
        names += [y, y.removesuffix(".png") + ".json"]
    return [name for name in names if kind_of(name) in ("picture", "y")]  # `file` may hold anything


def merge(sources: list[Path], out: Path) -> int:
    """Put the records of several folders and submissions into one folder, with what its report shows as far as they have it:
    restored pictures and y, ground truths, neighbours, manifests of the data, losses of the adapters (not the adapters).

    What `out` holds already is one of the sources. Everything is read and checked before anything is written; a record that
    is there twice is taken once, and InputError names two that differ. Returns 0, or 1 where a damaged record was left out.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder with --out")
    found = read_sources([*([out] if out.is_dir() else []), *sources])
    if not found.records:
        raise InputError(f"{', '.join(map(str, sources))}: no records to merge")
    paths: dict[str, Record] = {}
    for record in found.records.values():
        name = record["path"]
        if kind_of(name) != "record":
            raise InputError(
                f"{name!r}: no place for a record; only results folders as `adir run` makes them can be merged"
            )
        if paths.setdefault(name.casefold(), record) is not record:
            raise InputError(f"{name}: two sources have records of different cells here; make tables of them apart")
    for source in sources:
        if not source.is_dir():
            require_whole(source)
    counts = {source: copy_from(source, out, found) for source in sources if source.resolve() != out.resolve()}
    for note in found.notes:
        print(f"warning: left out: {note}")
    for source, n in counts.items():
        print(f"{n} records taken from {source}")
    print(f"{len(found.records)} records in {out}; `adir leaderboard {out}` shows their table")
    return 1 if found.notes else 0


def copy_from(source: Path, out: Path, found: Sources) -> int:
    """Copy what was first found in this source, and its plans; the number of its records."""
    mine = [record for place, record in found.records.items() if found.origins[place] == source]
    with members_of(source) as content:
        for record in mine:
            for name in [*files_of(record), record["path"]]:  # pictures first: a record says that its picture is there
                shared = kind_of(name) == "y" and (out / name).exists()  # every mode of a task has the same
                if not shared and (found_content := content(name)) is not None:
                    write_bytes(out / name, found_content)
        # Named by the hash of what they hold, so one of a name is enough.
        for name in [*plans_of(source), *manifests_of(source), *shown_pictures(mine), *losses_names(mine)]:
            if not (out / name).exists() and (found_content := content(name)) is not None:
                write_bytes(out / name, found_content)
    return len(mine)


def require_whole(source: Path) -> None:
    """Raise InputError unless all that a submission holds beside its records is what its manifest and its names say."""
    archive = open_archive(source)
    with zipfile.ZipFile(source) as packed:
        for kind, names in archive.names.items():
            for name in names if kind != "record" else ():  # those were read already
                if fault := content_fault(name, archive.content(packed, name)):
                    raise InputError(f"{source}: {name}: {fault}; ask whoever sent it for a whole one")


def content_fault(name: str, content: bytes) -> str | None:
    """None, or why this cannot be the content of a file that is named by the hash of what it holds."""
    kind = kind_of(name)
    try:
        if kind == "losses":
            losses = json.loads(content)["losses"]
            if not losses or not all(type(loss) in (int, float) and math.isfinite(loss) for loss in losses):
                return "holds no losses"
        elif kind == "data":
            listed = json.loads(content)
            pictures = {str(image): str(about["sha256"]) for image, about in listed["pictures"].items()}
            if listed["sha256"] != manifest_sha256(pictures) or not name.endswith(f"-{listed['sha256'][:10]}.json"):
                return "its SHA-256 is not that of the pictures it lists, or not its name's"
        elif kind == "shown" and not name.endswith("-thumbnail.png"):
            if hash_of_picture(from_uint8(in_colour(decode_pixels(content, name)))) != PurePosixPath(name).stem:
                return "is another picture than its name says"
    except InputError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"is not what its name says ({type(error).__name__}: {error})"
    return None


def losses_names(records: Iterable[Record]) -> list[str]:
    """The names of the losses of these records' adapters, whether the results have them or not."""
    keys = dict.fromkeys((record.get("adapter") or {}).get("key") for record in records)
    return [merged_losses(key) for key in keys if is_hash(key)]


def manifests_of(source: Path) -> list[str]:
    """The names of a source's lists of what its data sets hold."""
    if not source.is_dir():
        return open_archive(source).names["data"]
    names = sorted(path.relative_to(source).as_posix() for path in source.glob("manifests/*.json"))
    return [name for name in names if kind_of(name) == "data"]


def shown_pictures(records: Iterable[Record]) -> list[str]:
    """The names of the ground truths and neighbours of these records, whether the results have them or not."""
    hashes: dict[Any, None] = {}
    for record in records:
        hashes |= dict.fromkeys(
            [record["image"].get("sha256"), *(n.get("picture") for n in record.get("neighbours") or [])]
        )
    return [name for sha256 in hashes for name in stored_pictures(sha256)]


@contextmanager
def members_of(source: Path) -> Iterator[Callable[[str], bytes | None]]:
    """The content of a source's files by name; None for those it has not. Losses are also taken from beside the adapters."""
    if source.is_dir():
        yield lambda name: content_in(source, name)
    else:
        archive = open_archive(source)
        with zipfile.ZipFile(source) as packed:
            yield lambda name: archive.content(packed, name) if name in archive.manifest["files"] else None


def content_in(folder: Path, name: str) -> bytes | None:
    """As `members_of` gives it of a folder."""
    if kind_of(name) == "losses":
        losses = losses_of(folder, PurePosixPath(name).stem)
        return None if losses is None else json_bytes({"losses": losses})
    return (folder / name).read_bytes() if (folder / name).is_file() else None


def plans_of(source: Path) -> list[str]:
    """The names of a source's plans that can be read."""
    if not source.is_dir():
        return open_archive(source).names["plan"]
    names = []
    for path in sorted(source.glob(PLANS)):
        try:
            plan_cells(read_json(path))
            names.append(path.relative_to(source).as_posix())
        except ValueError:  # read_sources has said so
            continue
    return [name for name in names if kind_of(name) == "plan"]
