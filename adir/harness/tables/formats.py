"""Format the leaderboard for the terminal, or as CSV, Markdown, LaTeX or an HTML page.

The same board always gives the same bytes. LaTeX tables use the package booktabs.
"""

import html
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from adir.harness.tables.board import Board, Row
from adir.harness.tables.priors import short_prior
from adir.harness.tables.statistics import FEWEST_IMAGES, FEWEST_TO_TELL_APART, STUDENT_BELOW
from adir.harness.tables.terminal import Column, stacked
from adir.harness.tables.verdicts import margins

ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}
PRIOR = "prior trained on"
EVALUATIONS = ("evaluations", "with gradient")
COUNTS = ("K", "n", *EVALUATIONS)
"""The numeric columns before the metrics."""
TIED = "≈"
DIFFERS = "†"


def explanation(board: Board) -> str:
    """Return the text under a table, which explains its numbers and marks."""
    text = (
        "Scores: mean ± standard error over n images, or over n clusters of images such as the "
        "fields of one photograph (seeds are averaged within an image, images within a cluster). "
        f"Bold: the only best row of its task. {TIED}: the best row, and rows not shown to be "
        "worse than it (Wilcoxon signed rank test against the best, Holm correction over the "
        "table, p < 0.05). "
        f"Under a mean: the paired difference to {board.against} with the same settings, and its "
        f"90 % interval (bootstrap-t over images or clusters; Student's t if n < {STUDENT_BELOW}; "
        f"no interval if n < {FEWEST_IMAGES}). "
        f"{DIFFERS}: the difference to {board.against} is significant (signed rank test, Holm "
        "correction over all differences of the table, p < 0.05). "
    )
    judged = {metric: margins()[metric].text for row in board.rows for metric in row.verdicts}
    if judged:
        n = sum(len(row.verdicts) for row in board.rows)
        text += (
            "Verdicts compare the interval [L, U] of the gain with a margin m. The gain is the "
            "difference, with its sign changed if lower is better. better: L > 0; worse: U < 0 "
            "and L ≤ −m; not worse: L > −m; undecided: all other cases, and n < "
            f"{FEWEST_TO_TELL_APART}. m: "
            f"{', '.join(f'{metric} {margin}' for metric, margin in judged.items())}. "
            f"Unlike {DIFFERS}, verdicts are not corrected for the number of rows: even "
            "without any true effect, about one verdict in 20 is `better`, which is "
            f"{n / 20:.2g} of these {n}. "
        )
    if shows_evaluations(board):
        text += (
            "evaluations: the sampler's network calls per image without a gradient; with "
            "gradient: its differentiated calls, each of which costs about as much as three. "
        )
    return text + "residual: rms(A x̂ − y) in grey levels; compare it with σ, the noise of y."


def score_text(row: Row, metric: str) -> tuple[str, str, str]:
    """Return a score as three texts: (mean, standard error and mark, paired difference).

    Example: (`23.14`, ` ± 0.80 ≈`, `+0.31 [+0.12, +0.55] better †`). `explanation` explains the
    marks. Callers print the third text on a line of its own. They print the mean in bold if this
    row alone is the best of its task.
    """
    estimate, difference, verdict = (
        row.estimates[metric],
        row.to_reference.get(metric),
        row.verdicts.get(metric),
    )
    rest = below = ""
    if estimate.value is None:
        mean = f"– (n={estimate.n})" if estimate.n else "–"
    else:
        mean = f"{estimate.value:#.4g}"  # 25.30, not 25.3
        rest = f" ± {estimate.standard_error:.2g}" if estimate.standard_error is not None else ""
        rest += f" {TIED}" if row.ranking.get(metric) == "tied" else ""
    if difference is not None:
        below = f"{difference.mean:+.2g}"
        if difference.low is not None:
            below += f" [{difference.low:+.2g}, {difference.high:+.2g}]".replace("inf", "∞")
        below += f" (n={difference.n})" if difference.dropped else ""
        below += f" {verdict.word}" if verdict is not None else ""
        below += f" {DIFFERS}" if difference.significant else ""
    return mean, rest, below


def headings(board: Board) -> list[str]:
    """Return the column titles, which are the same in every format.

    First come the titles of the columns of `lead`, then those of the metrics.
    """
    metrics = (tidy(name) + ARROWS[way] for name, way in board.metrics.items())
    costs = EVALUATIONS if shows_evaluations(board) else ()
    return [
        "task",
        *board.shown,
        *[PRIOR] * tells_priors(board),
        "mode",
        "K",
        "adapter",
        "n",
        *costs,
        *metrics,
    ]


def tells_priors(board: Board) -> bool:
    """Return whether any row names the training set of its prior.

    If one does, the table has a column for it.
    """
    return any(row.trained_on is not None for row in board.rows)


