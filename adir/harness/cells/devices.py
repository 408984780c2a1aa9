"""Devices of jobs: check that they exist, and give each worker of a node that asks for `cuda` a GPU
of its own.
"""

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
    """Return the number of GPUs of this machine, at least 1, so that a launcher with a worker per
    GPU has one worker.
    """
    # imported here and below, as composing or refusing a configuration does not need it
    import torch

    return max(1, torch.cuda.device_count())


def use_own_gpu(beside_others: bool, count: int | None = None) -> int | None:
    """Choose a GPU for this process that no other worker of the node uses, and make it the current
    one.

    Returns its number, or None if there is no choice. Workers beyond the number of GPUs share the
    last one. A lock on this machine marks a GPU as used; it ends with its process.

    count: GPUs of the node; if None, torch is asked.
    """
    import torch

    n_gpus = torch.cuda.device_count() if count is None else count
    if not beside_others or n_gpus < 2 or _held:
        return None
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    chosen = n_gpus - 1
    for number in range(n_gpus):
        name = visible[number] if number < len(visible) and visible[number] else str(number)
        # Quoted: the name of a MIG slice may contain slashes.
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
    """Return an unresolved configuration (dicts and lists) with every device set to "cpu".

    For a check in a process that will not run the cell, and so must neither need nor occupy a GPU.

    Args:
        configuration: a part of it, or all.
        lacking: gets one message per device that this machine lacks; None if another machine will
            run the cell.
        path: dotted key of the part, ending in a dot.

    Raises:
        InputError: for a name that is no device on any machine.
    """
    # Imported here: it imports diffusers, which a process that only chooses its GPU does not need.
    from adir.backbones.execution import device_of

    if isinstance(configuration, list):
        return [on_the_cpu(part, lacking, path) for part in configuration]
    if not isinstance(configuration, dict):
        return configuration
    twin = {key: on_the_cpu(part, lacking, f"{path}{key}.") for key, part in configuration.items()}
    device = twin.get("device")
    if isinstance(device, str) and not device.startswith("${"):  # else it refers to another setting
        try:
            device_of(device)
        except ValueError as error:
            if not re.fullmatch(r"cuda(:\d+)?", device):
                raise InputError(f"{path}{error}") from error
            if lacking is not None:
                lacking.append(f"{path}{error}")
        twin["device"] = "cpu"
    if twin.get("offload") is True:  # a CPU has none
        twin["offload"] = False
    return twin
