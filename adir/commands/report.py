"""`adir report`: write one HTML file to look at, of the table, images, curves and configuration of
a results folder.
"""

from pathlib import Path

from adir.harness.report.page import write_report


def main(folder: Path, out: Path | None, figures: bool) -> int:
    """Write the page. Returns the exit status."""
    return write_report(folder, out, figures)
