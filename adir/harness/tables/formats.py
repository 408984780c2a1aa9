"""The board as text: terminal, CSV, Markdown, LaTeX (booktabs) and an HTML page. The same board gives the same bytes."""

import csv
import html
import io
import re
from typing import Any

from rich.table import Table
from rich.text import Text

from adir.harness.tables.board import Board, Row, Standing, several
from adir.harness.tables.priors import short_prior
from adir.harness.tables.statistics import (
    FEWEST_PICTURES,
    FEWEST_TO_TELL_APART,
    STUDENT_BELOW,
    Estimate,
    PairedDifference,
)
from adir.harness.tables.terminal import Column, stacked
from adir.harness.tables.verdicts import Verdict, margins

ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}
PRIOR = "prior trained on"
EVALUATIONS = ("evaluations", "with gradient")
COUNTS = ("K", "n", *EVALUATIONS)
"""Columns before the metrics that hold numbers."""
TIED = "≈"
DIFFERS = "†"


def explanation(board: Board) -> str:
    """What stands under a table: how its numbers and marks are to be read."""
    text = (
        "mean ± standard error over n images, or clusters of images (seeds averaged within an image, images within a cluster "
        "such as a photograph). Bold: the best of its task, every other row being worse; "
        f"{TIED}: the best and those not shown to be worse than it (Wilcoxon signed rank against the best, Holm over the "
        f"table, p < 0.05). Under a mean: the paired difference to {board.against} on the same settings and its 90 % interval "
        f"(bootstrap-t over images or clusters, Student's t below {STUDENT_BELOW}; none below {FEWEST_PICTURES}); "
        f"{DIFFERS}: it differs from {board.against} (signed rank, Holm over all differences of the table, p < 0.05). "
    )
    judged = {metric: margins()[metric].text for row in board.rows for metric in row.verdicts}
    if judged:
        n = sum(len(row.verdicts) for row in board.rows)
        text += (
            "Verdicts, by the interval [L, U] of the gain, which is the difference with its sign turned so that positive is "
            "better, and by a margin m: better, L > 0; worse, U < 0 and L ≤ −m; not worse, L > −m; undecided, else or below "
            f"n = {FEWEST_TO_TELL_APART}. m: {', '.join(f'{metric} {margin}' for metric, margin in judged.items())}. "
            f"Verdicts, unlike {DIFFERS}, are not corrected for the number of rows: without any effect about one in 20 says "
            f"better, so {n / 20:.2g} of these {n}. "
        )
    if shows_evaluations(board):
        text += (
            "evaluations: calls of the network per image by the sampler, without a gradient; with gradient: those that were "
            "differentiated, each of which costs about three. "
        )
    return text + "residual: rms(A x̂ − y) in grey levels, to be read beside σ, the noise of y."


def cell_text(
    estimate: Estimate,
    difference: PairedDifference | None,
    newline: str,
    standing: Standing | None = None,
    verdict: Verdict | None = None,
    bold: tuple[str, str] = ("", ""),
) -> str:
    """`23.14 ± 0.80 ≈`, and on a line of its own `+0.31 [+0.12, +0.55] better †`: the paired difference and its interval.

    bold: what goes around the mean of the one best row.
    """
    if estimate.value is None:
        text = f"– (n={estimate.n})" if estimate.n else "–"
    else:
        text = f"{estimate.value:#.4g}"  # 25.30, not 25.3
        text = bold[0] + text + bold[1] if standing == "best" else text
        if estimate.standard_error is not None:
            text += f" ± {estimate.standard_error:.2g}"
        text += f" {TIED}" if standing == "tied" else ""
    if difference is not None:
        text += f"{newline}{difference.mean:+.2g}"
        if difference.low is not None:
            text += f" [{difference.low:+.2g}, {difference.high:+.2g}]".replace("inf", "∞")
        text += f" (n={difference.n})" if difference.dropped else ""
        text += f" {verdict.word}" if verdict is not None else ""
        text += f" {DIFFERS}" if difference.significant else ""
    return text


def extra_axes(board: Board) -> list[str]:
    """The axes that need a column because the board has several of them: data, backbone, sampler."""
    return several(row.axes for row in board.rows)


def headings(board: Board) -> list[str]:
    """Column titles, shared by every form of the table: those of `lead`, then the metrics."""
    metrics = (tidy(name) + ARROWS[way] for name, way in board.metrics.items())
    costs = EVALUATIONS if shows_evaluations(board) else ()
    prior = [PRIOR] * tells_priors(board)
    return ["task", *extra_axes(board), *prior, "mode", "K", "adapter", "n", *costs, *metrics]


def tells_priors(board: Board) -> bool:
    """Whether any row says what its prior was trained on, so that there is a column for it."""
    return any(row.trained_on is not None for row in board.rows)


