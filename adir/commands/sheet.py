"""`adir sheet`: write one comparison picture: ground truth, y and every mode side by side."""

import argparse

from adir.harness.report.sheet import write_sheet


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. Returns the exit status."""
    path, damaged = write_sheet(args.folder, args.task, args.out)
    print(path)
    for fault in damaged:
        print(f"warning: left out: {fault}")
    return 1 if damaged else 0
