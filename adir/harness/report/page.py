"""Write the HTML page of `adir report`, one file that a browser shows without network access."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adir.errors import InputError, count_of
from adir.files import write_bytes
from adir.harness.records.comparable import grouped
from adir.harness.records.layout import Layout, is_hash, losses_of
from adir.harness.records.record import Record
from adir.harness.report.assets import PageAssets
from adir.harness.report.curves import held_out_curve, mean_curve, oracle_curve
from adir.harness.report.gather import FIDELITY, PERCEIVED, Gathered, cost, gather, pick_metric
from adir.harness.report.styles import colours_css
from adir.harness.tables.board import Board, Row
from adir.harness.tables.formats import COUNTS, explanation, headings, lead, score_text

HERE = Path(__file__).parent
SCRIPTS = ("base.js", "board.js", "compare.js", "charts.js")
LARGEST_PAGE = 25_000_000  # bytes; mail and issue trackers still accept a file of this size
TEXT_BYTES = 300_000  # reserved for the page without its data block
MOST_ADAPTERS = 2000
"""The largest number of adapters whose losses are read, divided evenly among the rows.

More adapters would take longer to read and hardly change a row's mean.
"""


def write_report(folder: Path, out: Path | None, figures: bool) -> int:
    """Write the HTML report of a results folder, print its path, and return the exit status.

    Args:
        folder: results folder.
        out: HTML file to write; None takes FOLDER/report.html.
        figures: whether to write figures for papers too, as PNG and PDF files in the folder
            `figures` beside the page.

    Returns:
        0, or 1 if a damaged file was skipped.

    Raises:
        InputError: if the folder does not exist or contains no records, or if `out` is a folder.
        OSError: if the page or a figure cannot be written.
    """
    path = out if out is not None else Layout(folder).report
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name the HTML file to write")
    gathered = gather(folder)
    content, said = render(gathered, path.resolve().parent)
    write_bytes(path, content)
    print(f"{path}  ({len(content) / 1e6:.1f} MB)")
    print(said)
    if figures:
        # Imported here because matplotlib takes a second to import.
        from adir.harness.report.figures import write_figures

        drawn = path.parent / "figures"
        Layout(drawn).mark()
        print(*write_figures(gathered, drawn), sep="\n")
    if gathered.board.damaged:
        damaged = count_of(gathered.board.damaged, "damaged file")
        print(f"left out {damaged}; see the notes on the page")
    return 1 if gathered.board.damaged else 0


def render(gathered: Gathered, page_folder: Path) -> tuple[bytes, str]:
    """Return (content of the HTML file, sentence on which images are embedded in it).

    If the page is larger than LARGEST_PAGE, it is made again with fewer embedded images.

    page_folder: folder of the HTML file, to which the links are relative.
    """
    board = gathered.board
    losses, adapter_files = loss_curves(gathered)
    fixed = {
        "metrics": [{"name": name, "direction": way} for name, way in board.metrics.items()],
        "rows": [row_data(gathered, number) for number in range(len(board.rows))],
        "losses": losses,
        "adapterFiles": adapter_files,
        "heldOut": curves_of(board, held_out_of),
        "oracle": curves_of(board, oracle_of),
        "firstSeed": gathered.first_seed,
        "fidelity": pick_metric(board, FIDELITY),
        "perceived": pick_metric(board, PERCEIVED),
    }
    kept = TEXT_BYTES + len(json.dumps(fixed))
    for _ in range(2):
        assets = PageAssets(gathered, page_folder)
        data = fixed | assets.fill(LARGEST_PAGE - kept)
        content = html(gathered, assets, data)
        if len(content) <= LARGEST_PAGE:
            break
        kept += len(content) - LARGEST_PAGE + TEXT_BYTES
    return content, assets.embedding_note()


def html(gathered: Gathered, assets: PageAssets, data: dict[str, Any]) -> bytes:
    """Return the content of the HTML file.

    Args:
        gathered: contents of the results folder.
        assets: images of the page.
        data: content of the page's data block, a JSON object that its scripts read.
    """
    board = gathered.board
    style = colours_css() + (HERE / "style.css").read_text()
    script = "\n".join((HERE / name).read_text() for name in SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    text = environment.get_template("page.html").render(
        name=gathered.folder.resolve().name,
        policy=content_policy(style, script, assets.page_images.linked > 0),
        style=style,
        script=script,
        data=data,
        facts=facts(gathered),
        metrics=list(board.metrics.items()),
        versions=board.versions,
        lead=lead_headings(board),
        classes=lead_classes(board),
        empty=empty_metrics(board),
        groups=board_groups(gathered),
        summary=board.summary,
        explanation=explanation(board),
        # Failed records have a table, so they are not listed among the notes.
        notes=[note for note in board.notes if not note.startswith("failed: ")],
        failed=failed_of(gathered),
        images_said=assets.embedding_note(),
        made_with=gathered.made_with,
        settings=settings(gathered),
    )
    # An id from a file name that is not UTF-8 holds lone surrogates, which UTF-8 cannot encode.
    return text.encode("utf-8", "backslashreplace")


def content_policy(style: str, script: str, links: bool) -> str:
    """Return the Content-Security-Policy of the page.

    The policy admits one style sheet, one script, and embedded images. If `links` is true, it also
    admits image files beside the page. It forbids everything else, such as loading from a network,
    so no text of the data can run as a script, even if it is quoted wrongly.
    """
    images = "data: 'self' file:" if links else "data:"
    return (
        f"default-src 'none'; img-src {images}; style-src {source_hash(style)}; script-src "
        f"{source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    """Return the CSP source expression that admits an inline script or style with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def failed_of(gathered: Gathered) -> list[tuple[str, Record]]:
    """Return (label of the leaderboard row, record) of each failed record."""
    return [
        (gathered.labels[number], record)
        for number, record in gathered.records
        if record.status == "failed"
    ]


