"""The table against its definition: hand-made records, and numpy."""

import copy
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import ImageDraw, ImageFont
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from adir.commands.leaderboard import show_leaderboard
from adir.errors import InputError
from adir.files import write_bytes, write_json
from adir.harness.records.ledger import Ledger
from adir.harness.report.sheet import FONT, TILE, caption, write_sheet
from adir.harness.tables.board import Board, Row, make_board
from adir.harness.tables.formats import FORMATS, to_csv, to_html, to_latex, to_markdown, to_terminal
from adir.harness.tables.leaderboard import load_board

Record = dict[str, Any]


def record(
    image: str,
    psnr: float | None,
    mode: str = "none",
    seed: int = 0,
    k: int | None = None,
    setting: int = 100,
    **more: Any,
) -> Record:
    """One record, with what the table reads of it; `setting` is a part of the identity that no axis shows."""
    axes = {"backbone": "b", "task": "sr4", "adaptation": mode, "k": k, "sampler": "adir", "seed": seed}
    axes["adapter"] = "full" if mode != "none" else None
    return {
        "status": "done",
        "cell": f"{mode}-{k}-{seed}" + ("" if setting == 100 else f"-{setting}"),
        "axes": axes,
        "identity": {
            "task": {"name": "sr4", "version": 1},
            "sampler": {"guidance_scale": setting},
            "adaptation": {"name": mode, "k": k},
            "seed": seed,
        }
        | ({"retrieval": {"corpus": "c"}} if mode == "knn" else {}),
        "image": {"id": image},
        "y": {"sha256": f"y of {image}"},
        "scores": {"psnr": {"value": psnr, "direction": "higher", "version": "adir 1"}},
        "seed": seed,
    } | more


def row(board: Board, mode: str, k: int | None = None) -> Row:
    (found,) = [r for r in board.rows if (r.axes["adaptation"], r.axes["k"]) == (mode, k)]
    return found


RNG = np.random.default_rng(5)
PSNR = {image: list(RNG.normal(25, 3, size=2)) for image in "abcdefghij"}  # picture: one value a seed
KNN = {image: [value + gain for value, gain in zip(PSNR[image], RNG.gamma(1.0, size=2), strict=True)] for image in PSNR}


def two_rows() -> list[Record]:
    records = [record(i, v, seed=s) for i, values in PSNR.items() for s, v in enumerate(values)]
    return records + [record(i, v, "knn", s, 20) for i, values in KNN.items() for s, v in enumerate(values)]


def test_means_and_standard_errors_are_over_pictures_with_seeds_averaged_within() -> None:
    board = make_board(two_rows())
    for mode, k, values in (("none", None, PSNR), ("knn", 20, KNN)):
        per_picture = np.array(list(values.values())).mean(axis=1)
        found = row(board, mode, k).estimates["psnr"]
        assert found.value == pytest.approx(per_picture.mean())
        # n is 10 pictures, not 20 records: seeds of a picture are no new pictures.
        assert found.n == 10 and found.standard_error == pytest.approx(per_picture.std(ddof=1) / math.sqrt(10))
        assert (row(board, mode, k).have, row(board, mode, k).expected) == (20, 20)


def test_the_difference_to_none_is_paired_by_picture() -> None:
    found = row(make_board(two_rows()), "knn", 20).to_none["psnr"]
    paired = np.mean([np.mean(KNN[i]) - np.mean(PSNR[i]) for i in PSNR])
    assert found is not None and found.mean == pytest.approx(paired) and found.n == 10
    assert found.low is not None and found.high is not None and found.low < paired < found.high
    assert row(make_board(two_rows()), "none").to_none == {}


def test_the_order_of_the_records_changes_nothing() -> None:
    assert to_csv(make_board(two_rows()[::-1])) == to_csv(make_board(two_rows()))


