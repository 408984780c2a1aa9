"""Cells that a grid cannot run: which they are, and everything that can be told at once of why."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from adir.errors import InputError
from adir.harness.cells.cell import CannotRun, NotApplicable, axes_of
from adir.harness.cells.devices import on_the_cpu


class Refused(InputError):
    """A cell of a grid that cannot run, or is not applicable, with all that can be told at once of why."""

    def __init__(self, cfg: DictConfig, error: InputError, lacking: list[str]) -> None:
        """lacking: what its devices are refused for; of no account where it is not applicable on any."""
        self.applicable = not isinstance(error, NotApplicable)
        reasons = error.reasons if isinstance(error, CannotRun) else [str(error)]
        self.reasons = [*lacking, *reasons] if self.applicable else reasons
        super().__init__("; also: ".join(self.reasons))
        self.axes = axes_of(cfg)
        self.scoring = cfg.scoring
        told: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
        if self.axes.k is None:  # as of cells that run, those are one that differ in what they make no use of
            told |= dict.fromkeys(("k", "retrieval", "encoder", "index"))
        if self.axes.adaptation == "none":
            told["adaptation"] = None
        self.told = told


def cpu_twin(cfg: DictConfig, here: bool) -> tuple[DictConfig, list[str]]:
    """(the configuration with its devices replaced by the CPU, what says of each that this machine lacks that it does).

    Raises InputError for what is no device anywhere.
    """
    parts: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    lacking = []
    for name, part in parts.items():
        try:
            parts[name] = on_the_cpu({name: part}, here)[name]
        except InputError as error:  # what else is wrong with the cell shows on the CPU
            parts[name] = on_the_cpu({name: part}, here=False)[name]
            lacking.append(str(error))
    return OmegaConf.create(parts), lacking
