"""Results that cells share, stored under the hash of their inputs: y, neighbours, trained adapters,
images for reports.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import interpolate

from adir.errors import InputError
from adir.files import (
    hash_of,
    read_json,
    safetensors_metadata,
    set_aside,
    sha256_of_bytes,
    warn_in_one_line,
    write_bytes,
    write_json,
)
from adir.harness.records.layout import Layout, file_name
from adir.harness.records.record import Neighbour, Part
from adir.images import generator, hash_of_image, write_png
from adir.tasks.restoration import RestorationTask

THUMBNAIL = 128  # pixels of the longer side


def keep_image(results: Path, x: Tensor, thumbnail: bool = False) -> str:
    """Store a ground truth, or a neighbour's thumbnail, for the report as RESULTS/images/HASH.png.

    Returns HASH, in both cases that of the whole image.
    """
    sha256 = hash_of_image(x)
    path = Layout(results).image(sha256, thumbnail)
    if not path.is_file():
        longer = max(x.shape[-2:])
        if thumbnail and longer > THUMBNAIL:
            size = [max(1, round(side * THUMBNAIL / longer)) for side in x.shape[-2:]]
            x = interpolate(x[None], size=size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        write_png(path, x)
    return sha256


class OtherImage(InputError):
    """The results folder holds results of another image with this id, or of another y of it.

    Stops the run, so that they are not overwritten, and no two rows are compared that are not
    comparable.
    """


@dataclass(frozen=True)
class Measurement:
    """y of one image, the same for every method of a task."""

    y: Tensor
    sha256: str
    path: Path


@dataclass(frozen=True)
class MeasurementStore:
    """y, made once per (image, task version, noise seed); later, every cell reads it from its PNG.

    The folder carries the hash of the task's configuration, so a task that was changed without
    raising its version does not meet the old y.
    """

    results: Path
    task: RestorationTask
    configuration: dict[str, Any]
    """The task's configuration. All of it but the guidance scale determines y."""
    noise_seed: int

    @property
    def folder(self) -> Path:
        """The folder of this task version, configuration and noise seed."""
        made_of = {
            key: value for key, value in self.configuration.items() if key != "guidance_scale"
        }
        name = file_name(self.task.name, most=40)
        folder = f"{name}-v{self.task.version}-n{self.noise_seed}-{hash_of(made_of)[:10]}"
        return Layout(self.results).measurements / folder

    def path(self, image_id: str) -> Path:
        """Return the path of an image's y, a PNG. Its note is beside it, as JSON."""
        return self.folder / f"{file_name(image_id)}.png"

    def note(self, image_id: str, image_sha256: str) -> dict[str, str] | None:
        """Return what is known of an image's y (`read_note`).

        Raises OtherImage if it was made of other pixels than these.
        """
        path = self.path(image_id)
        known = read_note(path.with_suffix(".json"))
        if known is not None and known["image_sha256"] != image_sha256:
            raise OtherImage(
                f"{path}: was made of another image with the id {image_id!r}; use another "
                "results folder"
            )
        return known

    def get(self, image_id: str, x: Tensor, warn: Callable[[str], None]) -> Measurement:
        """Return y of image x, read from its files or made now.

        A damaged y is renamed, reported through `warn(message)`, and made again. A y without its
        note (after a kill) gets one if x gives that y.

        Raises OtherImage, and changes no file, if y was made of other pixels than x, or if y made
        again differs from the stored one or from its note (as after an update of a library).
        """
        path = self.path(image_id)
        known = self.note(image_id, hash_of_image(x))
        stored: Tensor | None = None
        problem = None
        if path.is_file():
            try:
                stored = self.task.read_y(path)
            except ValueError as error:
                problem = str(error)
        if stored is not None and known is not None:
            if hash_of_image(stored) == known["sha256"]:
                return Measurement(stored, known["sha256"], path)
            stored, problem = None, "its pixels are not those it was made with"

        y = self.task.degrade(
            x, generator(self.noise_seed, image_id, f"y {self.task.name} {self.task.version}")
        )
        sha256 = hash_of_image(y)
        earlier = (
            known["sha256"]
            if known is not None
            else hash_of_image(stored)
            if stored is not None
            else sha256
        )
        if sha256 != earlier:
            raise OtherImage(
                f"{path}: made anew, y differs from the one made earlier; use another "
                "results folder"
            )
        if stored is None:
            if problem is not None:
                warn(f"{path}: damaged measurement ({problem}); {set_aside(path)}, made anew")
            self.task.write_y(path, y)
        if known is None:
            write_json(
                path.with_suffix(".json"),
                {"sha256": sha256, "image_sha256": hash_of_image(x), "task": self.configuration},
            )
        return Measurement(y, sha256, path)