@pytest.mark.parametrize("missing", ["record", "value", "failed"])
def test_a_row_that_lacks_anything_shows_no_mean_and_says_how_much_it_has(missing: str) -> None:
    records = two_rows()
    place = next(n for n, r in enumerate(records) if r["cell"] == "knn-20-1" and r["image"]["id"] == "c")
    if missing == "record":
        del records[place]
    elif missing == "value":
        records[place]["scores"]["psnr"]["value"] = None
    else:
        records[place] |= {"status": "failed", "scores": {}, "y": None, "error": "FloatingPointError: NaN at step 3"}
    board = make_board(records)
    found = row(board, "knn", 20)
    assert (found.estimates["psnr"].value, found.estimates["psnr"].standard_error) == (None, None)
    assert found.estimates["psnr"].n == 9
    assert (found.have, found.expected) == ((20, 20) if missing == "value" else (19, 20))
    assert row(board, "none").estimates["psnr"].value is not None
    assert any("19 of 20" in note for note in board.notes) == (missing != "value")
    assert any("NaN at step 3" in note and "c" in note for note in board.notes) == (missing == "failed")
    assert "– (n=9)" in to_markdown(board)
    (line,) = [line for line in csv_lines(board) if line["adaptation"] == "knn"]
    assert (line["psnr_n"], line["psnr"], line["psnr_se"]) == (9, None, None)
    # The difference drops c for both, with both its seeds, has its own n, and a note says so.
    others = [i for i in PSNR if i != "c"]
    paired = np.mean([np.mean(KNN[i]) - np.mean(PSNR[i]) for i in others])
    assert (line["psnr_minus_none"], line["psnr_minus_none_n"]) == (pytest.approx(paired), 9)
    assert any("over the 9 pictures that both have, so c counts in neither" in note for note in board.notes)
    assert "(n=9)" in to_markdown(board)


def test_a_picture_that_none_lacks_is_dropped_from_the_difference_of_every_other_mode() -> None:
    records = [r for r in two_rows() if not (r["cell"] == "none-None-1" and r["image"]["id"] == "c")]
    board = make_board(records)
    found = row(board, "knn", 20)
    assert found.estimates["psnr"].value is not None and row(board, "none").estimates["psnr"].value is None
    difference = found.to_none["psnr"]
    assert difference is not None and (difference.n, difference.dropped) == (9, ("c",))
    assert any("c counts in neither" in note for note in board.notes)


@pytest.mark.parametrize("part", ["guidance scale", "backbone"])
def test_each_row_is_compared_with_the_none_of_its_own_settings(part: str) -> None:
    records = []
    for setting, shift, gain in ((30, 0.0, 1.0), (100, 5.0, 2.0)):
        for image, (value, _) in PSNR.items():
            records.append(record(image, value + shift, setting=setting))
            records.append(record(image, value + shift + gain, "knn", 0, 20, setting=setting))
            if part == "backbone":
                for item in records[-2:]:
                    item["identity"]["backbone"] = {"name": "b", "weights_sha256": str(setting)}
                    item["identity"]["sampler"] = {}
    rows = make_board(records).rows
    assert [r.axes["adaptation"] for r in rows] == ["none", "none", "knn", "knn"]
    gains = {round(found.mean, 9) for r in rows[2:] if (found := r.to_none["psnr"])}
    assert gains == {1.0, 2.0}  # against both nones together: -1.5 and 4.5
    alone = [r for r in records if not (r["axes"]["adaptation"] == "none" and r["cell"].endswith("-30"))]
    assert [r.to_none for r in make_board(alone).rows].count({}) == 2  # none itself, and the knn that has none


def csv_lines(board: Board) -> list[dict[str, Any]]:
    table = pd.read_csv(io.StringIO(to_csv(board)), float_precision="round_trip")
    return [{str(name): None if pd.isna(v) else v for name, v in line.items()} for line in table.to_dict("records")]


def test_the_noise_stands_beside_the_residual_and_the_versions_below() -> None:
    records = two_rows()
    for item in records:
        item["scores"]["residual"] = {"value": 9.9, "direction": "none", "version": "1", "sigma_y": 10.0}
    board = make_board(records)
    assert "| sr4 (σ 10) | knn | 20 |" in to_markdown(board) and "- versions: psnr adir 1, residual 1\n" in to_markdown(
        board
    )
    assert {(line["sigma_y"], line["psnr_version"], line["residual_version"]) for line in csv_lines(board)} == {
        (10.0, "adir 1", 1)
    }
    assert "| sr4 | none |" in to_markdown(make_board(two_rows()))  # no record tells


def test_records_of_different_task_versions_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["identity"]["task"]["version"] = 2
    with pytest.raises(InputError, match="task sr4: version 1 in knn-20-0, 2 in knn-20-1"):
        make_board(records)


