"""`adir sync`: send the W&B runs of a results folder that were tracked offline."""

import base64
import http.client
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from adir.errors import InputError, count_of, one_line
from adir.harness.tracking.wandb import key_for, server_of

SERVER_TIMEOUT = 15.0
"""The timeout in seconds of the first request to the server."""
SLOWEST = 50_000.0
"""The lowest accepted upload speed, in bytes per second.

Sending is stopped after the time that this speed needs, plus one minute per run.
"""


def main(folder: Path) -> int:
    """Send the W&B runs of a results folder that were tracked offline, with `wandb sync`.

    W&B marks the runs that were sent, so they are not sent again.

    Returns 0, or 1 if some runs were not sent. Raises InputError if the folder or the API key is
    missing.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give the results folder of a run with tracking=wandb"
        )
    runs = offline_runs(folder)
    if not runs:
        print(f"{folder}: contains no unsent W&B runs")
        return 0
    server = server_of()
    key = key_for(server)
    if key is None:
        raise InputError(
            f"the W&B API key is missing, so {count_of(len(runs), 'run')} in {folder / 'wandb'} "
            "cannot be sent: set WANDB_API_KEY or run `wandb login`"
        )
    print(f"sending {count_of(len(runs), 'W&B run')} of {folder / 'wandb'} to {server}", flush=True)
    # Ask the server first: `wandb sync` would wait a minute per run for one that is not reachable.
    reason = refusal(server, key) or send(runs, folder)
    waiting = offline_runs(folder)
    if waiting:
        print(
            f"{len(waiting)} of {len(runs)} runs were not sent ({reason}); run "
            f"`adir sync {folder}` again"
        )
    return 1 if waiting else 0


def refusal(server: str, key: str) -> str | None:
    """Return the reason why the W&B server accepts no runs at present, or None if it accepts them.

    The test is a request for the user to whom the API key belongs. W&B makes the same request at
    login.
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
        json.load(urllib.request.urlopen(request, timeout=SERVER_TIMEOUT))
    # ValueError: the address is invalid, or the answer is not JSON.
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{server}: {one_line(error)}"
    return None


def send(runs: list[Path], folder: Path) -> str:
    """Send W&B runs with the command `wandb sync`, and return a phrase with its exit status.

    The phrase does not tell whether runs were sent, because the exit status is 0 even if no run was
    sent. If the command takes too long, it is stopped, and the phrase says so.

    Args:
        runs: folders of the runs.
        folder: results folder.
    """
    # The staged files of a run are in WANDB_DATA_DIR. WANDB_MODE=offline would prevent sending.
    environment = os.environ | {"WANDB_DATA_DIR": str(folder.absolute() / "wandb")}
    environment.pop("WANDB_MODE", None)
    size = sum(path.stat().st_size for run in runs for path in run.rglob("*") if path.is_file())
    limit = 60.0 * len(runs) + size / SLOWEST
    try:
        command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
        status = subprocess.run(command, env=environment, check=False, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"`wandb sync` was stopped after {limit:.0f} s"
    return f"`wandb sync` ended with status {status}"


def offline_runs(folder: Path) -> list[Path]:
    """Return the folders of the offline W&B runs in FOLDER/wandb that are not yet sent.

    The oldest comes first.
    """
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [
        run
        for run in found
        if list(run.glob("run-*.wandb")) and not list(run.glob("run-*.wandb.synced"))
    ]
