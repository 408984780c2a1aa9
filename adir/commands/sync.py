"""`adir sync`: send the W&B runs of a results folder that were tracked offline."""

import os
import subprocess
import sys
from pathlib import Path

from adir.errors import InputError
from adir.harness.tracking.wandb import key_for, server_of

SLOWEST = 50_000.0
"""Bytes a second below which sending counts as stuck; each run has a minute besides."""


def main(folder: Path) -> int:
    """Send the W&B runs of a results folder that were tracked offline, by `wandb sync`. Returns 0, or 1 where some wait still.

    Runs that were sent are marked by W&B and not sent again. Raises InputError where there is no such folder or no key.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the results folder of a run with tracking=wandb")
    runs = offline_runs(folder)
    if not runs:
        print(f"{folder}: no W&B run waits to be sent")
        return 0
    server = server_of()
    if key_for(server) is None:
        raise InputError(f"{len(runs)} W&B runs in {folder / 'wandb'}, but no key: set WANDB_API_KEY or `wandb login`")
    print(f"sending {len(runs)} W&B runs of {folder / 'wandb'} to {server}", flush=True)
    reason = send(runs, folder)
    waiting = offline_runs(folder)
    if waiting:
        print(f"{len(waiting)} of {len(runs)} runs were not sent ({reason}); `adir sync {folder}` tries again")
    return 1 if waiting else 0


def send(runs: list[Path], folder: Path) -> str:
    """Send the runs by W&B's own command, which waits for a server that is away and ends with 0; returns how that ended."""
    # What a run staged beside itself is found there; offline mode, which made these runs, would forbid sending them.
    environment = os.environ | {"WANDB_DATA_DIR": str(folder.absolute() / "wandb")}
    environment.pop("WANDB_MODE", None)
    size = sum(path.stat().st_size for run in runs for path in run.rglob("*") if path.is_file())
    limit = 60.0 * len(runs) + size / SLOWEST
    try:
        command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
        status = subprocess.run(command, env=environment, check=False, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"`wandb sync` was not done after {limit:.0f} s"
    return f"`wandb sync` ended with {status}"


def offline_runs(folder: Path) -> list[Path]:
    """The folders of runs below RESULTS/wandb that were tracked offline and not sent yet, oldest first."""
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [run for run in found if list(run.glob("run-*.wandb")) and not list(run.glob("run-*.wandb.synced"))]
