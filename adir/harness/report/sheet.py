"""One picture to look at: a row per test picture and task, columns ground truth, y, and each mode."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.records.comparable import without_seed
from adir.harness.records.layout import Layout, stored_pictures
from adir.harness.records.ledger import DamagedFile, all_records
from adir.harness.records.record import Record
from adir.harness.report.pictures import embedded_test_field, open_rgb
from adir.harness.tables.board import label, row_order
from adir.images import png_bytes

TILE = 256  # pixels of a picture on the sheet
TOP = 26  # pixels of a caption
FONT = 13  # at which the scores fit under a picture
SHOWN = {"psnr": "PSNR {:.2f}", "deep-lite0": "deep {:.2f}", "residual": "residual {:.1f}"}

Column = tuple[Any, ...]


def write_sheet(results: Path, task: str | None, out: Path | None) -> tuple[Path, list[DamagedFile]]:
    """Write the comparison PNG of a results folder; returns its path, and the records that could not be read.

    It shows the lowest seed that every place has. Where there is none, each place shows its own lowest seed and says which.
    The ground truth is shown where the results hold it, or where it can be built again (embedded).
    Raises InputError when nothing was restored.
    """
    every = list(all_records(results))
    damaged = [r for r in every if isinstance(r, DamagedFile)]
    records = [r for r in every if not isinstance(r, DamagedFile) and r.status == "done"]
    if task is not None:
        records = [r for r in records if r.axes.task == task]
    if not records:
        raise InputError(f"{results}: no restored pictures" + (f" of task {task}" if task else ""))
    settings: dict[Column, set[str]] = {}
    for record in records:
        settings.setdefault((*method_of(record), record.axes.task), set()).add(without_seed(record))
    ambiguous = {key[:-1] for key, found in settings.items() if len(found) > 1}

    def column(record: Record) -> Column:
        """Backbone, sampler, mode, adapter, K; and the setting's hash where one task has several settings of these names."""
        method = method_of(record)
        return (*method, without_seed(record) if method in ambiguous else "")

    columns = sorted({column(r) for r in records}, key=lambda c: (*c[:2], *row_order(c[2:])))
    several = [place for place in (0, 1) if len({c[place] for c in columns}) > 1]
    rows = list(dict.fromkeys(row_of(r) for r in records))
    places: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in records:
        places.setdefault((*row_of(record), column(record)), {})[record.seed] = record
    common = set.intersection(*(set(seeds) for seeds in places.values()))
    by_place = {place: seeds[min(common or seeds)] for place, seeds in places.items()}
    titles = [
        "ground truth",
        "y",
        *(" ".join([*(c[place] for place in several), mode_label(c[2:])]) for c in columns),
    ]
    noise = {(r.axes.task, r.y_file or ""): noise_text(r) for r in records}
    truths = {row_of(r): ground_truth(results, r) for r in records}
    which = f"seed {min(common)}" if common else "seeds differ"

    sheet = Image.new("RGB", (TILE * len(titles), TOP + (TILE + TOP) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for place, title in enumerate(titles):
        draw.text((place * TILE + 4, 4), title, "black", font)
    for number, (row_task, image_id, file) in enumerate(rows):
        top = TOP + number * (TILE + TOP)
        shown: list[Image.Image | None] = [
            truths[row_task, image_id, file],
            open_rgb(results / file),
        ]
        captions = [f"{row_task}: {image_id}"[: TILE // 7], noise[row_task, file] + which]
        for key in columns:
            found = by_place.get((row_task, image_id, file, key))
            shown.append(open_rgb(results / found.picture) if found and found.picture else None)
            captions.append(caption(found, say_seed=not common) if found else "missing")
        for place, picture in enumerate(shown):
            if picture is not None:
                sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (place * TILE, top))
            draw.text((place * TILE + 4, top + TILE + 4), captions[place], "black", font)
    path = out or Layout(results).comparison
    write_bytes(path, png_bytes(np.array(sheet)))
    return path, damaged


def method_of(record: Record) -> tuple[Any, ...]:
    """(backbone, sampler, mode, adapter, K)."""
    return tuple(getattr(record.axes, name) for name in ("backbone", "sampler", "adaptation", "adapter", "k"))


def mode_label(mode: tuple[Any, ...]) -> str:
    """`knn k=20 full`."""
    return label(dict(zip(("adaptation", "adapter", "k", "variant"), mode, strict=True)))


def row_of(record: Record) -> tuple[str, str, str]:
    """(task, picture, file of y)."""
    return (record.axes.task, record.image.id, record.y_file or "")


def noise_text(record: Record) -> str:
    """`noise 10  ` of y in grey levels, beside which residuals are read; empty where the record has none. The font has no σ."""
    return f"noise {record.sigma_y:g}  " if record.sigma_y is not None else ""


def caption(record: Record, say_seed: bool) -> str:
    """PSNR, deep-lite0 and residual under a picture, as far as it has them; the seed where the sheet has several."""
    values = {name: record.value(name) for name in SHOWN}
    parts = [text.format(values[name]) for name, text in SHOWN.items() if values[name] is not None]
    return "  ".join([*parts, f"s{record.seed}"] if say_seed else parts)


def ground_truth(results: Path, record: Record) -> Image.Image | None:
    """x of a record's picture, or None where neither the results nor the embedded fields have it."""
    sha256 = record.image.sha256
    for name in stored_pictures(sha256)[:1]:
        if (kept := open_rgb(results / name)) is not None:
            return kept
    return embedded_test_field(record.image.id, sha256)
