"""Building an index: the corpus divided into shards, one shard embedded, all of them described.

    FOLDER/index.json             what it is of: source and encoder; written first
    FOLDER/plan/000003.json       what shard 3 is to hold; written before any picture is read, and never changed
    FOLDER/shards/000003.safetensors
    FOLDER/rejects.json           id: reason, of the pictures that could not be used
    FOLDER/manifest.json          all shards with their checksums, and the corpus's hash; written last, all at once

Who does which shard, and what is told meanwhile, is the caller's (adir/commands/index_build.py).
"""

import heapq
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adir.data.decoding import decoded
from adir.data.fingerprints import fingerprint
from adir.data.sources.base import Item, Source, SourceDown, each_id_once, storable
from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes, write_json
from adir.images import from_uint8
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.shards import SCHEMA, Picture, Shard, write_shard


def facts_of(encoder: Encoder) -> dict[str, str]:
    """What an index remembers of its encoder; the hash covers weights, architecture and preprocessing."""
    return {"name": encoder.name, "weights_sha256": encoder.weights_sha256, "metric": encoder.metric}


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / "shards" / f"{number:06d}.safetensors"


def plan_path(folder: Path, number: int) -> Path:
    """Where it is written what shard `number` is to hold."""
    return folder / "plan" / f"{number:06d}.json"


def require_room(folder: Path) -> None:
    """Raise InputError unless the folder holds an index, the beginning of one, or nothing."""
    beside = {"claims", "multirun.yaml"}  # of our workers, and of Hydra
    others = [e for e in folder.iterdir() if e.name not in beside and e.name[0] != "."] if folder.is_dir() else []
    if others and not (folder / "index.json").exists():
        raise InputError(f"{folder}: holds other files than an index; choose another folder (out=)")


def require_same_index(folder: Path, source: Source, encoder: Encoder, least_side: int = 0) -> None:
    """Say in index.json what the folder is to hold, or raise InputError when it holds the index of something else.

    least_side: as for `build_shard`.  One process at a time. Where the same pictures lie elsewhere by now, index.json says
    so from here on.
    """
    require_room(folder)
    path = folder / "index.json"
    wanted: dict[str, Any] = {"schema": SCHEMA, "encoder": facts_of(encoder), "source": describe(source)}
    wanted["least_side"] = least_side
    known = read_facts(path) if path.exists() else wanted
    if known["encoder"] != facts_of(encoder):
        raise InputError(
            f"{folder}: holds an index made by encoder {known['encoder']['name']} "
            f"({known['encoder']['weights_sha256'][:10]}), asked is {encoder.name} ({encoder.weights_sha256[:10]}); "
            "choose another folder (out=) or that encoder"
        )
    if known["source"]["kind"] != source.kind:
        raise InputError(
            f"{folder}: holds an index of a corpus of kind {known['source']['kind']} ({known['source']['name']}), asked is "
            f"{source.kind}; choose another folder (out=)"
        )
    asked, there = what_it_reads(source.arguments), what_it_reads(known["source"]["arguments"])
    differs = [name for name in sorted(asked.keys() | there.keys()) if asked.get(name) != there.get(name)]
    if differs:
        held, now = (", ".join(f"{name}={some.get(name)}" for name in differs) for some in (there, asked))
        raise InputError(f"{folder}: holds an index of {held}, asked is {now}; choose another folder (out=)")
    if known.get("least_side", 0) != least_side:  # older ones do not say it, and took all
        raise InputError(
            f"{folder}: holds an index of pictures with least_side={known.get('least_side', 0)}, asked is {least_side}; "
            "choose another folder (out=) or that least_side"
        )
    if known["source"] != wanted["source"] or not path.exists():
        write_json(path, wanted)


def what_it_reads(arguments: dict[str, Any]) -> dict[str, Any]:
    """A source's arguments less those that say where it lies: that may change."""
    return {name: value for name, value in arguments.items() if name not in ("path", "pictures", "bucket", "lists")}


def describe(source: Source) -> dict[str, Any]:
    """What an index remembers of where its pictures come from."""
    return {"kind": source.kind, "name": source.name, "arguments": source.arguments}


