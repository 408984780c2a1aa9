"""Cells that a grid cannot run, with all reasons that can be found at once."""

from omegaconf import DictConfig

from adir.errors import InputError
from adir.harness.cells.cell import CannotRun, NotApplicable, axes_of


class Refused(InputError):
    """A cell of a grid that cannot run or is not applicable, with all reasons that can be found at
    once.
    """

    def __init__(self, cfg: DictConfig, error: InputError, lacking: list[str]) -> None:
        """lacking: why its devices are unavailable; ignored if the cell does not apply on any
        device.
        """
        self.applicable = not isinstance(error, NotApplicable)
        reasons = error.reasons if isinstance(error, CannotRun) else [str(error)]
        self.reasons = [*lacking, *reasons] if self.applicable else reasons
        super().__init__("; also: ".join(self.reasons))
        self.axes = axes_of(cfg)