def test_rows_of_different_y_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["y"]["sha256"] = "0123456789abc"
    with pytest.raises(InputError, match="knn-20-0 and knn-20-1 were restored from different y") as raised:
        make_board(records)
    assert "0123456789" in str(raised.value) and "picture j" in str(raised.value)


def test_scores_of_different_metric_versions_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["scores"]["psnr"]["version"] = "adir 2"
    with pytest.raises(InputError, match=r"psnr: version 'adir 1' in knn-20-0, 'adir 2' in knn-20-1.*adir score"):
        make_board(records)


def test_every_k_is_a_row_in_order() -> None:
    records = [record(i, 1.0, "knn", 0, k) for i in "abc" for k in (20, 1, 5)] + [record(i, 1.0) for i in "abc"]
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
    alone = [record(i, v[0], setting=30) for i, v in PSNR.items()]  # its name is its own, its none is not everyone's
    swept = [record(i, v[0], "knn", 0, 20, setting) for setting in (100, 30, 9) for i, v in PSNR.items()]
    board = make_board(swept + alone)
    settings = [f"guidance_scale={scale}" for scale in (30, 9, 30, 100)]
    assert [r.axes["setting"] for r in board.rows] == settings
    assert [line.split("|")[2].strip() for line in to_markdown(board).splitlines() if line.startswith("| sr4")] == [
        f"{mode} {setting}" for mode, setting in zip(("none", "knn", "knn", "knn"), settings, strict=True)
    ]
    assert [line["setting"] for line in csv_lines(board)] == settings
    assert not any("settings" in note for note in board.notes)
    for item in swept:  # more than a reader can take in
        item["identity"] |= {f"part{n}": item["cell"] + str(n) for n in range(4)}
    assert [r.axes["setting"] for r in make_board(swept).rows] == [""] * 3
    assert "knn #" in to_markdown(make_board(swept))


def test_a_metric_that_could_not_be_computed_is_empty_and_its_reason_is_told() -> None:
    records = two_rows()
    for item in records:
        item["scores"]["musiq"] = {"value": None, "direction": "higher", "version": "1"}
        item["unavailable"] = {"musiq": "musiq.pth is missing"}
    board = make_board(records)
    assert row(board, "none").estimates["musiq"].value is None and "musiq: musiq.pth is missing" in board.notes
    assert to_csv(board).splitlines()[0].count("musiq") == 11


def test_zero_is_a_score_and_a_seed() -> None:
    board = make_board([record(i, 0.0) for i in "abc"])
    assert board.rows[0].estimates["psnr"].value == 0.0 and "| 0.000 ± 0 |" in to_markdown(board)


def test_the_csv_holds_the_table_in_full_precision() -> None:
    board = make_board(two_rows())
    table = pd.read_csv(io.StringIO(to_csv(board)), float_precision="round_trip")
    for number, found in enumerate(board.rows):
        line, estimate = table.iloc[number], found.estimates["psnr"]
        assert (line["psnr"], line["psnr_se"], line["psnr_n"]) == (estimate.value, estimate.standard_error, estimate.n)
        difference = found.to_none.get("psnr")
        if difference is None:
            assert pd.isna(line["psnr_minus_none"]) and pd.isna(line["k"])
        else:
            assert (line["k"], line["records"], line["expected"]) == (20, 20, 20)
            assert (line["psnr_minus_none"], line["psnr_minus_none_low"]) == (difference.mean, difference.low)


def test_the_folder_gives_the_same_board_and_writes_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for item in two_rows():
        Ledger(tmp_path / "cells" / item["cell"]).write(item["image"]["id"], copy.deepcopy(item))
    assert to_csv(load_board(tmp_path)) == to_csv(make_board(two_rows()))
    assert show_leaderboard([tmp_path], write=False) == 0 and not (tmp_path / "leaderboard.csv").exists()
    assert show_leaderboard([tmp_path], write=True) == 0
    assert (tmp_path / "leaderboard.csv").read_text() == to_csv(make_board(two_rows()))
    assert all((tmp_path / f"leaderboard.{ending}").stat().st_size > 0 for ending in ("csv", "md", "tex", "html"))
    assert f"{np.mean(list(PSNR.values())):.4g} ±" in capsys.readouterr().out


