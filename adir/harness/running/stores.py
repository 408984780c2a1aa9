"""Caches that cells share: measurements y, neighbours, adapters, and images for reports.

Neighbours and adapters are filed under the hash of everything that determines them, and images
under their own hash. y is filed under the task's configuration, the noise seed and the image id.
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
    """Write an image, or its thumbnail, for the report; return the hash of the full image.

    The image x, (3, H, W) in [-1, 1], is a ground truth or a neighbour. The file is
    RESULTS/images/HASH.png or, with `thumbnail`, RESULTS/images/HASH-thumbnail.png. HASH is the
    hash of x in both cases. The longer side of a thumbnail has at most 128 pixels.
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
    """Error for a results folder with another image of the same id, or another y of an image.

    The error stops the run, because the run would overwrite earlier results or compare rows that
    are not comparable.
    """


@dataclass(frozen=True)
class Measurement:
    """Measurement y of one image, which is the same for every method of a task."""

    y: Tensor
    sha256: str
    path: Path


@dataclass(frozen=True)
class MeasurementStore:
    """Cache of y: one PNG per (image, task version, noise seed), which all cells read.

    The folder's name contains the hash of the task's configuration. If the configuration changes,
    an earlier y is therefore not used, even if the task's version is the same.
    """

    results: Path
    task: RestorationTask
    configuration: dict[str, Any]
    """The task's configuration; everything in it but the guidance scale determines y."""
    noise_seed: int

    @property
    def folder(self) -> Path:
        """The folder for this task version, configuration and noise seed."""
        made_of = {
            key: value for key, value in self.configuration.items() if key != "guidance_scale"
        }
        name = file_name(self.task.name, most=40)
        folder = f"{name}-v{self.task.version}-n{self.noise_seed}-{hash_of(made_of)[:10]}"
        return Layout(self.results).measurements / folder

    def path(self, image_id: str) -> Path:
        """Return the path of an image's y, a PNG; a JSON note lies beside the PNG."""
        return self.folder / f"{file_name(image_id)}.png"

    def note(self, image_id: str, image_sha256: str) -> dict[str, str] | None:
        """Return the note on an image's y (`read_note`), or None.

        Raises:
            OtherImage: if y was computed from an image with other pixels.
        """
        path = self.path(image_id)
        known = read_note(path.with_suffix(".json"))
        if known is not None and known["image_sha256"] != image_sha256:
            raise OtherImage(
                f"{path}: this y was computed from another image with the id {image_id!r}; use "
                "another results folder"
            )
        return known

    def get(self, image_id: str, x: Tensor, warn: Callable[[str], None]) -> Measurement:
        """Return y of image x, read from its file or computed now.

        A damaged y is renamed, logged with `warn(message)`, and computed again. If y has no note,
        because an earlier run was killed, y is computed again from x. If the result equals the
        cached y, the note is written.

        Raises:
            OtherImage: if the cached y was computed from an image with other pixels, or if y
                computed again differs from the cached y or from the hash in its note (for example
                after an update of a library). No file is changed.
        """
        path = self.path(image_id)
        known = self.note(image_id, hash_of_image(x))
        # Use the cached y if its pixels match its note.
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
            stored, problem = None, "its pixels do not match their SHA-256"

        # Otherwise compute y, and require that it equals whatever is left of the cached y.
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
                f"{path}: the cached y differs from y computed again; use another results folder"
            )

        # Write the missing or damaged files.
        if stored is None:
            if problem is not None:
                warn(f"{path}: damaged measurement ({problem}); {set_aside(path)}, computed again")
            self.task.write_y(path, y)
        if known is None:
            write_json(
                path.with_suffix(".json"),
                {"sha256": sha256, "image_sha256": hash_of_image(x), "task": self.configuration},
            )
        return Measurement(y, sha256, path)


def read_note(path: Path) -> dict[str, str] | None:
    """Return {sha256: hash of y, image_sha256: hash of x} from the note on a cached y.

    A note is a JSON file beside the PNG of y. Return None if it is missing or damaged;
    `MeasurementStore.get` then writes it again.
    """
    try:
        note = read_json(path)
        return {key: note[key] for key in ("sha256", "image_sha256")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class StoredAdapter:
    """Trained adapter with the facts of its training, such as losses and duration."""

    tensors: dict[str, Tensor]
    """The adapter's weights, float32 on the CPU."""
    sha256: str
    """The hash of the tensors (`hash_of_tensors`).

    The hash of the file would also depend on the training time.
    """
    key: str
    """The cache key: the hash of everything that determines the adapter."""
    facts: dict[str, Any]
    """The facts of the training, as JSON values.

    The keys are made_of, losses, layers, n_parameters, crop_size, k_used, held_out, seconds (of
    the training), and sha256 (of the tensors).
    """


def hash_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' names, shapes, types and values.

    The hashed bytes are a safetensors file of these tensors without metadata.
    """
    return sha256_of_bytes(save(tensors))


@dataclass(frozen=True)
class AdapterStore:
    """Cache of trained adapters, filed under the hash of everything that determines them.

    The hash covers backbone weights, adapter, fine-tuning, images and seed, among others. Each
    adapter is one safetensors file, so its tensors and the facts about its training always belong
    together. The file's metadata has one entry, `facts`: the facts as JSON, including the hash of
    the tensors.
    """

    results: Path

    def path(self, key: str) -> Path:
        """Return the path of the adapter's file."""
        return Layout(self.results).adapter(key)

    def find(self, key: str, warn: Callable[[str], None]) -> StoredAdapter | None:
        """Return the cached adapter, or None.

        A damaged file is renamed, logged with `warn(message)`, and counts as missing.
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
                raise ValueError("its tensors do not match their SHA-256")
            return StoredAdapter(tensors, facts["sha256"], key, facts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            warn(f"{path}: damaged adapter ({error}); {set_aside(path)}, trained again")
            return None

    def put(
        self,
        key: str,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        warn: Callable[[str], None] = warn_in_one_line,
    ) -> StoredAdapter:
        """Cache a trained adapter, and return the adapter to use.

        Two workers may train the same adapter at once, such as workers on `random` cells of two
        tasks, and on a GPU their results differ. The adapter that was cached first is used, because
        a record may refer to it.
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
    """Neighbours of one test image: the corpus images to adapt to, nearest first."""

    neighbours: tuple[Neighbour, ...]
    excluded: tuple[str, ...]
    """The ids of corpus images left out as copies of the test image."""


def stored_neighbours(results: Path, key: str, k: int) -> FoundNeighbours | None:
    """Return the k nearest neighbours cached under a key; None if fewer are cached.

    One key serves all K, because the list for a smaller K is the beginning of the list for a larger
    K. A damaged file counts as missing, because a new search is fast.
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
