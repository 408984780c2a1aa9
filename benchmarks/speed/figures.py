"""Figures of backbones.py: rows in one JSON file per device, and their report as Markdown."""

import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

from adir.files import read_json, write_json
from benchmarks.common import processor

Row = dict[str, Any]


class Figures:
    """Measured rows in one JSON file per device and size; each is saved when it is measured."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self.rows: dict[str, Row] = read_json(path) if path.is_file() else {}

    def add(self, what: str, key: Row, measure: Callable[[], Row]) -> None:
        """Measure unless the row is there; running out of memory is saved as a result too."""
        name = " ".join([what, *(f"{k}={v}" for k, v in key.items())])
        if name in self.rows:
            return
        started = time.perf_counter()
        try:
            row = measure()
        except torch.OutOfMemoryError as error:
            row = {"error": f"out of memory: {str(error).splitlines()[0]}"}
        took = round(time.perf_counter() - started, 1)
        self.rows[name] = {
            "what": what,
            **key,
            **row,
            "took_s": took,
            "command": self.command,
            **versions(),
        }
        write_json(self.path, self.rows)
        shown = {k: v for k, v in row.items() if not isinstance(v, dict)}
        print(f"{name}: {shown} ({took:.0f} s)", flush=True)


def versions() -> Row:
    """Return the versions and the date that the figures depend on."""
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": date.today().isoformat(),
    }


def device_name(device: str) -> str:
    """Return the GPU's name, or the processor's name and the number of threads used."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


TITLES = {
    "step": "One sampling step, and a bare call of the network",
    "adapt": "One adaptation iteration, LoRA of rank 16 on every convolution",
    "switch": "Attaching and detaching a trained adapter",
    "total": "A whole image: adaptation with batch 6, then sampling; after a warm-up, which "
    "compiles",
}
HIDDEN = ("what", "command", "torch", "diffusers", "date", "took_s")


def report(figures: Figures, device: str, size: str) -> str:
    """Return all rows as Markdown, one table per kind."""
    lines = [f"# Speed of the big backbones: {device}", ""]
    if size == "small":
        lines += [
            "Channels are cut to an eighth or a quarter: this shows that the script runs, not "
            "how fast the networks are.",
            "",
        ]
    lines += [
        "Weights are random. A floor is the time of the operations at the rate of a large matrix "
        "product on this device.",
        "",
    ]
    for what, title in TITLES.items():
        rows = [
            {k: v for k, v in row.items() if k not in HIDDEN}
            for row in figures.rows.values()
            if row["what"] == what
        ]
        if not rows:
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [
            f"## {title}",
            "",
            f"| {' | '.join(c.replace('_', ' ') for c in columns)} |",
            "|---" * len(columns) + "|",
        ]
        lines += [
            f"| {' | '.join(shown(row.get(column, '')) for column in columns)} |" for row in rows
        ] + [""]
    stamps = sorted(
        {
            f"{r['date']}, torch {r['torch']}, diffusers {r['diffusers']}"
            for r in figures.rows.values()
        }
    )
    commands = sorted({row["command"] for row in figures.rows.values()})
    lines += [f"{'; '.join(stamps)}; Python {platform.python_version()}. Commands:", ""]
    return "\n".join([*lines, *(f"    {command}" for command in commands)]) + "\n"


def shown(value: Any) -> str:
    """Return a value as a cell of a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