def facts(gathered: Gathered) -> list[tuple[str, str]]:
    """Return the (name, text) pairs that the page shows under its title, such as its seeds."""
    n_failed = len(failed_of(gathered))
    named = {
        axis: dict.fromkeys(row.axes[axis] for row in gathered.board.rows)
        for axis in ("task", "backbone", "sampler")
    }
    seeds = sorted({seed for scene in gathered.scenes for seed in scene.seeds})
    commits = sorted({str(made["commit"])[:10] for made in gathered.made_with if made["commit"]})
    return [
        ("records", f"{len(gathered.records):,}" + (f", {n_failed:,} failed" if n_failed else "")),
        ("images", f"{len({scene.image_id for scene in gathered.scenes}):,}"),
        ("tasks", ", ".join(named["task"])),
        ("backbone", ", ".join(named["backbone"])),
        ("sampler", ", ".join(named["sampler"])),
        ("seeds", ", ".join(map(str, seeds))),
        ("commit", ", ".join(commits) or "not recorded"),
    ]


def lead_headings(board: Board) -> list[str]:
    """Return the headings of the leaderboard's columns between the task and the metrics.

    The page has no column for the task, because it groups the rows by task.
    """
    return headings(board)[1 : len(headings(board)) - len(board.metrics)]


def lead_classes(board: Board) -> dict[str, str]:
    """Return {heading: CSS classes} of the columns of `lead_headings`.

    A column of class `same` has one value in all rows and is hidden on narrow screens.
    """
    leads = [lead(board, row) for row in board.rows]
    found = {}
    for place, heading in enumerate(lead_headings(board), 1):
        same = len({texts[place] for texts in leads}) < 2
        kind = (
            "lead"
            + " count" * (heading == "n")
            + " text" * (heading not in COUNTS)
            + " same" * same
        )
        found[heading] = "name" if heading == "mode" else kind
    return found


def empty_metrics(board: Board) -> set[str]:
    """Return the metrics for which no row has a value."""
    return {
        name
        for name in board.metrics
        if all(row.estimates[name].value is None for row in board.rows)
    }


