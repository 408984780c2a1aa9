"""Measure the processor seconds of an `adir` command by stage, without the stages that it calls.

    python benchmarks/speed/stages.py run -m experiment=demo results=FOLDER hydra/launcher=basic
    python benchmarks/speed/stages.py run -m experiment=demo results=FOLDER existing=report

Everything runs in one process with one thread, unless OMP_NUM_THREADS is set. The functions in
STAGES are wrapped; time outside them is `rest`. Imports during a stage count as `imports`.
"""

import builtins
import functools
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STARTED = time.process_time()
os.environ.setdefault("OMP_NUM_THREADS", "1")

STAGES = {
    "compose and check the cells": ("adir.harness.running.grid:check_job", "adir.harness.cells.cell:resolve_cell"),
    "copies of the test image": ("adir.harness.running.neighbours:copies",),
    "embed the corpus": ("adir.retrieval.index.memory:Index.build",),
    "rest of retrieval": ("adir.harness.running.pipeline:neighbours_of",),
    "train": ("adir.adaptation.fine_tuning:FineTuning.train",),
    "held-out losses": ("adir.adaptation.held_out:HeldOutCrops.losses",),
    "held-out crops": ("adir.adaptation.held_out:HeldOutCrops.__init__",),
    "rest of adaptation": ("adir.harness.running.pipeline:find_or_train_adapter",),
    "network while sampling": ("adir.backbones.guided_diffusion:GuidedDiffusion.predict",),
    "rest of sampling": ("adir.harness.running.worker:sample",),
    "score": ("adir.harness.running.pipeline:score_image",),
    "records and images": (
        "adir.harness.records.ledger:Ledger.write", "adir.harness.records.ledger:Ledger.read",
        "adir.harness.running.pipeline:write_png", "adir.harness.running.pipeline:keep_image",
    ),
}  # fmt: skip


class Stages:
    """Processor seconds and calls by stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open = ["rest"]
        self._since = STARTED

    def _settle(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        """Count the time inside this context for the stage."""
        self._settle()
        self._open.append(stage)
        self.calls[stage] += stage != "imports"
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def wrap(self, stage: str, place: str) -> None:
        """Replace MODULE:NAME or MODULE:CLASS.NAME by a function that measures its time."""
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
        found: Callable[..., Any] = vars(owner)[name]
        function = found.__func__ if isinstance(found, classmethod) else found

        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> Any:
            with self.inside(stage):
                return function(*args, **kwargs)

        setattr(owner, name, classmethod(told) if isinstance(found, classmethod) else told)

    def watch_imports(self) -> None:
        """Count the time of imports of modules that are not loaded yet as `imports`."""
        real = builtins.__import__

        def told(name: str, *args: Any, **kwargs: Any) -> Any:
            level = args[3] if len(args) > 3 else kwargs.get("level", 0)
            if level > 0 or name in sys.modules or self._open[-1] == "imports":
                return real(name, *args, **kwargs)
            with self.inside("imports"):
                return real(name, *args, **kwargs)

        builtins.__import__ = told

    def table(self) -> str:
        """Return a Markdown table, the longest stage first."""
        self._settle()
        total = sum(self.seconds.values())
        rows = [
            f"| {stage} | {self.calls[stage] or ''} | {seconds:.1f} | {seconds / total:.0%} |"
            for stage, seconds in self.seconds.most_common()
        ]
        head = ["| stage | calls | processor seconds | share |", "|---|---|---|---|"]
        return "\n".join([*head, *rows, f"| all | | {total:.1f} | |"])


def main(arguments: list[str]) -> int:
    """Run the command, print the table, and return the command's exit status."""
    stages = Stages()
    stages.watch_imports()
    for stage, places in STAGES.items():
        for place in places:
            stages.wrap(stage, place)
    from adir.cli import main as adir

    status = adir(arguments)
    print(stages.table())
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
