"""Describe the program that made a record: versions, commit, memory, seconds by stage."""

import functools
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch

import adir


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of adir, of Python, and of the packages that the numbers depend on."""
    packages = (
        "torch",
        "diffusers",
        "peft",
        "deepinv",
        "pyiqa",
        "pytorch-lightning",
        "scikit-image",
    )
    return {"adir": adir.__version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


@functools.cache
def commit() -> str | None:
    """Return the commit of the running checkout, with `-dirty` if tracked files differ from it.

    Return None for an installed package, without git, and in a checkout without a commit.
    """
    root = Path(adir.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        # Without tags, `git describe` prints the whole hash of the commit.
        told = subprocess.run(
            "git describe --always --abbrev=40 --exclude=* --dirty".split(),
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout without a commit
        return None
    return told.stdout.strip()


def process_peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process since its start or its last reset, in MB.

    The value is GPU memory if `device` is a GPU, else resident memory.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)  # KiB on Linux


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of this process to its current use.

    If the system does not allow the reset, the peak still includes all earlier work and is an
    upper bound.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        # proc(5): resets VmHWM, and with it getrusage's ru_maxrss.
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def timed(seconds: dict[str, float], stage: str, share: int = 1) -> Iterator[None]:
    """Store the duration of the `with` block in `seconds` under the name of a stage.

    The duration is divided by `share`, the number of images that go through the stage together.
    """
    started = time.perf_counter()
    yield
    seconds[stage] = round((time.perf_counter() - started) / share, 3)
