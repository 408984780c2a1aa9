"""The table against its definition: hand-made records, and numpy."""

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import changed, ledger_of, made_record, made_score, put, put_plan
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from adir.commands.leaderboard import main as leaderboard
from adir.errors import InputError
from adir.files import json_bytes, write_bytes
from adir.harness.records.record import Record
from adir.harness.report.sheet import FONT, TILE, caption, write_sheet
from adir.harness.tables.board import Board, Row, make_board
from adir.harness.tables.formats import FORMATS, to_csv, to_html, to_latex, to_markdown, to_terminal
from adir.harness.tables.leaderboard import load_board
from adir.images import read_pixels


def record(
    image: str,
    psnr: float | None,
    mode: str = "none",
    seed: int = 0,
    k: int | None = None,
    setting: int = 100,
    weights: str = "f" * 64,
) -> Record:
    """One record; `setting` and `weights` are parts of the identity that no axis shows.

    Messages know it by its path.
    """
    settings = {"sampler.guidance_scale": setting, "backbone.weights_sha256": weights}
    found = made_record(image, mode=mode, k=k, seed=seed, scores={"psnr": psnr}, settings=settings)
    return found.model_copy(
        update={"path": f"{mode}-{k}-{seed}" + ("" if setting == 100 else f"-{setting}")}
    )


def with_fields(records: Iterable[Record], changes: Mapping[str, Any]) -> list[Record]:
    """The records with the same fields changed in each."""
    return [changed(item, changes) for item in records]


FAILED = {"status": "failed", "scores": {}, "y": None, "image.sha256": None}
DPS = {"axes.sampler": "dps", "identity.sampler.name": "dps"}


def row(board: Board, mode: str, k: int | None = None) -> Row:
    (found,) = [r for r in board.rows if (r.axes["adaptation"], r.axes["k"]) == (mode, k)]
    return found


RNG = np.random.default_rng(5)
PSNR = {image: list(RNG.normal(25, 3, size=2)) for image in "abcdefghij"}  # image: one value a seed
KNN = {
    image: [value + gain for value, gain in zip(PSNR[image], RNG.gamma(1.0, size=2), strict=True)]
    for image in PSNR
}


def two_rows() -> list[Record]:
    records = [record(i, v, seed=s) for i, values in PSNR.items() for s, v in enumerate(values)]
    return records + [
        record(i, v, "knn", s, 20) for i, values in KNN.items() for s, v in enumerate(values)
    ]


def test_means_and_standard_errors_are_over_images_with_seeds_averaged_within() -> None:
    board = make_board(two_rows())
    for mode, k, values in (("none", None, PSNR), ("knn", 20, KNN)):
        per_image = np.array(list(values.values())).mean(axis=1)
        found = row(board, mode, k).estimates["psnr"]
        assert found.value == pytest.approx(per_image.mean())
        # n is 10 images, not 20 records: seeds of an image are no new images.
        assert found.n == 10 and found.standard_error == pytest.approx(
            per_image.std(ddof=1) / math.sqrt(10)
        )
        assert (row(board, mode, k).have, row(board, mode, k).expected) == (20, 20)


def test_the_difference_to_reference_is_paired_by_image() -> None:
    found = row(make_board(two_rows()), "knn", 20).to_reference["psnr"]
    paired = np.mean([np.mean(KNN[i]) - np.mean(PSNR[i]) for i in PSNR])
    assert found is not None and found.mean == pytest.approx(paired) and found.n == 10
    assert found.low is not None and found.high is not None and found.low < paired < found.high
    assert row(make_board(two_rows()), "none").to_reference == {}


def test_the_order_of_the_records_changes_nothing() -> None:
    assert to_csv(make_board(two_rows()[::-1])) == to_csv(make_board(two_rows()))


@pytest.mark.parametrize("missing", ["record", "value", "failed"])
def test_a_row_that_lacks_anything_shows_no_mean_and_says_how_much_it_has(missing: str) -> None:
    records = two_rows()
    place = next(n for n, r in enumerate(records) if r.path == "knn-20-1" and r.image.id == "c")
    if missing == "record":
        del records[place]
    elif missing == "value":
        records[place] = changed(records[place], {"scores.psnr.value": None})
    else:
        records[place] = changed(
            records[place], FAILED | {"error": "FloatingPointError: NaN at step 3"}
        )
    board = make_board(records)
    found = row(board, "knn", 20)
    assert (found.estimates["psnr"].value, found.estimates["psnr"].standard_error) == (None, None)
    assert found.estimates["psnr"].n == 9
    assert (found.have, found.expected) == ((20, 20) if missing == "value" else (19, 20))
    assert row(board, "none").estimates["psnr"].value is not None
    assert any("19 of 20" in note for note in board.notes) == (missing != "value")
    assert any("NaN at step 3" in note and "c" in note for note in board.notes) == (
        missing == "failed"
    )
    assert "– (n=9)" in to_markdown(board)
    (line,) = [line for line in csv_lines(board) if line["adaptation"] == "knn"]
    assert (line["psnr_n"], line["psnr"], line["psnr_se"]) == (9, None, None)
    # The difference drops c for both, with both its seeds, has its own n, and a note says so.
    others = [i for i in PSNR if i != "c"]
    paired = np.mean([np.mean(KNN[i]) - np.mean(PSNR[i]) for i in others])
    assert (line["psnr_minus_none"], line["psnr_minus_none_n"]) == (pytest.approx(paired), 9)
    assert any(
        "uses the 9 images that both rows have, so c is left out" in note for note in board.notes
    )
    assert "(n=9)" in to_markdown(board)


