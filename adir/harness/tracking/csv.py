"""The tracker csv: a line per image, and the losses of adaptation."""

from pathlib import Path

from adir.files import write_bytes
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.tracking.base import Record, Tracking, loss_curves, records_of, table_of


class CsvTracking(Tracking):
    """RESULTS/tracking/CELL.csv, a line per image, and CELL-losses.csv, a column per adapted image.

    Each is written whole and atomically after every record, so it can be watched, and two workers
    on one cell agree.
    """

    called = "tracking=csv"

    def told(self, record: Record, image: Path) -> None:
        """Write both files anew."""
        assert self.cell is not None
        self.closed(self.cell)

    def closed(self, cell: Cell) -> None:
        """Write both files anew."""
        import pandas as pd  # 0.6 s to import, and only this tracker needs it

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
