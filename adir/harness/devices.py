"""One GPU for each worker of a node: several processes of a launcher that all say `cuda` shall not share the first."""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

_held: list[IO[str]] = []
"""The lock of this process's GPU, held until it ends."""


def gpu_count() -> int:
    """GPUs of this machine, at least 1, so that a launcher with a worker for each has one where there is none."""
    return max(1, torch.cuda.device_count())


def use_own_gpu(beside_others: bool, count: int | None = None) -> int | None:
    """Make a GPU of its own the current one of this process, where others work beside it on a node of several.

    Returns its number, or None where nothing was to be chosen. Workers beyond the number of GPUs share the last one.
    count: GPUs of the node; asked of torch unless given. The locks are of this machine, like the GPUs, and go with
    their process.
    """
    n_gpus = torch.cuda.device_count() if count is None else count
    if not beside_others or n_gpus < 2 or _held:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n_gpus)))).split(",")
    chosen = n_gpus - 1
    for number in range(n_gpus):
        path = Path(tempfile.gettempdir()) / f"adir-{os.getuid()}-gpu-{visible[number].strip()}.lock"
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