def test_an_image_that_none_lacks_is_dropped_from_the_difference_of_every_other_mode() -> None:
    records = [r for r in two_rows() if not (r.path == "none-None-1" and r.image.id == "c")]
    board = make_board(records)
    found = row(board, "knn", 20)
    assert (
        found.estimates["psnr"].value is not None
        and row(board, "none").estimates["psnr"].value is None
    )
    difference = found.to_reference["psnr"]
    assert difference is not None and (difference.n, difference.dropped) == (9, ("c",))
    assert any("c is left out" in note for note in board.notes)


@pytest.mark.parametrize("part", ["guidance scale", "backbone"])
def test_each_row_is_compared_with_the_none_of_its_own_settings(part: str) -> None:
    records = []
    for setting, shift, gain in ((30, 0.0, 1.0), (100, 5.0, 2.0)):
        scale, weights = (setting, "f" * 64) if part == "guidance scale" else (100, str(setting))
        for image, (value, _) in PSNR.items():
            records.append(record(image, value + shift, "none", 0, None, scale, weights))
            records.append(record(image, value + shift + gain, "knn", 0, 20, scale, weights))
    rows = make_board(records).rows
    assert [r.axes["adaptation"] for r in rows] == ["none", "none", "knn", "knn"]
    gains = {round(found.mean, 9) for r in rows[2:] if (found := r.to_reference["psnr"])}
    assert gains == {1.0, 2.0}  # against both nones together: -1.5 and 4.5
    alone = [r for r in records if r.cell != records[0].cell]
    assert [r.to_reference for r in make_board(alone).rows].count(
        {}
    ) == 2  # none itself, and the knn that has none


def csv_lines(board: Board) -> list[dict[str, Any]]:
    table = pd.read_csv(io.StringIO(to_csv(board)), float_precision="round_trip")
    return [
        {str(name): None if pd.isna(v) else v for name, v in line.items()}
        for line in table.to_dict("records")
    ]


def test_the_noise_stands_beside_the_residual_and_the_versions_below() -> None:
    board = make_board(
        with_fields(two_rows(), {"scores.residual": made_score("residual", 9.9).model_dump()})
    )
    assert "| sr4 (σ 10) | knn | 20 |" in to_markdown(
        board
    ) and "- versions: psnr 1, residual 1\n" in to_markdown(board)
    assert {
        (line["sigma_y"], line["psnr_version"], line["residual_version"])
        for line in csv_lines(board)
    } == {(10.0, 1, 1)}
    assert "| sr4 | none |" in to_markdown(make_board(two_rows()))  # no record tells


def either(text: str) -> str:
    """A pattern of the text with its two {parts} in this order or the other: cells are read in
    order of their hashes.
    """
    before, one, between, other, after = map(re.escape, re.split("[{}]", text))
    return f"{before}({one}{between}{other}|{other}{between}{one}){after}"


def test_records_of_different_task_versions_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1] = changed(records[-1], {"identity.task.version": 2})
    with pytest.raises(
        InputError, match=either("task sr4 has version {1 in knn-20-0} but {2 in knn-20-1};")
    ):
        make_board([r for r in records if r.axes.adaptation == "knn"])


def test_rows_of_different_y_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1] = changed(records[-1], {"y.sha256": "0123456789abc"})
    with pytest.raises(
        InputError,
        match=r"image j of made in task sr4 has y \w+ in knn-20-\d but \w+ in knn-20-\d;",
    ) as raised:
        make_board([r for r in records if r.axes.adaptation == "knn"])
    assert "0123456789abc in knn-20-1" in str(raised.value)


def test_scores_of_different_metric_versions_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1] = changed(records[-1], {"scores.psnr.version": "2"})
    with pytest.raises(
        InputError, match=either("psnr has version {1 in knn-20-0} but {2 in knn-20-1}; score both")
    ):
        make_board([r for r in records if r.axes.adaptation == "knn"])


def test_every_k_is_a_row_in_order() -> None:
    records = [record(i, 1.0, "knn", 0, k) for i in "abc" for k in (20, 1, 5)] + [
        record(i, 1.0) for i in "abc"
    ]
    assert [(r.axes["adaptation"], r.axes["k"]) for r in make_board(records).rows] == [
        ("none", None),
        ("knn", 1),
        ("knn", 5),
        ("knn", 20),
    ]


