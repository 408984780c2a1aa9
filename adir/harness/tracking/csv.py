"""The tracker csv: a line per picture, and the losses of adaptation."""

import csv
import io
from pathlib import Path

from adir.files import write_bytes
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.tracking.base import GuardedTracking, Record, loss_curves, records_of, table_of


class CsvTracking(GuardedTracking):
    """RESULTS/tracking/CELL.csv, a line per picture, and CELL-losses.csv, a column per adapted picture.

    Each is written whole and atomically after every record, so it can be watched, and two workers on one cell agree.
    """

    called = "tracking=csv"

    def told(self, record: Record, picture: Path) -> None:
        """Write both files anew."""
        assert self.cell is not None
        self.closed(self.cell)

    def closed(self, cell: Cell) -> None:
        """Write both files anew."""
        records = records_of(cell)
        if not records:
            return
        layout, name = Layout(cell.results), "-".join(cell.identity.folder.parts[1:])
        columns, rows = table_of(records)
        write_bytes(layout.tracking(name), to_csv([columns, *rows]))
        curves = loss_curves(cell, records)
        if curves:
            steps = [[number, *losses] for number, losses in enumerate(zip(*curves.values(), strict=False), start=1)]
            write_bytes(layout.tracking(name, "-losses"), to_csv([["iteration", *curves], *steps]))


def to_csv(rows: list[list[object]] | list[list[str]]) -> bytes:
    """The rows as CSV; None is an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
