"""`adir index search`: print the images of an index that are nearest to an image or a text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from adir.configuration import config_dir
from adir.errors import InputError, count_of
from adir.files import read_json, write_bytes, write_json
from adir.harness.cells.cell import build
from adir.harness.cells.paths import from_plain
from adir.harness.report.contact_sheet import Found, contact_sheet
from adir.images import png_bytes, read_image
from adir.retrieval.encoders.base import Encoder, as_pil
from adir.retrieval.index.sharded import IndexedCorpus, ShardedIndex

ENCODER_FILE = "encoder.json"
"""The file in an index's folder from which `adir index search` builds the encoder."""
UNITS = {"angular": "rad", "euclidean": "rms"}


def main(folder: Path, image: Path | None, text: str | None, k: int, out: Path | None) -> int:
    """Print rank, distance and id of the k images nearest to a query.

    Args:
        folder: folder of a finished index.
        image: query image file, or None. Exactly one of image and text must be given.
        text: query text, or None.
        k: number of images.
        out: PNG for a contact sheet, or None.

    Returns:
        0, or 1 if an image is missing on the contact sheet.

    Raises:
        InputError: if the query is not an image, if the encoder takes no text, if k exceeds the
            size of the index, or if the index is damaged or does not match the encoder described
            in its folder.
    """
    if (image is None) == (text is None):
        raise InputError("give either an image file or --text WORDS")
    if text is not None and not text.strip():
        raise InputError("--text is empty; give some words")
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the contact sheet is a PNG; give a name that ends in .png")
    index = ShardedIndex(folder)
    shown = None if image is None else read_image(image)
    encoder = encoder_of(index)
    if shown is not None:
        query = encoder.image(shown[None])
    else:
        assert text is not None
        query = encoder.text([text])
    ids, distances = index.search(query, k)
    unit = UNITS[index.metric]
    print(f"rank  distance ({unit})  id")
    for rank, (image_id, distance) in enumerate(zip(ids[0], distances[0].tolist(), strict=True), 1):
        print(f"{rank:4d}  {distance:14.6f}  {image_id}")
    if out is not None:
        asked = as_pil(shown) if shown is not None else text or ""
        source, made_by = index.manifest["source"]["name"], index.encoder["name"]
        title = f"{k} nearest of {len(index)} images of {source}, encoder {made_by}"
        found = list(with_images(folder, ids[0], distances[0].tolist()))
        write_bytes(out, png_bytes(np.array(contact_sheet(asked, found, title, unit))))
        print(f"contact sheet: {out}")
        lost = [neighbour.id for neighbour in found if neighbour.image is None]
        if lost:
            print(
                f"warning: the contact sheet lacks {count_of(len(lost), 'image')} that can no "
                f"longer be read from the corpus, such as {lost[0]}"
            )
            return 1
    return 0


def with_images(folder: Path, ids: Sequence[str], distances: Sequence[float]) -> Iterator[Found]:
    """Yield each neighbour with its image, or with None if the image cannot be read.

    The images are read from the corpus from which the index was built.

    Args:
        folder: folder of the index.
        ids: ids of the neighbours.
        distances: their distances to the query.
    """
    try:
        corpus = IndexedCorpus(folder)
    except (InputError, OSError):  # ids and distances are valid without the corpus
        yield from (
            Found(image_id, distance, None)
            for image_id, distance in zip(ids, distances, strict=True)
        )
        return
    for image_id, distance in zip(ids, distances, strict=True):
        try:
            yield Found(image_id, distance, as_pil(corpus.image(image_id)))
        except (InputError, OSError):
            yield Found(image_id, distance, None)


def remember_encoder(folder: Path, configuration: DictConfig) -> None:
    """Write the encoder's configuration into the folder of its index.

    Paths are made absolute. The device is omitted, because the index may be searched on another
    machine, and a CPU is enough for one query.
    """
    leaf: dict[str, Any] = OmegaConf.to_container(configuration, resolve=True)  # type: ignore[assignment]
    leaf.pop("device", None)
    for name in ("checkpoint", "folder"):
        if leaf.get(name) is not None:
            leaf[name] = str(Path(leaf[name]).resolve())
    write_json(folder / ENCODER_FILE, leaf)


def encoder_of(index: ShardedIndex) -> Encoder:
    """Build the encoder of an index from the configuration in its folder.

    The configuration is accepted only if its class is one of conf/encoder/ and its arguments are
    plain values, because the folder may come from an untrusted person.

    Raises InputError if the configuration cannot be used, or if the encoder differs from the one
    that made the index.
    """
    path = index.folder / ENCODER_FILE
    try:
        leaf = read_json(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: the file is missing, so the encoder {index.encoder['name']} cannot be built; "
            "to write the file, run `adir index build` again with the same settings"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path}: the file is damaged; to write a new one, remove the file and run "
            "`adir index build` again"
        ) from error
    known = {
        OmegaConf.select(OmegaConf.load(file), "_target_")
        for file in (config_dir() / "encoder").glob("*.yaml")
    }
    plain = isinstance(leaf, dict) and not any(
        isinstance(value, dict | list) for value in leaf.values()
    )
    if not plain or leaf.get("_target_") not in known:
        raise InputError(
            f"{path}: refused, because the file must name an encoder of conf/encoder/ with plain "
            f"arguments, not {json.dumps(leaf)[:200]}"
        )
    try:
        encoder: Encoder = build(from_plain(leaf), "encoder")
    except InputError as error:
        raise InputError(f"{error} (the path of this index's encoder is in {path})") from error
    index.require_encoder(encoder)
    return encoder