def test_cells_whose_axes_read_the_same_but_whose_settings_differ_are_separate_rows() -> None:
    one = [record(i, v[0], "self") for i, v in PSNR.items()]
    other = [record(i, v[0] + 5, "self", setting=30) for i, v in PSNR.items()]
    board = make_board(one + other)
    assert len(board.rows) == 2 and len({r.axes["variant"] for r in board.rows}) == 2
    means = sorted(r.estimates["psnr"].value or 0 for r in board.rows)
    assert means[1] - means[0] == pytest.approx(5)


def test_rows_say_by_which_settings_they_differ_in_the_order_of_the_numbers() -> None:
    alone = [
        record(i, v[0], setting=30) for i, v in PSNR.items()
    ]  # its name is its own, its none is not everyone's
    swept = [
        record(i, v[0], "knn", 0, 20, setting) for setting in (100, 30, 9) for i, v in PSNR.items()
    ]
    board = make_board(swept + alone)
    settings = [f"guidance_scale={scale}" for scale in (30, 9, 30, 100)]
    assert [r.axes["setting"] for r in board.rows] == settings
    assert [
        line.split("|")[2].strip()
        for line in to_markdown(board).splitlines()
        if line.startswith("| sr4")
    ] == [
        f"{mode} {setting}"
        for mode, setting in zip(("none", "knn", "knn", "knn"), settings, strict=True)
    ]
    assert [line["setting"] for line in csv_lines(board)] == settings
    assert not any("settings" in note for note in board.notes)
    # More than a reader can take in.
    swept = [
        changed(item, {f"identity.part{n}": item.path + str(n) for n in range(4)}) for item in swept
    ]
    assert [r.axes["setting"] for r in make_board(swept).rows] == [""] * 3
    assert "knn #" in to_markdown(make_board(swept))


SAFE = {
    "name": "safe",
    "n_iterations": 80,
    "learning_rate": 5e-5,
    "warm_up": 20,
    "average": 0.9,
    "clipping": 1.0,
}


@pytest.mark.parametrize(
    "place, values, settings",
    [
        # The name of a part says what all its settings are, where they are the same in all parts of
        # that name.
        ("adaptation.fine_tuning", [None, SAFE], ["fine_tuning=fine_tuning", "fine_tuning=safe"]),
        (
            "adaptation.fine_tuning",
            [None, SAFE, SAFE | {"average": 0.0}],
            [
                "average=0 fine_tuning=safe",
                "average=0.9 fine_tuning=safe",
                "average=none fine_tuning=fine_tuning",
            ],
        ),
        (
            "adaptation.fine_tuning",
            [SAFE, SAFE | {"clipping": None}],
            ["clipping=1", "clipping=none"],
        ),
        # What only one of the rows has.
        (
            "retrieval.withholds",
            [None, "own photograph"],
            ["withholds=none", "withholds=own photograph"],
        ),
    ],
)
def test_rows_that_differ_in_fine_tuning_or_corpus_alone_say_so(
    place: str, values: list[Any], settings: list[str]
) -> None:
    records = [record(i, v[0]) for i, v in PSNR.items()]
    for value in values:
        changes = {} if value is None else {f"identity.{place}": value}
        records += with_fields((record(i, v[0], "knn", 0, 20) for i, v in PSNR.items()), changes)
    board = make_board(records)
    assert [r.axes["setting"] for r in board.rows] == ["", *settings]
    names = [
        line.split("|")[2].strip()
        for line in to_markdown(board).splitlines()
        if line.startswith("| sr4")
    ]
    assert names == ["none", *(f"knn {setting}" for setting in settings)]
    assert all(r.to_reference["psnr"] for r in board.rows[1:])  # all of them against the one none


def test_a_metric_that_could_not_be_computed_is_empty_and_its_reason_is_told() -> None:
    musiq = {
        "scores.musiq": made_score("musiq", None).model_dump(),
        "unavailable.musiq": "musiq.pth is missing",
    }
    board = make_board(with_fields(two_rows(), musiq))
    assert (
        row(board, "none").estimates["musiq"].value is None
        and "musiq: musiq.pth is missing" in board.notes
    )
    assert to_csv(board).splitlines()[0].count("musiq") == 13


def test_zero_is_a_score_and_a_seed() -> None:
    board = make_board([record(i, 0.0) for i in "abc"])
    assert board.rows[0].estimates["psnr"].value == 0.0 and "| 0.000 ± 0 |" in to_markdown(board)


def test_the_csv_holds_the_table_in_full_precision() -> None:
    board = make_board(two_rows())
    table = pd.read_csv(io.StringIO(to_csv(board)), float_precision="round_trip")
    for number, found in enumerate(board.rows):
        line, estimate = table.iloc[number], found.estimates["psnr"]
        assert (line["psnr"], line["psnr_se"], line["psnr_n"]) == (
            estimate.value,
            estimate.standard_error,
            estimate.n,
        )
        difference = found.to_reference.get("psnr")
        if difference is None:
            assert pd.isna(line["psnr_minus_none"]) and pd.isna(line["k"])
        else:
            assert (line["k"], line["records"], line["expected"]) == (20, 20, 20)
            assert (line["psnr_minus_none"], line["psnr_minus_none_low"]) == (
                difference.mean,
                difference.low,
            )