def test_a_table_does_not_wait_for_torch() -> None:
    """Importing it takes longer than reading 10,000 records."""
    program = "import sys, adir.harness.tables.leaderboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- what is compared, and how it is marked


def test_p_values_are_adjusted_over_every_difference_of_the_table() -> None:
    rng = np.random.default_rng(2)
    records = []
    for image in PSNR:
        for k in (None, 1, 5, 20):
            item = record(image, rng.normal(25 + (k or 0) / 20, 1), "none" if k is None else "knn", 0, k)
            item["scores"]["piqe"] = {"value": rng.normal(30 - (k or 0) / 4, 2), "direction": "lower", "version": "1"}
            records.append(item)
    lines = [line for line in csv_lines(make_board(records)) if line["adaptation"] == "knn"]
    raw = [line[f"{metric}_minus_none_p"] for line in lines for metric in ("psnr", "piqe")]
    adjusted = [line[f"{metric}_minus_none_p_holm"] for line in lines for metric in ("psnr", "piqe")]
    assert len(raw) == 6 and adjusted == pytest.approx(list(multipletests(raw, method="holm")[1]))
    values = {(r["image"]["id"], r["axes"]["k"]): r["scores"]["psnr"]["value"] for r in records}
    assert raw[0] == pytest.approx(
        stats.wilcoxon([values[i, 1] - values[i, None] for i in PSNR], method="exact").pvalue
    )
    assert ("†" in to_markdown(make_board(records))) == (min(adjusted) < 0.05)


def standings(gains: dict[int, list[float]], direction: str = "higher") -> dict[int | None, str | None]:
    """{K: best, tied or None} of rows that differ from `none` by these gains per picture."""
    records = []
    for number, image in enumerate("abcdefghijkl"):
        base = 20.0 + 3 * number
        records += [record(image, base)] + [
            record(image, base + gain[number], "knn", 0, k) for k, gain in gains.items()
        ]
    for item in records:
        item["scores"]["psnr"]["direction"] = direction
    return {r.axes["k"]: r.standing.get("psnr") for r in make_board(records).rows}


def test_the_best_is_bold_only_where_every_other_row_is_shown_to_be_worse() -> None:
    clear, noisy = [1.0 + 0.01 * n for n in range(12)], [3.0 if n % 2 else -1.0 for n in range(12)]
    assert standings({1: clear}) == {None: None, 1: "best"}
    # 20 leads 1 by 1.2 in the mean and is behind it on half of the pictures.
    assert standings({1: clear, 20: [g + 1.3 for g in noisy]}) == {None: None, 1: "tied", 20: "tied"}
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
    assert [r.standing for r in tied.rows] == [{}, {}, {"psnr": "best"}]
    same = make_board([*records, *[record(i, 21.0 + n + n / 100, "self") for n, i in enumerate("abcdefgh")]])
    assert [r.standing for r in same.rows] == [{}, {"psnr": "tied"}, {"psnr": "tied"}]
    assert to_markdown(same).count("≈") == 3 and "**2" not in to_markdown(same)  # two rows and the explanation


def test_with_fewer_than_six_pictures_nothing_is_marked_and_a_note_says_why() -> None:
    board = make_board([record(i, 20.0) for i in "abcde"] + [record(i, 25.0, "knn", 0, 20) for i in "abcde"])
    assert [r.standing for r in board.rows] == [{}, {}]
    assert any("5 pictures, fewer than 6" in n and n.endswith("marked: sr4") for n in board.notes)


def test_rows_with_something_missing_and_rows_of_other_data_do_not_compete() -> None:
    records = two_rows()
    other = copy.deepcopy(records)
    for item in other:
        item["image"]["data"] = "other"
        item["scores"]["psnr"]["value"] += 100
    board = make_board(records + other)
    assert len(board.rows) == 4 and {r.axes["data"] for r in board.rows} == {None, "other"}
    assert [r.standing for r in board.rows] == [{}, {"psnr": "best"}] * 2
    assert "| data |" in to_markdown(board)
    (place,) = [n for n, r in enumerate(records) if r["cell"] == "knn-20-1" and r["image"]["id"] == "c"]
    assert [r.standing for r in make_board(records[:place] + records[place + 1 :]).rows] == [{}, {}]


