"""`adir report`: write the report of a results folder, one HTML file.

The report has the table, the images, the curves and the configuration.
"""

from pathlib import Path

from adir.harness.report.page import write_report


def main(folder: Path, out: Path | None, figures: bool) -> int:
    """Write the report and return the exit status.

    Args:
        folder: results folder.
        out: HTML file to write; None takes FOLDER/report.html.
        figures: whether to write the figures as PNG and PDF too.
    """
    return write_report(folder, out, figures)
