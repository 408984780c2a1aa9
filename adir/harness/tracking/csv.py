"""CSV tracker, which writes a file with the scores of each image and a file with the losses."""

from pathlib import Path

from adir.files import write_bytes
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.tracking.base import Record, Tracking, loss_curves, records_of, table_of


class CsvTracking(Tracking):
    """Tracker that writes CSV files to RESULTS/tracking.

    CELL.csv has one line per image. CELL-losses.csv has one column of training losses per adapted
    image. Both files are rewritten atomically after every record, so they can be read during a run.
    If several workers share a cell, each worker writes the lines of all workers.
    """

    called = "tracking=csv"

    def told(self, record: Record, image: Path) -> None:
        """Rewrite both files from all records of the cell."""
        assert self.cell is not None
        self.closed(self.cell)

    def closed(self, cell: Cell) -> None:
        """Rewrite both files from all records of the cell."""
        import pandas as pd  # takes 0.6 s to import, and only this tracker needs it

        records = records_of(cell)
        if not records:
            return
        layout, name = Layout(cell.results), "-".join(cell.identity.folder.parts[1:])
        write_bytes(
            layout.tracking(name), pd.DataFrame(table_of(records)).to_csv(index=False).encode()
        )
        curves = pd.DataFrame(
            {image_id: pd.Series(losses) for image_id, losses in loss_curves(cell, records).items()}
        )
        if not curves.empty:
            curves.index += 1
            write_bytes(
                layout.tracking(name, "-losses"), curves.to_csv(index_label="iteration").encode()
            )
