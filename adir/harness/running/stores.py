"""Products that cells share, stored under what made them and found again: y, neighbours, trained adapters, pictures to show."""

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
from adir.images import generator, hash_of_picture, write_png
from adir.tasks.restoration import RestorationTask

THUMBNAIL = 128  # pixels of the longer side


def keep_picture(results: Path, x: Tensor, thumbnail: bool = False) -> str:
    """Keep a ground truth, or a neighbour's thumbnail, for the report, as RESULTS/pictures/HASH.png; returns HASH, that of
    the whole picture in both cases."""
    sha256 = hash_of_picture(x)
    path = Layout(results).picture(sha256, thumbnail)
    if not path.is_file():
        longer = max(x.shape[-2:])
        if thumbnail and longer > THUMBNAIL:
            size = [max(1, round(side * THUMBNAIL / longer)) for side in x.shape[-2:]]
            x = interpolate(x[None], size=size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        write_png(path, x)
    return sha256


class OtherPicture(InputError):
    """Results of another picture with the same id, or of another y of it, lie where those of this one would: stops the run,
    so that none is lost and no two rows are compared that cannot be."""


@dataclass(frozen=True)
class Measurement:
    """y of one picture: what every method of a task is given."""

    y: Tensor
    sha256: str
    path: Path


@dataclass(frozen=True)
class MeasurementStore:
    """y, made once per (picture, task version, noise seed) and read from its PNG ever after, by every cell.

    The folder carries the hash of the task's configuration, so a task that was changed without raising its version does
    not meet the old y.
    """

    results: Path
    task: RestorationTask
    configuration: dict[str, Any]
    """The task's configuration, of which all but the guidance scale makes y."""
    noise_seed: int

    @property
    def folder(self) -> Path:
        """One per task version, configuration and noise seed."""
        made_of = {key: value for key, value in self.configuration.items() if key != "guidance_scale"}
        name = f"{file_name(self.task.name, most=40)}-v{self.task.version}-n{self.noise_seed}-{hash_of(made_of)[:10]}"
        return Layout(self.results).measurements / name

    def path(self, image_id: str) -> Path:
        """The PNG of a picture's y; its note is beside it, as JSON."""
        return self.folder / f"{file_name(image_id)}.png"

    def note(self, image_id: str, image_sha256: str) -> dict[str, str] | None:
        """Return what is known of an image's y (`read_note`). Raises OtherPicture if it was made of other pixels than these."""
        path = self.path(image_id)
        known = read_note(path.with_suffix(".json"))
        if known is not None and known["image_sha256"] != image_sha256:
            raise OtherPicture(
                f"{path}: was made of another picture with the id {image_id!r}; use another results folder"
            )
        return known

    def get(self, image_id: str, x: Tensor, warn: Callable[[str], None]) -> Measurement:
        """y of picture x, read from its files or made. Damaged ones are set aside, reported through `warn(message)`, and
        made anew; a y without its note (after a kill) gets one when it is the y that x gives.

        Raises OtherPicture, with all files left in place, where y was made of other pixels than x, and where y made anew is
        not the one that is there or that its note tells of (as after an update of a library).
        """
        path = self.path(image_id)
        known = self.note(image_id, hash_of_picture(x))
        stored: Tensor | None = None
        problem = None
        if path.is_file():
            try:
                stored = self.task.read_y(path)
            except ValueError as error:
                problem = str(error)
        if stored is not None and known is not None:
            if hash_of_picture(stored) == known["sha256"]:
                return Measurement(stored, known["sha256"], path)
            stored, problem = None, "its pixels are not those it was made with"

        y = self.task.degrade(x, generator(self.noise_seed, image_id, f"y {self.task.name} {self.task.version}"))
        sha256 = hash_of_picture(y)
        earlier = known["sha256"] if known is not None else hash_of_picture(stored) if stored is not None else sha256
        if sha256 != earlier:
            raise OtherPicture(f"{path}: made anew, y differs from the one made earlier; use another results folder")
        if stored is None:
            if problem is not None:
                warn(f"{path}: damaged measurement ({problem}); {set_aside(path)}, made anew")
            self.task.write_y(path, y)
        if known is None:
            write_json(
                path.with_suffix(".json"),
                {"sha256": sha256, "image_sha256": hash_of_picture(x), "task": self.configuration},
            )
        return Measurement(y, sha256, path)


def read_note(path: Path) -> dict[str, str] | None:
    """Return {sha256 of y, image_sha256}; None where there is no file, or a damaged one, which y tells anew."""
    try:
        note = read_json(path)
        return {key: note[key] for key in ("sha256", "image_sha256")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class StoredAdapter:
    """A trained adapter and how it came about."""

    tensors: dict[str, Tensor]
    """float32, on the CPU."""
    sha256: str
    """Of the tensors (`hash_of_tensors`), not of the file, which also tells how long the training took."""
    key: str
    """Hash of what made it."""
    facts: dict[str, Any]
    """made_of, losses, layers, n_parameters, crop_size, seconds (of the training)."""


def hash_of_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and numbers: of the safetensors file without metadata that would hold them."""
    return sha256_of_bytes(save(tensors))


@dataclass(frozen=True)
class AdapterStore:
    """Adapters under the hash of what made them: weights, adapter, fine-tuning, pictures, seed.

    Each is one safetensors file, so a reader sees tensors and facts of one training. Its metadata has one entry, `facts`:
    the facts as JSON, the tensors' hash among them.
    """

    results: Path

    def path(self, key: str) -> Path:
        """The file."""
        return Layout(self.results).adapter(key)

    def find(self, key: str, warn: Callable[[str], None]) -> StoredAdapter | None:
        """The adapter, or None. A damaged one is set aside, reported through `warn(message)`, and counts as missing."""
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
        """Store a trained adapter, and give back the one to use.

        Two workers can train one key at once (`random` of two tasks shares it), and on a GPU to different numbers: the one
        that was stored first stays, as a record may name it.
        """
        first = self.find(key, warn)
        if first is not None:
            return first
        tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
        facts = {**facts, "sha256": hash_of_tensors(tensors)}
        write_bytes(self.path(key), save(tensors, {"facts": json.dumps(facts, allow_nan=False)}))
        return StoredAdapter(tensors, facts["sha256"], key, facts)


class FoundNeighbours(Part):
    """The pictures of a corpus to adapt to, nearest first."""

    neighbours: tuple[Neighbour, ...]
    excluded: tuple[str, ...]
    """Ids left out as copies of the test picture."""


def stored_neighbours(results: Path, key: str, k: int) -> FoundNeighbours | None:
    """Return the k nearest under the hash of what they follow from, K aside; None where fewer are stored.

    A list is a prefix of that for a larger K. A damaged file counts as none: finding them is quick.
    """
    try:
        found = FoundNeighbours.model_validate(read_json(Layout(results).neighbours(key)))
    except (FileNotFoundError, ValueError):
        return None
    return found.model_copy(update={"neighbours": found.neighbours[:k]}) if len(found.neighbours) >= k else None
