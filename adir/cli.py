"""The `adir` command. Only the standard library and the configuration's place are imported here, so that --help is instant;
each command imports what it needs."""

import argparse
import logging
import os
import sys
from pathlib import Path

from adir import __version__
from adir.errors import InputError

EXAMPLES = """examples:
  adir list                                             every choice of every axis
  adir run task=sr4 adaptation=knn k=20                 one cell: all embedded test fields
  adir run -m task=sr4,deblur adaptation=none,self,knn  a grid; run it again and only what is missing is done
  adir run -m experiment=demo                           the demo's grid
  adir leaderboard runs                                 the table, also as CSV and Markdown
  adir restore photo.png task=sr4 --out restored        your own degraded picture
"""


ELSEWHERE = {
    "run": "write elsewhere with results=FOLDER",
    "restore": "write elsewhere with --out FOLDER",
    "leaderboard": "only print with --no-write",
    "sheet": "write elsewhere with --out FILE",
}
"""How to do without the place that could not be written to, by command."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="adir",
        description="ADIR: adaptive diffusion image reconstruction, as a benchmark (arXiv 2212.03221).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"adir {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="restore and score one cell, or with -m a grid of them")
    run.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="axes and parameters; `adir list` shows the axes"
    )
    run.add_argument("-m", "--multirun", action="store_true", help="every combination of comma-separated values")

    restore = commands.add_parser("restore", help="restore degraded pictures of your own")
    restore.add_argument("inputs", nargs="+", metavar="PICTURE|KEY=VALUE", help="picture files, folders, and overrides")
    restore.add_argument(
        "--out", type=Path, default=Path("restored"), help="folder for PNGs and JSON (default: restored)"
    )
    restore.add_argument("--overwrite", action="store_true", help="replace results that are already there")
    restore.add_argument(
        "--tile", type=int, default=256, help="side in pixels of the tiles of larger pictures (default: 256)"
    )

    board = commands.add_parser(
        "leaderboard", help="the table of a results folder; also writes leaderboard.csv and .md"
    )
    board.add_argument("folder", type=Path)
    board.add_argument("--no-write", action="store_true", help="only print")

    score = commands.add_parser(
        "score", help="score the restored pictures of a results folder again, with other metrics"
    )
    score.add_argument("folder", type=Path)
    score.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as scoring=default")

    sheet = commands.add_parser("sheet", help="one comparison picture: ground truth, y and every mode side by side")
    sheet.add_argument("folder", type=Path)
    sheet.add_argument("--task", help="only this task")
    sheet.add_argument("--out", type=Path, help="the PNG to write (default: FOLDER/comparison.png)")

    commands.add_parser("list", help="every choice of every axis, one line each")
    commands.add_parser("doctor", help="what is installed, what is missing and how to get it")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Exit status: 0 done, 1 some pictures failed (their records say why), 2 what was asked cannot be done."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    words = getattr(args, "overrides", getattr(args, "inputs", None))
    if rest:  # argparse ends a list of words at the first option: adir run task=sr4 -m seed=0,1
        if words is None or any(word.startswith("-") for word in rest):
            top.error(f"unrecognized arguments: {' '.join(rest)}")
        words += rest
    # pyiqa and peft bring bitsandbytes, which warns on stderr that it has no kernels for a network nobody uses here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if os.environ.get("ADIR_DEBUG"):
        return dispatch(args)
    try:
        return dispatch(args)
    except InputError as error:
        return complain(str(error))
    except BrokenPipeError:  # `adir list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:  # not the system's word on a file, so a defect of ours
            raise
        place = f"{error.filename}: " if error.filename else ""
        remedy = f"mend that, or {ELSEWHERE[args.command]}" if args.command in ELSEWHERE else "mend that"
        return complain(f"{place}{error.strerror or error}; {remedy}; what was finished before is kept")
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on where it stopped", status=130)


def complain(message: str, status: int = 2) -> int:
    """One line on stderr."""
    print(f"adir: {' '.join(message.split())}", file=sys.stderr)
    return status


def dispatch(args: argparse.Namespace) -> int:
    """Call the command that was asked for."""
    if args.command == "run":
        from adir.harness.grid import run_grid

        return run_grid(args.overrides, args.multirun)
    if args.command == "restore":
        from adir.harness.restore import restore_pictures

        return restore_pictures(args.inputs, args.out, args.overwrite, args.tile)
    if args.command == "leaderboard":
        from adir.harness.leaderboard import show_leaderboard

        return show_leaderboard(args.folder, write=not args.no_write)
    if args.command == "score":
        from adir.harness.rescore import rescore

        return rescore(args.folder, args.overrides)
    if args.command == "sheet":
        from adir.harness.report.sheet import write_sheet

        print(write_sheet(args.folder, args.task, args.out))
        return 0
    if args.command == "list":
        from adir.harness.catalogue import print_axes

        return print_axes()
    from adir.harness.doctor import examine

    return examine()