def read_note(path: Path) -> dict[str, str] | None:
    """Return {sha256: of y, image_sha256: of x}; None if the file is missing or damaged.

    It is then made again from y.
    """
    try:
        note = read_json(path)
        return {key: note[key] for key in ("sha256", "image_sha256")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class StoredAdapter:
    """A trained adapter with the facts of its training."""

    tensors: dict[str, Tensor]
    """float32, on the CPU."""
    sha256: str
    """Of the tensors (`hash_of_tensors`).

    That of the file would depend on how long the training took.
    """
    key: str
    """Cache key: hash of everything that determines the adapter."""
    facts: dict[str, Any]
    """made_of, losses, layers, n_parameters, crop_size, seconds (of the training)."""


def hash_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and values: of a safetensors file of these tensors
    without metadata.
    """
    return sha256_of_bytes(save(tensors))


@dataclass(frozen=True)
class AdapterStore:
    """Adapters, stored under the hash of what determines them: weights, adapter, fine-tuning,
    images, seed.

    Each is one safetensors file, so a reader sees tensors and facts of one training. Its metadata
    has one entry, `facts`: the facts as JSON, the tensors' hash among them.
    """

    results: Path

    def path(self, key: str) -> Path:
        """The file."""
        return Layout(self.results).adapter(key)

    def find(self, key: str, warn: Callable[[str], None]) -> StoredAdapter | None:
        """Return the adapter, or None.

        A damaged one is renamed, reported through `warn(message)`, and counts as missing.
        """
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            tensors = load(content)
            facts = json.loads(safetensors_metadata(content)["facts"])
            if hash_of_tensors(tensors) != facts["sha256"]:
                raise ValueError("its SHA-256 is not the one it was written with")
            return StoredAdapter(tensors, facts["sha256"], key, facts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            warn(f"{path}: damaged adapter ({error}); {set_aside(path)}, trained anew")
            return None

    def put(
        self,
        key: str,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        warn: Callable[[str], None] = warn_in_one_line,
    ) -> StoredAdapter:
        """Store a trained adapter and return the one to use.

        Two workers may train one key at once (`random` of two tasks shares it), and on a GPU their
        results differ. The one that was stored first is used, as a record may refer to it.
        """
        first = self.find(key, warn)
        if first is not None:
            return first
        tensors = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in tensors.items()
        }
        facts = {**facts, "sha256": hash_of_tensors(tensors)}
        write_bytes(self.path(key), save(tensors, {"facts": json.dumps(facts, allow_nan=False)}))
        return StoredAdapter(tensors, facts["sha256"], key, facts)


class FoundNeighbours(Part):
    """The corpus images to adapt to, nearest first."""

    neighbours: tuple[Neighbour, ...]
    excluded: tuple[str, ...]
    """Ids left out as copies of the test image."""


def stored_neighbours(results: Path, key: str, k: int) -> FoundNeighbours | None:
    """Return the k nearest neighbours stored under a cache key, or None if fewer are stored.

    The key does not contain K: the list for K is a prefix of that for a larger K. A damaged file
    counts as missing, as the search is fast.
    """
    try:
        found = FoundNeighbours.model_validate(read_json(Layout(results).neighbours(key)))
    except (FileNotFoundError, ValueError):
        return None
    return (
        found.model_copy(update={"neighbours": found.neighbours[:k]})
        if len(found.neighbours) >= k
        else None
    )
