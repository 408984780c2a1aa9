"""Devices of jobs: what they ask for is there, and of several workers of a node that all say `cuda` each has its own."""

import fcntl
import os
import re
import tempfile
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from adir.errors import InputError

_held: list[IO[str]] = []
"""The lock of this process's GPU, held until it ends."""


def gpu_count() -> int:
    """GPUs of this machine, at least 1, so that a launcher with a worker for each has one where there is none."""
    import torch  # here and below: to compose a configuration, and to refuse one, need not wait for it

    return max(1, torch.cuda.device_count())


def use_own_gpu(beside_others: bool, count: int | None = None) -> int | None:
    """Make a GPU of its own the current one of this process, where others work beside it on a node of several.

    Returns its number, or None where nothing was to be chosen. Workers beyond the number of GPUs share the last one.
    count: GPUs of the node; asked of torch unless given. The locks are of this machine, like the GPUs, and go with
    their process.
    """
    import torch

    n_gpus = torch.cuda.device_count() if count is None else count
    if not beside_others or n_gpus < 2 or _held:
        return None
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    chosen = n_gpus - 1
    for number in range(n_gpus):
        name = visible[number] if number < len(visible) and visible[number] else str(number)
        # Quoted: the name of a part of a GPU may hold slashes.
        path = Path(tempfile.gettempdir()) / f"adir-{os.getuid()}-gpu-{quote(name, safe='')}.lock"
        lock = open(path, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        chosen = number
        break
    if count is None:
        torch.cuda.set_device(chosen)
    return chosen


def on_the_cpu(configuration: Any, lacking: list[str] | None, path: str = "") -> Any:
    """An unresolved configuration (dicts and lists) with its devices replaced by the CPU: for a check in a process that will
    not run it, and that shall neither need nor hold a GPU.

    lacking: gets what says of each device that this machine lacks that it does; None where another machine will run it, of
    which that is not known. Raises InputError for what is no device anywhere.
    """
    # Inside, as it brings diffusers, which a process that only takes its GPU need not wait for.
    from adir.backbones.execution import device_of

    if isinstance(configuration, list):
        return [on_the_cpu(part, lacking, path) for part in configuration]
    if not isinstance(configuration, dict):
        return configuration
    twin = {key: on_the_cpu(part, lacking, f"{path}{key}.") for key, part in configuration.items()}
    device = twin.get("device")
    if isinstance(device, str) and not device.startswith("${"):  # else it follows another
        try:
            device_of(device)
        except ValueError as error:
            if not re.fullmatch(r"cuda(:\d+)?", device):
                raise InputError(f"{path}{error}") from error
            if lacking is not None:
                lacking.append(f"{path}{error}")
        twin["device"] = "cpu"
    if twin.get("offload") is True:  # which a CPU has not
        twin["offload"] = False
    return twin
