"""`adir sync`: send the W&B runs of a results folder that were tracked offline."""

import base64
import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from adir.errors import InputError, first_line
from adir.harness.tracking.base import within
from adir.harness.tracking.wandb import key_for, server_of

PATIENCE = 15.0
"""Seconds in which the server must answer the first question."""
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
    key = key_for(server)
    if key is None:
        raise InputError(f"{len(runs)} W&B runs in {folder / 'wandb'}, but no key: set WANDB_API_KEY or `wandb login`")
    print(f"sending {len(runs)} W&B runs of {folder / 'wandb'} to {server}", flush=True)
    reason = refusal(server, key) or send(runs, folder)  # `wandb sync` itself waits for minutes, and ends with 0
    waiting = offline_runs(folder)
    if waiting:
        print(f"{len(waiting)} of {len(runs)} runs were not sent ({reason}); `adir sync {folder}` tries again")
    return 1 if waiting else 0


def refusal(server: str, key: str) -> str | None:
    """Why the server takes no runs now, or None; it is asked who the key belongs to, as W&B asks at login."""
    question = json.dumps(
        {"operationName": "Viewer", "query": "query Viewer { viewer { id } }", "variables": {}}
    ).encode()
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
    }
    try:
        request = urllib.request.Request(f"{server}/graphql", question, headers)
        within(PATIENCE, lambda: json.loads(urllib.request.urlopen(request, timeout=PATIENCE).read()))
    except urllib.error.HTTPError as error:
        return f"{server} answers {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no address, or no answer of W&B's
        return f"{server} is out of reach: {first_line(getattr(error, 'reason', None) or error)}"
    return None


def send(runs: list[Path], folder: Path) -> str:
    """Send the runs by W&B's own command; returns how that ended."""
    # What a run staged beside itself is found there; offline mode, which made these runs, would forbid sending them.
    environment = os.environ | {"WANDB_DATA_DIR": str(folder.absolute() / "wandb")}
    environment.pop("WANDB_MODE", None)
    size = sum(path.stat().st_size for run in runs for path in run.rglob("*") if path.is_file())
    limit = 60.0 * len(runs) + size / SLOWEST
    try:
        status = subprocess.run(sync_command(runs), env=environment, check=False, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"`wandb sync` was not done after {limit:.0f} s"
    return f"`wandb sync` ended with {status}"


def sync_command(runs: list[Path]) -> list[str]:
    """The command that sends these runs' folders."""
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]


def offline_runs(folder: Path) -> list[Path]:
    """The folders of runs below RESULTS/wandb that were tracked offline and not sent yet, oldest first."""
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [run for run in found if list(run.glob("run-*.wandb")) and not list(run.glob("run-*.wandb.synced"))]
