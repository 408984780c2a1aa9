"""Error for a grid's cells that cannot run."""

from omegaconf import DictConfig

from adir.errors import InputError
from adir.harness.cells.cell import CannotRun, NotApplicable, axes_of


class Refused(InputError):
    """Error for a cell of a grid that cannot run or is not applicable.

    `reasons` lists all reasons that can be found at once.
    """

    def __init__(self, cfg: DictConfig, error: InputError, lacking: list[str]) -> None:
        """Collect the reasons.

        Args:
            cfg: composed configuration of the cell.
            error: the error raised while the cell was built.
            lacking: messages about unavailable devices; ignored if the cell is not applicable.
        """
        self.applicable = not isinstance(error, NotApplicable)
        reasons = error.reasons if isinstance(error, CannotRun) else [str(error)]
        self.reasons = [*lacking, *reasons] if self.applicable else reasons
        super().__init__("; also: ".join(self.reasons))
        self.axes = axes_of(cfg)