def shows_evaluations(board: Board) -> bool:
    """Return whether rows differ in their numbers of network calls.

    If they do, the table has columns for these numbers.
    """
    return len({row.evaluations for row in board.rows if None not in row.evaluations}) > 1


def lead(board: Board, row: Row) -> list[str]:
    """Return the cell texts of a row in the columns before the metrics."""
    axes = row.axes
    setting = axes["setting"] or (f"#{axes['variant']}" if axes["variant"] else "")
    n = max((e.n for e in row.estimates.values()), default=0)
    task = axes["task"] + (f" (σ {row.sigma_y:g})" if row.sigma_y is not None else "")
    calls = row.evaluations if shows_evaluations(board) else ()
    texts = [
        task,
        *(axes[name] or "–" for name in board.shown),
        *[short_prior(row.trained_on)] * tells_priors(board),
        f"{axes['adaptation']} {setting}".strip(),
        "–" if axes["k"] is None else str(axes["k"]),
        axes["adapter"] or "–",
        str(n) if row.have == row.expected else f"{row.have}/{row.expected}",
        *("–" if mean is None else f"{mean:.4g}" for mean in calls),
    ]
    return [tidy(text) for text in texts]


def cells(
    board: Board,
    row: Row,
    newline: str = "\n",
    bold: tuple[str, str] = ("", ""),
    safe: Callable[[str], str] = str,
) -> list[str]:
    """Return the texts of a row, one per column of the table.

    Args:
        board: the board, for its columns.
        row: the row.
        newline: text between a mean and the difference under it.
        bold: markup before and after a mean if the row alone is the best of its task.
        safe: function that escapes text from the data for the format.
    """
    texts = [safe(text) for text in lead(board, row)]
    for name in board.metrics:
        mean, rest, below = map(safe, score_text(row, name))
        before, after = bold if row.ranking.get(name) == "best" else ("", "")
        texts.append(before + mean + after + rest + (newline + below if below else ""))
    return texts


def tidy(text: str) -> str:
    """Return the text with a blank for each character that is not printable.

    Names and errors come from files and may contain anything, such as line breaks.
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def to_terminal(board: Board, title: str, width: int) -> list[Table]:
    """Return the board as rich tables; each has as many metrics as fit in `width` characters."""
    n_lead, rows = len(headings(board)) - len(board.metrics), board.rows
    lines = [
        [*map(Text, lead(board, row)), *(score_of(row, name) for name in board.metrics)]
        for row in rows
    ]
    columns = [
        Column(heading, texts, number=place >= n_lead or heading in COUNTS)
        for place, (heading, texts) in enumerate(
            zip(headings(board), zip(*lines, strict=True), strict=True)
        )
    ]
    ends = [n for n in range(len(rows) - 1) if rows[n].axes["task"] != rows[n + 1].axes["task"]]
    return stacked(tidy(title), columns[:n_lead], columns[n_lead:], width, ends)


def score_of(row: Row, metric: str) -> Text:
    """Return a score as text for the terminal, with its style."""
    mean, rest, below = score_text(row, metric)
    style = "bold" if row.ranking.get(metric) == "best" else ""
    return Text.assemble((mean, style), rest, f"\n{below}" if below else "")


def to_markdown(board: Board) -> str:
    """Return the board as Markdown for a README; text from the data is escaped."""
    table = [
        [markdown_safe(heading) for heading in headings(board)],
        ["---"] * len(headings(board)),
    ]
    table += [cells(board, row, "<br>", ("**", "**"), markdown_safe) for row in board.rows]
    lines = [f"| {' | '.join(texts)} |" for texts in table]
    lines += ["", f"**{markdown_safe(tidy(board.summary))}**"] if board.summary else []
    lines += ["", explanation(board)]
    return "\n".join([*lines, *(f"- {markdown_safe(tidy(note))}" for note in board.notes)]) + "\n"


def markdown_safe(text: str) -> str:
    """Return the text with `&`, `<` and `|` escaped, which could open a tag or end a cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def to_csv(board: Board) -> str:
    """Return the board as CSV, with one line per row and numbers in full precision.

    A missing value is an empty field. The columns of a paired difference are its mean, both ends of
    its 90 % interval, its number of clusters, p, corrected p, the verdict, and the smallest true
    gain that would be shown with 80 % power.
    """
    lines = []
    for row in board.rows:
        line: dict[str, Any] = {
            **row.axes,
            "prior_trained_on": row.trained_on,
            "sigma_y": row.sigma_y,
            "records": row.have,
            "expected": row.expected,
            "evaluations": row.evaluations[0],
            "gradient_evaluations": row.evaluations[1],
        }
        for name in board.metrics:
            mean = row.estimates[name]
            difference, verdict = row.to_reference.get(name), row.verdicts.get(name)
            minus = f"{name}_minus_{board.against}"
            line |= {
                name: mean.value,
                f"{name}_se": mean.standard_error,
                f"{name}_n": mean.n,
                f"{name}_version": board.versions.get(name),
                f"{name}_ranking": row.ranking.get(name),
                minus: getattr(difference, "mean", None),
                **{
                    f"{minus}_{part}": getattr(difference, part, None)
                    for part in ("low", "high", "n", "p", "p_holm")
                },
                f"{minus}_verdict": getattr(verdict, "word", None),
                f"{minus}_least": getattr(verdict, "least", None),
            }
        lines.append(line)
    # dtype=object: integers stay integers in a column with missing values.
    frame = pd.DataFrame(lines, dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


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
"""LaTeX for the characters that pdflatex does not accept as they are."""


def tex(text: str) -> str:
    """Return the text with special characters escaped, so that LaTeX prints it unchanged."""
    return "".join(TEX.get(letter, letter) for letter in tidy(text))


def booktabs(
    aligned: str, headings: Sequence[str], groups: Iterable[Iterable[Sequence[str]]]
) -> list[str]:
    """Return the lines of a LaTeX table in the style of the booktabs package.

    A rule precedes each group of rows.

    Args:
        aligned: LaTeX column specification, such as `lrr`.
        headings: column titles, already escaped for LaTeX.
        groups: the rows of each group, already escaped for LaTeX.
    """
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{aligned}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
    ]
    for rows in groups:
        lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    return [*lines, r"\bottomrule", r"\end{tabular}", ""]


