"""`adir report`: one HTML file that shows a results folder, and needs nothing but a browser."""

import base64
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.records.layout import Layout, is_hash, losses_of
from adir.harness.report.curves import held_out_curve, mean_curve, oracle_curve
from adir.harness.report.exhibits import Exhibits
from adir.harness.report.gather import FIDELITY, PERCEIVED, Gathered, cost, gather, pick_metric
from adir.harness.report.looks import colours_css
from adir.harness.tables.board import Board
from adir.harness.tables.formats import COUNTS, cell_text, explanation, headings, lead

HERE = Path(__file__).parent
SCRIPTS = ("base.js", "board.js", "compare.js", "charts.js")
LARGEST_PAGE = 25_000_000  # bytes: what mail and issue trackers still take
TEXT_BYTES = 300_000  # kept free for what is neither picture nor data
MOST_ADAPTERS = 2000
"""Adapters whose loss is read, evenly over each row's: the mean of a row does not change by more, the time would."""


def write_report(folder: Path, out: Path | None, figures: bool) -> int:
    """Write FOLDER/report.html, or `out`; with `figures` also PNG and PDF files for papers into FOLDER/figures.

    Returns 0, or 1 where a damaged file was left out. Raises InputError when the folder holds no records, OSError when the
    place cannot be written to.
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
        from adir.harness.report.figures import write_figures  # here: matplotlib takes a second to import

        drawn = path.parent / "figures"
        Layout(drawn).mark()
        for written in write_figures(gathered, drawn):
            print(written)
    if gathered.board.damaged:
        print(f"{gathered.board.damaged} damaged files are left out; the page's notes name them")
    return 1 if gathered.board.damaged else 0


def render(gathered: Gathered, page_folder: Path) -> tuple[bytes, str]:
    """(the HTML file that is to lie in `page_folder`, one sentence on which pictures are in it).

    Made once more, with fewer pictures, where the texts took more room than was kept for them.
    """
    board = gathered.board
    losses, adapter_files = loss_curves(gathered)
    fixed = {
        "metrics": [{"name": name, "direction": way} for name, way in board.metrics.items()],
        "rows": [row_data(gathered, number) for number in range(len(board.rows))],
        "losses": losses,
        "adapterFiles": adapter_files,
        "heldOut": held_out_curves(gathered),
        "oracle": oracle_curves(gathered),
        "firstSeed": gathered.first_seed,
        "fidelity": pick_metric(board, FIDELITY),
        "perceived": pick_metric(board, PERCEIVED),
    }
    kept = TEXT_BYTES + len(json.dumps(fixed))
    for _ in range(2):
        exhibits = Exhibits(gathered, page_folder)
        data = fixed | exhibits.fill(LARGEST_PAGE - kept - exhibits.text_bytes())
        content = html(gathered, exhibits, data)
        if len(content) <= LARGEST_PAGE:
            break
        kept += len(content) - LARGEST_PAGE + TEXT_BYTES
    return content, exhibits.said()


def html(gathered: Gathered, exhibits: Exhibits, data: dict[str, Any]) -> bytes:
    """The page with its data block."""
    board = gathered.board
    style = colours_css() + (HERE / "style.css").read_text()
    script = "\n".join((HERE / name).read_text() for name in SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html").render(
        name=gathered.folder.resolve().name,
        policy=content_policy(style, script, exhibits.album.linked > 0),
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
        notes=[note for note in board.notes if not note.startswith("failed: ")],  # these have a table
        failed=[(gathered.labels[number], record) for number, record in gathered.failed],
        pictures_said=exhibits.said(),
        made_with=gathered.made_with,
        settings=settings(gathered),
    )
    # An id from a file name that is not UTF-8 holds lone surrogates, which UTF-8 has no bytes for.
    return text.encode("utf-8", "backslashreplace")


def content_policy(style: str, script: str, links: bool) -> str:
    """Content-Security-Policy: this one style and this one script, no network; pictures from inside, or from beside the page.

    Should a text of the data ever escape its escaping, it still could not run.
    """
    pictures = "data: 'self' file:" if links else "data:"
    return (
        f"default-src 'none'; img-src {pictures}; style-src {source_hash(style)}; script-src {source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    """A source expression that admits exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def json_block(data: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def facts(gathered: Gathered) -> list[tuple[str, str]]:
    """What stands under the title."""
    board = gathered.board
    tasks = list(dict.fromkeys(row.axes["task"] for row in board.rows))
    backbones = list(dict.fromkeys(row.axes["backbone"] for row in board.rows))
    samplers = list(dict.fromkeys(row.axes["sampler"] for row in board.rows))
    seeds = sorted({seed for scene in gathered.scenes for seed in scene.seeds})
    commits = sorted({str(made["commit"])[:10] for made in gathered.made_with if made["commit"]})
    shown = [
        ("records", f"{gathered.n_records:,}" + (f", {len(gathered.failed):,} failed" if gathered.failed else "")),
        ("pictures", f"{len({scene.image_id for scene in gathered.scenes}):,}"),
        ("tasks", ", ".join(tasks)),
        ("backbone", ", ".join(backbones)),
        ("sampler", ", ".join(samplers)),
        ("seeds", ", ".join(map(str, seeds))),
        ("commit", ", ".join(commits) or "not recorded"),
    ]
    return [(name, text) for name, text in shown]


def lead_headings(board: Board) -> list[str]:
    """The columns before the metrics, less the task, which stands above its rows."""
    return headings(board)[1 : len(headings(board)) - len(board.metrics)]


def lead_classes(board: Board) -> dict[str, str]:
    """CSS classes of these columns: `same` is hidden where there is little room."""
    found = {}
    for place, heading in enumerate(lead_headings(board), 1):
        same = len({lead(board, row)[place] for row in board.rows}) < 2
        kind = ("lead count" if heading == "n" else "lead") + ("" if heading in COUNTS else " text")
        found[heading] = "name" if heading == "mode" else kind + (" same" if same else "")
    return found


def empty_metrics(board: Board) -> set[str]:
    """Metrics of which no row has a value."""
    return {name for name in board.metrics if all(row.estimates[name].value is None for row in board.rows)}


def board_groups(gathered: Gathered) -> list[dict[str, Any]]:
    """The rows of the leaderboard by task, with the texts that every form of the leaderboard has."""
    board, empty = gathered.board, empty_metrics(gathered.board)
    groups: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(board.rows):
        title, *texts = lead(board, row)
        group = groups.setdefault(row.axes["task"], {"title": title, "task": row.axes["task"], "rows": []})
        values = []
        for name in board.metrics:
            estimate, standing = row.estimates[name], row.standing.get(name)
            text = cell_text(estimate, row.to_reference.get(name), "\n", standing, row.verdicts.get(name), ("", "\x02"))
            first, *below = text.split("\n")
            bold, _, rest = first.rpartition("\x02")  # what is bold of it, which is nothing but in the one best row
            values.append(
                {"bold": bold, "rest": rest, "below": below, "number": estimate.value} | {"empty": name in empty}
            )
        label = gathered.labels[number]
        group["rows"].append({"number": number, "label": label, "lead": texts, "values": values})
    return list(groups.values())


def row_data(gathered: Gathered, number: int) -> dict[str, Any]:
    """What the charts need of a row."""
    row = gathered.board.rows[number]
    evaluations, seconds = cost(gathered.done_of(number))
    means = {name: [estimate.value, estimate.standard_error] for name, estimate in row.estimates.items()}
    return {
        "label": gathered.labels[number],
        "look": asdict(gathered.looks[number]),
        "axes": {key: value for key, value in row.axes.items() if key != "variant"},
        "variant": row.axes["variant"] or "",
        "means": means,
        "evaluations": evaluations,
        "seconds": seconds,
    }


def loss_curves(gathered: Gathered) -> tuple[list[dict[str, Any]], list[int]]:
    """(mean training loss of each row, rows of which adapters are among the results, with losses in them or without)."""
    keys: dict[int, dict[str, None]] = {}
    for scene in gathered.scenes:
        for number, seeds in scene.cells.items():
            for record in seeds.values():
                if record.adapter is not None and is_hash(record.adapter.key):
                    keys.setdefault(number, {})[record.adapter.key] = None
    each = max(1, MOST_ADAPTERS // max(1, len(keys)))
    curves, there = [], []
    for number in sorted(keys):
        names = list(keys[number])
        names = names[:: -(-len(names) // each)]
        curve = mean_curve([losses for name in names if (losses := losses_of(gathered.folder, name)) is not None])
        if curve is not None or any(Layout(gathered.folder).adapter(n).is_file() for n in names):
            there.append(number)
        if curve is not None:
            curves.append({"row": number} | curve)
    return curves, there


def held_out_curves(gathered: Gathered) -> list[dict[str, Any]]:
    """Mean held-out loss of each row that has any; an adapter that records share counts once."""
    curves = []
    for number in range(len(gathered.board.rows)):
        adapters = {r.adapter.key: r.adapter for r in gathered.done_of(number) if r.adapter is not None}
        curve = held_out_curve([one.held_out for one in adapters.values() if one.held_out is not None])
        curves += [{"row": number} | curve] if curve is not None else []
    return curves


def oracle_curves(gathered: Gathered) -> list[dict[str, Any]]:
    """Mean change of the error of eps of each adapted row that has it."""
    curves = []
    for number in range(len(gathered.board.rows)):
        curve = oracle_curve([r.oracle for r in gathered.done_of(number) if r.adapter is not None and r.oracle])
        curves += [{"row": number} | curve] if curve is not None else []
    return curves


def settings(gathered: Gathered) -> list[tuple[str, str]]:
    """(title, JSON) of what decides the numbers of each row, less the seed, and of its data and scoring."""
    shown = []
    for number, row in enumerate(gathered.board.rows):
        identity = {key: value for key, value in row.identity.items() if key != "seed"}
        example = gathered.examples.get(number)
        configured = {} if example is None else example.configuration
        more = {key: configured[key] for key in ("data", "scoring") if key in configured}
        text = json.dumps(identity | more, indent=2, ensure_ascii=False)
        shown.append((f"{row.axes['task']} {gathered.labels[number]}", text))
    return shown
