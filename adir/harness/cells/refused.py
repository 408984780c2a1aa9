"""Cells that a grid cannot run: which they are, and everything that can be told at once of why."""

from omegaconf import DictConfig

from adir.errors import InputError
from adir.harness.cells.cell import CannotRun, NotApplicable, axes_of


class Refused(InputError):
    """A cell of a grid that cannot run, or is not applicable, with all that can be told at once of why."""

    def __init__(self, cfg: DictConfig, error: InputError, lacking: list[str]) -> None:
        """lacking: what its devices are refused for; of no account where it is not applicable on any."""
        self.applicable = not isinstance(error, NotApplicable)
        reasons = error.reasons if isinstance(error, CannotRun) else [str(error)]
        self.reasons = [*lacking, *reasons] if self.applicable else reasons
        super().__init__("; also: ".join(self.reasons))
        self.axes = axes_of(cfg)
