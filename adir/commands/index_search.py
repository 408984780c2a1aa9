"""`adir index search`: the images of an index nearest to an image or a text, printed and drawn."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from adir.configuration import config_dir
from adir.errors import InputError
from adir.files import read_json, write_bytes, write_json
from adir.harness.cells.cell import build
from adir.harness.cells.paths import from_plain
from adir.harness.report.contact_sheet import Found, contact_sheet
from adir.images import from_uint8, in_colour, png_bytes, read_pixels
from adir.retrieval.encoders.base import Encoder, as_pil
from adir.retrieval.index.sharded import IndexedCorpus, ShardedIndex

ENCODER_FILE = "encoder.json"
"""The file in an index's folder with the configuration of its encoder, from which `adir index
search` builds the encoder.
"""
UNITS = {"angular": "rad", "euclidean": "rms"}


def main(folder: Path, image: Path | None, text: str | None, k: int, out: Path | None) -> int:
    """Print rank, distance and id of the k nearest; with `out`, also write a contact sheet (PNG).

    Returns 0, or 1 where the sheet lacks an image.

    folder: of a finished index.  Exactly one of image (a file) and text is given.
    Raises InputError for a query that is no image, a text if the encoder takes none, k larger than
    the index, and an index that is damaged or was made by another encoder than its folder
    describes.
    """
    if (image is None) == (text is None):
        raise InputError("name an image, or give --text WORDS; one of the two")
    if text is not None and not text.strip():
        raise InputError("--text: no words given")
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the contact sheet is a PNG; give a name that ends in .png")
    index = ShardedIndex(folder)
    shown = None if image is None else read_query(image)
    encoder = encoder_of(index)
    if shown is not None:
        query = encoder.image(from_uint8(shown)[None])
    else:
        assert text is not None
        query = encoder.text([text])
    ids, distances = index.search(query, k)
    unit = UNITS[index.metric]
    print(f"rank  distance ({unit})  id")
    for rank, (image_id, distance) in enumerate(zip(ids[0], distances[0].tolist(), strict=True), 1):
        print(f"{rank:4d}  {distance:14.6f}  {image_id}")
    if out is not None:
        asked = Image.fromarray(shown) if shown is not None else text or ""
        source, made_by = index.manifest["source"]["name"], index.encoder["name"]
        title = f"{k} nearest of {len(index)} images of {source}, encoder {made_by}"
        found = list(with_images(folder, ids[0], distances[0].tolist()))
        write_bytes(out, png_bytes(np.array(contact_sheet(asked, found, title, unit))))
        print(f"contact sheet: {out}")
        lost = [neighbour.id for neighbour in found if neighbour.image is None]
        if lost:
            print(
                f"{len(lost)} images are not to be had where the index found them, {lost[0]} "
                "for one"
            )
            return 1
    return 0


def read_query(path: Path) -> np.ndarray:
    """Return an image file as (H, W, 3) uint8, read as images of a corpus are.

    Raises InputError if it is no image.
    """
    return in_colour(read_pixels(path))


def with_images(folder: Path, ids: Sequence[str], distances: Sequence[float]) -> Iterator[Found]:
    """Return the neighbours with their images, read from where the index found them; None for each
    that is unavailable.
    """
    try:
        corpus = IndexedCorpus(folder)
    except (InputError, OSError):  # ids and distances are valid without it
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

    Paths are stored as absolute paths.

    The device is left out: it belongs to the machine that builds, and a CPU is enough for one
    query.
    """
    leaf: dict[str, Any] = OmegaConf.to_container(configuration, resolve=True)  # type: ignore[assignment]
    leaf.pop("device", None)
    for name in ("checkpoint", "folder"):
        if leaf.get(name) is not None:
            leaf[name] = str(Path(leaf[name]).resolve())
    write_json(folder / ENCODER_FILE, leaf)


def encoder_of(index: ShardedIndex) -> Encoder:
    """Return the encoder that made an index, built from its folder's configuration.

    Raises InputError if it differs now.

    The folder may come from someone else, so it may only name the encoders of conf/encoder/, with
    plain arguments.
    """
    path = index.folder / ENCODER_FILE
    try:
        leaf = read_json(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: is missing, so the encoder {index.encoder['name']} cannot be built; run "
            "`adir index build` again with "
            "what the index was built with, which writes it"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path}: damaged; remove it and run `adir index build` again, which writes it"
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
            f"{path}: names no encoder of conf/encoder/ with plain arguments: "
            f"{json.dumps(leaf)[:200]}; it is not built"
        )
    try:
        encoder: Encoder = build(from_plain(leaf), "encoder")
    except InputError as error:
        raise InputError(f"{error} ({path} tells where the encoder of this index was)") from error
    index.require_encoder(encoder)
    return encoder
