"""`adir report`: one HTML file that shows a results folder and needs nothing but a browser."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adir.errors import InputError
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
TEXT_BYTES = 300_000  # reserved for everything that is neither image nor data
MOST_ADAPTERS = 2000
"""Most adapters whose losses are read, spread evenly over the rows.

More would take longer and not change a row's mean.
"""


def write_report(folder: Path, out: Path | None, figures: bool) -> int:
    """Write FOLDER/report.html, or `out`; with `figures` also PNG and PDF files for papers.

    The figures go to the folder `figures` beside the page.

    Returns:
        0, or 1 if a damaged file was left out.

    Raises:
        InputError: if the folder holds no records.
        OSError: if the page or a figure cannot be written.
    """
    path = out if out is not None else Layout(folder).report
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; name the HTML file to write")
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
        print(f"{gathered.board.damaged} damaged files are left out; the page's notes name them")
    return 1 if gathered.board.damaged else 0


def render(gathered: Gathered, page_folder: Path) -> tuple[bytes, str]:
    """Return (the HTML file for `page_folder`, one sentence on which images are in it).

    If the texts need more room than was reserved, the page is made again with fewer images.
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
    return content, assets.said()


def html(gathered: Gathered, assets: PageAssets, data: dict[str, Any]) -> bytes:
    """Return the page with its data block."""
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
    text = environment.get_template("page.html").render(
        name=gathered.folder.resolve().name,
        policy=content_policy(style, script, assets.page_images.linked > 0),
        style=style,
        script=script,
        data=json_block(data),
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
        images_said=assets.said(),
        made_with=gathered.made_with,
        settings=settings(gathered),
    )
    # An id from a file name that is not UTF-8 holds lone surrogates, which UTF-8 cannot encode.
    return text.encode("utf-8", "backslashreplace")


def content_policy(style: str, script: str, links: bool) -> str:
    """Return the Content-Security-Policy of the page.

    It admits this style, this script, embedded images and, with `links`, image files beside the
    page. Nothing is loaded from a network. Even if a text of the data escaped its quoting, it could
    not run as a script.
    """
    images = "data: 'self' file:" if links else "data:"
    return (
        f"default-src 'none'; img-src {images}; style-src {source_hash(style)}; script-src "
        f"{source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    """Return the source expression that admits exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def json_block(data: Any) -> str:
    """Return JSON that is safe inside a script element.

    <, > and & are escaped, so no text can end the element or open a comment.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def failed_of(gathered: Gathered) -> list[tuple[str, Record]]:
    """Return (label of its row, record) of each failed record."""
    return [
        (gathered.labels[number], record)
        for number, record in gathered.records
        if record.status == "failed"
    ]


def facts(gathered: Gathered) -> list[tuple[str, str]]:
    """Return the (name, text) pairs shown under the title."""
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
    """Return the headings before the metrics without the task, which stands above its rows."""
    return headings(board)[1 : len(headings(board)) - len(board.metrics)]


def lead_classes(board: Board) -> dict[str, str]:
    """Return the CSS classes of these columns.

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
    """Return the leaderboard's rows grouped by task, with the texts of its other formats."""
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
    """Return the data of a row that the charts need."""
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
    """Return the rows' training losses and the rows whose adapters are in the results folder.

    Returns:
        (mean training loss of each row that has losses, rows with at least one adapter file or
        with losses).
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
    """Return the curves of the rows that have one, each with its row's number."""
    curves = enumerate(map(curve_of, board.rows))
    return [{"row": number} | curve for number, curve in curves if curve is not None]


def held_out_of(row: Row) -> dict[str, Any] | None:
    """Return the mean held-out loss of a row; an adapter that records share counts once."""
    adapters = {
        record.adapter.key: record.adapter for record in row.done if record.adapter is not None
    }
    return held_out_curve(
        [adapter.held_out for adapter in adapters.values() if adapter.held_out is not None]
    )


def oracle_of(row: Row) -> dict[str, Any] | None:
    """Return the mean change of the error of eps of an adapted row."""
    return oracle_curve(
        [record.oracle for record in row.done if record.adapter is not None and record.oracle]
    )


def settings(gathered: Gathered) -> list[tuple[str, str]]:
    """Return (title, JSON) of each row's settings.

    They are the settings that decide the row's numbers, without the seed, and those of its data
    and scoring.
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
