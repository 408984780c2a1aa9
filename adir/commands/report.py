"""`adir report`: write one HTML file to look at, of the table, pictures, curves and configuration of a results folder."""

import argparse

from adir.harness.report.page import write_report


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. Returns the exit status."""
    return write_report(args.folder, args.out, args.figures)
