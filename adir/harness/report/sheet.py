"""Comparison image: a sheet with ground truth, y and restored images side by side.

Each line of the sheet is one test image under one task. Each column of restored images is one mode.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.records.layout import Layout
from adir.harness.records.record import Record
from adir.harness.report.gather import gather
from adir.harness.report.images import ground_truth, open_rgb
from adir.harness.tables.board import Board, label, row_order
from adir.images import png_bytes

TILE = 256  # pixels: side of an image on the sheet
TOP = 26  # pixels: height of a caption
FONT = 13  # the scores fit under an image at this size
SHOWN = {"psnr": "PSNR {:.2f}", "deep-lite0": "deep {:.2f}", "residual": "residual {:.1f}"}


def write_sheet(results: Path, task: str | None, out: Path | None) -> tuple[Path, list[str]]:
    """Write the comparison PNG of a results folder.

    All restored images have the same seed: the lowest for which all of them exist. If there is no
    such seed, each image has the lowest seed for which it exists, and its caption names this seed.

    A ground truth is read from the results folder. If it is not saved there, it is computed from
    its id, which works for the data sets embedded in the adir package only. Other ground truths are
    not shown.

    Args:
        results: results folder.
        task: only this task; None takes all.
        out: PNG to write; None takes comparison.png in the results folder.

    Returns:
        (path of the PNG, one note per file that could not be read).

    Raises:
        InputError: if no image was restored.
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
            ),
            (open_rgb(results, record.y_file), noise_text(record) + which),
        ]
        for title in titles[2:]:
            found = place[title][min(common or place[title])] if title in place else None
            text = "missing" if found is None else caption(found, say_seed=not common)
            shown.append((open_rgb(results, found.restored if found else None), text))
        top = TOP + number * (TILE + TOP)
        for column, (image, text) in enumerate(shown):
            if image is not None:
                tile = ImageOps.pad(image, (TILE, TILE), Image.Resampling.NEAREST, "white")
                sheet.paste(tile, (column * TILE, top))
            draw.text((column * TILE + 4, top + TILE + 4), text, "black", font)
    path = out or Layout(results).comparison
    write_bytes(path, png_bytes(np.array(sheet)))
    return path, gathered.board.notes[: gathered.board.damaged]


def columns_of(board: Board, numbers: set[int]) -> dict[int, str]:
    """Return {index of a leaderboard row: title of the column that shows the row}.

    The entries are in the order of the columns. The title is the mode, preceded by the backbone if
    there are several backbones, and by the sampler if there are several samplers. Rows with the
    same title share a column; for example, the rows of one mode in several tasks or data sets.

    numbers: indices of the leaderboard's rows to show.
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
    """Return a text with the noise level of y in grey levels, such as `noise 10  `.

    The text is empty if the noise level is unknown. A good restoration's residual, given in its
    caption, is about as large as the noise level. The text says "noise" because the font lacks σ.
    """
    return f"noise {record.sigma_y:g}  " if record.sigma_y is not None else ""


def caption(record: Record, say_seed: bool) -> str:
    """Return the caption of a restored image: its scores psnr, deep-lite0 and residual.

    deep-lite0 is a perceptual distance to the ground truth. Scores that the record lacks are
    omitted. If `say_seed` is true, the seed is appended.
    """
    values = {name: record.value(name) for name in SHOWN}
    parts = [text.format(values[name]) for name, text in SHOWN.items() if values[name] is not None]
    return "  ".join([*parts, f"s{record.seed}"] if say_seed else parts)
