"""One image to look at: a row per test image and task, columns ground truth, y, and each mode."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.records.layout import Layout
from adir.harness.records.record import Record
from adir.harness.report.gather import gather
from adir.harness.report.images import ground_truth, open_rgb
from adir.harness.tables.board import Board, label, row_order
from adir.images import png_bytes

TILE = 256  # pixels of an image on the sheet
TOP = 26  # pixels of a caption
FONT = 13  # at which the scores fit under an image
SHOWN = {"psnr": "PSNR {:.2f}", "deep-lite0": "deep {:.2f}", "residual": "residual {:.1f}"}


def write_sheet(results: Path, task: str | None, out: Path | None) -> tuple[Path, list[str]]:
    """Write the comparison PNG of a results folder; returns its path, and what could not be read.

    It shows the lowest seed that every place has. Where there is none, each place shows its own
    lowest seed and says which. The ground truth is shown where the results hold it, or where it can
    be built again (embedded). Raises InputError when nothing was restored.
    """
    gathered = gather(results)
    scenes = [scene for scene in gathered.scenes if scene.done and task in (None, scene.task)]
    if not scenes:
        raise InputError(f"{results}: no restored images" + (f" of task {task}" if task else ""))
    columns = columns_of(gathered.board, {row for scene in scenes for row in scene.restored})
    common = set.intersection(
        *(set(seeds) for scene in scenes for seeds in scene.restored.values())
    )
    titles = ["ground truth", "y", *dict.fromkeys(columns.values())]

    sheet = Image.new("RGB", (TILE * len(titles), TOP + (TILE + TOP) * len(scenes)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for column, title in enumerate(titles):
        draw.text((column * TILE + 4, 4), title, "black", font)
    for number, scene in enumerate(scenes):
        record, place = (
            scene.done[0],
            {columns[row]: seeds for row, seeds in scene.restored.items()},
        )
        which = f"seed {min(common)}" if common else "seeds differ"
        shown = [
            (
                ground_truth(results, scene.image_id, scene.sha256),
                f"{scene.task}: {scene.image_id}"[: TILE // 7],
            )
        ]
        shown.append((open_rgb(results, record.y_file), noise_text(record) + which))
        for title in titles[2:]:
            found = place[title][min(common or place[title])] if title in place else None
            text = "missing" if found is None else caption(found, say_seed=not common)
            shown.append((open_rgb(results, found.restored if found else None), text))
        top = TOP + number * (TILE + TOP)
        for column, (image, text) in enumerate(shown):
            if image is not None:
                sheet.paste(
                    image.resize((TILE, TILE), Image.Resampling.NEAREST), (column * TILE, top)
                )
            draw.text((column * TILE + 4, top + TILE + 4), text, "black", font)
    path = out or Layout(results).comparison
    write_bytes(path, png_bytes(np.array(sheet)))
    return path, gathered.board.notes[: gathered.board.damaged]


def columns_of(board: Board, numbers: set[int]) -> dict[int, str]:
    """{row of the board: title of its column}, in the order of the columns.

    A method has one for all tasks and data sets: its mode, after backbone and sampler where there
    are several.
    """
    axes = {number: board.rows[number].axes for number in numbers}
    several = [
        name
        for name in ("backbone", "sampler")
        if len({of_row[name] for of_row in axes.values()}) > 1
    ]
    order = sorted(
        numbers, key=lambda n: (axes[n]["backbone"], axes[n]["sampler"], row_order(axes[n]), n)
    )
    return {n: " ".join([*(axes[n][name] for name in several), label(axes[n])]) for n in order}


def noise_text(record: Record) -> str:
    """`noise 10  ` of y in grey levels, beside which residuals are read; empty where the record has
    none. The font has no σ.
    """
    return f"noise {record.sigma_y:g}  " if record.sigma_y is not None else ""


def caption(record: Record, say_seed: bool) -> str:
    """PSNR, deep-lite0 and residual under an image, as far as it has them; the seed where the sheet
    has several.
    """
    values = {name: record.value(name) for name in SHOWN}
    parts = [text.format(values[name]) for name, text in SHOWN.items() if values[name] is not None]
    return "  ".join([*parts, f"s{record.seed}"] if say_seed else parts)
