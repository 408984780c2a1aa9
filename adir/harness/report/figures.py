"""Figures for papers, as PNG and PDF: the paper's comparison (ground truth, y, none, ADIR, and other samplers), fidelity
against perceived quality, and the sweep of K. The same results give the same bytes."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from adir.files import write_bytes
from adir.harness.report.gather import FIDELITY, PERCEIVED, Gathered, Scene, pick_metric
from adir.harness.report.looks import LIGHT, MODES, SHAPES
from adir.harness.report.pictures import ground_truth, open_rgb
from adir.harness.tables.board import label
from adir.harness.tables.verdicts import grouped

WIDTH = 6.9  # inches: of a page of text in two columns
SMALLEST = 0.85  # inches of a picture, where a column for each sampler makes a figure wider than the page
PICTURES_PER_FIGURE = 6
MOST_PICTURES = 24  # a task; a paper's appendix shows no more
BESIDE = 0.02  # of the sweep's width, between rows of one K, whose error bars would hide each other
STYLE = {
    "pdf.fonttype": 42,  # TrueType: the outlines of type 3 are refused by many publishers
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "text.parse_math": False,  # a dollar sign in the name of a picture is a dollar sign
}


def write_figures(gathered: Gathered, folder: Path) -> list[Path]:
    """Write every figure that the results have something for; returns the files."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in all_figures(gathered):
            for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                content = io.BytesIO()
                figure.savefig(content, format=ending, metadata=metadata)
                path = folder / f"{quote(name, safe=' ').replace(' ', '-')}.{ending}"
                write_bytes(path, content.getvalue())
                written.append(path)
    return written


def all_figures(gathered: Gathered) -> Iterator[tuple[str, Figure]]:
    """(name, figure), task by task."""
    rows = gathered.board.rows
    places = grouped(
        ((row.axes["task"], row.axes["data"] or "", row.axes["backbone"]), n) for n, row in enumerate(rows)
    )
    several = "data" in gathered.board.shown
    for (task, data, backbone), numbers in places.items():
        where = f"{backbone} {task}" + (f" {data}" if several else "")
        scenes = [scene for scene in gathered.scenes_of(rows[numbers[0]]) if scene.done][:MOST_PICTURES]
        for first in range(0, len(scenes), PICTURES_PER_FIGURE):
            part = f" {first // PICTURES_PER_FIGURE + 1}" if len(scenes) > PICTURES_PER_FIGURE else ""
            figure = comparison(gathered, numbers, scenes[first : first + PICTURES_PER_FIGURE])
            yield f"comparison {where}{part}", figure
        fidelity, perceived = pick_metric(gathered.board, FIDELITY), pick_metric(gathered.board, PERCEIVED)
        if fidelity is not None and perceived is not None:
            found = scatter(gathered, numbers, fidelity, perceived)
            if found is not None:
                yield f"scatter {where}", found
        metrics = [metric for metric in (fidelity, perceived) if metric is not None]
        found = k_sweep(gathered, numbers, metrics)
        if found is not None:
            yield f"k-sweep {where}", found


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure that no window system is asked for."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def columns(gathered: Gathered, numbers: list[int]) -> list[tuple[str, int]]:
    """(title, row of the board) of the restored columns, for each sampler of which there is a record: `none`, and the
    adapted row, which is knn with the largest K, else self."""
    rows = gathered.board.rows
    found: list[tuple[str, int]] = []
    numbers = [number for number in numbers if rows[number].have]
    samplers = sorted(dict.fromkeys(rows[n].axes["sampler"] for n in numbers), key=lambda name: name != "adir")
    for sampler in samplers:
        own = [n for n in numbers if rows[n].axes["sampler"] == sampler]
        of_mode = {mode: [n for n in own if rows[n].axes["adaptation"] == mode] for mode in ("none", "self", "knn")}
        adapted = sorted(of_mode["knn"], key=lambda n: -(rows[n].axes["k"] or 0)) or of_mode["self"]
        for number in of_mode["none"][:1]:
            found.append(("none" if len(samplers) == 1 else f"{sampler} none" if adapted else sampler, number))
        for number in adapted[:1]:
            name = "ADIR" if sampler == "adir" else sampler
            found.append((f"{name} ({label(rows[number].axes)})", number))
    return found


def comparison(gathered: Gathered, numbers: list[int], scenes: list[Scene]) -> Figure:
    """The paper's layout: a row per picture; ground truth, y, none, ADIR, and other samplers. What is missing says so."""
    restored = columns(gathered, numbers)
    titles = ["GT", "y", *(title for title, _ in restored)]
    metric = next((name for name, way in gathered.board.metrics.items() if way != "none"), None)
    gap, above, caption_height = 0.05, 0.2, 0.16  # inches
    side = max(SMALLEST, (WIDTH - gap * (len(titles) - 1)) / len(titles))
    width = side * len(titles) + gap * (len(titles) - 1)
    height = above + (side + caption_height) * len(scenes)
    figure = new_figure(width, height, layout=None)
    places = figure.subplots(len(scenes), len(titles), squeeze=False)
    figure.subplots_adjust(0, caption_height / height, 1, 1 - above / height, gap / side, caption_height / side)
    for scene, line in zip(scenes, places, strict=True):
        show(line[0], ground_truth(gathered.folder, scene.image_id, scene.sha256), scene.image_id, named=True)
        show(line[1], open_rgb(gathered.folder, scene.done[0].y_file), "")
        for axes, (_, number) in zip(line[2:], restored, strict=True):
            record = scene.cells.get(number, {}).get(gathered.first_seed)
            if record is None or record.status != "done":
                show(axes, None, "" if record is None else "failed")
                continue
            value = record.value(metric) if metric is not None else None
            caption = f"{metric} {value:#.4g}" if value is not None else ""
            show(axes, open_rgb(gathered.folder, record.picture), caption)
    for axes, title in zip(places[0], titles, strict=True):
        axes.set_title(title, fontsize=8 if len(titles) < 7 else 6, pad=4)
    return figure


