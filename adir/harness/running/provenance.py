"""What a record says of the program that made it: versions, commit, memory, seconds by stage."""

import functools
import platform
import resource
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import torch

import adir


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
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
    """The commit of the checkout that runs, with `-dirty` where tracked files differ; None for an
    installed package.
    """
    root = Path(adir.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        changed = subprocess.run(
            ["git", "-C", str(root), "diff", "--quiet", "HEAD"], capture_output=True, check=False
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout without a commit
        return None
    return head.stdout.strip() + ("-dirty" if changed.returncode else "")


def process_peak_memory_mb(device: torch.device) -> float:
    """Peak of this process so far, in MB, earlier images included: of the GPU where there is one,
    else resident memory.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


def forget_peak_memory(device: torch.device) -> None:
    """Let the peak memory of this process start anew from what it holds now.

    Where the system does not allow it, the peak stays that of all that went before: an upper bound.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # proc(5): resets VmHWM, and with it getrusage's ru_maxrss
    except OSError:
        pass


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str, share: int = 1) -> None:
        """Ends a stage that `share` images went through together."""
        now = time.perf_counter()
        self.seconds[stage] = round((now - self._last) / share, 3)
        self._last = now

    def start(self) -> None:
        """What went by since the last lap was spent on other images."""
        self._last = time.perf_counter()
