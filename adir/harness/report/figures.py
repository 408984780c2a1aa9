"""Figures for papers, as PNG and PDF files. The same results give the same bytes.

- Comparison, as in the ADIR paper: ground truth, y, no adaptation, ADIR, and other samplers.
- Scatter plot of a fidelity metric and a metric of perceived quality.
- Metrics against the number of neighbours K.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from adir.files import write_bytes
from adir.harness.records.comparable import grouped
from adir.harness.report.gather import FIDELITY, PERCEIVED, Gathered, Scene, pick_metric
from adir.harness.report.images import ground_truth, open_rgb
from adir.harness.report.styles import LIGHT, SHAPES
from adir.harness.tables.board import ORDER, label, place_of

WIDTH = 6.9  # inches: the text width of a page with two columns
# Smallest side of an image in inches. With many samplers the figure is wider than the page.
SMALLEST = 0.85
IMAGES_PER_FIGURE = 6
MOST_IMAGES = 24  # per task; a paper's appendix shows no more
BESIDE = 0.02  # points of one K are this share of the width apart, so error bars do not overlap
STYLE = {
    "pdf.fonttype": 42,  # TrueType: many publishers refuse fonts of type 3
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "text.parse_math": False,  # a dollar sign in the name of an image is a dollar sign
}


def write_figures(gathered: Gathered, folder: Path) -> list[Path]:
    """Write all figures for which the results have data, and return the paths of the files."""
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
    """Yield (name, figure) of each figure.

    There is one set of figures for each combination of backbone, task and data set. The name
    contains the data set only if there are several.
    """
    rows = gathered.board.rows
    picked = (pick_metric(gathered.board, FIDELITY), pick_metric(gathered.board, PERCEIVED))
    metrics = [metric for metric in picked if metric is not None]
    shown = [axis for axis in gathered.board.shown if axis == "data"]
    where = {
        n: " ".join([row.axes["backbone"], place_of(row.axes, shown)]) for n, row in enumerate(rows)
    }
    for name, numbers in grouped((name, n) for n, name in where.items()).items():
        place = (rows[numbers[0]].axes["task"], rows[numbers[0]].axes["data"] or "")
        scenes = [one for one in gathered.scenes if one.done and (one.task, one.data) == place]
        scenes = scenes[:MOST_IMAGES]
        for first in range(0, len(scenes), IMAGES_PER_FIGURE):
            part = f" {first // IMAGES_PER_FIGURE + 1}" if len(scenes) > IMAGES_PER_FIGURE else ""
            figure = comparison(gathered, numbers, scenes[first : first + IMAGES_PER_FIGURE])
            yield f"comparison {name}{part}", figure
        charts = {
            "scatter": scatter(gathered, numbers, metrics),
            "k-sweep": k_sweep(gathered, numbers, metrics),
        }
        yield from (
            (f"{kind} {name}", figure) for kind, figure in charts.items() if figure is not None
        )


def columns(gathered: Gathered, numbers: list[int]) -> list[tuple[str, int]]:
    """Return (title, number of the leaderboard row) of each column of restored images.

    Each sampler with finished records gets up to two columns, one without and one with adaptation.
    The mode of the first is `none`. The mode of the second is `knn` with the largest K, or `self`
    if there is no `knn`. The sampler `adir` comes first.

    numbers: numbers of the leaderboard rows to choose from.
    """
    rows = gathered.board.rows
    found: list[tuple[str, int]] = []
    of_sampler = grouped((rows[n].axes["sampler"], n) for n in numbers if rows[n].have)
    for sampler in sorted(of_sampler, key=lambda name: name != "adir"):
        of_mode = {
            mode: [n for n in of_sampler[sampler] if rows[n].axes["adaptation"] == mode]
            for mode in ORDER
        }
        adapted = sorted(of_mode["knn"], key=lambda n: -(rows[n].axes["k"] or 0)) or of_mode["self"]
        none = "none" if len(of_sampler) == 1 else f"{sampler} none" if adapted else sampler
        found += [(none, number) for number in of_mode["none"][:1]]
        name = "ADIR" if sampler == "adir" else sampler
        found += [(f"{name} ({label(rows[number].axes)})", number) for number in adapted[:1]]
    return found


def comparison(gathered: Gathered, numbers: list[int], scenes: list[Scene]) -> Figure:
    """Draw a grid of images with one line per test image.

    The columns are ground truth, y, and the restored images of `columns`. A missing image is
    replaced by the word "missing".

    Args:
        gathered: contents of the results folder.
        numbers: numbers of the leaderboard rows from which the columns are chosen.
        scenes: test images.
    """
    restored = columns(gathered, numbers)
    titles = ["GT", "y", *(title for title, _ in restored)]
    metric = next((name for name, way in gathered.board.metrics.items() if way != "none"), "")
    gap, above, caption_height = 0.05, 0.2, 0.16  # inches
    side = max(SMALLEST, (WIDTH - gap * (len(titles) - 1)) / len(titles))
    width = side * len(titles) + gap * (len(titles) - 1)
    height = above + (side + caption_height) * len(scenes)
    figure = Figure(figsize=(width, height))
    places = figure.subplots(len(scenes), len(titles), squeeze=False)
    figure.subplots_adjust(
        0, caption_height / height, 1, 1 - above / height, gap / side, caption_height / side
    )
    for scene, line in zip(scenes, places, strict=True):
        # The image's id starts at the left edge. A long id continues under y, which has no caption.
        show(
            line[0],
            ground_truth(gathered.folder, scene.image_id, scene.sha256),
            scene.image_id,
            left=True,
        )
        show(line[1], open_rgb(gathered.folder, scene.done[0].y_file), "")
        for axes, (_, number) in zip(line[2:], restored, strict=True):
            record = scene.cells.get(number, {}).get(gathered.first_seed)
            value = record.value(metric) if record is not None else None
            lack = "failed" if record is not None and record.status == "failed" else ""
            image = open_rgb(gathered.folder, record.restored if record is not None else None)
            show(axes, image, lack if value is None else f"{metric} {value:#.4g}")
    for axes, title in zip(places[0], titles, strict=True):
        axes.set_title(title, fontsize=8 if len(titles) < 7 else 6, pad=4)
    return figure


def show(axes: Axes, image: Image.Image | None, caption: str, left: bool = False) -> None:
    """Draw an image and its caption into `axes`, or the word "missing" if the image is None.

    The image is not interpolated, because interpolation would smooth it.

    Args:
        axes: axes to draw into.
        image: image, or None.
        caption: text below the image.
        left: whether the caption starts at the left edge instead of being centred.
    """
    axes.set(xticks=[], yticks=[], frame_on=False, aspect="equal")
    if image is None:
        axes.text(
            0.5, 0.5, "missing", ha="center", va="center", color="0.45", transform=axes.transAxes
        )
    else:
        axes.imshow(np.asarray(image), interpolation="nearest")
    axes.set_xlabel(caption, fontsize=6, labelpad=2, color="0.3", loc="left" if left else "center")


def marker_style(gathered: Gathered, number: int) -> dict[str, Any]:
    """Return matplotlib arguments for the colour and marker of a leaderboard row.

    They are the same as in the charts of the HTML page.
    """
    found = gathered.styles[number]
    colour = LIGHT[found.colour]
    return {
        "color": colour,
        "marker": SHAPES[found.shape],
        "markerfacecolor": "white" if found.open else colour,
    }


def legend_below(figure: Figure, width: float, height: float, axes: Axes) -> None:
    """Add a legend below the plot, and make the figure taller to hold it.

    The legend has as many columns as fit.

    Args:
        figure: figure.
        width: width of the figure in inches.
        height: height of the figure without the legend, in inches.
        axes: axes whose lines have labels.
    """
    handles, labels = axes.get_legend_handles_labels()
    # Error bars are left out of the legend.
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    # 0.42 inches for a marker and 0.058 for a letter of 6.5 points.
    columns = max(1, int(width / (0.42 + 0.058 * max(map(len, labels)))))
    figure.set_size_inches(width, height + 0.1 + 0.145 * -(-len(labels) // columns))
    figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, fontsize=6.5, columnspacing=1.2
    )


def titled(gathered: Gathered, metric: str) -> str:
    """Return an axis label with a metric and its direction, as in `psnr (higher is better)`."""
    way = gathered.board.metrics[metric]
    return metric if way == "none" else f"{metric} ({way} is better)"


def scatter(gathered: Gathered, numbers: list[int], metrics: list[str]) -> Figure | None:
    """Draw a scatter plot of two metrics, with one point per leaderboard row.

    A point is the row's mean, and its error bars are standard errors. Returns None if fewer than
    two rows have both metrics.

    Args:
        gathered: contents of the results folder.
        numbers: leaderboard rows to draw.
        metrics: the metrics of the x axis and the y axis.
    """
    estimates: dict[int, list[Any]] = {
        n: [gathered.board.rows[n].estimates[m] for m in metrics] for n in numbers
    }
    points = {
        n: pair
        for n, pair in estimates.items()
        if len(pair) == 2 and None not in [one.value for one in pair]
    }
    if len(points) < 2:
        return None
    width, height = WIDTH * 0.62, 2.6
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for number, (across, up) in points.items():
        axes.errorbar(
            across.value,
            up.value,
            xerr=across.standard_error,
            yerr=up.standard_error,
            elinewidth=0.7,
            linestyle="none",
            markersize=5,
            label=gathered.labels[number],
            **marker_style(gathered, number),
        )
    axes.set(xlabel=titled(gathered, metrics[0]), ylabel=titled(gathered, metrics[1]))
    legend_below(figure, width, height, axes)
    return figure


def k_sweep(gathered: Gathered, numbers: list[int], metrics: list[str]) -> Figure | None:
    """Draw metrics against the number of neighbours K, with one panel per metric.

    A line connects leaderboard rows that differ only in K. A dashed line shows the value of the
    mode `none`. Returns None if no two rows differ only in K.

    Args:
        gathered: contents of the results folder.
        numbers: leaderboard rows to draw.
        metrics: metrics to draw.
    """
    rows = gathered.board.rows
    whole = [
        n for n in numbers if all(rows[n].estimates[metric].value is not None for metric in metrics)
    ]
    of_family = grouped(
        (tuple(rows[n].axes[axis] for axis in ("sampler", "adaptation", "adapter", "setting")), n)
        for n in sorted(whole, key=lambda n: rows[n].axes["k"] or 0)
        if rows[n].axes["k"] is not None
    )
    swept = [
        family for family in of_family.values() if len({rows[n].axes["k"] for n in family}) > 1
    ]
    if not swept or not metrics:
        return None
    ks = sorted({rows[n].axes["k"] for family in swept for n in family})
    none = next((rows[n] for n in numbers if rows[n].axes["adaptation"] == "none"), None)
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for metric, panel in zip(metrics, panels, strict=True):
        for place, family in enumerate(swept):
            beside = (ks[-1] / ks[0]) ** (BESIDE * (place - (len(swept) - 1) / 2))
            points = [(rows[n].axes["k"] * beside, rows[n].estimates[metric]) for n in family]
            panel.errorbar(
                [k for k, _ in points],
                [estimate.value for _, estimate in points],
                [estimate.standard_error or 0 for _, estimate in points],
                label=label(rows[family[0]].axes | {"k": None, "variant": ""}),
                linestyle=":" if gathered.styles[family[0]].open else "-",
                color=marker_style(gathered, family[0])["color"],
                linewidth=1,
                elinewidth=0.6,
            )
            # Each K has its own marker.
            for number, (k, estimate) in zip(family, points, strict=True):
                panel.plot(
                    [k],
                    [estimate.value],
                    markersize=4,
                    linestyle="none",
                    **marker_style(gathered, number),
                )
        if none is not None and (level := none.estimates[metric].value) is not None:
            panel.axhline(
                level, color=LIGHT[ORDER["none"]], linestyle="--", linewidth=0.9, label="none"
            )
        panel.set_xscale("log")
        panel.set_xticks(ks, [str(k) for k in ks])
        panel.minorticks_off()
        panel.set(xlabel="K", ylabel=titled(gathered, metric))
    legend_below(figure, WIDTH, 2.2, panels[-1])
    return figure
