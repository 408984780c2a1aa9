"""What a cell is: the SHA-256 of everything that changes one of its pixels, and the folder that carries it.

Paths, devices, thread counts, batch sizes, tracking and the choice of metrics change no pixel and are not part of it; nor
is the list of test pictures, as a record belongs to one picture. K is part of it only where the mode has neighbours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adir.files import hash_of

WITH_NEIGHBOURS = ("knn", "random", "pixel")
MODES = ("none", "self", *WITH_NEIGHBOURS)


@dataclass(frozen=True)
class CellIdentity:
    """One backbone x task x K x mode x sampler x seed, by its readable axis values and by its full configuration."""

    axes: dict[str, Any]
    """backbone, task, adaptation, k (None without neighbours), adapter (None without adaptation), sampler, seed."""
    configuration: dict[str, Any]
    """All that is result-relevant, resolved; hashes in place of files."""

    @property
    def sha256(self) -> str:
        """64 hex digits, the same for equal configurations whatever the order of their keys."""
        return hash_of(self.configuration)

    @property
    def folder(self) -> Path:
        """Where the cell's records and pictures lie, relative to the results folder."""
        axes = self.axes
        label = [
            axes["adaptation"],
            f"k{axes['k']}" if axes["k"] is not None else None,
            axes["adapter"],
            axes["sampler"],
        ]
        label += [f"s{axes['seed']}", self.sha256[:10]]
        return Path("cells") / axes["backbone"] / axes["task"] / "-".join(part for part in label if part is not None)


def cell_identity(
    *,
    backbone: dict[str, Any],
    task: dict[str, Any],
    adaptation: dict[str, Any],
    retrieval: dict[str, Any],
    sampler: dict[str, Any],
    k: int,
    seed: int,
    noise_seed: int,
) -> CellIdentity:
    """The identity of a cell from its resolved parts.

    backbone: name and hash.  task: its whole configuration.  adaptation: `name` (a mode), `adapter`, `fine_tuning`.
    retrieval: `corpus` (hash), `encoders` (hash by mode) and `feeding`, how y is shown to them.  sampler: its whole
    configuration.  noise_seed: that of y.
    """
    mode = adaptation["name"]
    configuration: dict[str, Any] = {
        "backbone": {key: value for key, value in backbone.items() if key not in ("variance", "resolution")},
        "task": {key: value for key, value in task.items() if key != "guidance_scale"},
        "sampler": sampler,  # has the variance and the guidance scale that were used, wherever they were said
        "seed": seed,
        "noise_seed": noise_seed,
        "adaptation": {"name": mode},
    }
    if mode != "none":
        configuration["adaptation"] |= {key: adaptation[key] for key in ("adapter", "fine_tuning")}
    if mode in WITH_NEIGHBOURS:
        configuration["adaptation"]["k"] = k
        configuration["retrieval"] = {"corpus": retrieval["corpus"], "encoder": retrieval["encoders"].get(mode)}
        if mode != "pixel":  # whose cells are older than this entry, and by these very numbers
            from adir.retrieval.leakage import (
                LEFT_OUT,  # here: it imports torch, for which a leaderboard would wait 2 s
            )

            configuration["retrieval"]["left_out"] = LEFT_OUT
        if mode != "random":
            configuration["retrieval"]["embeddings"] = "float16"  # they were float32 once, which ordered some others
        if mode != "random" and retrieval.get("feeding", "as_is") != "as_is":
            configuration["retrieval"]["feeding"] = retrieval["feeding"]
    axes = {
        "backbone": backbone["name"],
        "task": task["name"],
        "adaptation": mode,
        "k": k if mode in WITH_NEIGHBOURS else None,
        "adapter": adaptation["adapter"]["name"] if mode != "none" else None,
        "sampler": sampler["name"],
        "seed": seed,
    }
    return CellIdentity(axes, configuration)