NEEDED = {"index.json": ("encoder", "source"), "manifest.json": ("encoder", "source", "corpus", "dimensions", "shards")}


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object in index.json or manifest.json. Raises InputError when it is damaged or of another version."""
    try:
        known: dict[str, Any] = read_json(path)
        schema = known["schema"]
        if schema == SCHEMA:
            operator.itemgetter(*NEEDED[path.name])(known)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and run `adir index build` again") from error
    if schema != SCHEMA:
        raise InputError(f"{path}: of schema {schema}, this version of adir reads {SCHEMA}; build the index anew")
    return known


def planned(folder: Path) -> list[Path]:
    """The plan files, in order. Raises InputError where one is gone: which pictures its shard holds nobody knows."""
    paths = sorted((folder / "plan").glob("??????.json"))
    for number, path in enumerate(paths):
        if path != plan_path(folder, number):
            raise InputError(
                f"{plan_path(folder, number)}: is missing; copy the index here again as a whole, or build anew"
            )
    return paths


def planned_keys(path: Path) -> list[str]:
    """What a shard is to hold, of its plan file. Raises InputError where that is missing or damaged."""
    try:
        keys: list[str] = read_json(path)["keys"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: missing or damaged; copy the index here again as a whole, or build anew") from error
    return keys


def extend_plan(folder: Path, source: Source, shard_size: int) -> int:
    """Plan shards for what the source lists and no plan holds yet; how many there are now. One process at a time.

    A shard gets keys until they hold `shard_size` pictures or more; a key whose pictures nobody has counted is a shard.
    Keeps the planned keys in memory: 0.1 GB a million for a folder, a tar file is one.  Raises InputError, and plans nothing,
    where planned keys are gone from the source: their pictures would be found, and then not be there. Rejects may go.
    """
    known = {key for path in planned(folder) for key in planned_keys(path)}
    if known:
        # A listing of its own: of another corpus nothing may be planned, or its pictures would be missed for ever.
        require_all_there(folder, known.difference(key for key, _ in source.listing()), len(known), source)
    number, count = len(planned(folder)), 0
    keys: list[str] = []
    for key, pictures in source.listing():
        if key in known:
            continue
        if keys and pictures is None:
            number = _write_plan(folder, number, keys)
            keys, count = [], 0
        keys.append(key)
        count += shard_size if pictures is None else pictures
        if count >= shard_size:
            number = _write_plan(folder, number, keys)
            keys, count = [], 0
    return _write_plan(folder, number, keys) if keys else number


def require_all_there(folder: Path, gone: set[str], n_known: int, source: Source) -> None:
    """Raise InputError when planned keys are gone that are no rejects."""
    if gone and (folder / "rejects.json").exists():
        rejects = read_json(folder / "rejects.json")
        gone = {key for key in gone if storable(key) not in rejects}
    if gone:
        raise InputError(
            f"{folder}: {len(gone)} of {n_known} parts of the corpus it was made of are gone from {source.name}, such as "
            f"{storable(min(gone))}; bring them back, or build a new index (out=)"
        )


def _write_plan(folder: Path, number: int, keys: list[str]) -> int:
    write_json(plan_path(folder, number), {"keys": keys})
    return number + 1


class Loaded(NamedTuple):
    """A picture ready to be embedded, and what is kept of it."""

    picture: Picture
    input: Tensor


@dataclass
class Embedded:
    """How embedding a shard went. Seconds: the encoder at work, and waiting for pictures to be read and decoded."""

    pictures: int = 0
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
    tell: Callable[[Embedded], None] = lambda done: None,
    least_side: int = 0,
) -> Embedded:
    """Read, embed and write one planned shard. `tell` is called after each batch.

    least_side: pixels; a picture whose shorter side is less is a reject.  Of several with one id, the later are.

    Reading, decoding, fingerprints and preparation run in `loaders` threads, two batches ahead of the network. In memory:
    those batches, and the shard's vectors; nothing that grows with the corpus.
    """
    keys = planned_keys(plan_path(folder, number))
    done = Embedded()
    rejects: dict[str, str] = {}
    pictures: list[Picture] = []
    vectors: list[Tensor] = []
    batch: list[Loaded] = []

    def embed_batch() -> None:
        started = time.perf_counter()
        vectors.extend(encoder.vectors(torch.stack([loaded.input for loaded in batch])))
        done.encoding += time.perf_counter() - started
        pictures.extend(loaded.picture for loaded in batch)
        batch.clear()
        done.pictures, done.rejects = len(pictures), len(rejects)
        tell(done)

    mark = time.perf_counter()
    items = each_id_once(source.items(keys))
    for image_id, loaded in loaded_ahead(items, encoder, loaders, 2 * batch_size, least_side):
        done.waiting += time.perf_counter() - mark
        if isinstance(loaded, str):
            rejects[storable(image_id)] = loaded
        else:
            batch.append(loaded)
        if len(batch) == batch_size:
            embed_batch()
        mark = time.perf_counter()
    if batch:
        embed_batch()
    done.rejects = len(rejects)
    embeddings = torch.stack(vectors) if vectors else torch.empty(0, 0)
    plan_sha256 = sha256_of_bytes(plan_path(folder, number).read_bytes())
    facts = {"encoder": facts_of(encoder), "plan_sha256": plan_sha256}
    write_shard(shard_path(folder, number), pictures, embeddings, rejects, facts)
    return done


def loaded_ahead(
    items: Iterator[Item], encoder: Encoder, loaders: int, ahead: int, least_side: int = 0
) -> Iterator[tuple[str, Loaded | str]]:
    """(id, the loaded picture or why it is rejected), in the order of the items, loaded by threads `ahead` of their use."""
    waiting: deque[tuple[str, Future[Loaded | str]]] = deque()
    with ThreadPoolExecutor(loaders, "adir loader") as pool:
        try:
            for item in items:
                waiting.append((item.id, pool.submit(load, item, encoder, least_side)))
                if len(waiting) >= ahead:
                    image_id, future = waiting.popleft()
                    yield image_id, future.result()
            while waiting:
                image_id, future = waiting.popleft()
                yield image_id, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def load(item: Item, encoder: Encoder, least_side: int = 0) -> Loaded | str:
    """A picture with its fingerprints, or the reason why it cannot be used. Raises SourceDown."""
    try:
        content, pixels = decoded(item, least_side)
        x = from_uint8(pixels)
        picture = Picture(
            item.id,
            sha256_of_bytes(content),
            len(content),
            (pixels.shape[0], pixels.shape[1]),
            fingerprint(x),
            item.attribution,
        )
        return Loaded(picture, encoder.prepare(x))
    except SourceDown:
        raise
    except InputError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch's words for a MemoryError
            raise
        return "not enough memory to prepare it for the encoder"


def missing_shards(folder: Path) -> list[int]:
    """Numbers of the planned shards that are not there yet; two listings, as a look at each file is slow on a network."""
    there = {path.name for path in (folder / "shards").glob("*.safetensors")}
    return [number for number in range(len(planned(folder))) if shard_path(folder, number).name not in there]


def finish(folder: Path) -> Mapping[str, Any]:
    """Check all shards against the plan and each other, and write manifest.json and rejects.json; the manifest.

    Raises InputError for a shard that is cut short or of another plan or encoder, for an id that comes twice, and for a
    corpus without any readable picture.
    """
    known = read_facts(folder / "index.json")
    shards = [Shard.open(shard_path(folder, number)) for number in range(len(planned(folder)))]
    for number, shard in enumerate(shards):
        if shard.facts["plan_sha256"] != sha256_of_bytes(plan_path(folder, number).read_bytes()):
            raise InputError(f"{shard.path}: made by another plan; remove it and run `adir index build` again")
        if shard.facts["encoder"] != known["encoder"]:
            raise InputError(f"{shard.path}: made by another encoder; remove it and run `adir index build` again")
    if not any(len(shard) for shard in shards):
        reasons = [reason for shard in shards for reason in shard.rejects.values()]
        first = f"; the first of {len(reasons)} rejects: {reasons[0]}" if reasons else ": the corpus has none"
        raise InputError(f"{folder}: no picture could be read{first}")
    manifest = known | {
        "corpus": {
            "sha256": corpus_sha256(shards),
            "pictures": sum(map(len, shards)),
            "rejects": sum(len(shard.rejects) for shard in shards),
        },
        "dimensions": next(shard.columns["embeddings"].shape[1] for shard in shards if len(shard)),
        "shards": [
            {"file": shard.path.name, "pictures": len(shard), "rejects": len(shard.rejects), "sha256": shard.sha256}
            for shard in shards
        ],
    }
    write_json(folder / "rejects.json", {name: why for shard in shards for name, why in shard.rejects.items()})
    write_json(folder / "manifest.json", manifest)
    return manifest


def corpus_sha256(shards: Sequence[Shard]) -> str:
    """What `manifest_sha256` gives of all pictures, merged from the shards, whose rows are in the order of their ids.

    Holds one id of each shard at a time. Raises InputError on an id that comes twice.
    """

    def pictures(shard: Shard) -> Iterator[tuple[str, str]]:
        return ((shard.id(row), shard.picture_sha256(row)) for row in range(len(shard)))

    digest, before = sha256(), None
    for image_id, picture in heapq.merge(*map(pictures, shards)):
        if image_id == before:
            raise InputError(f"two pictures of the corpus have the id {image_id!r}; ids must be unique")
        digest.update(f"{picture} {image_id}\n".encode())
        before = image_id
    return digest.hexdigest()