def test_the_folder_gives_the_same_board_and_writes_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, two_rows())
    assert to_csv(load_board(tmp_path)) == to_csv(make_board(two_rows()))
    assert (
        leaderboard([tmp_path], no_write=True) == 0 and not (tmp_path / "leaderboard.csv").exists()
    )
    assert leaderboard([tmp_path]) == 0
    assert (tmp_path / "leaderboard.csv").read_text() == to_csv(make_board(two_rows()))
    assert all(
        (tmp_path / f"leaderboard.{ending}").stat().st_size > 0
        for ending in ("csv", "md", "tex", "html")
    )
    assert f"{np.mean(list(PSNR.values())):.4g} ±" in capsys.readouterr().out


def test_a_table_does_not_wait_for_torch_or_hydra() -> None:
    """Importing torch takes longer than reading 10,000 records; pandas, which writes the CSV, takes
    0.3 s.
    """
    program = (
        "import sys, adir.commands.leaderboard; from adir.harness.tables.verdicts import "
        "margins; margins()"
    )
    program += (
        "; sys.exit(bool({'torch', 'hydra', 'omegaconf', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- what is compared, and how it is marked


def test_p_values_are_adjusted_over_every_difference_of_the_table() -> None:
    rng = np.random.default_rng(2)
    records = []
    for image in PSNR:
        for k in (None, 1, 5, 20):
            scores = {
                "psnr": rng.normal(25 + (k or 0) / 20, 1),
                "piqe": rng.normal(30 - (k or 0) / 4, 2),
            }
            records.append(
                made_record(image, mode="none" if k is None else "knn", k=k, scores=scores)
            )
    lines = [line for line in csv_lines(make_board(records)) if line["adaptation"] == "knn"]
    raw = [line[f"{metric}_minus_none_p"] for line in lines for metric in ("psnr", "piqe")]
    adjusted = [
        line[f"{metric}_minus_none_p_holm"] for line in lines for metric in ("psnr", "piqe")
    ]
    assert len(raw) == 6 and adjusted == pytest.approx(list(multipletests(raw, method="holm")[1]))
    values = {(r.image.id, r.axes.k): r.scores["psnr"].value for r in records}
    assert raw[0] == pytest.approx(
        stats.wilcoxon([values[i, 1] - values[i, None] for i in PSNR], method="exact").pvalue
    )
    assert ("†" in to_markdown(make_board(records))) == (min(adjusted) < 0.05)


def standings(
    gains: dict[int, list[float]], direction: str = "higher"
) -> dict[int | None, str | None]:
    """{K: best, tied or None} of rows that differ from `none` by these gains per image."""
    records = []
    for number, image in enumerate("abcdefghijkl"):
        base = 20.0 + 3 * number
        records += [record(image, base)] + [
            record(image, base + gain[number], "knn", 0, k) for k, gain in gains.items()
        ]
    board = make_board(with_fields(records, {"scores.psnr.direction": direction}))
    return {r.axes["k"]: r.ranking.get("psnr") for r in board.rows}


def test_the_best_is_bold_only_where_every_other_row_is_shown_to_be_worse() -> None:
    clear, noisy = [1.0 + 0.01 * n for n in range(12)], [3.0 if n % 2 else -1.0 for n in range(12)]
    assert standings({1: clear}) == {None: None, 1: "best"}
    # 20 leads 1 by 1.2 in the mean and is behind it on half of the images.
    assert standings({1: clear, 20: [g + 1.3 for g in noisy]}) == {
        None: None,
        1: "tied",
        20: "tied",
    }
    assert standings({1: [-g for g in clear]}, "lower") == {None: None, 1: "best"}
    assert standings({1: [-g for g in clear]}) == {None: "best", 1: None}


def test_bold_and_ties_are_seen_in_every_form() -> None:
    records = [record(i, 20.0 + n) for n, i in enumerate("abcdefgh")]
    records += [record(i, 21.0 + n + n / 100, "knn", 0, 20) for n, i in enumerate("abcdefgh")]
    board = make_board(records)
    assert (
        "**24.54** ± " in to_markdown(board)
        and r"\textbf{24.54} $\pm$" in to_latex(board)
        and "<b>24.54</b>" in to_html(board)
    )
    tied = make_board([*records, *[record(i, 21.0 + n, "self") for n, i in enumerate("abcdefgh")]])
    assert [r.ranking for r in tied.rows] == [{}, {}, {"psnr": "best"}]
    same = make_board(
        [*records, *[record(i, 21.0 + n + n / 100, "self") for n, i in enumerate("abcdefgh")]]
    )
    assert [r.ranking for r in same.rows] == [{}, {"psnr": "tied"}, {"psnr": "tied"}]
    assert to_markdown(same).count("≈") == 3 and "**2" not in to_markdown(
        same
    )  # two rows and the explanation


def test_with_fewer_than_six_images_nothing_is_marked_and_a_note_says_why() -> None:
    board = make_board(
        [record(i, 20.0) for i in "abcde"] + [record(i, 25.0, "knn", 0, 20) for i in "abcde"]
    )
    assert [r.ranking for r in board.rows] == [{}, {}]
    assert any("5 images, no row is marked" in n and n.endswith(": sr4") for n in board.notes)


def test_rows_with_something_missing_and_rows_of_other_data_do_not_compete() -> None:
    records = two_rows()
    other = [
        changed(r, {"image.data": "other", "scores.psnr.value": r.scores["psnr"].value + 100})
        for r in records
    ]
    board = make_board(records + other)
    assert len(board.rows) == 4 and {r.axes["data"] for r in board.rows} == {"made", "other"}
    assert [r.ranking for r in board.rows] == [{}, {"psnr": "best"}] * 2
    assert "| data |" in to_markdown(board)
    (place,) = [n for n, r in enumerate(records) if r.path == "knn-20-1" and r.image.id == "c"]
    assert [r.ranking for r in make_board(records[:place] + records[place + 1 :]).rows] == [{}, {}]


def test_the_best_of_rows_that_did_a_part_is_not_marked_as_the_best_of_the_task() -> None:
    records = two_rows()
    # A method that was tried on nine of the images, and is worse on each.
    part = [
        changed(r, DPS | {"scores.psnr.value": r.scores["psnr"].value - 5})
        for r in records
        if r.image.id != "c"
    ]
    board = make_board(records + part)
    assert {(r.axes["sampler"], r.axes["adaptation"]): r.ranking for r in board.rows} == {
        ("adir", "none"): {},
        ("adir", "knn"): {"psnr": "best"},
        ("dps", "none"): {},
        ("dps", "knn"): {},
    }
    assert "rows that do not cover all 10 images are not marked (2 rows): sr4" in board.notes


def test_scores_of_a_metric_with_two_directions_are_refused() -> None:
    records = two_rows()
    records[3] = changed(records[3], {"scores.psnr.direction": "lower"})
    with pytest.raises(
        InputError, match=r"metric psnr has direction (higher|lower) in .* but (higher|lower) in "
    ):
        make_board(records)


def test_backbone_and_sampler_have_a_column_where_there_are_several() -> None:
    records = two_rows()
    board = make_board(records + with_fields(records[:20], DPS))
    assert to_markdown(board).startswith(
        "| task | sampler | mode |"
    ) and "sampler" not in to_markdown(make_board(records))


def test_evaluations_with_and_without_gradient_stand_apart_where_rows_differ_in_them() -> None:
    records = [record(image, 20.0) for image in "ab"]
    with_gradient = {"sampler.network_evaluations": 100, "sampler.gradient_evaluations": 60}
    records += with_fields((record(image, 21.0) for image in "ab"), DPS | with_gradient)
    board = make_board(records)
    assert {row.axes["sampler"]: row.evaluations for row in board.rows} == {
        "adir": (50, 0),
        "dps": (40, 60),
    }
    lines = to_markdown(board).splitlines()
    assert "| n | evaluations | with gradient | psnr ↑ |" in lines[0]
    assert "| 2 | 50 | 0 | " in lines[2] and "| 2 | 40 | 60 | " in lines[3]
    table = pd.read_csv(io.StringIO(to_csv(board)))
    assert table[["evaluations", "gradient_evaluations"]].to_numpy().tolist() == [[50, 0], [40, 60]]

    alike = make_board(two_rows() + with_fields([record("a", 20.0, "self")], {"sampler": None}))
    assert "with gradient" not in to_markdown(alike)
    assert row(alike, "self").evaluations == (None, None)


def test_settings_and_weights_that_differ_are_rows_of_their_own_and_named() -> None:
    one, other = (
        with_fields(two_rows(), {"identity.backbone.weights_sha256": letter * 64})
        for letter in "ab"
    )
    board = make_board(one + other)
    assert len(board.rows) == 4 and len({r.axes["variant"] for r in board.rows}) == 4
    named = [
        note
        for note in board.notes
        if "backbone.weights_sha256 " in note
        and "aaaaaaaaaa (#" in note
        and "bbbbbbbbbb (#" in note
    ]
    assert len(named) == 2  # of none, of knn
    # One mode with each weights: no row shares its axes, yet they have no common none.
    apart = make_board(
        [r for r in one if r.axes.adaptation == "none"]
        + [r for r in other if r.axes.adaptation == "knn"]
    )
    assert all(r.to_reference == {} and r.axes["variant"] for r in apart.rows)
    assert any(
        "2 configurations, which differ in backbone.weights_sha256" in note for note in apart.notes
    )


def test_other_ground_truths_of_one_name_are_refused() -> None:
    records = two_rows()
    records[0] = changed(records[0], {"image.sha256": "d" * 64})
    with pytest.raises(InputError, match=r"image a of made has ground truth \w+ in .* but \w+ in "):
        make_board(records)


# --- one image under several names


def named(
    records: list[Record], data: str, rename: Callable[[str], str] = lambda image: image
) -> list[Record]:
    """The same images under other names."""
    return [
        changed(item, {"image.id": rename(item.image.id), "image.data": data}) for item in records
    ]


def plan_all(folder: Path, records: list[Record]) -> None:
    """A plan of all of the images for the cells of some records, under the records' names of images
    and data set.
    """
    images = {r.image.id: r.image.sha256 for r in records if r.image.sha256 is not None}
    put_plan(folder, records, list(images), images)


def test_images_of_a_renamed_folder_complete_its_table_and_count_once(tmp_path: Path) -> None:
    whole = two_rows()
    before = [r for r in whole if r.axes.adaptation == "none"]
    after = named([r for r in whole if r.axes.adaptation == "knn"], "moved")
    put(tmp_path, before + after)
    plan_all(tmp_path, whole)
    plan_all(tmp_path, named(whole, "moved"))
    board, expected = load_board(tmp_path), make_board(whole)
    assert {r.axes["data"] for r in board.rows} == {"made = moved"}
    for ours, theirs in zip(board.rows, expected.rows, strict=True):
        assert (ours.have, ours.expected) == (20, 20)
        assert ours.estimates == theirs.estimates and ours.to_reference == theirs.to_reference
    # The same results, made once more from the renamed folder elsewhere, change nothing.
    put(tmp_path / "elsewhere", named(whole, "moved"))
    assert to_csv(load_board(tmp_path, tmp_path / "elsewhere")) == to_csv(board)
    (other,) = named(whole[:1], "moved")
    put(
        tmp_path / "elsewhere",
        [changed(other, {"scores.psnr.value": other.scores["psnr"].value + 1})],
    )
    with pytest.raises(
        InputError, match="records of the same cell and image but differ in score psnr"
    ):
        load_board(tmp_path, tmp_path / "elsewhere")


def test_an_image_that_fails_under_one_name_is_not_missing_under_another(tmp_path: Path) -> None:
    records = two_rows()
    moved = named(records[:1], "moved", lambda image: f"z{image}")
    put(tmp_path / "one", records)
    put(
        tmp_path / "other", with_fields(moved, FAILED)
    )  # a record that failed has no hash; its plan has
    plan_all(tmp_path / "other", moved)
    row = load_board(tmp_path / "one", tmp_path / "other").rows[0]
    assert (row.have, row.expected) == (20, 20)


def test_files_that_were_renamed_are_the_same_images_and_their_first_record_counts(
    tmp_path: Path,
) -> None:
    records = two_rows()
    renamed = named(records, "made", lambda image: f"z{image}")
    again = [  # other names are other seeds of an image
        changed(r, {"scores.psnr.value": r.scores["psnr"].value + 1})
        for r in renamed
        if r.path == "none-None-0"
    ]
    put(tmp_path, records + again)
    plan_all(tmp_path, renamed)
    board = load_board(tmp_path)
    assert [row.estimates for row in board.rows] == [
        row.estimates for row in make_board(records).rows
    ]
    assert any("under different names" in note and "za.json" in note for note in board.notes)
    put(tmp_path, with_fields(again[:1], {"y.sha256": "another"}))
    ledger_of(tmp_path, again[0]).record_path("a").unlink()
    with pytest.raises(
        InputError, match=r"image a of made in task sr4 has y \w+ in .* but \w+ in "
    ):
        load_board(tmp_path)


def test_images_of_one_id_in_sets_that_share_another_keep_apart(tmp_path: Path) -> None:
    one, other = (
        two_rows(),
        with_fields(named(two_rows(), "other"), {"identity.sampler.guidance_scale": 7}),
    )
    other = [  # a is in both, b to j are other images
        r
        if r.image.id == "a"
        else changed(r, {"image.sha256": f"x of other {r.image.id}", "y.sha256": f"y {r.image.id}"})
        for r in other
    ]
    put(tmp_path, one + other)
    board = load_board(tmp_path)
    assert {row.axes["data"] for row in board.rows} == {"made = other"}
    assert {row.expected for row in board.rows} == {2 * 19} and {
        row.have for row in board.rows
    } == {20}
    assert set(board.rows[0].images["psnr"]) == {"a"} | {
        f"{i} ({d})" for i in "bcdefghij" for d in ("made", "other")
    }


# --- what was planned, and what is damaged


def test_a_cell_that_was_planned_and_never_began_is_a_row_of_missing(tmp_path: Path) -> None:
    records = two_rows()
    done = [r for r in records if r.seed == 0]
    put(tmp_path, done)
    later = record("a", None, "random", 0, 20)
    first = put_plan(tmp_path, [*done, later], PSNR, {})
    board = load_board(tmp_path)
    planned = row(board, "random", 20)
    assert (planned.have, planned.expected, planned.estimates["psnr"].value) == (0, 10, None)
    assert row(board, "none").estimates["psnr"].value is not None
    assert any(
        note == "0 of 10 records are done, so means are missing: sr4 random k=20 full"
        for note in board.notes
    )
    # The other seed of both rows was planned too: then their own means are missing.
    first.unlink()
    put_plan(tmp_path, records, PSNR, {})
    assert [(r.have, r.expected, r.estimates["psnr"].value) for r in load_board(tmp_path).rows] == [
        (10, 20, None)
    ] * 2


def test_a_note_names_its_row_as_the_table_does_and_says_once_what_is_true_of_several(
    tmp_path: Path,
) -> None:
    records = with_fields(two_rows(), {"identity.task.sigma_y": 10})
    other = {
        name: {"axes.sampler": name, "identity.sampler.name": name}
        for name in ("dps", "ddrm", "adir2")
    }
    later = [changed(records[0], other["dps"]), changed(records[0], other["ddrm"])]
    failed = [r for r in records if r.path == "none-None-0" and r.image.id in "ab"]
    put(
        tmp_path,
        records + with_fields(failed, other["adir2"] | FAILED | {"error": "ValueError: no"}),
    )
    put_plan(tmp_path, [*records, *later], PSNR, {})
    board = load_board(tmp_path)
    assert (
        "0 of 10 records are done, so means are missing: sr4 ddrm none, sr4 dps none" in board.notes
    )
    assert "failed: ValueError: no: sr4 adir2 none seed=0 a, sr4 adir2 none seed=0 b" in board.notes
    # Also of a row that nothing was done of, the noise is known.
    assert {r.axes["sampler"]: r.sigma_y for r in board.rows} == dict.fromkeys(
        ("adir", "adir2", "dps", "ddrm"), 10.0
    )
    assert to_markdown(board).count("sr4 (σ 10)") == 5


def test_notes_on_equal_rows_of_two_data_sets_and_backbones_name_these(tmp_path: Path) -> None:
    records = [r for r in two_rows() if (r.axes.adaptation, r.image.id) != ("none", "c")]
    other = with_fields(
        records, {"image.data": "other", "axes.backbone": "b", "identity.backbone.name": "b"}
    )
    notes = make_board(records + other).notes
    both = "the difference to none uses the 9 images that both rows have, so c is left out"
    assert f"{both}: sr4 made made knn k=20 full, sr4 other b knn k=20 full" in notes


def test_a_truncated_record_is_named_and_missing_and_stays_in_place(tmp_path: Path) -> None:
    *_, path = put(tmp_path, two_rows())
    content = path.read_bytes()[:200]
    path.write_bytes(content)
    for board in (load_board(tmp_path), load_board(tmp_path)):
        assert (row(board, "knn", 20).have, row(board, "knn", 20).estimates["psnr"].value) == (
            19,
            None,
        )
        assert any(str(path) in note and "damaged record" in note for note in board.notes)
        assert any("j is left out" in note for note in board.notes)
    assert path.read_bytes() == content and len(list(path.parent.iterdir())) == 10


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"axes": []}, "axes: Input should be a valid dictionary"),
        (
            {"scores": {"psnr": {"value": "high", "direction": "higher", "version": "1"}}},
            "scores.psnr.value: Input should be a valid number",
        ),
        (
            {"scores": {"psnr": {"value": 1.0, "direction": "sideways", "version": "1"}}},
            "scores.psnr.direction: Input should be 'higher', 'lower' or 'none'",
        ),
        ({"y": None}, "a finished record needs y and image.sha256"),
        ({"identity": None}, "identity: Input should be a valid dictionary"),
        ({"status": "perhaps"}, "status: Input should be 'done', 'failed' or 'missing'"),
        ({"seed": 5}, "seed is 5, but axes.seed is 1"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_record_of_the_wrong_shape_is_named_and_not_counted(
    tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    *_, path = put(tmp_path, two_rows())
    path.write_bytes(json_bytes(two_rows()[-1].as_json() | change))
    board = load_board(tmp_path)
    assert f"{path}: damaged record ({fault})" in board.notes
    assert row(board, "knn", 20).have == 19


@pytest.mark.parametrize(
    "axis, value",
    [("adaptation", "knn"), ("k", 5), ("seed", 3), ("sampler", "dps"), ("task", "deblur")],
)
def test_a_record_whose_axes_are_not_its_identitys_is_named_and_not_counted(
    tmp_path: Path, axis: str, value: Any
) -> None:
    path, *_ = put(tmp_path, two_rows())
    liar = two_rows()[0].as_json()
    liar["axes"][axis] = value
    liar["seed"] = liar["axes"]["seed"]
    path.write_bytes(json_bytes(liar))
    assert any(
        f"(axes.{axis} is {value!r}, but identity has" in note
        for note in load_board(tmp_path).notes
    )


def test_a_damaged_plan_is_named_and_the_table_stands(tmp_path: Path) -> None:
    put(tmp_path, two_rows())
    for number, content in enumerate(
        ("{", "[]", '{"cells": [{"cell": "x", "axes": {}, "images": [], "data": "d"}]}')
    ):
        write_bytes(tmp_path / "grids" / f"{number}.json", content.encode())
    board = load_board(tmp_path)
    assert sum("damaged plan" in note for note in board.notes) == 3 and len(board.rows) == 2


# --- forms


def test_the_order_of_the_records_changes_no_byte_of_any_form() -> None:
    records = two_rows()
    forwards, backwards = make_board(records), make_board(records[::-1])
    assert all(text_of(forwards) == text_of(backwards) for text_of in FORMATS.values())


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


PAGE_TAGS = {"html", "head", "meta", "title", "style", "body", "div", "p"}


def test_the_html_file_is_a_whole_page_that_says_how_its_letters_are_written() -> None:
    text = to_html(make_board(two_rows()))
    assert text.startswith('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">')
    assert (
        "color-scheme: light dark" in text and text.endswith("</body>\n</html>\n") and "±" in text
    )


def test_no_text_from_records_becomes_markup() -> None:
    nasty = "<script>alert(1)</script> | \\input{x} $ % # _ & \x1b[31m\n* [l](u)"
    records = [
        made_record(
            image,
            task=nasty,
            mode=mode,
            k=k,
            sampler=nasty,
            backbone=nasty,
            adapter=nasty,
            scores={nasty: value + (k or 0)},
        )
        for image, (value, _) in PSNR.items()
        for mode, k in (("none", None), ("knn", 20))
    ]
    board = make_board(with_fields(records, {"unavailable.musiq": nasty}))
    page = Tags(to_html(board))
    assert (
        page.tags
        == {"table", "thead", "tbody", "tr", "th", "td", "b", "br", "ul", "li"} | PAGE_TAGS
    )
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "<script" not in to_markdown(board)
    table = to_markdown(board).split("\n\n")[0].splitlines()
    assert (
        len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    )  # each line has the same cells
    body = [line for line in to_latex(board).splitlines() if not line.startswith("%")]
    assert not any(r"\input" in line or re.search(r"(?<!\\)[%#_]", line) for line in body)
    assert all(
        line.startswith("%")
        for line in to_latex(board).split(r"\end{tabular}")[1].strip().splitlines()
    )
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(*to_terminal(board, nasty, console.width))
    assert "\x1b[31m" not in console.export_text()


def test_the_latex_table_has_as_many_cells_in_every_line_as_columns() -> None:
    lines = [line for line in to_latex(make_board(two_rows())).splitlines() if line.endswith(r"\\")]
    assert len(lines) == 4 and {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {5}


# --- the sheet


def captions(records: list[Record], folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the sheet of these records writes; no image file is there, which leaves its place white."""
    written: set[str] = set()
    put(folder, with_fields(records, {"restored": "none.png", "y.file": "y.png"}))
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, *rest: written.add(text)
    )
    write_sheet(folder, None, folder / "sheet.png")
    return written


def test_the_sheet_shows_the_lowest_seed_that_every_place_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record("a", 10.0 + s, seed=s) for s in (0, 1, 2)]
    records += [record("a", 20.0 + s, "knn", s, 20) for s in (1, 2)]
    records = with_fields(records, {"scores.residual": made_score("residual", 9.94).model_dump()})
    written = captions(records, tmp_path, monkeypatch)
    assert {
        "noise 10  seed 1",
        "PSNR 11.00  residual 9.9",
        "PSNR 21.00  residual 9.9",
    } <= written and "missing" not in written


def test_an_image_that_is_not_square_keeps_its_proportions_on_the_sheet(tmp_path: Path) -> None:
    put(tmp_path, with_fields([record("a", 20.0)], {"restored": "wide.png", "y.file": "y.png"}))
    Image.new("RGB", (32, 8), "red").save(tmp_path / "wide.png")
    write_sheet(tmp_path, None, tmp_path / "sheet.png")
    red = (read_pixels(tmp_path / "sheet.png") == (255, 0, 0)).all(2)
    rows, columns = red.any(1), red.any(0)
    assert (rows.sum(), columns.sum(), red.sum()) == (TILE // 4, TILE, TILE * TILE // 4)


def test_the_sheet_names_each_seed_where_no_seed_is_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record("a", 0.0, seed=0), record("a", 21.0, "knn", 1, 20)]
    written = captions(records, tmp_path, monkeypatch)
    assert {
        "seeds differ",
        "PSNR 0.00  s0",
        "PSNR 21.00  s1",
    } <= written and "missing" not in written


def test_settings_of_one_mode_have_a_column_each_named_by_what_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        record("a", 20.0 + number, "knn", 0, 20, scale) for number, scale in enumerate((30, 100))
    ]
    written = captions(records, tmp_path, monkeypatch)
    assert {"knn k=20 full guidance_scale=30", "knn k=20 full guidance_scale=100"} <= written
    assert {"PSNR 20.00", "PSNR 21.00"} <= written and "missing" not in written


def test_the_longest_caption_fits_under_its_image() -> None:
    item = made_record(seed=7, scores={"psnr": 24.81, "deep-lite0": 18.88, "residual": 10.24})
    text = caption(item, say_seed=True)
    assert text == "PSNR 24.81  deep 18.88  residual 10.2  s7"
    assert ImageFont.load_default(FONT).getlength(text) <= TILE - 4
