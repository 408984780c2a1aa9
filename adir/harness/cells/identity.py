"""What a cell is: the SHA-256 of everything that changes one of its pixels, and the folder that
carries it.

A part of the configuration enters by its name, its version and its settings, and never by the
Python path of its class: moving a class changes no result's folder, and a class whose results
change raises its version. Paths, devices, thread counts, batch sizes, tracking and the choice of
metrics change no pixel and are left out; so is the list of test images, as a record belongs to one
image. K is part of the identity only where the mode uses a corpus.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from adir.adaptation.modes import Mode
from adir.configuration import config_dir
from adir.errors import InputError
from adir.files import hash_of, read_text
from adir.harness.records.layout import file_name
from adir.harness.records.record import Axes
from adir.retrieval.leakage import LEFT_OUT
from adir.samplers.base import Steering

EMBEDDINGS = "float16"
"""Raised to another word when stored embeddings change, as they order the neighbours."""
NO_PIXEL = (
    "folder",
    "device",
    "checkpoint",
    "architecture",
    "execution",
    "variance",
    "resolution",
    "trained_on",
)
"""Settings of a backbone that its hashes stand for, or that change no pixel.

The sampler has the variance that was used.
"""


@dataclass(frozen=True)
class CellIdentity:
    """One backbone x task x K x mode x sampler x seed, by its readable axis values and by its full
    configuration.
    """

    axes: Axes
    configuration: dict[str, Any]
    """All that is result-relevant, resolved; hashes in place of files."""

    @property
    def sha256(self) -> str:
        """64 hex digits, the same for equal configurations whatever the order of their keys."""
        return hash_of(self.configuration)

    @property
    def folder(self) -> Path:
        """Where the cell's records and images lie, relative to the results folder."""
        axes = self.axes
        label = [
            axes.adaptation,
            f"k{axes.k}" if axes.k is not None else None,
            axes.adapter,
            axes.sampler,
        ]
        label_name = file_name("-".join(part for part in label if part is not None), most=80)
        # All three and a suffix fit into one name, which tracking makes of them.
        above = Path("cells") / file_name(axes.backbone, most=40) / file_name(axes.task, most=40)
        return above / f"{label_name}-s{axes.seed}-{self.sha256[:10]}"


def cell_identity(
    full: Mapping[str, Any],
    mode: Mode,
    *,
    backbone: Mapping[str, str],
    corpus: str | None,
    encoder: str | None,
    seed: int,
    withholds: str | None = None,
) -> CellIdentity:
    """Return the identity of a cell.

    Args:
        full: the whole resolved configuration.
        mode: the adaptation that it names.
        backbone: hashes of weights and network, and the precision where it is not the usual one.
        corpus: hash of the corpus's manifest; None where the mode uses none.
        encoder: hash of the encoder's weights; None where the mode uses none.
        seed: that of the sampler; 0 for one that draws nothing.
        withholds: which images the corpus keeps from a test image, copies of it aside; None: none.

    Raises InputError for a part without a name or a version, and for one that has another class's
    name.
    """
    adaptation = described("adaptation", full["adaptation"])
    configuration: dict[str, Any] = {
        "backbone": described("backbone", full["backbone"], NO_PIXEL) | dict(backbone),
        "task": described(
            "task", full["task"], ["guidance_scale"]
        ),  # the sampler has the one that was used
        "sampler": described("sampler", full["sampler"]),
        "seed": seed,
        "noise_seed": full["noise_seed"],
        "adaptation": {
            key: value for key, value in adaptation.items() if key in used(mode, adaptation)
        },
    }
    if mode.encoder is not None:
        configuration["adaptation"]["k"] = full["k"]
        configuration["retrieval"] = {"corpus": corpus, "encoder": encoder, "left_out": LEFT_OUT}
        if withholds is not None:  # a key of its own only here: other cells keep their folders
            configuration["retrieval"]["withholds"] = withholds
        if mode.follows_y:
            configuration["retrieval"] |= {
                "embeddings": EMBEDDINGS,
                "query": full["retrieval"]["query"],
            }
    axes = Axes(
        backbone=configuration["backbone"]["name"],
        task=configuration["task"]["name"],
        adaptation=mode.name,
        k=full["k"] if mode.encoder is not None else None,
        adapter=mode.adapter.name if mode.trains or isinstance(mode, Steering) else None,
        sampler=configuration["sampler"]["name"],
        seed=seed,
    )
    return CellIdentity(axes, configuration)


def used(mode: Mode, adaptation: Mapping[str, Any]) -> set[str]:
    """Return the settings of an adaptation that its mode makes use of."""
    if mode.trains:
        return set(adaptation)
    return set(adaptation) - {"fine_tuning"} if isinstance(mode, Steering) else {"name", "version"}


def described(kind: str, leaf: Mapping[str, Any], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return name, version and settings of a leaf, defaults of its constructor included; leaves
    inside it in the same way.

    Args:
        kind: what the leaf is, such as `sampler`; two classes of one kind never share a name.
        leaf: a part of the resolved configuration, with `_target_`.
        left_out: settings that change no pixel.

    Raises InputError where neither the leaf nor its class says name and version, or another class
    has that name.
    """
    cls = get_object(leaf["_target_"])
    given = {
        key: value for key, value in leaf.items() if not (key.startswith("_") and key.endswith("_"))
    }
    bound = inspect.signature(cls).bind_partial(**given)
    bound.apply_defaults()
    settings: dict[str, Any] = {
        key: described(key, value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in bound.arguments.items()
        if key not in left_out
    }
    for key in ("name", "version"):
        if settings.get(key) is None:
            settings[key] = getattr(cls, key, None)
        if settings[key] is None:
            raise InputError(
                f"{kind} {leaf['_target_']} has no {key}: give its class `{key}`, as a result "
                "is known by name and version "
                "of what made it"
            )
    require_own_name(kind, settings["name"], cls)
    return settings


_named: dict[tuple[str, str], str] = {}
"""(kind, name) of every part that this process has described: the path of its class."""


def require_own_name(kind: str, name: str, cls: Callable[..., Any]) -> None:
    """Raise InputError where another class of this kind has the name: their results would share a
    folder.
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    first = ours(kind).get(name) or _named.setdefault((kind, name), path)
    if first != path:
        raise InputError(
            f"{kind} {path} is named {name!r}, which is the name of {first}: give it another `name`"
        )


@functools.cache
def ours(kind: str) -> dict[str, str]:
    """Return {name: path of its class} of the classes of a kind that this package has."""
    folders = {"adapter": "adaptation/adapter"}
    modules = {"operator": "adir.tasks.operators", "fine_tuning": "adir.adaptation.fine_tuning"}
    if kind in modules:
        classes = [
            one
            for one in vars(importlib.import_module(modules[kind])).values()
            if isinstance(one, type)
        ]
        own = [one for one in classes if one.__module__.startswith(modules[kind])]
        names = {one: getattr(one, "name", None) for one in own}
        return {
            name: f"{one.__module__}.{one.__name__}"
            for one, name in names.items()
            if isinstance(name, str)
        }
    leaves = [
        yaml.safe_load(read_text(path))
        for path in (config_dir() / folders.get(kind, kind)).glob("*.yaml")
    ]
    return {
        leaf["name"]: leaf["_target_"] for leaf in leaves if "name" in leaf
    }  # another word for a leaf has none