def to_latex(board: Board) -> str:
    """Return the board as a LaTeX table, which needs \\usepackage{booktabs}.

    Paired differences have lines of their own under the means.
    """
    n_lead = len(headings(board)) - len(board.metrics)
    groups: list[list[list[str]]] = []
    for _, rows in groupby(board.rows, key=lambda row: row.axes["task"]):
        groups.append([])
        for row in rows:
            texts = cells(board, row, "\n", (r"\textbf{", "}"), tex)
            scores = [
                re.sub(r"(?<![\w-])-(?=\d|\$\\infty)", "$-$", text).partition("\n")
                for text in texts[n_lead:]
            ]
            groups[-1].append([*texts[:n_lead], *(mean for mean, _, _ in scores)])
            if any(below for _, _, below in scores):
                below = [
                    r"{\footnotesize " + difference + "}" if difference else ""
                    for _, _, difference in scores
                ]
                groups[-1].append([""] * n_lead + below)
    lines = booktabs("l" * n_lead + "r" * len(board.metrics), [*map(tex, headings(board))], groups)
    # Each text is on one line, because a line break would end the LaTeX comment.
    return (
        "\n".join(
            [
                *lines,
                *(
                    f"% {tidy(text)}"
                    for text in (board.summary, explanation(board), *board.notes)
                    if text
                ),
            ]
        )
        + "\n"
    )


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ADIR leaderboard</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 2rem; font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }}
body {{ background: Canvas; color: CanvasText; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ padding: .4rem .7rem; text-align: left; vertical-align: baseline; white-space: nowrap; }}
td {{ border-bottom: 1px solid #8884; }}
thead th {{ border-bottom: 1px solid; }}
{right} {{ text-align: right; }}
p, li {{ max-width: 58rem; font-size: .85rem; }}
</style>
</head>
<body>
{summary}<div class="scroll">
<table class="adir-leaderboard">
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table>
</div>
<p>{explanation}</p>
{notes}</body>
</html>
"""
"""The HTML page.

The CSS colours Canvas and CanvasText are the browser's own, light or dark.
"""


def to_html(board: Board) -> str:
    """Return the board as a self-contained HTML page with its explanation and notes.

    Every text is escaped. The page has no script and follows the browser's light or dark mode.
    """
    columns = headings(board)
    numbers = [
        n
        for n, name in enumerate(columns, 1)
        if name in COUNTS or n > len(columns) - len(board.metrics)
    ]
    rows = [cells(board, row, "<br>", ("<b>", "</b>"), html.escape) for row in board.rows]
    notes = "".join(f"<li>{html.escape(tidy(note))}</li>\n" for note in board.notes)
    return PAGE.format(
        right=", ".join(f"tr > :nth-child({number})" for number in numbers),
        summary=f"<p><b>{html.escape(tidy(board.summary))}</b></p>\n" if board.summary else "",
        head="".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in columns),
        body="".join(
            f"<tr>{''.join(f'<td>{text}</td>' for text in texts)}</tr>\n" for texts in rows
        ),
        explanation=html.escape(explanation(board)),
        notes=f"<ul>\n{notes}</ul>\n" if notes else "",
    )


FORMATS = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_html}
"""{file extension: function that formats the board} for `adir leaderboard`."""
