"""Build an index on disk: divide the corpus into shards, embed each shard, write the manifest.

    FOLDER/index.json                 image source and encoder; written first
    FOLDER/plan/000003.json           plan: keys of shard 3; written before any image is read
    FOLDER/shards/000003.safetensors  embeddings and index entries of the images of shard 3
    FOLDER/rejects.json               reason for each rejected image, by id
    FOLDER/manifest.json              checksums of all shards, hash of the corpus; written last

A key stands for one image, for a file with many images, or for a section of such a file (see
`Source`). A plan never changes once it is written. The caller, adir/commands/index_build.py,
assigns shards to workers and reports progress.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adir.data.fingerprints import fingerprint
from adir.data.sources.base import Item, Source, SourceDown, each_id_once
from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes, storable, write_json
from adir.images import from_uint8
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.shards import SCHEMA, IndexedImage, Shard, write_shard


def facts_of(encoder: Encoder) -> dict[str, str]:
    """Return the entry `encoder` of index.json: name, hash and metric.

    The hash covers weights, architecture and preprocessing.
    """
    return {
        "name": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        "metric": encoder.metric,
    }


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / "shards" / f"{number:06d}.safetensors"


def plan_path(folder: Path, number: int) -> Path:
    """Return the path of the plan of a shard: the file that lists the keys of its images."""
    return folder / "plan" / f"{number:06d}.json"


def require_empty_or_index(folder: Path) -> None:
    """Raise InputError if the folder holds files but no index.json.

    A folder with an unfinished index is accepted, because index.json is written first. Hidden
    files, the workers' folder `claims` and Hydra's multirun.yaml are ignored.
    """
    beside = {"claims", "multirun.yaml"}  # written by our workers and by Hydra
    others = (
        [e for e in folder.iterdir() if e.name not in beside and e.name[0] != "."]
        if folder.is_dir()
        else []
    )
    if others and not (folder / "index.json").exists():
        raise InputError(
            f"{folder}: the folder holds files that are not an index; choose another folder with "
            "out="
        )


def require_same_index(folder: Path, source: Source, encoder: Encoder, least_side: int = 0) -> None:
    """Write index.json or, if it exists, check that it describes the requested index.

    If only the name of the source or the location of its images differs, index.json is updated.
    Only one process at a time may call this function.

    Args:
        folder: folder of the index.
        source: the images.
        encoder: encoder of the index.
        least_side: pixels; images with a shorter side are rejected.

    Raises:
        InputError: if the folder holds another index or other files.
    """
    require_empty_or_index(folder)
    path = folder / "index.json"
    about = {"kind": source.kind, "name": source.name, "arguments": source.arguments}
    wanted = {
        "schema": SCHEMA,
        "encoder": facts_of(encoder),
        "source": about,
        "least_side": least_side,
    }
    known = read_facts(path) if path.exists() else wanted
    asked, there = defining_entries(wanted), defining_entries(known)
    differs = [
        name for name in sorted(asked.keys() | there.keys()) if asked.get(name) != there.get(name)
    ]
    if differs:
        held, now = (
            ", ".join(f"{name}={some.get(name)}" for name in differs) for some in (there, asked)
        )
        raise InputError(
            f"{folder}: the folder holds an index with {held}, but {now} is requested; choose "
            "another folder with out="
        )
    if known["source"] != about or not path.exists():
        write_json(path, wanted)


def defining_entries(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of index.json that determine the content of the index.

    The location of the images is left out, because images may be moved.
    """
    encoder, source = facts["encoder"], facts["source"]
    places = ("path", "images", "bucket", "lists")
    return {
        **{name: value for name, value in source["arguments"].items() if name not in places},
        "kind": source["kind"],
        "encoder": f"{encoder['name']} ({encoder['weights_sha256'][:10]})",
        "least_side": facts.get("least_side", 0),  # indexes without this key accept all images
    }


def read_facts(path: Path) -> dict[str, Any]:
    """Return the content of index.json or manifest.json.

    Raises InputError if the file is damaged or has another schema.
    """
    try:
        known: dict[str, Any] = read_json(path)
        schema = known["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the file is damaged ({error}); remove it and run `adir index build` again"
        ) from error
    if schema != SCHEMA:
        raise InputError(
            f"{path}: the index has schema {schema}, but this version of adir reads schema "
            f"{SCHEMA}; build the index again"
        )
    return known


def planned(folder: Path) -> list[Path]:
    """Return the paths of the plan files, ordered by shard number.

    Raises InputError if a plan file is missing, because the images of its shard are then unknown.
    """
    paths = sorted((folder / "plan").glob("??????.json"))
    missing = {plan_path(folder, number) for number in range(len(paths))} - set(paths)
    if missing:
        raise InputError(
            f"{min(missing)} is missing; copy the whole index here again, or build a new one"
        )
    return paths