def test_the_best_of_rows_that_did_a_part_is_not_marked_as_the_best_of_the_task() -> None:
    records = two_rows()
    part = copy.deepcopy([r for r in records if r["image"]["id"] != "c"])
    for item in part:  # a method that was tried on nine of the pictures, and is worse on each
        item["axes"]["sampler"] = item["identity"]["sampler"]["name"] = "dps"
        item["cell"] += "-dps"
        item["scores"]["psnr"]["value"] -= 5
    board = make_board(records + part)
    assert {(r.axes["sampler"], r.axes["adaptation"]): r.standing for r in board.rows} == {
        ("adir", "none"): {},
        ("adir", "knn"): {"psnr": "best"},
        ("dps", "none"): {},
        ("dps", "knn"): {},
    }
    assert "2 rows are not over all 10 pictures, so not marked: sr4" in board.notes


def test_scores_of_a_metric_with_two_directions_are_refused() -> None:
    records = two_rows()
    records[3]["scores"]["psnr"]["direction"] = "lower"
    with pytest.raises(InputError, match=r"metric psnr: the better the .* in .*, the .* in "):
        make_board(records)


def test_backbone_and_sampler_have_a_column_where_there_are_several() -> None:
    records = two_rows()
    other = copy.deepcopy(records[:20])
    for item in other:
        item["axes"]["sampler"] = item["cell"] = item["identity"]["sampler"]["name"] = "dps"
    board = make_board(records + other)
    assert to_markdown(board).startswith("| task | sampler | mode |") and "sampler" not in to_markdown(
        make_board(records)
    )


def test_settings_and_weights_that_differ_are_rows_of_their_own_and_named() -> None:
    one, other = two_rows(), two_rows()
    for item, weights in [*((r, "a" * 64) for r in one), *((r, "b" * 64) for r in other)]:
        item["identity"]["backbone"] = {"name": "b", "weights_sha256": weights}
        item["cell"] += weights[0]
    board = make_board(one + other)
    assert len(board.rows) == 4 and len({r.axes["variant"] for r in board.rows}) == 4
    named = [
        note
        for note in board.notes
        if "backbone.weights_sha256 " in note and "aaaaaaaaaa (#" in note and "bbbbbbbbbb (#" in note
    ]
    assert len(named) == 2  # of none, of knn
    # One mode with each weights: no row shares its axes, yet they have no common none.
    apart = make_board([r for r in one if "none" in r["cell"]] + [r for r in other if "knn" in r["cell"]])
    assert all(r.to_none == {} and r.axes["variant"] for r in apart.rows)
    assert any("rows of 2 settings, backbone.weights_sha256" in note for note in apart.notes)


def test_other_ground_truths_of_one_name_are_refused() -> None:
    records = two_rows()
    for number, item in enumerate(records):
        item["image"]["sha256"] = "c" * 64 if number else "d" * 64
    with pytest.raises(InputError, match=r"picture a of None: .* different ground truths"):
        make_board(records)


# --- one picture under several names


def named(records: list[Record], data: str = "set", rename: Callable[[str], str] = lambda image: image) -> list[Record]:
    """Copies with hashes of their pictures, under other names."""
    records = copy.deepcopy(records)
    for item in records:
        image = item["image"]["id"]
        item["image"] = {"id": rename(image), "sha256": f"picture {image}", "data": data}
    return records


def planned_as(records: list[Record], hashes: bool = True) -> dict[str, Any]:
    """A plan of all of the pictures for the cells of some records, under the records' name of the data set."""
    pictures = {r["image"]["id"]: r["image"]["sha256"] for r in records}
    cells = {r["cell"]: {key: r[key] for key in ("cell", "axes", "identity")} for r in records}
    shared = {"data": records[0]["image"]["data"], "images": list(pictures)} | (
        {"pictures": pictures} if hashes else {}
    )
    return {"schema": 1, "cells": [cell | shared for cell in cells.values()]}


