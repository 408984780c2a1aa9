"""Devices of jobs: check that they exist, and assign a GPU to each worker that requests `cuda`."""

import fcntl
import os
import re
import tempfile
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from adir.errors import InputError

_held: list[IO[str]] = []
"""The locked file of this process's GPU; the lock ends with the process."""


def gpu_count() -> int:
    """Return the number of this machine's GPUs, or 1 without a GPU.

    A launcher with one worker per GPU thus starts at least one worker.
    """
    # torch is imported inside functions because composing a configuration does not need it.
    import torch

    return max(1, torch.cuda.device_count())


def use_own_gpu(in_parallel_worker: bool) -> int | None:
    """Choose a GPU for this process that no other worker on this machine uses.

    A locked file marks a GPU as used until the process ends. If all GPUs are used, the last GPU is
    chosen. The chosen GPU becomes torch's current device.

    Args:
        in_parallel_worker: whether other workers run on this machine.

    Returns:
        The index of the chosen GPU. None if this process already chose a GPU, if there are no other
        workers, or if the machine has fewer than two GPUs.
    """
    import torch

    n_gpus = torch.cuda.device_count()
    if not in_parallel_worker or n_gpus < 2 or _held:
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
    torch.cuda.set_device(chosen)
    return chosen


def on_the_cpu(configuration: Any, lacking: list[str] | None, path: str = "") -> Any:
    """Return a copy of an unresolved configuration with every device set to "cpu".

    In the copy, `offload: true` becomes false, because a CPU cannot offload. A process that only
    checks a cell uses the copy, because it must neither need nor occupy a GPU.

    Args:
        configuration: the whole configuration or a part of it, as dicts and lists.
        lacking: list to which one message per device that this machine lacks is added; None if
            another machine will run the cell.
        path: dotted key of the part, ending in a dot.

    Raises:
        InputError: for a name that is not a device on any machine.
    """
    # This module imports diffusers, which a process that only chooses its GPU does not need.
    from adir.backbones.execution import device_of

    if isinstance(configuration, list):
        return [on_the_cpu(part, lacking, path) for part in configuration]
    if not isinstance(configuration, dict):
        return configuration
    twin = {key: on_the_cpu(part, lacking, f"{path}{key}.") for key, part in configuration.items()}
    device = twin.get("device")
    if isinstance(device, str) and not device.startswith("${"):  # no interpolation
        try:
            device_of(device)
        except ValueError as error:
            if not re.fullmatch(r"cuda(:\d+)?", device):
                raise InputError(f"{path}{error}") from error
            if lacking is not None:
                lacking.append(f"{path}{error}")
        twin["device"] = "cpu"
    if twin.get("offload") is True:  # a CPU cannot offload
        twin["offload"] = False
    return twin
