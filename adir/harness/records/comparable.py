"""Rules on which records may be averaged or compared in one table.

A record holds the result of one image in one cell, a combination of task, method and seed. This
module also gives each image one name across sources, and lists the settings in which cells differ.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from adir.errors import InputError
from adir.files import hash_of
from adir.harness.records.layout import is_hash
from adir.harness.records.record import Record

K = TypeVar("K")
V = TypeVar("V")
Name = tuple[str | None, str]
"""(data set, id) of an image.

A data set is identified by the hash of its manifest, or by its name if the record has no manifest.
"""
STATUSES = ("done", "failed", "missing")


def by_image(records: list[Record]) -> tuple[list[Record], list[str]]:
    """Return (records, notes), with one record per cell and image, and one name per image.

    An image is identified by its SHA-256, and a data set by its manifest. Ids and names are labels:
    data sets that share an image are merged under one label ("a = b"), and an image with several
    ids keeps the alphabetically first. If two images would then share an id, each id is followed by
    the name of the image's data set.

    A failed record and a record from an old plan lack the image's hash. Such a record belongs to
    the image that has the same id and data set in other records.

    If a cell has several records of one image, only one is returned. A done record is preferred to
    a failed one, and a failed one to a missing one. Among records of equal status, the first by
    image id is returned. A note names the done records that are dropped.
    """
    known = dict.fromkeys(
        (r.image.sha256, name_of(r)) for r in records if r.image.sha256 is not None
    )
    names = grouped(known)
    labels = labels_of_sets(records)
    places = {(record.cell, name_of(record)) for record in records}
    if all(len(several) == 1 for several in names.values()) and len(places) == len(records):
        return [
            with_image_label(record, labels[set_of(record)], record.image.id) for record in records
        ], []
    images = {name: sha256 for sha256, name in known}
    sets = merged_labels([{data for data, _ in several} for several in names.values()], labels)
    by_label = lambda name: (name[1], labels[name[0]] or "")  # noqa: E731 - sort key
    first = {sha256: min(several, key=by_label) for sha256, several in names.items()}
    taken = Counter((sets[data], image) for data, image in first.values())
    counted: dict[tuple[str, str | None, str], Record] = {}
    dropped: list[str] = []
    for record in sorted(records, key=lambda r: (STATUSES.index(r.status), by_label(name_of(r)))):
        data, image = name_of(record)
        sha256 = record.image.sha256 or images.get((data, image))
        together = sets.get(data, labels[data])
        if sha256 is not None:
            data, image = first[sha256]
            image = image if taken[together, image] == 1 else f"{image} ({labels[data]})"
        named = with_image_label(record, together, image)
        kept = counted.setdefault((record.cell, together, image), named)
        if kept is not named and record.status == "done":
            dropped.append(f"{record.path} and {kept.path}")
    note = (
        "some records of one cell show the same image under different names, and only the first "
        f"by name counts: {'; '.join(dropped[:3])}"
    )
    more = f"; and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    return list(counted.values()), [note + more] if dropped else []


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Return {key: its values}, with the keys in order of first appearance."""
    found: dict[K, list[V]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def set_of(record: Record) -> str | None:
    """Return the identifier of a record's data set: its manifest's hash, or else its name."""
    return record.image.manifest or record.image.data


def name_of(record: Record) -> Name:
    """Return (identifier of the data set, id of the image) of a record."""
    return set_of(record), record.image.id


def with_image_label(record: Record, data: str | None, image_id: str) -> Record:
    """Return the record with its `image.data` and `image.id` replaced by the given values."""
    if (record.image.data, record.image.id) == (data, image_id):
        return record
    return record.model_copy(
        update={"image": record.image.model_copy(update={"data": data, "id": image_id})}
    )


def labels_of_sets(records: Iterable[Record]) -> dict[str | None, str | None]:
    """Return {identifier of a data set: its label}.

    The label is the data set's name. If several data sets share a name, each label is the end of
    the data set's path, just long enough that the labels differ (Set5/HR, Set14/HR). If the paths
    are equal too, because the images of a folder were replaced, the label is the name with six
    digits of the manifest's hash.
    """
    examples = {set_of(record): record for record in records}
    labels: dict[str | None, str | None] = {}
    by_name = grouped((record.image.data, data) for data, record in examples.items())
    for name, of_sets in by_name.items():
        paths = [path_of(examples[data].configuration.get("data")) for data in of_sets]
        depths = range(1, max(map(len, paths)) + 1)
        tails = [["/".join(path[-depth:]) for path in paths] for depth in depths]
        digits = [f"{name} #{(data or '')[:6]}" for data in of_sets]
        apart = next((shown for shown in tails if len(set(shown)) == len(shown)), digits)
        labels |= dict(zip(of_sets, apart if len(of_sets) > 1 else [name], strict=True))
    return labels


def path_of(data: Any) -> tuple[str, ...]:
    """Return the components of the path that a data set's configuration names, or () if none.

    The path is the value of a key `path` or `folder`. If there are several such keys, the least
    nested one counts. At the same depth, `path` precedes `folder`.
    """
    named = [
        (*key.rpartition(".")[::2], value)
        for key, value in flatten(data).items()
        if isinstance(value, str)
    ]
    found = sorted(
        (where.count(".") + bool(where), name != "path", value)
        for where, name, value in named
        if name in ("path", "folder")
    )
    return Path(found[0][2]).parts if found else ()


def merged_labels(
    groups: list[set[str | None]], labels: Mapping[str | None, str | None]
) -> dict[str | None, str | None]:
    """Return {data set: label}; data sets that share an image get one label ("a = b").

    Sharing is transitive: if a shares an image with b, and b with c, all three get one label.

    Args:
        groups: one set per image, of the data sets that contain the image.
        labels: {data set: its own label}.
    """
    sets: dict[str | None, set[str | None]] = {}
    for group in groups:
        together = set().union(group, *(sets.get(name, set()) for name in group))
        sets |= dict.fromkeys(together, together)
    return {
        data: " = ".join(sorted({label for one in several if (label := labels[one])})) or None
        for data, several in sets.items()
    }


def require_same(records: Iterable[Record]) -> dict[str, str]:
    """Return {metric: version} after checking that all finished records are comparable.

    Required of all records:
        a task has one version;
        an image has one ground truth and, where records name it, one cluster;
        an image has one y per task;
        a metric has one direction and one version, which names its implementation and weights.

    Records may differ in the weights of the backbone, because other weights give another row of the
    table.

    Raises:
        InputError: if two records disagree; the message names both records.
    """
    firsts: dict[str, tuple[Any, str]] = {}
    versions: dict[str, str] = {}
    for record in records:
        if record.status != "done":
            continue
        path = record.path or record.cell
        for what, value in shared_facts(record):
            first, where = firsts.setdefault(what, (value, path))
            if first != value:
                mend = (
                    "score both records again with `adir score`"
                    if what.startswith("metric")
                    else "keep these records in separate results folders"
                )
                raise InputError(
                    f"{what} {short(first)} in {where} but {short(value)} in {path}; {mend}"
                )
        versions |= {
            name: score.version for name, score in record.scores.items() if score.value is not None
        }
    return versions


def shared_facts(record: Record) -> Iterator[tuple[str, Any]]:
    """Yield the (key, value) pairs of a finished record that `require_same` compares.

    Records that share a key must have the same value.
    """
    task, image, named = record.axes.task, record.image, f"image {record.image.id}"
    assert record.y is not None  # every finished record has y
    yield f"task {task} has version", record.identity["task"]["version"]
    yield f"{named} of {image.data} has ground truth", image.sha256
    yield f"{named} of {image.data} in task {task} has y", record.y.sha256
    if image.cluster is not None:
        yield f"{named} of {image.data} has cluster", image.cluster
    for name, score in record.scores.items():
        yield f"metric {name} has direction", score.direction
        if score.value is not None:
            yield f"metric {name} has version", score.version


def without_seed(record: Record) -> str:
    """Return the first eight hex digits of the hash of a record's identity without the seed.

    Records of one row differ only in the seed, so they share these digits.
    """
    return hash_of({key: value for key, value in record.identity.items() if key != "seed"})[:8]


def base_part(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without its entries `seed`, `adaptation` and `retrieval`.

    The result is equal for a row of the leaderboard and its reference row, such as the row without
    adaptation.
    """
    return {
        key: value
        for key, value in identity.items()
        if key not in ("seed", "adaptation", "retrieval")
    }


def base_of(record: Record) -> str:
    """Return the hash of a record's identity without seed, adaptation and retrieval.

    The hash is equal for a row of the leaderboard and its reference row, such as the row without
    adaptation.
    """
    return hash_of(base_part(record.identity))


def differing_entries(
    identities: dict[str, dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return (flattened identities, dotted keys whose values differ between identities).

    The argument is {name: identity}, and the flattened identities are {name: {dotted key: leaf}}.
    The seed is left out of both results.
    """
    flat = {
        name: flatten({k: v for k, v in identity.items() if k != "seed"})
        for name, identity in identities.items()
    }
    keys = sorted({key for entries in flat.values() for key in entries})
    return flat, [
        key for key in keys if len({repr(entries.get(key)) for entries in flat.values()}) > 1
    ]


def distinguishing_settings(
    identities: dict[str, dict[str, Any]], most: int = 3
) -> dict[str, dict[str, float | str]]:
    """Return {name: {setting: value}} with the settings in which identities differ.

    The settings, such as {rank: 4, alpha: 2.0}, label the rows of a table. If a part of the
    configuration differs in its name, such as {fine_tuning: safe}, the name replaces all settings
    of the part that follow from it (see `follows_from`). The value of a null or
    absent setting is "none".

    Args:
        identities: {name: identity}.
        most: largest number of settings to return.

    Returns:
        The settings; {} if there are more than `most`, or if a value is neither a number nor a text
        of at most 24 characters.
    """
    flat, differing = differing_entries(identities)
    differing = [
        key for key in differing if not any(follows_from(key, part, flat) for part in differing)
    ]
    names = [key.removesuffix(".name") for key in differing]
    last = [name.rpartition(".")[2] for name in names]
    apart = {
        identity: {
            short_name if last.count(short_name) == 1 else name: "none"
            if entries.get(key) is None
            else entries[key]
            for key, name, short_name in zip(differing, names, last, strict=True)
        }
        for identity, entries in flat.items()
    }
    plain = all(
        isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 24)
        for entries in apart.values()
        for value in entries.values()
    )
    return apart if plain and len(differing) <= most else {}


def follows_from(key: str, part: str, flat: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the name of a part of the configuration determines a setting of this part.

    The name determines the setting if equal names always come with equal values of the setting.

    Args:
        key: dotted key of the setting.
        part: dotted key of the part's name, such as `adaptation.fine_tuning.name`.
        flat: {name of an identity: flattened identity}.
    """
    if key == part or not part.endswith(".name") or not key.startswith(part.removesuffix("name")):
        return False
    pairs = {(repr(entries.get(part)), repr(entries.get(key))) for entries in flat.values()}
    return len(pairs) == len({name for name, _ in pairs})


def what_differs(identities: dict[str, dict[str, Any]], most: int = 3) -> str:
    """Return a text that lists the entries, other than the seed, in which identities differ.

    In the example `sampler.guidance_scale 30 (#1a2b), 100 (#3c4d)`, the scale is 30 in the identity
    named 1a2b and 100 in 3c4d. Hashes are cut to ten digits, and other values to 40 characters.

    Args:
        identities: {name: identity}.
        most: number of entries that are spelled out; further entries are only counted.
    """
    flat, differing = differing_entries(identities)
    more = f"; and {len(differing) - most} more" if len(differing) > most else ""
    told = (
        f"{key} "
        + ", ".join(
            f"{short(entries.get(key, 'none'))} (#{name})" for name, entries in flat.items()
        )
        for key in differing[:most]
    )
    return "; ".join(told) + more


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return {dotted key: leaf} of nested dicts; lists are leaves."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf
        for part, inner in value.items()
        for key, leaf in flatten(inner, f"{name}.{part}".strip(".")).items()
    }


def short(value: Any) -> str:
    """Return a value as text, cut to ten digits if it is a hash, else to 40 characters."""
    text = str(value)
    if is_hash(text):
        return text[:10]
    return text if len(text) <= 40 else f"{text[:39]}…"