def shows_evaluations(board: Board) -> bool:
    """Whether the table says how often the network was called: where its rows differ in that."""
    return len({row.evaluations for row in board.rows if None not in row.evaluations}) > 1


def lead(board: Board, row: Row) -> list[str]:
    """The columns of a row before its metrics."""
    axes = row.axes
    setting = axes["setting"] or (f"#{axes['variant']}" if axes["variant"] else "")
    mode = f"{axes['adaptation']} {setting}".strip()
    n = max((e.n for e in row.estimates.values()), default=0)
    count = str(n) if row.have == row.expected else f"{row.have}/{row.expected}"
    task = axes["task"] + (f" (σ {row.sigma_y:g})" if row.sigma_y is not None else "")
    extra = [axes[name] or "–" for name in extra_axes(board)] + [short_prior(row.trained_on)] * tells_priors(board)
    k = "–" if axes["k"] is None else str(axes["k"])
    costs = row.evaluations if shows_evaluations(board) else ()
    calls = ["–" if n is None else f"{n:.4g}" for n in costs]
    return [tidy(text) for text in (task, *extra, mode, k, axes["adapter"] or "–", count, *calls)]


def cells(board: Board, row: Row, newline: str = "\n", bold: tuple[str, str] = ("", "")) -> list[str]:
    """One row as text; `newline` parts a mean from the difference under it."""
    return lead(board, row) + [
        cell_text(
            row.estimates[name],
            row.to_reference.get(name),
            newline,
            row.standing.get(name),
            row.verdicts.get(name),
            bold,
        )
        for name in board.metrics
    ]


def tidy(text: str) -> str:
    """One line of printable characters: names and errors come from files and may hold anything."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def to_terminal(board: Board, title: str, width: int) -> list[Table]:
    """The tables for rich, of as many metrics each as `width` columns hold."""
    rows = board.rows
    headed, leads = headings(board), [lead(board, row) for row in rows]
    names = [
        Column(heading, [Text(texts[place]) for texts in leads], number=heading in COUNTS)
        for place, heading in enumerate(headed[: len(headed) - len(board.metrics)])
    ]
    values = []
    for metric, heading in zip(board.metrics, headed[len(names) :], strict=True):
        texts = [
            Text(
                cell_text(
                    row.estimates[metric],
                    row.to_reference.get(metric),
                    "\n",
                    row.standing.get(metric),
                    row.verdicts.get(metric),
                )
            )
            for row in rows
        ]
        for row, text in zip(rows, texts, strict=True):
            if row.standing.get(metric) == "best":
                text.stylize("bold", 0, text.plain.index(" ") if " " in text.plain else len(text.plain))
        values.append(Column(heading, texts, number=True))
    ends = [n for n in range(len(rows) - 1) if rows[n].axes["task"] != rows[n + 1].axes["task"]]
    return stacked(tidy(title), names, values, width, ends)


def to_markdown(board: Board) -> str:
    """The table for a README; text from data cannot leave its cell."""
    lines = ["| " + " | ".join(map(markdown_safe, headings(board))) + " |", "|" + " --- |" * len(headings(board))]
    for row in board.rows:
        texts = cells(board, row, "\n", ("**", "**"))
        lines.append("| " + " | ".join(markdown_safe(text).replace("\n", "<br>") for text in texts) + " |")
    lines += ["", f"**{markdown_safe(tidy(board.summary))}**"] if board.summary else []
    lines += ["", explanation(board)]
    return "\n".join([*lines, *(f"- {markdown_safe(tidy(note))}" for note in board.notes)]) + "\n"


def markdown_safe(text: str) -> str:
    """Text without what would open a tag or end a cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


ENDS = ("", "_low", "_high", "_n", "_p", "_p_holm", "_verdict", "_least")
"""Of the columns of a difference in the CSV: 90 % interval, clusters, p, verdict, least gain shown with 80 % power."""


def to_csv(board: Board) -> str:
    """Full precision, one line per row, empty where missing."""
    buffer = io.StringIO()
    fields = [*("backbone", "sampler", "task", "adaptation", "adapter", "k", "variant", "setting", "data")]
    fields += ["prior_trained_on", "sigma_y", "records", "expected", "evaluations", "gradient_evaluations"]
    for name in board.metrics:
        fields += [name, f"{name}_se", f"{name}_n", f"{name}_version", f"{name}_standing"]
        fields += [f"{name}_minus_{board.against}{end}" for end in ENDS]
    table = csv.DictWriter(buffer, fields, lineterminator="\n")
    table.writeheader()
    for row in board.rows:
        line: dict[str, Any] = dict(row.axes) | {"prior_trained_on": row.trained_on, "sigma_y": row.sigma_y}
        line |= {"records": row.have, "expected": row.expected}
        line["evaluations"], line["gradient_evaluations"] = row.evaluations
        for name in board.metrics:
            mean, difference, verdict = row.estimates[name], row.to_reference.get(name), row.verdicts.get(name)
            line |= {name: mean.value, f"{name}_se": mean.standard_error, f"{name}_n": mean.n}
            line |= {f"{name}_version": board.versions.get(name), f"{name}_standing": row.standing.get(name)}
            if difference is not None:
                values = (
                    difference.mean,
                    difference.low,
                    difference.high,
                    difference.n,
                    difference.p,
                    difference.p_holm,
                    None if verdict is None else verdict.word,
                    None if verdict is None else verdict.least,
                )
                line |= {f"{name}_minus_{board.against}{end}": value for end, value in zip(ENDS, values, strict=True)}
        table.writerow(line)
    return buffer.getvalue()


TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    **{letter: f"\\{letter}" for letter in "&%$#_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "σ": r"$\sigma$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
    "†": r"$^\dagger$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
"""What pdflatex would not take as it stands."""


def tex(text: str) -> str:
    """Text that LaTeX prints as it is: every special letter escaped."""
    return "".join(TEX.get(letter, letter) for letter in tidy(text))


def to_latex(board: Board) -> str:
    """A booktabs table: \\usepackage{booktabs}. Differences stand in a line of their own under the means."""
    n_lead = len(headings(board)) - len(board.metrics)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{" + "l" * n_lead + "r" * len(board.metrics) + "}",
        r"\toprule",
        " & ".join(map(tex, headings(board))) + r" \\",
    ]
    previous = None
    for row in board.rows:
        if row.axes["task"] != previous:
            lines.append(r"\midrule")
        previous = row.axes["task"]
        above: list[str] = list(map(tex, lead(board, row)))
        below = [""] * n_lead
        for name in board.metrics:
            text = cell_text(
                row.estimates[name],
                row.to_reference.get(name),
                "\n",
                row.standing.get(name),
                row.verdicts.get(name),
                ("\x01", "\x02"),
            )
            mean, _, difference = text.partition("\n")
            start, _, rest = mean.rpartition("\x02")
            text = r"\textbf{" + tex(start[1:]) + "}" + tex(rest) if start else tex(mean)
            above.append(re.sub(r"(?<![\w-])-(?=\d)", "$-$", text))
            below.append(r"{\footnotesize " + tex(difference).replace("-", "$-$") + "}" if difference else "")
        lines.append(" & ".join(above) + r" \\")
        if any(below):
            lines.append(" & ".join(below) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines += [
        f"% {tidy(text)}" for text in (*([board.summary] if board.summary else []), explanation(board), *board.notes)
    ]  # on one line each: nothing can end the comment
    return "\n".join(lines) + "\n"


HTML_STYLE = """\
:root { color-scheme: light dark; }
body { margin: 2rem; font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
body { background: Canvas; color: CanvasText; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .4rem .7rem; text-align: left; vertical-align: baseline; white-space: nowrap; }
td { border-bottom: 1px solid #8884; }
thead th { border-bottom: 1px solid; }
.number { text-align: right; }
p, li { max-width: 58rem; font-size: .85rem; }
"""
"""Few enough lines to read; Canvas and CanvasText are the browser's own light or dark."""


def to_html(board: Board) -> str:
    """A page of its own: the table with its explanation and notes, every text escaped, no script, light or dark."""
    names = len(headings(board)) - len(board.metrics)
    kinds = [
        ' class="number"' if place >= names or heading in COUNTS else ""
        for place, heading in enumerate(headings(board))
    ]
    lines = ["<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">']
    lines += ['<meta name="viewport" content="width=device-width, initial-scale=1">', "<title>ADIR leaderboard</title>"]
    lines += [f"<style>\n{HTML_STYLE}</style>", "</head>", "<body>"]
    lines += [f"<p><b>{html.escape(tidy(board.summary))}</b></p>"] if board.summary else []
    lines += ['<div class="scroll">', '<table class="adir-leaderboard">', "<thead><tr>"]
    for kind, heading in zip(kinds, headings(board), strict=True):
        lines.append(f'<th scope="col"{kind}>{html.escape(heading)}</th>')
    lines += ["</tr></thead>", "<tbody>"]
    for row in board.rows:
        lines.append("<tr>")
        for kind, text in zip(kinds, cells(board, row, "\n", ("\x01", "\x02")), strict=True):
            safe = html.escape(text).replace("\n", "<br>").replace("\x01", "<b>").replace("\x02", "</b>")
            lines.append(f"<td{kind}>{safe}</td>")
        lines.append("</tr>")
    lines += ["</tbody>", "</table>", "</div>"]
    lines += [f"<p>{html.escape(explanation(board))}</p>"]
    if board.notes:
        lines += ["<ul>", *(f"<li>{html.escape(tidy(note))}</li>" for note in board.notes), "</ul>"]
    return "\n".join([*lines, "</body>", "</html>"]) + "\n"


FORMATS = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_html}
"""What `adir leaderboard` writes, by the ending of the file."""
