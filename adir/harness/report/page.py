"""`adir report`: one HTML file that shows a results folder, and needs nothing but a browser."""

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
LARGEST_PAGE = 25_000_000  # bytes: what mail and issue trackers still take
TEXT_BYTES = 300_000  # kept free for what is neither image nor data
MOST_ADAPTERS = 2000
"""Adapters whose loss is read, evenly over each row's: the mean of a row does not change by more,
the time would.
"""


def write_report(folder: Path, out: Path | None, figures: bool) -> int:
    """Write FOLDER/report.html, or `out`; with `figures` also PNG and PDF files for papers into
    FOLDER/figures.

    Returns 0, or 1 where a damaged file was left out. Raises InputError when the folder holds no
    records, OSError when the place cannot be written to.
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
        from adir.harness.report.figures import (
            write_figures,  # here: matplotlib takes a second to import
        )

        drawn = path.parent / "figures"
        Layout(drawn).mark()
        print(*write_figures(gathered, drawn), sep="\n")
    if gathered.board.damaged:
        print(f"{gathered.board.damaged} damaged files are left out; the page's notes name them")
    return 1 if gathered.board.damaged else 0


def render(gathered: Gathered, page_folder: Path) -> tuple[bytes, str]:
    """(the HTML file that is to lie in `page_folder`, one sentence on which images are in it).

    Made once more, with fewer images, where the texts took more room than was kept for them.
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
    """The page with its data block."""
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
        notes=[
            note for note in board.notes if not note.startswith("failed: ")
        ],  # these have a table
        failed=failed_of(gathered),
        images_said=assets.said(),
        made_with=gathered.made_with,
        settings=settings(gathered),
    )
    # An id from a file name that is not UTF-8 holds lone surrogates, which UTF-8 has no bytes for.
    return text.encode("utf-8", "backslashreplace")


def content_policy(style: str, script: str, links: bool) -> str:
    """Content-Security-Policy: this one style and this one script, no network; images from inside,
    or from beside the page.

    Should a text of the data ever escape its escaping, it still could not run.
    """
    images = "data: 'self' file:" if links else "data:"
    return (
        f"default-src 'none'; img-src {images}; style-src {source_hash(style)}; script-src "
        f"{source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    """A source expression that admits exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def json_block(data: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element or open a
    comment.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def failed_of(gathered: Gathered) -> list[tuple[str, Record]]:
    """(its row's label, the record) of those that failed."""
    return [
        (gathered.labels[number], record)
        for number, record in gathered.records
        if record.status == "failed"
    ]


def facts(gathered: Gathered) -> list[tuple[str, str]]:
    """What stands under the title."""
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
    """The columns before the metrics, less the task, which stands above its rows."""
    return headings(board)[1 : len(headings(board)) - len(board.metrics)]


def lead_classes(board: Board) -> dict[str, str]:
    """CSS classes of these columns: `same` is hidden where there is little room."""
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
    """Metrics of which no row has a value."""
    return {
        name
        for name in board.metrics
        if all(row.estimates[name].value is None for row in board.rows)
    }


def board_groups(gathered: Gathered) -> list[dict[str, Any]]:
    """The rows of the leaderboard by task, with the texts that every form of the leaderboard has."""
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
    """What the charts need of a row."""
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
    """(mean training loss of each row, rows of which adapters are among the results, with losses in
    them or without).
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
    """The curves of the rows that have one, each with its row's number."""
    curves = enumerate(map(curve_of, board.rows))
    return [{"row": number} | curve for number, curve in curves if curve is not None]


def held_out_of(row: Row) -> dict[str, Any] | None:
    """Mean held-out loss of a row; an adapter that records share counts once."""
    adapters = {
        record.adapter.key: record.adapter for record in row.done if record.adapter is not None
    }
    return held_out_curve(
        [adapter.held_out for adapter in adapters.values() if adapter.held_out is not None]
    )


def oracle_of(row: Row) -> dict[str, Any] | None:
    """Mean change of the error of eps of an adapted row."""
    return oracle_curve(
        [record.oracle for record in row.done if record.adapter is not None and record.oracle]
    )


def settings(gathered: Gathered) -> list[tuple[str, str]]:
    """(title, JSON) of what decides the numbers of each row, less the seed, and of its data and
    scoring.
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