def test_pictures_of_a_renamed_folder_complete_its_table_and_count_once(tmp_path: Path) -> None:
    whole = named(two_rows())
    before = [r for r in whole if r["axes"]["adaptation"] == "none"]
    after = named([r for r in two_rows() if r["axes"]["adaptation"] == "knn"], "moved")
    put(tmp_path, before + after)
    write_json(tmp_path / "grids" / "01.json", planned_as(whole))
    write_json(tmp_path / "grids" / "02.json", planned_as(named(two_rows(), "moved")))
    board, expected = load_board(tmp_path), make_board(whole)
    assert {r.axes["data"] for r in board.rows} == {"moved = set"}
    for ours, theirs in zip(board.rows, expected.rows, strict=True):
        assert (ours.have, ours.expected) == (20, 20)
        assert ours.estimates == theirs.estimates and ours.to_none == theirs.to_none
    # The same results, made once more from the renamed folder elsewhere, change nothing.
    put(tmp_path / "elsewhere", named(two_rows(), "moved"))
    assert to_csv(load_board(tmp_path, tmp_path / "elsewhere")) == to_csv(board)
    other = named(two_rows(), "moved")[0]
    other["scores"]["psnr"]["value"] += 1
    put(tmp_path / "elsewhere", [other])
    with pytest.raises(InputError, match="records of one cell and picture that differ in score psnr"):
        load_board(tmp_path, tmp_path / "elsewhere")


def test_a_picture_that_fails_under_one_name_is_not_missing_under_another(tmp_path: Path) -> None:
    records = named(two_rows())
    failed = named(records[:1], "moved")[0] | {"status": "failed", "y": None, "scores": {}, "error": "E"}
    failed["image"] = {"id": "za", "data": "moved"}  # a record that failed has no hash; its plan has
    put(tmp_path / "one", records)
    put(tmp_path / "other", [failed])
    write_json(
        tmp_path / "other" / "grids" / "01.json", planned_as(named(two_rows()[:1], "moved", lambda image: f"z{image}"))
    )
    row = load_board(tmp_path / "one", tmp_path / "other").rows[0]
    assert (row.have, row.expected) == (20, 20)


def test_files_that_were_renamed_are_the_same_pictures_and_their_first_record_counts(tmp_path: Path) -> None:
    records = named(two_rows())
    again = named([r for r in two_rows() if r["cell"] == "none-None-0"], "set", lambda image: f"z{image}")
    for item in again:
        item["scores"]["psnr"]["value"] += 1.0  # other names are other seeds of a picture
    put(tmp_path, records + again)
    write_json(tmp_path / "grids" / "01.json", planned_as(named(two_rows(), "set", lambda image: f"z{image}")))
    board = load_board(tmp_path)
    assert [row.estimates for row in board.rows] == [row.estimates for row in make_board(records).rows]
    assert any("under several names count once" in note and "za.json" in note for note in board.notes)
    again[0]["y"]["sha256"] = "another"
    put(tmp_path, again[:1])
    (tmp_path / "cells" / again[0]["cell"] / "records" / "a.json").unlink()
    with pytest.raises(InputError, match=r"picture a: .* restored from different y"):
        load_board(tmp_path)


def test_pictures_of_one_id_in_sets_that_share_another_keep_apart(tmp_path: Path) -> None:
    one, other = named(two_rows()), named(two_rows(), "other")
    for item in other:
        item["cell"] += " other"
        item["identity"]["sampler"]["guidance_scale"] = 7
        if item["image"]["id"] != "a":  # a is in both, b to j are other pictures
            item["image"]["sha256"] += " of other"
            item["y"]["sha256"] += " of other"
    put(tmp_path, one + other)
    board = load_board(tmp_path)
    assert {row.axes["data"] for row in board.rows} == {"other = set"}
    assert {row.expected for row in board.rows} == {2 * 19} and {row.have for row in board.rows} == {20}
    assert set(board.rows[0].pictures["psnr"]) == {"a"} | {f"{i} ({d})" for i in "bcdefghij" for d in ("set", "other")}


# --- what was planned, and what is damaged


def put(folder: Path, records: list[Record]) -> None:
    for item in records:
        Ledger(folder / "cells" / item["cell"]).write(item["image"]["id"], item)


def plan(folder: Path, records: list[Record]) -> None:
    cells = [
        {"cell": r["cell"], "axes": r["axes"], "identity": r["identity"], "data": "set", "images": list(PSNR)}
        for r in records
    ]
    write_json(folder / "grids" / "0123abcd.json", {"schema": 1, "cells": cells})


def with_data(records: list[Record]) -> list[Record]:
    for item in records:
        item["image"]["data"] = "set"
    return records


