"""`adir sync`: send the W&B runs of a results folder that were tracked offline."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from adir.errors import InputError
from adir.harness.tracking.wandb import has_key


def main(args: argparse.Namespace) -> int:
    """Do what the command line asks. Returns the exit status."""
    return sync(args.folder)


def sync(folder: Path) -> int:
    """Send the W&B runs of a results folder that were tracked offline, by `wandb sync`. Returns its exit status.

    Runs that were sent are marked by W&B and not sent again. Raises InputError where there is no such folder or no key.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the results folder of a run with tracking=wandb")
    runs = offline_runs(folder)
    if not runs:
        print(f"{folder}: no W&B run waits to be sent")
        return 0
    if not has_key():
        raise InputError(f"{len(runs)} W&B runs in {folder / 'wandb'}, but no key: set WANDB_API_KEY or `wandb login`")
    print(f"sending {len(runs)} W&B runs of {folder / 'wandb'}", flush=True)
    # What a run staged beside itself is found there; offline mode, which made these runs, would forbid sending them.
    environment = os.environ | {"WANDB_DATA_DIR": str(folder.absolute() / "wandb")}
    environment.pop("WANDB_MODE", None)
    return subprocess.run(sync_command(runs), env=environment, check=False).returncode


def sync_command(runs: list[Path]) -> list[str]:
    """The command that sends these runs' folders."""
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]


def offline_runs(folder: Path) -> list[Path]:
    """The folders of runs below RESULTS/wandb that were tracked offline and not sent yet, oldest first."""
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [run for run in found if list(run.glob("run-*.wandb")) and not list(run.glob("run-*.wandb.synced"))]
