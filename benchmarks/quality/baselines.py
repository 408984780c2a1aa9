"""Compare ADIR with the baselines on the embedded prior: quality against evaluations and seconds.

    adir run -m experiment=baselines
    adir run -m experiment=baselines_steps
    adir run -m experiment=baselines_direct
    python benchmarks/quality/baselines.py runs/baselines --out results/embedded

The script reads the records alone. It writes baselines.md (table), baselines.png (curves) and
baselines_images.png (the restorations of one image). Seconds are the sampler's per image, on the
machine that ran the grid. If that machine was busy, run the same grids on an idle one with
`data.only=[ONE] results=TIMINGS hydra/launcher=basic`, and pass `--timings TIMINGS`.
"""

import math
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter
from PIL import Image

from adir.errors import InputError
from adir.harness.records.layout import Layout
from adir.harness.records.ledger import DamagedFile, all_records
from adir.harness.records.record import Record
from adir.harness.tables.statistics import Estimate, mean_over_images
from benchmarks.common import finished_records, parser_of

METRICS = {"psnr": "PSNR / dB, higher is better", "deep-lite0": "deep-lite0, lower is better"}
COLUMNS = ("psnr", "ssim", "fsim", "deep-lite0", "residual")
DIRECT = ("bicubic", "adjoint", "pseudo_inverse")
ORDER = (
    *"adir adir_clean adir_fast ddpg ddnm diffpir ddrm pigdm dps daps pnp_dm ald".split(),
    *"score_sde ilvr dds red_diff dmsp".split(),
    *DIRECT,
)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, which is one row of the table, with its records."""

    task: str
    sampler: str
    mode: str
    n_steps: int
    evaluations: int
    gradients: int
    """Number of evaluations that were differentiated."""
    records: list[Record]
    timed: list[Record]
    """Records from which `seconds` is computed."""

    @property
    def seconds(self) -> float:
        """The median seconds of sampling per image; NaN without timed records."""
        return statistics.median([record.seconds["sample"] for record in self.timed] or [math.nan])

    def estimate(self, metric: str) -> Estimate:
        """Return the mean over images and its standard error; no value if an image misses it."""
        return mean_over_images([record.value(metric) for record in self.records])

    def score(self, metric: str) -> float | None:
        """Return the mean over images; None if an image misses the metric."""
        return self.estimate(metric).value

    def text(self, metric: str) -> str:
        """Return the mean and its standard error, such as `24.71 ± 0.80`."""
        estimate = self.estimate(metric)
        if estimate.value is None:
            return "–"
        error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.2g}"
        return f"{estimate.value:#.4g}{error}"

    @property
    def label(self) -> str:
        """The sampler, followed by the mode if the network is adapted: `ddpg` or `ddpg knn`."""
        return self.sampler if self.mode == "none" else f"{self.sampler} {self.mode}"


def read_cells(results: Path, timings: Path | None) -> list[Cell]:
    """Return the finished cells of a results folder.

    Args:
        results: the results folder.
        timings: a results folder whose records give the seconds; None: `results`.

    Raises:
        InputError: if there are no records, if a record failed or is damaged, or if cells differ in
            their images, or images of one cell in their steps or evaluations.
    """
    timed: dict[str, list[Record]] = defaultdict(list)
    for record in all_records(timings) if timings is not None else ():
        if not isinstance(record, DamagedFile):
            timed[record.cell].append(record)
    by_cell: dict[str, list[Record]] = defaultdict(list)
    for record in finished_records(results):
        by_cell[record.cell].append(record)
    if not by_cell:
        raise InputError(f"{results}: no records; run experiment=baselines first")
    images = {cell: {record.image.id for record in records} for cell, records in by_cell.items()}
    if len({frozenset(ids) for ids in images.values()}) > 1:
        raise InputError(
            f"{results}: its cells have different images; run the grids again to finish them"
        )
    cells = []
    for records in by_cell.values():
        axes = records[0].axes
        counts = {
            (r.sampler.n_steps, r.sampler.network_evaluations, r.sampler.gradient_evaluations)
            for r in records
            if r.sampler is not None
        }
        if len(counts) != 1:
            raise InputError(
                f"{results}: images of {axes} took different numbers of steps and evaluations: "
                f"{counts}; run the grid again in a new folder"
            )
        own = records if timings is None else timed[records[0].cell]
        cells.append(Cell(axes.task, axes.sampler, axes.adaptation, *counts.pop(), records, own))
    rows = Counter((cell.task, cell.label, cell.n_steps) for cell in cells)
    twice = [row for row, count in rows.items() if count > 1]
    if twice:
        raise InputError(
            f"{results}: holds cells with different settings for {twice[0]}; use a folder for each"
        )
    return sorted(cells, key=lambda c: (c.task, ORDER.index(c.sampler), c.mode, c.evaluations))


def table(cells: list[Cell]) -> str:
    """Return the Markdown page with one row per cell."""
    first = cells[0].records[0]
    n = len(cells[0].records)
    commits = sorted({str(record.commit)[:10] for cell in cells for record in cell.records})
    images = {len(cell.timed) for cell in cells}
    seconds = (
        "median per image"
        if images == {n}
        else f"of {max(images)} image(s), timed apart from the study"
    )
    lines = [
        "# ADIR's sampler beside the baselines, embedded prior",
        "",
        f"{n} images, one seed; mean ± standard error over images. Made by "
        "`benchmarks/quality/baselines.py` from grids of "
        f"commit {', '.join(commits)}, torch {first.versions['torch']}, deepinv "
        f"{first.versions['deepinv']}, "
        f"{first.threads} thread(s) a process. Settings: tuned by one rule (tuning.md), those "
        "of `adir` the paper's. "
        f"Seconds: {seconds}, sampling alone. Evaluations of the network without + with a "
        "backpropagation through it, "
        "which costs about two more. residual: rms(A x̂ − y) in grey levels; the noise of "
        "deblur is 10.",
        "",
        "| task | sampler | evaluations | seconds | PSNR ↑ | SSIM ↑ | FSIM ↑ | deep-lite0 ↓ | "
        "residual |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        scores = " | ".join(cell.text(metric) for metric in COLUMNS)
        seconds = "–" if math.isnan(cell.seconds) else f"{cell.seconds:.2g}"
        plain = cell.evaluations - cell.gradients
        evaluations = f"{plain} + {cell.gradients}" if cell.gradients else str(plain)
        lines.append(f"| {cell.task} | {cell.label} | {evaluations} | {seconds} | {scores} |")
    return "\n".join([*lines, ""])


def draw_curves(cells: list[Cell], path: Path) -> None:
    """Draw each metric against evaluations and against seconds, one row per task.

    Methods without a network are dotted lines, which may lie outside the panels.
    """
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    figure, grid = plt.subplots(
        len(tasks), 4, figsize=(18, 4.2 * len(tasks)), squeeze=False, layout="constrained"
    )
    labels = list(dict.fromkeys(cell.label for cell in cells))
    colours = {label: plt.colormaps["tab10"](number % 10) for number, label in enumerate(labels)}
    markers = {label: "os^D"[number // 10 % 4] for number, label in enumerate(labels)}
    for row, task in zip(grid, tasks, strict=True):
        panels = [(metric, cost) for metric in METRICS for cost in ("evaluations", "seconds")]
        for axes, (metric, cost) in zip(row, panels, strict=True):
            curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for cell in cells:
                value = cell.score(metric)
                if cell.task == task and value is not None:
                    curves[cell.label].append((getattr(cell, cost), value))
            for label, points in curves.items():
                if label in DIRECT:
                    axes.axhline(points[0][1], color=colours[label], linestyle=":", label=label)
                else:
                    axes.plot(
                        *zip(*sorted(points), strict=True),
                        linestyle="-",
                        marker=markers[label],
                        color=colours[label],
                        label=label,
                        markersize=4,
                    )
            # Lines of methods without a network may lie outside: a bad one would squeeze the curves.
            values = [y for label in curves.keys() - set(DIRECT) for _, y in curves[label]]
            room = 0.05 * (max(values) - min(values)) + 0.05
            axes.set_ylim(min(values) - room, max(values) + room)
            axes.set_xscale("log")
            measured = {cell.evaluations for cell in cells if cell.evaluations}
            axes.set_xticks(sorted(measured) if cost == "evaluations" else [2, 5, 10, 20, 50])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(
                "network evaluations per image" if cost == "evaluations" else "seconds per image"
            )
            axes.set_ylabel(METRICS[metric])
            axes.set_title(task)
            axes.grid(alpha=0.3)
    handles = {
        name: line
        for axes in grid[:, -1]
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    shown = [label for label in labels if label in handles]
    grid[0][-1].legend(
        [handles[label] for label in shown],
        shown,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_strip(results: Path, cells: list[Cell], path: Path, image: str | None) -> None:
    """Draw two rows per task: y, the ground truth, and one restoration per label with its PSNR.

    Each label is shown with its largest number of evaluations.

    Args:
        results: the results folder.
        cells: its cells, sorted by evaluations.
        path: the PNG file to write.
        image: the id of the test image; None: the first by name.
    """
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    chosen: dict[str, dict[str, Record]] = {task: {} for task in tasks}
    for cell in cells:  # sorted by evaluations, so the last cell of a label is kept
        by_id = {record.image.id: record for record in cell.records}
        chosen[cell.task][cell.label] = by_id[image if image is not None else min(by_id)]
    width = math.ceil((2 + max(map(len, chosen.values()))) / 2)
    figure, grid = plt.subplots(
        2 * len(tasks),
        width,
        figsize=(1.9 * width, 4.6 * len(tasks)),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.axis("off")
    for rows, task in zip(grid.reshape(len(tasks), 2 * width), tasks, strict=True):
        records = chosen[task]
        first = next(iter(records.values()))
        truth = Layout(results).image(str(first.image.sha256))
        shown: dict[str, tuple[Path, float | None]] = {
            f"{task}: y": (results / str(first.y_file), None)
        }
        if truth.is_file():
            shown["ground truth"] = (truth, None)
        shown |= {
            label: (results / str(one.restored), one.value("psnr"))
            for label, one in records.items()
        }
        for axes, (label, (file, psnr)) in zip(rows, shown.items(), strict=False):
            with Image.open(file) as opened:
                axes.imshow(np.asarray(opened.convert("RGB")), interpolation="nearest")
            axes.set_title(
                label if psnr is None or math.isnan(psnr) else f"{label}\n{psnr:.1f} dB", fontsize=8
            )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = parser_of(__doc__, Path("results/embedded"), "folder for the page and its images")
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--timings", type=Path, help="results folder whose records give the seconds"
    )
    parser.add_argument("--image", help="id of the drawn image; default: the first by name")
    arguments = parser.parse_args()
    cells = read_cells(arguments.results, arguments.timings)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "baselines.md").write_text(table(cells))
    draw_curves(cells, arguments.out / "baselines.png")
    draw_strip(arguments.results, cells, arguments.out / "baselines_images.png", arguments.image)
    print(table(cells))


if __name__ == "__main__":
    main()
