"""`adir sheet`: write an image with ground truth, y and every mode side by side."""

from pathlib import Path

from adir.harness.report.sheet import write_sheet


def main(folder: Path, task: str | None, out: Path | None) -> int:
    """Write the comparison image and print its path.

    Args:
        folder: results folder.
        task: only this task; None takes all.
        out: PNG to write; None takes FOLDER/comparison.png.

    Returns:
        0, or 1 if a damaged file was skipped.
    """
    path, damaged = write_sheet(folder, task, out)
    print(path)
    for fault in damaged:
        print(f"warning: skipped {fault}")
    return 1 if damaged else 0
