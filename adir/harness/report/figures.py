"""Figures for papers, as PNG and PDF: the paper's comparison (ground truth, y, none, ADIR), fidelity against perceived
quality, and the sweep of K. The same results give the same bytes."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adir.files import write_bytes
from adir.harness.board import Row, label
from adir.harness.report.gather import FIDELITY, PERCEIVED, Gathered, Scene, pick_metric
from adir.harness.report.pictures import embedded_test_field, is_inside, open_rgb, stored_pictures

WIDTH = 6.9  # inches: of a page of text in two columns
PICTURES_PER_FIGURE = 6
MOST_PICTURES = 24  # a task; a paper's appendix shows no more
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
COLOURS = {"none": "#77736a", "self": "#bb6a12", "knn": "#1f6fb8", "pixel": "#1d8560", "random": "#9350b5"}
OTHERS = ("#b3394f", "#5a7a1e", "#2b7f8c", "#8a5a3c")
MARKS = "osD^vP*X"


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
    places = dict.fromkeys((row.axes["task"], row.axes.get("data") or "", row.axes["backbone"]) for row in rows)
    several = len({data for _, data, _ in places}) > 1
    for task, data, backbone in places:
        numbers = [
            number
            for number, row in enumerate(rows)
            if (row.axes["task"], row.axes.get("data") or "", row.axes["backbone"]) == (task, data, backbone)
        ]
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
    """(title, row of the board) of the restored columns: `none`, and ADIR, which is knn with the largest K, else self."""
    rows = gathered.board.rows
    of_paper = [n for n in numbers if rows[n].axes["sampler"] == "adir"] or numbers
    none = [n for n in of_paper if rows[n].axes["adaptation"] == "none"]
    knn = [n for n in of_paper if rows[n].axes["adaptation"] == "knn"]
    adapted = sorted(knn, key=lambda n: -(rows[n].axes["k"] or 0)) or [
        n for n in of_paper if rows[n].axes["adaptation"] == "self"
    ]
    found = [("none", none[0])] if none else []
    return found + ([(f"ADIR ({label(rows[adapted[0]].axes)})", adapted[0])] if adapted else [])


def comparison(gathered: Gathered, numbers: list[int], scenes: list[Scene]) -> Figure:
    """The paper's layout: a row per picture; ground truth, y, none, ADIR. What is missing says so."""
    restored = columns(gathered, numbers)
    titles = ["GT", "y", *(title for title, _ in restored)]
    metric = next((name for name, way in gathered.board.metrics.items() if way != "none"), None)
    gap, above, caption_height = 0.05, 0.2, 0.16  # inches
    side = (WIDTH - gap * (len(titles) - 1)) / len(titles)
    height = above + (side + caption_height) * len(scenes)
    figure = new_figure(WIDTH, height, layout=None)
    places = figure.subplots(len(scenes), len(titles), squeeze=False)
    figure.subplots_adjust(0, caption_height / height, 1, 1 - above / height, gap / side, caption_height / side)
    for scene, line in zip(scenes, places, strict=True):
        sha256 = scene.done[0]["image"].get("sha256")
        truth = first_picture(gathered.folder, stored_pictures(sha256)[:1])
        if truth is None:
            field = embedded_test_field(scene.image_id, sha256)
            truth = None if field is None else np.asarray(field)
        show(line[0], truth, scene.image_id)
        show(line[1], first_picture(gathered.folder, [scene.done[0]["y"].get("file")]), "")
        for axes, (_, number) in zip(line[2:], restored, strict=True):
            record = scene.cells.get(number, {}).get(gathered.first_seed)
            if record is None or record["status"] != "done":
                show(axes, None, "" if record is None else "failed")
                continue
            value = (record["scores"].get(metric) or {}).get("value") if metric is not None else None
            caption = f"{metric} {value:#.4g}" if value is not None else ""
            show(axes, first_picture(gathered.folder, [record.get("picture")]), caption)
    for axes, title in zip(places[0], titles, strict=True):
        axes.set_title(title, fontsize=8, pad=4)
    return figure


def first_picture(folder: Path, names: list[Any]) -> np.ndarray | None:
    """(H, W, 3) uint8 of the first of these files that can be read."""
    for name in names:
        picture = open_rgb(folder / name) if isinstance(name, str) and is_inside(name) else None
        if picture is not None:
            return np.asarray(picture)
    return None


def show(axes: Axes, pixels: np.ndarray | None, caption: str) -> None:
    """A picture with a caption, pixel by pixel: an interpolation would restore what the sampler did not."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if pixels is None:
        axes.text(0.5, 0.5, "missing", ha="center", va="center", color="0.45", transform=axes.transAxes)
        axes.set_aspect("equal")
    else:
        axes.imshow(pixels, interpolation="nearest")
    axes.set_xlabel(caption, fontsize=6, labelpad=2, color="0.3")


def look(gathered: Gathered, number: int) -> dict[str, Any]:
    """Colour by mode, or by sampler for those that are not the paper's; a mark for each row of one colour."""
    rows = gathered.board.rows
    others = [name for name in dict.fromkeys(row.axes["sampler"] for row in rows) if name != "adir"]

    def colour(row: Row) -> str:
        if row.axes["sampler"] in others:
            return OTHERS[others.index(row.axes["sampler"]) % len(OTHERS)]
        return COLOURS.get(row.axes["adaptation"], COLOURS["none"])

    kin = [n for n, row in enumerate(rows) if colour(row) == colour(rows[number]) and same_task(row, rows[number])]
    return {"color": colour(rows[number]), "marker": MARKS[kin.index(number) % len(MARKS)]}


def same_task(one: Row, other: Row) -> bool:
    """Whether two rows of the board restore the same thing."""
    return one.axes["task"] == other.axes["task"]


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
    figure = new_figure(WIDTH * 0.62, 2.6)
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
    figure.legend(loc="outside right upper", fontsize=6.5)
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
    figure = new_figure(WIDTH, 2.4)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for metric, panel in zip(metrics, panels, strict=True):
        for family in swept:
            family = sorted(family, key=lambda n: rows[n].axes["k"])
            estimates = [rows[n].estimates[metric] for n in family]
            first = rows[family[0]].axes
            panel.errorbar(
                [rows[n].axes["k"] for n in family],
                [estimate.value for estimate in estimates],
                yerr=[estimate.standard_error or 0 for estimate in estimates],
                label=label({**first, "k": None, "variant": ""}),
                linestyle="-" if first["adapter"] != "lora" else ":",
                marker="o" if first["adapter"] != "lora" else "s",
                color=look(gathered, family[0])["color"],
                markersize=3.5,
                linewidth=1,
                elinewidth=0.6,
            )
        none = next((n for n in numbers if rows[n].axes["adaptation"] == "none"), None)
        level = rows[none].estimates[metric].value if none is not None else None
        if level is not None:
            panel.axhline(level, color=COLOURS["none"], linestyle="--", linewidth=0.9, label="none")
        ks = sorted({rows[n].axes["k"] for family in swept for n in family})
        panel.set_xscale("log")
        panel.set_xticks(ks, [str(k) for k in ks])
        panel.minorticks_off()
        panel.set_xlabel("K")
        panel.set_ylabel(titled(gathered, metric))
    panels[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