def board_groups(gathered: Gathered) -> list[dict[str, Any]]:
    """Return the leaderboard's rows grouped by task, for the page's template.

    The texts of the table are the same as in leaderboard.md.
    """
    board, empty = gathered.board, empty_metrics(gathered.board)
    groups: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(board.rows):
        title, *texts = lead(board, row)
        values = [
            dict(zip(("mean", "rest", "below"), score_text(row, name), strict=True))
            | {
                "best": row.ranking.get(name) == "best",
                "number": row.estimates[name].value,
                "empty": name in empty,
            }
            for name in board.metrics
        ]
        group = groups.setdefault(
            row.axes["task"], {"title": title, "task": row.axes["task"], "rows": []}
        )
        group["rows"].append(
            {"number": number, "label": gathered.labels[number], "lead": texts, "values": values}
        )
    return list(groups.values())


def row_data(gathered: Gathered, number: int) -> dict[str, Any]:
    """Return the data of a leaderboard row that the charts need."""
    row = gathered.board.rows[number]
    evaluations, seconds = cost(row.done)
    means = {
        name: [estimate.value, estimate.standard_error] for name, estimate in row.estimates.items()
    }
    return {
        "label": gathered.labels[number],
        "style": asdict(gathered.styles[number]),
        "axes": {key: value for key, value in row.axes.items() if key != "variant"},
        "variant": row.axes["variant"] or "",
        "means": means,
        "evaluations": evaluations,
        "seconds": seconds,
    }


def loss_curves(gathered: Gathered) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the training losses of the leaderboard rows, and the rows that have adapter files.

    Returns:
        curves: one mean curve per row with stored losses.
        numbers: numbers of the rows with stored losses or at least one adapter file in the results
            folder.
    """
    adapters = grouped(
        (n, r.adapter.key)
        for n, r in gathered.records
        if r.adapter is not None and is_hash(r.adapter.key)
    )
    each = max(1, MOST_ADAPTERS // max(1, len(adapters)))
    curves, there = [], []
    for number, keys in adapters.items():
        names = list(dict.fromkeys(keys))
        names = names[:: -(-len(names) // each)]
        losses = [dict(enumerate(losses_of(gathered.folder, name) or (), 1)) for name in names]
        curve = mean_curve([one for one in losses if one], smooth=True)
        if curve is not None or any(Layout(gathered.folder).adapter(n).is_file() for n in names):
            there.append(number)
        curves += [{"row": number} | curve] if curve is not None else []
    return curves, there


def curves_of(
    board: Board, curve_of: Callable[[Row], dict[str, Any] | None]
) -> list[dict[str, Any]]:
    """Return one curve per leaderboard row, with the row's number as its entry "row".

    curve_of: function that returns the curve of a row; rows for which it is None are omitted.
    """
    curves = enumerate(map(curve_of, board.rows))
    return [{"row": number} | curve for number, curve in curves if curve is not None]


def held_out_of(row: Row) -> dict[str, Any] | None:
    """Return the mean curve of a row's held-out losses (see `held_out_curve`).

    An adapter that several records share is counted once. Returns None without held-out losses.
    """
    adapters = {
        record.adapter.key: record.adapter for record in row.done if record.adapter is not None
    }
    return held_out_curve(
        [adapter.held_out for adapter in adapters.values() if adapter.held_out is not None]
    )


def oracle_of(row: Row) -> dict[str, Any] | None:
    """Return the mean change of the error of eps in a row's records (see `oracle_curve`).

    Only records with an adapter are used. Returns None if none of them contains these errors.
    """
    return oracle_curve(
        [record.oracle for record in row.done if record.adapter is not None and record.oracle]
    )


def settings(gathered: Gathered) -> list[tuple[str, str]]:
    """Return (title, settings as JSON) of each leaderboard row.

    The JSON contains all settings that determine the row's restored images, except the seed. It
    also contains the settings of the data set and of the scoring.
    """
    shown = []
    for row, label in zip(gathered.board.rows, gathered.labels, strict=True):
        configured = row.records[0].configuration
        told = {key: value for key, value in row.identity.items() if key != "seed"}
        told |= {key: configured[key] for key in ("data", "scoring") if key in configured}
        shown.append(
            (f"{row.axes['task']} {label}", json.dumps(told, indent=2, ensure_ascii=False))
        )
    return shown
