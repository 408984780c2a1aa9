"""Identity of a cell: the SHA-256 of all settings that change a pixel, and the cell's folder.

Each part of the configuration is represented by its name, version and settings, but not by the
Python path of its class. So a class may move without changing any folder, and a class whose results
change must raise its version.

Paths, devices, thread counts, batch sizes, tracking and metrics change no pixel and are left out.
The list of test images is left out too, because a record belongs to one image. K is part of the
identity only if the mode uses a corpus.
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
from adir.retrieval.leakage import COPY_RULE
from adir.samplers.base import Steering

EMBEDDINGS = "float16"
"""Format of stored embeddings, on which the order of neighbours depends.

Change the text whenever stored embeddings change.
"""
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
"""Settings of a backbone that are left out of the identity.

They change no pixel or are covered by the backbone's hashes. The variance in use is part of the
sampler.
"""


@dataclass(frozen=True)
class CellIdentity:
    """Identity of a cell: its readable axes, and all settings that change a pixel."""

    axes: Axes
    configuration: dict[str, Any]
    """All settings that change a pixel, resolved, with hashes in place of files."""

    @property
    def sha256(self) -> str:
        """The hash of the configuration, 64 hex digits that do not depend on the order of keys."""
        return hash_of(self.configuration)

    @property
    def folder(self) -> Path:
        """The folder of the cell's records and images, relative to the results folder."""
        axes = self.axes
        label = [
            axes.adaptation,
            f"k{axes.k}" if axes.k is not None else None,
            axes.adapter,
            axes.sampler,
        ]
        label_name = file_name("-".join(part for part in label if part is not None), most=80)
        # Trackers join the three names and a suffix to one name, which must not be too long.
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
        mode: the adaptation mode that the configuration names.
        backbone: hashes of weights and network, and the dtype unless it is float32.
        corpus: hash of the corpus's manifest; None in modes without a corpus.
        encoder: hash of the encoder's weights; None in modes without an encoder.
        seed: seed of the sampler; 0 for a sampler without steps.
        withholds: the corpus's rule for withholding images that are not copies of the test image;
            None if the corpus has no such rule.

    Raises:
        InputError: for a part without a name or version, or with the name of another class.
    """
    adaptation = described("adaptation", full["adaptation"])
    configuration: dict[str, Any] = {
        "backbone": described("backbone", full["backbone"], NO_PIXEL) | dict(backbone),
        # The sampler's settings contain the guidance scale in use.
        "task": described("task", full["task"], ["guidance_scale"]),
        "sampler": described("sampler", full["sampler"]),
        "seed": seed,
        "noise_seed": full["noise_seed"],
        "adaptation": {
            key: value for key, value in adaptation.items() if key in used(mode, adaptation)
        },
    }
    if mode.encoder is not None:
        configuration["adaptation"]["k"] = full["k"]
        configuration["retrieval"] = {"corpus": corpus, "encoder": encoder, "left_out": COPY_RULE}
        if withholds is not None:  # without the key, so that older cells keep their folders
            configuration["retrieval"]["withholds"] = withholds
        if mode.depends_on_y:
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
    """Return the names of the settings in `adaptation` that the mode uses."""
    if mode.trains:
        return set(adaptation)
    return set(adaptation) - {"fine_tuning"} if isinstance(mode, Steering) else {"name", "version"}


def described(kind: str, leaf: Mapping[str, Any], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return name, version and settings of a leaf, a configuration node with `_target_`.

    The settings include the defaults of the leaf's constructor. A leaf nested inside the leaf is
    described in the same way.

    Args:
        kind: kind of the leaf, such as `sampler`; two classes of one kind never share a name.
        leaf: part of the resolved configuration.
        left_out: settings that change no pixel.

    Raises:
        InputError: if both the leaf and its class lack a name, if both lack a version, or if
            another class has the same name.
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
                f"{kind} {leaf['_target_']} has no {key}; set `{key}` on its class, because "
                "results are identified by name and version"
            )
    require_own_name(kind, settings["name"], cls)
    return settings


_named: dict[tuple[str, str], str] = {}
"""{(kind, name): path of the class} of every part that this process has described."""


def require_own_name(kind: str, name: str, cls: Callable[..., Any]) -> None:
    """Raise InputError if another class of this kind has the name.

    The results of the two classes would share a folder.
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    first = ours(kind).get(name) or _named.setdefault((kind, name), path)
    if first != path:
        raise InputError(
            f"{kind} {path} is named {name!r}, but {first} already has this name; set another "
            f"`name` on {path}"
        )


@functools.cache
def ours(kind: str) -> dict[str, str]:
    """Return {name: Python path} of this package's own classes of a kind, such as `sampler`."""
    folders = {"adapter": "adaptation/adapter"}
    modules = {"operator": "adir.tasks.operators", "fine_tuning": "adir.adaptation.fine_tuning"}
    if kind in modules:
        classes: list[tuple[str, Any]] = inspect.getmembers(
            importlib.import_module(modules[kind]), inspect.isclass
        )
        return {
            one.name: f"{one.__module__}.{one.__name__}"
            for _, one in classes
            if one.__module__.startswith(modules[kind])
            and isinstance(getattr(one, "name", None), str)
        }
    leaves = [
        yaml.safe_load(read_text(path))
        for path in (config_dir() / folders.get(kind, kind)).glob("*.yaml")
    ]
    # A leaf that is an alias of another one has no name.
    return {leaf["name"]: leaf["_target_"] for leaf in leaves if "name" in leaf}
