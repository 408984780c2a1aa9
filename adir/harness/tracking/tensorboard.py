"""TensorBoard tracker, which writes one run per cell to RESULTS/tensorboard."""

from pathlib import Path
from typing import Any

from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.tracking.base import (
    Record,
    Tracking,
    loss_curves,
    mean_curve,
    records_of,
    summary_of,
)
from adir.images import read_png


class TensorboardTracking(Tracking):
    """Tracker that writes a TensorBoard run to RESULTS/tensorboard/CELL.

    The run contains the scores and the restored images; the step of both is the position of the
    image in the test set. It also contains the training loss at each iteration of adaptation,
    averaged over images. The HPARAMS tab shows the cell's axes and the mean of each score.

    If a cell is run again, another events file is added to the TensorBoard run. TensorBoard then
    shows the values of the new file.
    """

    called = "tracking=tensorboard"
    _writer: Any = None

    def opened(self, cell: Cell) -> None:
        """Open the events file."""
        # This import takes a second, and only this tracker needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(Layout(cell.results).tensorboard / "-".join(cell.identity.folder.parts[1:]))
        )

    def told(self, record: Record, image: Path) -> None:
        """Log the scores and the restored image of one record.

        The step is the position of the image in the test set.
        """
        assert self.cell is not None
        step = self.cell.data.ids.index(record.image.id)
        for name, score in record.scores.items():
            if score.value is not None:
                self._writer.add_scalar(f"scores/{name}", score.value, step)
        if record.status == "done":
            self._writer.add_image("restored", (read_png(image) + 1) / 2, step)

    def closed(self, cell: Cell) -> None:
        """Log training losses and mean scores, and close the events file."""
        records = records_of(cell)
        for iteration, loss in enumerate(mean_curve(loss_curves(cell, records)), start=1):
            self._writer.add_scalar("adaptation/loss", loss, iteration)
        axes = {name: value if value is not None else "" for name, value in cell.identity.axes}
        means = {
            f"mean/{name}": value for name, value in summary_of(records, len(cell.data)).items()
        }
        self._writer.add_hparams(axes, means, run_name=".")
        self._writer.close()
