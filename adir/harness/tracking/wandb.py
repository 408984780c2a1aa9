"""Weights & Biases tracker, which logs one run per cell.

W&B only receives copies of the records. No result depends on it, and its failures do not stop a
cell.
"""

import configparser
import netrc
import os
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from adir.errors import one_line
from adir.files import read_json
from adir.harness.cells.cell import Cell
from adir.harness.records.layout import Layout
from adir.harness.records.ledger import Ledger
from adir.harness.records.planned import plan_cells
from adir.harness.tables.formats import to_csv, to_markdown
from adir.harness.tables.leaderboard import load_board
from adir.harness.tracking.base import (
    Record,
    Tracking,
    loss_curves,
    mean_curve,
    records_of,
    summary_of,
    table_of,
    within,
)

Mode = Literal["online", "offline", "disabled"]
T = TypeVar("T")


class WandbTracking(Tracking):
    """Tracker that logs one W&B run per cell.

    The W&B run's id is the cell's hash, so running a cell again updates the W&B run. The group is
    the grid's hash, and the job type is the adaptation mode.

    The W&B run contains:
        config: the configuration of the cell;
        history: the scores of each image, and the training loss at each iteration of adaptation,
            averaged over images;
        table: one row per image, with its scores, its y and the restored image;
        summary: the mean of each score with its interval;
        artifact: the leaderboard, only in the W&B run of a single cell or of a grid's last cell.

    Args:
        project: W&B project.
        entity: W&B user or team; None is W&B's default.
        mode: online, offline or disabled. None means online if a key is set (by WANDB_API_KEY or
            `wandb login`) and the server answers, else offline. Offline runs stay in RESULTS/wandb
            until `adir sync RESULTS` sends them.
        patience: time limit in seconds for each call of W&B, such as to start, to log or to finish.
            If one call takes longer, this process does not call W&B again.
    """

    called = "W&B"
    silent: ClassVar[bool] = False
    """True if a call of W&B timed out in this process.

    W&B is then not called any more, because each later cell would wait for it again.
    """
    _run: Any = None

    def __init__(
        self,
        project: str = "adir",
        entity: str | None = None,
        mode: Mode | None = None,
        patience: float = 60.0,
    ):
        super().__init__()
        self.project, self.entity, self.mode, self.patience = project, entity, mode, patience

    def opened(self, cell: Cell) -> None:
        """Open the W&B run of a cell.

        If no mode was set, the run is offline if there is no API key or the server cannot be
        reached, and online otherwise.
        """
        if WandbTracking.silent:
            self.cell = None  # the timeout itself printed a warning
            return
        mode: Mode = self.mode or ("online" if key_for(server_of()) else "offline")
        cell.results.mkdir(parents=True, exist_ok=True)
        # By default, the images of a table are stored in the home folder, so a copy of
        # RESULTS/wandb would lack them.
        os.environ.setdefault("WANDB_DATA_DIR", str(Layout(cell.results.absolute()).wandb))
        try:
            self._run = self._ask(lambda: self._open(cell, mode))
        except Exception as error:
            if mode != "online" or self.mode is not None or isinstance(error, TimeoutError):
                raise
            print(
                f"warning: W&B is out of reach ({one_line(error)}); the run is stored on this "
                "machine, and `adir sync` sends it to W&B later",
                flush=True,
            )
            self._run = self._ask(lambda: self._open(cell, "offline"))

    def _open(self, cell: Cell, mode: Mode) -> Any:
        import wandb  # takes 2 s to import, and only this tracker needs it

        axes = cell.identity.axes
        tags = [axes.backbone, axes.task, axes.sampler, axes.adaptation, axes.adapter]
        tags += [f"k={axes.k}" if axes.k is not None else None, f"seed={axes.seed}"]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=cell.identity.sha256[:32],
            name=cell.label,
            group=self.grid,
            job_type=axes.adaptation,
            config=cell.configuration | {"cell": cell.identity.sha256, "grid": self.grid},
            # W&B refuses tags of more than 64 characters.
            tags=list(dict.fromkeys(str(tag)[:64] for tag in tags if tag is not None)),
            mode=mode,
            dir=str(cell.results),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                silent=True,
                init_timeout=self.patience / 2,
                finish_timeout=self.patience / 2,
                finish_timeout_raises=True,
            ),
        )

    def told(self, record: Record, image: Path) -> None:
        """Log the scores of one image."""
        scores = {name: score.value for name, score in record.scores.items()}
        self._ask(
            lambda: self._run.log(
                {f"scores/{name}": value for name, value in scores.items() if value is not None}
            )
        )

    def closed(self, cell: Cell) -> None:
        """Log table, losses, summary and leaderboard, and close the W&B run.

        The W&B run is closed even if logging fails.
        """
        run = self._run
        try:
            self._ask(lambda: self._report(run, cell))
        finally:
            self._ask(run.finish)

    def _report(self, run: Any, cell: Cell) -> None:
        import wandb

        records = records_of(cell)
        if not records:
            return
        curve = mean_curve(loss_curves(cell, records))
        if curve:
            run.define_metric("adaptation/iteration")
            run.define_metric("adaptation/loss", step_metric="adaptation/iteration")
        for iteration, loss in enumerate(curve, start=1):
            run.log({"adaptation/iteration": iteration, "adaptation/loss": loss})
        rows = table_of(records)
        for row in rows:
            shown = {name: row[name] for name in ("restored", "y") if row[name] is not None}
            row |= {name: wandb.Image(str(cell.results / path)) for name, path in shown.items()}
        run.log(
            {
                "images": wandb.Table(
                    columns=list(rows[0]), data=[list(row.values()) for row in rows]
                )
            }
        )
        run.summary.update(summary_of(records, len(cell.data)))
        if grid_is_done(cell.results, self.grid):
            artifact = wandb.Artifact(
                f"leaderboard-{self.grid or cell.identity.sha256[:16]}", type="leaderboard"
            )
            board = load_board(cell.results)
            for name, text in (
                ("leaderboard.csv", to_csv(board)),
                ("leaderboard.md", to_markdown(board)),
            ):
                with artifact.new_file(name, encoding="utf-8") as file:
                    file.write(text)
            run.log_artifact(artifact)

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return within(self.patience, call)
        except TimeoutError:
            WandbTracking.silent = True
            raise


def grid_is_done(results: Path, grid: str | None) -> bool:
    """Return whether every image of a grid has a record.

    If `grid` is None, the result is True, because a single cell calls this function at its end.
    """
    if grid is None:
        return True
    plans = plan_cells(read_json(Layout(results).plan(grid)))
    return not any(Ledger(results / str(one.folder)).any_missing(one.images) for one in plans)


def server_of() -> str:
    """Return the address of the W&B server.

    The address is WANDB_BASE_URL, else the host saved by `wandb login --host`, else that of W&B's
    public server.
    """
    settings = configparser.ConfigParser(interpolation=None)
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    with suppress(OSError, configparser.Error):  # W&B itself reports a bad file
        settings.read(f"{folder}/settings")
    configured = os.environ.get("WANDB_BASE_URL") or settings.get(
        "default", "base_url", fallback=None
    )
    return (configured or "https://api.wandb.ai").rstrip("/")


def key_for(server: str) -> str | None:
    """Return the API key for a W&B server, or None if there is none.

    It is read from WANDB_API_KEY, else from ~/.netrc, to which `wandb login` writes it.
    """
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
        login = netrc.netrc(path).authenticators(urllib.parse.urlsplit(server).hostname or server)
    except (OSError, netrc.NetrcParseError):  # missing or unreadable
        return None
    return login[2] if login is not None else None