def planned_keys(path: Path) -> list[str]:
    """Return the keys of a shard's images (see `Source`) from the plan file of the shard.

    Raises InputError if the file is missing or damaged.
    """
    try:
        return read_json(path)["keys"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is missing or damaged; copy the whole index here again, or build a new one"
        ) from error


def extend_plan(folder: Path, source: Source, shard_size: int) -> int:
    """Plan shards for the keys that no plan has yet; return the number of all planned shards.

    A key stands for one image in a folder or for a whole tar file, for example (see `Source`). All
    planned keys are kept in memory, which takes 0.1 GB per million keys. Only one process at a time
    may call this function.

    Args:
        folder: folder of the index.
        source: the images.
        shard_size: number of images at which a shard ends (see `split_into_shards`).

    Raises:
        InputError: if a planned key is missing in the source, because a search would still return
            its images. Keys of rejected images may be missing. No shard is planned before this
            check.
    """
    known = {key for path in planned(folder) for key in planned_keys(path)}
    # This check comes first, because plans that were made from a wrong corpus could not be undone.
    gone = known.difference(key for key, _ in source.listing()) if known else set()
    if gone and (folder / "rejects.json").exists():
        rejects = read_json(folder / "rejects.json")
        gone = {key for key in gone if storable(key) not in rejects}
    if gone:
        raise InputError(
            f"{folder}: {len(gone)} of the {len(known)} indexed images are missing from corpus "
            f"{source.name}, the first is {storable(min(gone))}; put the images back, or build a "
            "new index in another folder (out=FOLDER)"
        )
    new = ((key, count) for key, count in source.listing() if key not in known)
    for number, keys in enumerate(split_into_shards(new, shard_size), len(planned(folder))):
        write_json(plan_path(folder, number), {"keys": keys})
    return len(planned(folder))


def split_into_shards(
    listing: Iterable[tuple[str, int | None]], shard_size: int
) -> Iterator[list[str]]:
    """Divide keys into shards, and yield the keys of each shard.

    A shard ends once it has at least `shard_size` images, or after a key whose number of images is
    unknown. The last shard may have fewer images.

    Args:
        listing: pairs (key, number of its images); the number is None if it is unknown.
        shard_size: number of images at which a shard ends.
    """
    keys: list[str] = []
    count = 0
    for key, images in listing:
        keys.append(key)
        count += shard_size if images is None else images
        if count >= shard_size:
            yield keys
            keys, count = [], 0
    if keys:
        yield keys


@dataclass
class ShardStatistics:
    """Image counts and run times of one shard.

    Attributes:
        images: number of embedded images.
        rejects: number of rejected images.
        encoding: seconds during which the encoder ran.
        waiting: all other seconds, mostly spent waiting for images to be read and decoded.
    """

    images: int = 0
    rejects: int = 0
    encoding: float = 0.0
    waiting: float = 0.0


def build_shard(
    folder: Path,
    number: int,
    source: Source,
    encoder: Encoder,
    batch_size: int = 64,
    loaders: int = 2,
    tell: Callable[[ShardStatistics], None] = lambda done: None,
    least_side: int = 0,
) -> ShardStatistics:
    """Read, embed and write one planned shard; return its counts and run times.

    Threads read, decode and prepare images two batches ahead of the network. Only these batches and
    the results for one shard are in memory, so the memory does not grow with the corpus. An image
    whose id occurred before in the shard is rejected.

    Args:
        folder: folder of the index.
        number: number of the shard.
        source: the images.
        encoder: encoder of the index.
        batch_size: images per call of the network.
        loaders: number of threads that read, decode and prepare images.
        tell: called after each batch with the counts and the encoding time so far.
        least_side: pixels; images with a shorter side are rejected.
    """
    keys = planned_keys(plan_path(folder, number))
    done = ShardStatistics()
    rejects: dict[str, str] = {}
    images: list[IndexedImage] = []
    vectors: list[Tensor] = []
    batch: list[tuple[IndexedImage, Tensor]] = []

    def embed_batch() -> None:
        started = time.perf_counter()
        vectors.extend(encoder.vectors(torch.stack([prepared for _, prepared in batch])))
        done.encoding += time.perf_counter() - started
        images.extend(image for image, _ in batch)
        batch.clear()
        done.images, done.rejects = len(images), len(rejects)
        tell(done)

    began = time.perf_counter()
    items = each_id_once(source.items(keys))
    for image_id, loaded in loaded_ahead(items, encoder, loaders, 2 * batch_size, least_side):
        if isinstance(loaded, str):
            rejects[storable(image_id)] = loaded
        else:
            batch.append(loaded)
        if len(batch) == batch_size:
            embed_batch()
    if batch:
        embed_batch()
    done.rejects, done.waiting = len(rejects), time.perf_counter() - began - done.encoding
    embeddings = torch.stack(vectors) if vectors else torch.empty(0, 0)
    plan_sha256 = sha256_of_bytes(plan_path(folder, number).read_bytes())
    facts = {"encoder": facts_of(encoder), "plan_sha256": plan_sha256}
    write_shard(shard_path(folder, number), images, embeddings, rejects, facts)
    return done