def test_a_cell_that_was_planned_and_never_began_is_a_row_of_missing(tmp_path: Path) -> None:
    records = with_data(two_rows())
    done = [r for r in records if r["axes"]["seed"] == 0]
    put(tmp_path, done)
    later = with_data([record("a", None, "random", 0, 20)])
    plan(tmp_path, [*done, *later])
    board = load_board(tmp_path)
    planned = row(board, "random", 20)
    assert (planned.have, planned.expected, planned.estimates["psnr"].value) == (0, 10, None)
    assert row(board, "none").estimates["psnr"].value is not None
    assert any(note == "0 of 10 records, so the means stay missing: sr4 random k=20 full" for note in board.notes)
    # The other seed of both rows was planned too: then their own means are missing.
    plan(tmp_path, records)
    assert [(r.have, r.expected, r.estimates["psnr"].value) for r in load_board(tmp_path).rows] == [(10, 20, None)] * 2


def test_a_note_names_its_row_as_the_table_does_and_says_once_what_is_true_of_several(tmp_path: Path) -> None:
    records = with_data(two_rows())
    for item in records:
        item["identity"]["task"]["sigma_y"] = 10
    put(tmp_path, records)
    later = []
    for sampler in ("dps", "ddrm"):
        item = copy.deepcopy(records[0])
        item["axes"]["sampler"] = item["identity"]["sampler"]["name"] = item["cell"] = sampler
        later.append(item)
    failed = copy.deepcopy([r for r in records if r["cell"] == "none-None-0" and r["image"]["id"] in "ab"])
    for item in failed:
        item["axes"]["sampler"] = item["identity"]["sampler"]["name"] = "adir2"
        item |= {"cell": "adir2", "status": "failed", "scores": {}, "y": None, "error": "ValueError: no"}
    put(tmp_path, failed)
    plan(tmp_path, [*records, *later])
    board = load_board(tmp_path)
    assert "0 of 10 records, so the means stay missing: sr4 ddrm none, sr4 dps none" in board.notes
    assert "failed: ValueError: no: sr4 adir2 none seed=0 a, sr4 adir2 none seed=0 b" in board.notes
    # Also of a row that nothing was done of, the noise is known.
    assert {r.axes["sampler"]: r.sigma_y for r in board.rows} == dict.fromkeys(("adir", "adir2", "dps", "ddrm"), 10.0)
    assert to_markdown(board).count("sr4 (σ 10)") == 5


def test_notes_on_equal_rows_of_two_data_sets_and_backbones_name_these(tmp_path: Path) -> None:
    records = with_data(two_rows())
    other = copy.deepcopy(records)
    for item in other:
        item["image"]["data"], item["axes"]["backbone"] = "other", "c"
        item["cell"] += "-c"
    records, other = (
        [r for r in of if (r["cell"][:6], r["image"]["id"]) != ("none-N", "c")] for of in (records, other)
    )
    notes = make_board(records + other).notes
    both = "the difference to none is over the 9 pictures that both have, so c counts in neither"
    assert f"{both}: sr4 other c knn k=20 full, sr4 set b knn k=20 full" in notes


def test_a_truncated_record_is_named_and_missing(tmp_path: Path) -> None:
    put(tmp_path, two_rows())
    path = tmp_path / "cells" / "knn-20-1" / "records" / "c.json"
    path.write_bytes(path.read_bytes()[:200])
    board = load_board(tmp_path)
    assert (row(board, "knn", 20).have, row(board, "knn", 20).estimates["psnr"].value) == (19, None)
    assert any("knn-20-1/records/c.json" in note and "damaged record" in note for note in board.notes)
    assert any("c counts in neither" in note for note in board.notes)
    assert any("set aside earlier" in note for note in load_board(tmp_path).notes)  # and it stays missing


