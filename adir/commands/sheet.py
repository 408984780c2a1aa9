"""`adir sheet`: write one comparison image: ground truth, y and every mode side by side."""

from pathlib import Path

from adir.harness.report.sheet import write_sheet


def main(folder: Path, task: str | None, out: Path | None) -> int:
    """Write the sheet and print its path. Returns 0, or 1 where a damaged file was left out."""
    path, damaged = write_sheet(folder, task, out)
    print(path)
    for fault in damaged:
        print(f"warning: left out: {fault}")
    return 1 if damaged else 0
