"""Command line of `adir`: the commands and their arguments.

adir/commands/ has one file per command with its code. This file imports only the standard library,
so that --help and usage errors are instant.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from adir import __version__
from adir.environment import garbage_collection_paused, prepare_process
from adir.errors import InputError

EXAMPLES = """examples:
  adir list                                        every choice of every axis
  adir run task=sr4 adaptation=knn k=20            one cell: all embedded test fields
  adir run -m task=sr4,deblur adaptation=none,self,knn
                                                   a grid; run it again to do missing images only
  adir run -m experiment=demo                      the demo's grid
  adir plan -m experiment=demo                     the cells, run time and disk space of that grid
  adir leaderboard runs                            the table, also as CSV, Markdown, LaTeX and HTML
  adir report runs                                 one HTML file: table, images, curves
  adir table v2-table1 runs                        ours beside the paper's
  adir restore photo.png task=sr4 --out restored   your own degraded image
"""


ELSEWHERE = {
    "run": "write elsewhere with results=FOLDER",
    "restore": "write elsewhere with --out FOLDER",
    "leaderboard": "only print with --no-write",
    "sheet": "write elsewhere with --out FILE",
    "report": "write elsewhere with --out FILE",
    "merge": "write elsewhere with --out FOLDER",
    "submit": "write elsewhere with --out FILE",
    "edit": "write elsewhere with --out FOLDER",
    "weights": "keep weights elsewhere with ADIR_CACHE=FOLDER and TORCH_HOME=FOLDER",
}
"""{command: advice on how to write elsewhere}, which is printed if a file cannot be written."""


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="adir",
        description="ADIR: adaptive diffusion image reconstruction, as a benchmark (arXiv "
        "2212.03221).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"adir {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    add_making(commands)
    add_reading(commands)
    add_index(commands)
    add_machine(commands)
    return top


Commands = Any
"""The type that `add_subparsers` returns, which argparse keeps private."""
WORDS: dict[str, Any] = {"nargs": "*", "metavar": "KEY=VALUE"}


def add_making(commands: Commands) -> None:
    """Add the commands run, plan, restore, edit and score."""
    for name, what in {
        "run": "restore and score one cell, or with -m a grid of them",
        "plan": "print the cells, run time and disk space of `adir run` with the same arguments",
    }.items():
        grid = commands.add_parser(name, help=what)
        grid.add_argument(
            "overrides", **WORDS, help="axes and parameters; `adir list` prints the axes"
        )
        grid.add_argument(
            "-m",
            "--multirun",
            action="store_true",
            help="take every combination of the comma-separated values",
        )

    restore = commands.add_parser(
        "restore",
        help="restore degraded images of your own",
        description="Restore your own degraded images. The default sampler is ddrm: with the same "
        "network it is closer to the ground truth than the paper's sampler (sampler=adir). If ddrm "
        "does not apply, the sampler used instead is printed.",
    )
    restore.add_argument(
        "inputs", nargs="+", metavar="IMAGE|KEY=VALUE", help="image files, folders, and overrides"
    )
    restore.add_argument(
        "--out",
        type=Path,
        default=Path("restored"),
        help="folder for PNGs and JSON (default: restored)",
    )
    restore.add_argument(
        "--overwrite", action="store_true", help="replace results that are already there"
    )
    restore.add_argument(
        "--tile",
        type=int,
        default=256,
        help="side in pixels of the tiles of larger images (default: 256)",
    )
    restore.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="restore each image N times: NAME.png is the mean, NAME-std.png shows five times the "
        "standard deviation, and each NAME-sampleSEED.png is one sample (default: 1)",
    )

    edit = commands.add_parser(
        "edit", help="repaint the masked part of an image from a prompt (Stable Diffusion)"
    )
    edit.add_argument("image", type=Path)
    edit.add_argument("overrides", **WORDS, help="such as adaptation=knn retrieval=...")
    edit.add_argument(
        "--mask", type=Path, required=True, help="image of the same size; white is repainted"
    )
    edit.add_argument("--prompt", required=True)
    edit.add_argument(
        "--out", type=Path, default=Path("edited"), help="folder for PNG and JSON (default: edited)"
    )

    score = commands.add_parser(
        "score", help="score the restored images of a results folder again, with other metrics"
    )
    score.add_argument("folder", type=Path)
    score.add_argument("overrides", **WORDS, help="such as scoring=default")


def add_reading(commands: Commands) -> None:
    """Add the commands leaderboard, merge, table, submit, report, sheet and sync."""
    board = commands.add_parser(
        "leaderboard",
        help="print the table of results folders and submissions; write CSV, Markdown, LaTeX, HTML",
    )
    board.add_argument("folders", type=Path, nargs="+", metavar="FOLDER|FILE")
    board.add_argument("--no-write", action="store_true", help="print only, write no files")
    board.add_argument(
        "--against",
        default="none",
        metavar="MODE",
        help="mode with which every other row is compared, such as random (default: none)",
    )

    merge = commands.add_parser(
        "merge", help="put the records of several folders and submissions into one folder"
    )
    merge.add_argument("folders", type=Path, nargs="+", metavar="FOLDER|FILE")
    merge.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the merged records: a new one, or a results folder",
    )

    table = commands.add_parser(
        "table", help="print a published table beside ours; without NAME, list the published tables"
    )
    table.add_argument("name", nargs="?")
    table.add_argument("folder", type=Path, nargs="?", help="a results folder")
    table.add_argument("--latex", action="store_true", help="print LaTeX in the paper's layout")

    submit = commands.add_parser(
        "submit", help="pack the records of a results folder into one file that others can check"
    )
    submit.add_argument("folder", type=Path)
    submit.add_argument(
        "--images", action="store_true", help="include the images and losses that its report shows"
    )
    submit.add_argument("--out", type=Path, help="the file to write")

    report = commands.add_parser(
        "report", help="write one HTML file with table, images, curves and configuration"
    )
    report.add_argument("folder", type=Path)
    report.add_argument("--out", type=Path, help="the HTML to write (default: FOLDER/report.html)")
    report.add_argument(
        "--figures", action="store_true", help="also write the figures as PNG and PDF, for papers"
    )

    sheet = commands.add_parser(
        "sheet", help="write one comparison image: ground truth, y and every mode side by side"
    )
    sheet.add_argument("folder", type=Path)
    sheet.add_argument("--task", help="only this task")
    sheet.add_argument("--out", type=Path, help="the PNG to write (default: FOLDER/comparison.png)")

    sync = commands.add_parser(
        "sync", help="send the W&B runs of a results folder that were tracked offline"
    )
    sync.add_argument("folder", type=Path)


def add_index(commands: Commands) -> None:
    """Add the command `index` with its actions build, info and search."""
    index = commands.add_parser("index", help="build, describe or search the index of a corpus")
    actions = index.add_subparsers(metavar="ACTION", required=True)
    build = actions.add_parser(
        "build", help="embed a corpus in shards; run it again to embed the missing shards only"
    )
    build.set_defaults(command="index_build")
    build.add_argument(
        "overrides", **WORDS, help="such as corpus=folder corpus.path=FOLDER encoder=clip"
    )
    build.add_argument(
        "-m", "--multirun", action="store_true", help="run several workers: -m worker=0,1"
    )
    info = actions.add_parser("info", help="print what an index contains and whether it is damaged")
    info.set_defaults(command="index_info")
    info.add_argument("folder", type=Path)
    search = actions.add_parser(
        "search", help="print the images of an index that are nearest to an image or a text"
    )
    search.set_defaults(command="index_search")
    search.add_argument("folder", type=Path)
    search.add_argument("image", type=Path, nargs="?")
    search.add_argument("--text")
    search.add_argument("--k", type=int, default=20, help="number of images (default: 20)")
    search.add_argument("--out", type=Path, help="also write a contact sheet to this PNG")


def add_machine(commands: Commands) -> None:
    """Add the commands weights, list and doctor."""
    weights = commands.add_parser(
        "weights", help="list, fetch or verify the pretrained weights of the networks"
    )
    weights.add_argument("action", choices=("list", "get", "verify"))
    weights.add_argument("names", nargs="*", metavar="NAME")

    commands.add_parser("list", help="print every value of every axis, one line each")
    commands.add_parser("doctor", help="print what is installed, what is missing, how to get it")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words of the command line without the program's name; None takes sys.argv.

    Returns:
        0 if everything was done, 1 if some of it failed or was skipped (the output or the records
        say why), 2 if the request is invalid or a file cannot be read or written, 130 if the user
        interrupted the command.
    """
    if arguments is None:
        prepare_process()
    top = parser()
    args, rest = top.parse_known_args(arguments)
    given = getattr(args, "overrides", getattr(args, "inputs", None))
    # argparse ends a list of arguments at the first option, so `adir run task=sr4 -m seed=0,1`
    # leaves seed=0,1 in `rest`.
    if rest:
        if given is None or any(word.startswith("-") for word in rest):
            files = "; if -NAME is a file, type ./-NAME" if any(map(os.path.exists, rest)) else ""
            top.error(f"unrecognized arguments: {' '.join(rest)}{files}")
        given += rest
    try:
        return dispatch(args)
    except InputError as error:
        return print_error(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # not raised by the operating system, so a bug in adir
        place = f"{error.filename}: " if error.filename else ""
        remedy = (
            f"fix this problem, or {ELSEWHERE[args.command]}"
            if args.command in ELSEWHERE
            else "fix this problem"
        )
        return print_error(f"{place}{error.strerror or error}; {remedy} (finished work is kept)")
    except KeyboardInterrupt:
        return print_error("interrupted; run the same command again to continue", status=130)


def print_error(message: str, status: int = 2) -> int:
    """Print a message on one line of stderr, and return `status`."""
    print(f"adir: {' '.join(message.split())}", file=sys.stderr)
    return status


def dispatch(args: argparse.Namespace) -> int:
    """Call the function `main` in adir/commands/COMMAND.py and return its exit status.

    The function's parameters have the names of the command's arguments.
    """
    if args.command in ("run", "plan"):
        # Wrong arguments are refused here, before torch is imported, which takes seconds.
        from adir.harness.cells.compose import require_composable

        require_composable(args.overrides, args.multirun)
    with garbage_collection_paused():
        command = importlib.import_module(f"adir.commands.{args.command}")
    return command.main(**{word: value for word, value in vars(args).items() if word != "command"})