def show(axes: Axes, picture: Image.Image | None, caption: str, named: bool = False) -> None:
    """A picture with a caption, pixel by pixel: an interpolation would restore what the sampler did not."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if picture is None:
        axes.text(0.5, 0.5, "missing", ha="center", va="center", color="0.45", transform=axes.transAxes)
        axes.set_aspect("equal")
    else:
        axes.imshow(np.asarray(picture), interpolation="nearest")
    # Names of pictures start at the left edge: as long as they are, they run on under y, which has no caption.
    axes.set_xlabel(caption, fontsize=6, labelpad=2, color="0.3", loc="left" if named else "center")


def look(gathered: Gathered, number: int) -> dict[str, Any]:
    """What matplotlib's lines are given to look like the row does on the page."""
    found = gathered.looks[number]
    colour = LIGHT[found.colour]
    return {"color": colour, "marker": SHAPES[found.shape], "markerfacecolor": "white" if found.open else colour}


def legend_below(figure: Figure, width: float, height: float, axes: Axes) -> None:
    """A legend of the lines of `axes` under the drawing: as many columns as fit, and the figure higher by their lines."""
    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]  # without its bars
    columns = max(
        1, int(width / (0.42 + 0.058 * max(map(len, labels))))
    )  # inches of a mark and of a letter of 6.5 points
    figure.set_size_inches(width, height + 0.1 + 0.145 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=6.5, columnspacing=1.2)


def titled(gathered: Gathered, metric: str) -> str:
    """`psnr (higher is better)`"""
    way = gathered.board.metrics[metric]
    return metric if way == "none" else f"{metric} ({way} is better)"


def scatter(gathered: Gathered, numbers: list[int], x: str, y: str) -> Figure | None:
    """Means of the rows with their standard errors; None where fewer than two have both."""
    points: list[tuple[int, float, float, float | None, float | None]] = []
    for number in numbers:
        across, up = (gathered.board.rows[number].estimates[name] for name in (x, y))
        if across.value is not None and up.value is not None:
            points.append((number, across.value, up.value, across.standard_error, up.standard_error))
    if len(points) < 2:
        return None
    width, height = WIDTH * 0.62, 2.6
    figure = new_figure(width, height)
    axes = figure.subplots()
    for number, mean_x, mean_y, error_x, error_y in points:
        axes.errorbar(
            mean_x,
            mean_y,
            xerr=error_x,
            yerr=error_y,
            linestyle="none",
            markersize=5,
            elinewidth=0.7,
            label=gathered.labels[number],
            **look(gathered, number),
        )
    axes.set_xlabel(titled(gathered, x))
    axes.set_ylabel(titled(gathered, y))
    legend_below(figure, width, height, axes)
    return figure


def k_sweep(gathered: Gathered, numbers: list[int], metrics: list[str]) -> Figure | None:
    """Metric against K, a panel per metric, for rows that differ in K alone; `none` as a dashed line. None without a sweep."""
    rows = gathered.board.rows
    families: dict[tuple[Any, ...], list[int]] = {}
    for number in numbers:
        axes_of = rows[number].axes
        if axes_of["k"] is not None and all(rows[number].estimates[name].value is not None for name in metrics):
            families.setdefault((axes_of["sampler"], axes_of["adaptation"], axes_of["adapter"]), []).append(number)
    swept = [found for found in families.values() if len({rows[n].axes["k"] for n in found}) > 1]
    if not swept or not metrics:
        return None
    ks = sorted({rows[n].axes["k"] for family in swept for n in family})
    figure = new_figure(WIDTH, 2.4)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for metric, panel in zip(metrics, panels, strict=True):
        for place, family in enumerate(swept):
            beside = (ks[-1] / ks[0]) ** (BESIDE * (place - (len(swept) - 1) / 2))
            family = sorted(family, key=lambda n: rows[n].axes["k"])
            estimates = [rows[n].estimates[metric] for n in family]
            first = rows[family[0]].axes
            panel.errorbar(
                [rows[n].axes["k"] * beside for n in family],
                [estimate.value for estimate in estimates],
                yerr=[estimate.standard_error or 0 for estimate in estimates],
                label=label({**first, "k": None, "variant": ""}),
                linestyle=":" if gathered.looks[family[0]].open else "-",
                color=look(gathered, family[0])["color"],
                linewidth=1,
                elinewidth=0.6,
            )
            for n in family:
                mean = rows[n].estimates[metric].value
                panel.plot([rows[n].axes["k"] * beside], [mean], markersize=4, linestyle="none", **look(gathered, n))
        none = next((n for n in numbers if rows[n].axes["adaptation"] == "none"), None)
        level = rows[none].estimates[metric].value if none is not None else None
        if level is not None:
            panel.axhline(level, color=LIGHT[MODES["none"]], linestyle="--", linewidth=0.9, label="none")
        panel.set_xscale("log")
        panel.set_xticks(ks, [str(k) for k in ks])
        panel.minorticks_off()
        panel.set_xlabel("K")
        panel.set_ylabel(titled(gathered, metric))
    legend_below(figure, WIDTH, 2.2, panels[-1])
    return figure
