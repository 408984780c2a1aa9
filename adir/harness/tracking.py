"""Telling someone else how a cell goes. A tracker's failure never costs a record."""

import os
from pathlib import Path
from typing import Any, Literal

from adir.harness.cell import Cell, first_line

Mode = Literal["online", "offline", "disabled"]


class NoTracking:
    """The records on disk, and nothing else."""

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Called before a cell's first picture."""

    def record(self, record: dict[str, Any], picture: Path) -> None:
        """Called after each record is written."""

    def finish(self) -> None:
        """Called after the cell, also when it stopped with an error."""


class WandbTracking:
    """One Weights & Biases run per cell, its id the cell's hash, so that running a cell again updates it.

    mode: online, offline or disabled; None is online where a key is set (WANDB_API_KEY, or `wandb login`) and the
    network answers, and else offline: the files then lie in RESULTS/wandb for `wandb sync`.
    """

    def __init__(self, project: str = "adir", entity: str | None = None, mode: Mode | None = None):
        self.project, self.entity, self.mode = project, entity, mode
        self._run: Any = None
        self._rows: list[list[Any]] = []
        self._columns: list[str] = []

    def start(self, cell: Cell, grid: str | None = None) -> None:
        """Open the run. A failure to do so is said once and the cell goes on untracked."""
        mode: Mode = self.mode or ("online" if has_key() else "offline")
        cell.results.mkdir(parents=True, exist_ok=True)
        # The pictures of a table would be put into the home folder, and not travel with RESULTS/wandb.
        os.environ.setdefault("WANDB_DATA_DIR", str(cell.results.absolute() / "wandb"))
        try:
            self._run = self._open(cell, mode)
        except Exception as error:
            if mode != "online" or self.mode is not None:
                self._give_up(error)
                return
            print(f"warning: W&B is out of reach ({first_line(error)}); this cell is tracked offline", flush=True)
            try:
                self._run = self._open(cell, "offline")
            except Exception as second:
                self._give_up(second)

    def _open(self, cell: Cell, mode: Mode) -> Any:
        import wandb  # 2 s to import, and only this tracker needs it

        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=cell.identity.sha256[:32],
            name=cell.label,
            config=cell.configuration | {"cell": cell.identity.sha256},
            tags=[str(cell.identity.axes[axis]) for axis in ("backbone", "task", "adaptation")],
            mode=mode,
            dir=str(cell.results),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, init_timeout=30),
        )

    def record(self, record: dict[str, Any], picture: Path) -> None:
        """Scores of one picture, and a row with the picture."""
        if self._run is None:
            return
        import wandb

        try:
            scores = {name: score["value"] for name, score in record["scores"].items()}
            self._run.log({f"scores/{name}": value for name, value in scores.items() if value is not None})
            shown = wandb.Image(str(picture)) if record["status"] == "done" else None
            self._columns = self._columns or ["image", "status", "restored", *scores]
            row = {"image": record["image"]["id"], "status": record["status"], "restored": shown} | scores
            self._rows.append([row.get(column) for column in self._columns])
        except Exception as error:
            self._give_up(error)

    def finish(self) -> None:
        """Write the table of pictures and close the run."""
        if self._run is None:
            return
        import wandb

        try:
            if self._rows:
                self._run.log({"pictures": wandb.Table(columns=self._columns, data=self._rows)})
            self._run.finish()
        except Exception as error:
            self._give_up(error)
        self._run, self._rows, self._columns = None, [], []

    def _give_up(self, error: Exception) -> None:
        print(
            f"warning: W&B failed ({type(error).__name__}: {first_line(error)}); going on without it",
            flush=True,
        )
        self._run = None


def has_key() -> bool:
    """Whether a W&B key is at hand: in the environment, or in ~/.netrc after `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text()
