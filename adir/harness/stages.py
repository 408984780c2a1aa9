"""Products that cells share, stored under what made them and found again: y, and trained adapters."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes, write_bytes, write_json
from adir.harness.identity import hash_of
from adir.harness.ledger import DamagedFile, set_aside
from adir.images import generator
from adir.tasks.restoration import RestorationTask


def hash_of_picture(x: Tensor) -> str:
    """SHA-256 of a float32 tensor's shape and values."""
    return sha256_of_bytes(repr(tuple(x.shape)).encode() + x.detach().cpu().float().contiguous().numpy().tobytes())


class OtherPicture(InputError):
    """Results of another picture with the same id lie where those of this one would: stops the run, so that none is lost."""


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
        name = f"{self.task.name}-v{self.task.version}-n{self.noise_seed}-{hash_of(made_of)[:10]}"
        return self.results / "measurements" / name

    def get(self, image_id: str, x: Tensor, warn: Callable[[str], None]) -> Measurement:
        """y of picture x. A damaged file is set aside, reported through `warn(message)` and made anew.

        Raises OtherPicture where y was made of other pixels than x, and DamagedFile when y made anew is not the y of the
        records: then rows would not be comparable.
        """
        path = self.folder / f"{quote(image_id, safe='')}.png"
        note = path.with_suffix(".json")
        known = None
        if note.is_file():
            try:
                known = {key: read_json(note)[key] for key in ("sha256", "image_sha256")}
            except (ValueError, KeyError, TypeError) as error:
                warn(f"{note}: damaged note ({error}); {set_aside(note)}, made anew")
        if known is not None and known["image_sha256"] != hash_of_picture(x):
            raise OtherPicture(
                f"{path}: was made of another picture with the id {image_id!r}; use another results folder"
            )
        if path.is_file() and known is not None:
            try:
                y = self.task.read_y(path)
                if hash_of_picture(y) == known["sha256"]:
                    return Measurement(y, known["sha256"], path)
                problem = "its pixels are not those it was made with"
            except ValueError as error:
                problem = str(error)
            warn(f"{path}: damaged measurement ({problem}); {set_aside(path)}, made anew")
        y = self.task.degrade(x, generator(self.noise_seed, image_id, f"y {self.task.name} {self.task.version}"))
        self.task.write_y(path, y)
        y = self.task.read_y(path)
        sha256 = hash_of_picture(y)
        if known is not None and sha256 != known["sha256"]:
            raise DamagedFile(
                f"{path}: made anew, y differs from the one earlier records used; use another results folder"
            )
        write_json(note, {"sha256": sha256, "image_sha256": hash_of_picture(x), "task": self.configuration})
        return Measurement(y, sha256, path)


@dataclass(frozen=True)
class StoredAdapter:
    """A trained adapter and how it came about."""

    tensors: dict[str, Tensor]
    sha256: str
    """Of the file."""
    key: str
    """Hash of what made it."""
    facts: dict[str, Any]
    """losses, layers, n_parameters, seconds (of the training)."""


@dataclass(frozen=True)
class AdapterStore:
    """Adapters as safetensors under the hash of what made them: weights, adapter, fine-tuning, pictures, seed."""

    results: Path

    def path(self, key: str) -> Path:
        """The tensors; their facts lie beside them as .json, written last."""
        return self.results / "adapters" / f"{key}.safetensors"

    def find(self, key: str, warn: Callable[[str], None]) -> StoredAdapter | None:
        """The adapter, or None. A damaged one is set aside, reported through `warn(message)`, and counts as missing."""
        path = self.path(key)
        note = path.with_suffix(".json")
        if not (path.is_file() and note.is_file()):
            return None
        content = path.read_bytes()
        try:
            facts = read_json(note)
            if sha256_of_bytes(content) != facts["sha256"]:
                raise ValueError("its SHA-256 is not the one it was written with")
            return StoredAdapter(load(content), facts["sha256"], key, facts)
        except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, ValueError) as error:
            warn(f"{path}: damaged adapter ({error}); {set_aside(path)}, trained anew")
            return None

    def put(self, key: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> StoredAdapter:
        """Store a trained adapter."""
        content = save({name: tensor.to(torch.float32) for name, tensor in tensors.items()})
        facts = {**facts, "sha256": sha256_of_bytes(content)}
        write_bytes(self.path(key), content)
        write_json(self.path(key).with_suffix(".json"), facts)
        return StoredAdapter(tensors, facts["sha256"], key, facts)
