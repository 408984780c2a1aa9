"""One picture to look at: a row per test picture and task, columns ground truth, y, and each mode."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.leaderboard import label, row_order, without_seed
from adir.harness.ledger import DamagedFile, all_records
from adir.images import png_bytes

TILE = 256  # pixels of a picture on the sheet
TOP = 26  # pixels of a caption

Column = tuple[Any, ...]


def write_sheet(results: Path, task: str | None, out: Path | None) -> Path:
    """Write the comparison PNG of a results folder, from the lowest seed that every shown cell has; returns its path.

    The ground truth is not among the results, so a column shows it only where its picture can be built again (embedded).
    Raises InputError when nothing was restored.
    """
    records = [r for r in all_records(results) if not isinstance(r, DamagedFile) and r["status"] == "done"]
    if task is not None:
        records = [r for r in records if r["axes"]["task"] == task]
    if not records:
        raise InputError(f"{results}: no restored pictures" + (f" of task {task}" if task else ""))
    seed = min(r["seed"] for r in records)
    records = [r for r in records if r["seed"] == seed]
    settings: dict[Column, set[str]] = {}
    for record in records:
        settings.setdefault((*mode_of(record), record["axes"]["task"]), set()).add(without_seed(record))
    ambiguous = {key[:3] for key, found in settings.items() if len(found) > 1}

    def column(record: dict[str, Any]) -> Column:
        """Mode, adapter, K; and the setting's hash where one task has several settings under these names."""
        mode = mode_of(record)
        return (*mode, without_seed(record) if mode in ambiguous else "")

    columns = sorted({column(r) for r in records}, key=row_order)
    rows = list(dict.fromkeys((r["axes"]["task"], r["image"]["id"], r["y"]["file"]) for r in records))
    by_place = {(r["axes"]["task"], r["image"]["id"], column(r)): r for r in records}
    titles = [
        "ground truth",
        "y",
        *(label(dict(zip(("adaptation", "adapter", "k", "variant"), c, strict=True))) for c in columns),
    ]

    sheet = Image.new("RGB", (TILE * len(titles), TOP + (TILE + TOP) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for place, title in enumerate(titles):
        draw.text((place * TILE + 4, 4), title, "black", font)
    for number, (row_task, image_id, y_file) in enumerate(rows):
        top = TOP + number * (TILE + TOP)
        shown: list[Image.Image | None] = [
            ground_truth(image_id),
            open_rgb(results / y_file),
        ]
        captions = [f"{row_task}: {image_id}"[: TILE // 7], ""]
        for key in columns:
            found = by_place.get((row_task, image_id, key))
            shown.append(open_rgb(results / found["picture"]) if found else None)
            captions.append(caption(found) if found else "missing")
        for place, picture in enumerate(shown):
            if picture is not None:
                sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (place * TILE, top))
            draw.text((place * TILE + 4, top + TILE + 4), captions[place], "black", font)
    path = out or results / "comparison.png"
    write_bytes(path, png_bytes(np.array(sheet)))
    return path


def mode_of(record: dict[str, Any]) -> tuple[str, str | None, int | None]:
    """(mode, adapter, K)."""
    axes = record["axes"]
    return (axes["adaptation"], axes["adapter"], axes["k"])


def caption(record: dict[str, Any]) -> str:
    """PSNR and residual under a picture."""
    scores = record["scores"]
    parts = [
        f"{name.upper()} {scores[name]['value']:.2f}"
        for name in ("psnr", "residual")
        if scores.get(name, {}).get("value")
    ]
    return "  ".join(parts).replace("RESIDUAL", "residual")


def open_rgb(path: Path) -> Image.Image | None:
    """A picture file, or None when it is not there."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return picture.convert("RGB")


def ground_truth(image_id: str) -> Image.Image | None:
    """x of an embedded test picture, or None for pictures of other data sets."""
    from adir.embedded.pictures import TEST_FIELDS, cut

    for field in TEST_FIELDS:
        if field.id == image_id:
            return Image.fromarray(cut(field))
    return None