@pytest.mark.parametrize(
    "change",
    [
        {"axes": []},
        {"scores": {"psnr": {"value": "high", "direction": "higher", "version": "1"}}},
        {"scores": {"psnr": {"value": 1.0, "direction": "sideways", "version": "1"}}},
        {"y": None},
        {"identity": None},
        {"status": "perhaps"},
        {"seed": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_of_the_wrong_shape_is_named_and_not_counted(tmp_path: Path, change: Record) -> None:
    put(tmp_path, [*two_rows()[:-1], two_rows()[-1] | change])
    board = load_board(tmp_path)
    assert any("not counted: " in note and "knn-20-1/records/j.json" in note for note in board.notes)
    assert row(board, "knn", 20).have == 19


@pytest.mark.parametrize(
    "axis, value", [("adaptation", "knn"), ("k", 5), ("seed", 3), ("sampler", "dps"), ("task", "deblur")]
)
def test_a_record_whose_axes_are_not_its_identitys_is_named_and_not_counted(
    tmp_path: Path, axis: str, value: Any
) -> None:
    records = two_rows()
    liar = copy.deepcopy(records[0])
    liar["identity"]["sampler"]["name"] = "adir"
    liar["axes"][axis] = value
    liar["seed"] = liar["axes"]["seed"]
    put(tmp_path, [liar, *records[1:]])
    assert any(f"not counted: axis {axis} is {value!r}, its identity says" in n for n in load_board(tmp_path).notes)


def test_a_damaged_plan_is_named_and_the_table_stands(tmp_path: Path) -> None:
    put(tmp_path, two_rows())
    for number, content in enumerate(("{", "[]", '{"cells": [{"cell": "x", "axes": {}, "images": [], "data": "d"}]}')):
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
    assert "color-scheme: light dark" in text and text.endswith("</body>\n</html>\n") and "±" in text


def test_no_text_from_records_becomes_markup() -> None:
    nasty = "<script>alert(1)</script> | \\input{x} $ % # _ & \x1b[31m\n* [l](u)"
    records = two_rows()
    for item in records:
        item["axes"] |= {"task": nasty, "adapter": nasty, "sampler": nasty, "backbone": nasty}
        item["scores"] = {nasty: item["scores"]["psnr"]}
        item["unavailable"] = {"musiq": nasty}
    board = make_board(records)
    page = Tags(to_html(board))
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td", "b", "br", "ul", "li"} | PAGE_TAGS
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "<script" not in to_markdown(board)
    table = to_markdown(board).split("\n\n")[0].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1  # each line has the same cells
    body = [line for line in to_latex(board).splitlines() if not line.startswith("%")]
    assert not any(r"\input" in line or re.search(r"(?<!\\)[%#_]", line) for line in body)
    assert all(line.startswith("%") for line in to_latex(board).split(r"\end{tabular}")[1].strip().splitlines())
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(*to_terminal(board, nasty, console.width))
    assert "\x1b[31m" not in console.export_text()


def test_the_latex_table_has_as_many_cells_in_every_line_as_columns() -> None:
    lines = [line for line in to_latex(make_board(two_rows())).splitlines() if line.endswith(r"\\")]
    assert len(lines) == 4 and {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {5}


# --- the sheet


def captions(records: list[Record], folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the sheet of these records writes; no picture file is there, which leaves its place white."""
    written: set[str] = set()
    for item in records:
        item |= {"picture": f"{item['cell']}.png", "y": item["y"] | {"file": "y.png"}}
        Ledger(folder / "cells" / item["cell"]).write(item["image"]["id"], item)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *rest: written.add(text))
    write_sheet(folder, None, folder / "sheet.png")
    return written


def test_the_sheet_shows_the_lowest_seed_that_every_place_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    residual = {"value": 9.94, "direction": "none", "version": "1", "sigma_y": 10.0}
    records = [record("a", 10.0 + s, seed=s) for s in (0, 1, 2)]
    records += [record("a", 20.0 + s, "knn", s, 20) for s in (1, 2)]
    for item in records:
        item["scores"]["residual"] = residual
    written = captions(records, tmp_path, monkeypatch)
    assert {
        "noise 10  seed 1",
        "PSNR 11.00  residual 9.9",
        "PSNR 21.00  residual 9.9",
    } <= written and "missing" not in written


def test_the_sheet_names_each_seed_where_no_seed_is_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record("a", 0.0, seed=0), record("a", 21.0, "knn", 1, 20)]
    written = captions(records, tmp_path, monkeypatch)
    assert {"seeds differ", "PSNR 0.00  s0", "PSNR 21.00  s1"} <= written and "missing" not in written


def test_the_longest_caption_fits_under_its_picture() -> None:
    item = record("a", 24.81, seed=7)
    item["scores"] |= {"piqe": {"value": 100.0}, "residual": {"value": 10.24}}
    text = caption(item, say_seed=True)
    assert text == "PSNR 24.81  PIQE 100.0  residual 10.2  s7"
    assert ImageFont.load_default(FONT).getlength(text) <= TILE - 4