def loaded_ahead(
    items: Iterator[Item], encoder: Encoder, loaders: int, ahead: int, least_side: int = 0
) -> Iterator[tuple[str, tuple[IndexedImage, Tensor] | str]]:
    """Yield (id, result of `load`) for each item, in the order of the items.

    Args:
        items: images to load.
        encoder: prepares the images for its network.
        loaders: number of threads.
        ahead: number of items that the threads load in advance.
        least_side: pixels; images with a shorter side are rejected.
    """
    with ThreadPoolExecutor(loaders, "adir loader") as pool:
        futures = ((item.id, pool.submit(load, item, encoder, least_side)) for item in items)
        waiting = deque(itertools.islice(futures, ahead))
        try:
            while waiting:
                image_id, future = waiting.popleft()
                yield image_id, future.result()
                waiting.extend(itertools.islice(futures, 1))
        finally:
            for _, future in waiting:
                future.cancel()


def load(item: Item, encoder: Encoder, least_side: int = 0) -> tuple[IndexedImage, Tensor] | str:
    """Return an image's index entry and network input; if the image is rejected, return the reason.

    Raises SourceDown if no image of the source can be read.
    """
    try:
        content, pixels = item.decoded(least_side)
        x = from_uint8(pixels)
        image = IndexedImage(
            item.id,
            sha256_of_bytes(content),
            len(content),
            (pixels.shape[0], pixels.shape[1]),
            fingerprint(x),
            item.attribution,
        )
        return image, encoder.prepare(x)
    except SourceDown:
        raise
    except InputError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError with these words instead of MemoryError.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return "not enough memory to prepare the image for the encoder"


def missing_shards(folder: Path) -> list[int]:
    """Return the numbers of the planned shards that are not built yet.

    The folders are listed once, because a test for each file would be slow on a network drive.
    """
    there = {path.name for path in (folder / "shards").glob("*.safetensors")}
    return [
        number
        for number in range(len(planned(folder)))
        if shard_path(folder, number).name not in there
    ]


def finish(folder: Path) -> Mapping[str, Any]:
    """Check all shards, write manifest.json and rejects.json, and return the manifest.

    Raises InputError if a shard is missing, truncated or built with another plan or encoder, if an
    id is repeated, or if no image could be read.
    """
    known = read_facts(folder / "index.json")
    shards = [Shard.open(shard_path(folder, number)) for number in range(len(planned(folder)))]
    for number, shard in enumerate(shards):
        if shard.facts["plan_sha256"] != sha256_of_bytes(plan_path(folder, number).read_bytes()):
            raise InputError(
                f"{shard.path}: the shard was built from another plan; remove it and run `adir "
                "index build` again"
            )
        if shard.facts["encoder"] != known["encoder"]:
            raise InputError(
                f"{shard.path}: the shard was built with another encoder; remove it and run `adir "
                "index build` again"
            )
    if not any(len(shard) for shard in shards):
        reasons = [reason for shard in shards for reason in shard.rejects.values()]
        first = (
            f" ({len(reasons)} rejected; first reason: {reasons[0]})"
            if reasons
            else ", because the corpus has no image"
        )
        raise InputError(f"{folder}: no image could be read{first}")
    manifest = known | {
        "corpus": {
            "sha256": corpus_sha256(shards),
            "images": sum(map(len, shards)),
            "rejects": sum(len(shard.rejects) for shard in shards),
        },
        "dimensions": next(shard.columns["embeddings"].shape[1] for shard in shards if len(shard)),
        "shards": [
            {
                "file": shard.path.name,
                "images": len(shard),
                "rejects": len(shard.rejects),
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
    }
    write_json(
        folder / "rejects.json",
        {name: why for shard in shards for name, why in shard.rejects.items()},
    )
    write_json(folder / "manifest.json", manifest)
    return manifest


def corpus_sha256(shards: Sequence[Shard]) -> str:
    """Return the hash of all images in the shards of an index; `manifest_sha256` defines the hash.

    The rows of each shard are sorted by id. The shards are merged row by row, so only one id per
    shard is in memory. Raises InputError if an id is repeated.
    """

    def images(shard: Shard) -> Iterator[tuple[str, str]]:
        return ((shard.id(row), shard.image_sha256(row)) for row in range(len(shard)))

    digest, before = sha256(), None
    for image_id, image in heapq.merge(*map(images, shards)):
        if image_id == before:
            raise InputError(
                f"two images of the corpus have the id {image_id!r}; rename one of them"
            )
        digest.update(f"{image} {image_id}\n".encode())
        before = image_id
    return digest.hexdigest()
