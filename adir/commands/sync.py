"""`adir sync`: send the W&B runs of a results folder that were tracked offline."""

import base64
import http.client
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from adir.errors import InputError, first_line
from adir.harness.tracking.wandb import key_for, server_of

PATIENCE = 15.0
"""Seconds that the server may take to answer the first question."""
SLOWEST = 50_000.0
"""Bytes per second: slower sending counts as stuck. Each run gets a minute in addition."""


def main(folder: Path) -> int:
    """Send the W&B runs of a results folder that were tracked offline, by `wandb sync`.

    Returns 0, or 1 if some remain unsent.

    W&B marks the runs that were sent, and they are not sent again. Raises InputError for a missing
    folder or key.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give the results folder of a run with tracking=wandb"
        )
    runs = offline_runs(folder)
    if not runs:
        print(f"{folder}: no W&B run waits to be sent")
        return 0
    server = server_of()
    key = key_for(server)
    if key is None:
        raise InputError(
            f"{len(runs)} W&B runs in {folder / 'wandb'}, but no key: set WANDB_API_KEY or "
            "`wandb login`"
        )
    print(f"sending {len(runs)} W&B runs of {folder / 'wandb'} to {server}", flush=True)
    reason = refusal(server, key) or send(runs, folder)  # `wandb sync` would wait a minute per run
    waiting = offline_runs(folder)
    if waiting:
        print(
            f"{len(waiting)} of {len(runs)} runs were not sent ({reason}); `adir sync {folder}` "
            "tries again"
        )
    return 1 if waiting else 0


def refusal(server: str, key: str) -> str | None:
    """Return why the server accepts no runs now, or None.

    Asks whose key it is, as W&B does at login.
    """
    question = {
        "operationName": "Viewer",
        "query": "query Viewer { viewer { id } }",
        "variables": {},
    }
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    try:
        request = urllib.request.Request(
            f"{server}/graphql", json.dumps(question).encode(), headers
        )
        json.load(urllib.request.urlopen(request, timeout=PATIENCE))
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ) as error:  # ValueError: no address, or an answer that is no JSON
        return f"{server}: {first_line(error)}"
    return None


def send(runs: list[Path], folder: Path) -> str:
    """Send the runs by W&B's own command and return how it ended.

    Its exit status is 0 even if no run was sent.
    """
    # A run's staged files are in this folder; offline mode, which made these runs, would forbid
    # sending them.
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
    """Return the folders below RESULTS/wandb of runs that were tracked offline and not sent yet,
    oldest first.
    """
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [
        run
        for run in found
        if list(run.glob("run-*.wandb")) and not list(run.glob("run-*.wandb.synced"))
    ]
