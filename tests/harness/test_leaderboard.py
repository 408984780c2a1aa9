"""The table against its definition: hand-made records, and numpy."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from adir.errors import InputError
from adir.harness.leaderboard import Board, Row, load_board, make_board, show_leaderboard, to_csv, to_markdown
from adir.harness.ledger import Ledger

Record = dict[str, Any]


def record(image: str, psnr: float | None, mode: str = "none", seed: int = 0, k: int | None = None, **more) -> Record:
    """One record, with what the table reads of it."""
    axes = {"backbone": "b", "task": "sr4", "adaptation": mode, "k": k, "sampler": "adir", "seed": seed}
    axes["adapter"] = "full" if mode != "none" else None
    return {
        "status": "done",
        "cell": f"{mode}-{k}-{seed}",
        "axes": axes,
        "identity": {"mode": mode, "k": k, "seed": seed},
        "image": {"id": image},
        "y": {"sha256": f"y of {image}"},
        "scores": {"psnr": {"value": psnr, "direction": "higher", "version": "1"}},
        "seed": seed,
    } | more


def row(board: Board, mode: str, k: int | None = None) -> Row:
    (found,) = [r for r in board.rows if (r.axes["adaptation"], r.axes["k"]) == (mode, k)]
    return found


PSNR = {"a": [20.0, 22.0], "b": [30.0, 31.0], "c": [25.0, 24.5], "d": [28.0, 20.0]}  # picture: one value a seed
KNN = {"a": [21.0, 22.5], "b": [30.5, 33.0], "c": [25.0, 25.5], "d": [28.5, 22.0]}


def two_rows() -> list[Record]:
    records = [record(i, v, seed=s) for i, values in PSNR.items() for s, v in enumerate(values)]
    return records + [record(i, v, "knn", s, 20) for i, values in KNN.items() for s, v in enumerate(values)]


def test_means_and_standard_errors_are_over_pictures_with_seeds_averaged_within() -> None:
    board = make_board(two_rows())
    for mode, k, values in (("none", None, PSNR), ("knn", 20, KNN)):
        per_picture = np.array(list(values.values())).mean(axis=1)
        found = row(board, mode, k).estimates["psnr"]
        assert found.value == pytest.approx(per_picture.mean())
        # n is 4 pictures, not 8 records: seeds of a picture are no new pictures.
        assert found.n == 4 and found.standard_error == pytest.approx(per_picture.std(ddof=1) / math.sqrt(4))
        assert (row(board, mode, k).have, row(board, mode, k).expected) == (8, 8)


def test_the_difference_to_none_is_paired_by_picture() -> None:
    found = row(make_board(two_rows()), "knn", 20).to_none["psnr"]
    paired = np.mean([np.mean(KNN[i]) - np.mean(PSNR[i]) for i in PSNR])
    assert found is not None and found.mean == pytest.approx(paired) and found.n == 4
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
    assert found.estimates["psnr"].n == 3
    assert (found.have, found.expected) == ((8, 8) if missing == "value" else (7, 8))
    assert row(board, "none").estimates["psnr"].value is not None
    assert any("7 of 8" in note for note in board.notes) == (missing != "value")
    assert any("NaN at step 3" in note and "c" in note for note in board.notes) == (missing == "failed")
    assert "– (n=3)" in to_markdown(board)


def test_rows_of_different_y_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["y"]["sha256"] = "0123456789abc"
    with pytest.raises(InputError, match="none-None-0 and knn-20-1 were restored from different y") as raised:
        make_board(records)
    assert "0123456789" in str(raised.value) and "picture d" in str(raised.value)


def test_scores_of_different_metric_versions_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["scores"]["psnr"]["version"] = "2"
    with pytest.raises(InputError, match=r"psnr: version '1' in none-None-0, '2' in knn-20-1.*adir score"):
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
    other = [record(i, v[0] + 5, "self", identity={"mode": "self", "seed": 0, "rate": 1}) for i, v in PSNR.items()]
    board = make_board(one + other)
    assert len(board.rows) == 2 and len({r.axes["variant"] for r in board.rows}) == 2
    means = sorted(r.estimates["psnr"].value or 0 for r in board.rows)
    assert means[1] - means[0] == pytest.approx(5)


def test_a_metric_that_could_not_be_computed_is_empty_and_its_reason_is_told() -> None:
    records = two_rows()
    for item in records:
        item["scores"]["musiq"] = {"value": None, "direction": "higher", "version": "1"}
        item["unavailable"] = {"musiq": "musiq.pth is missing"}
    board = make_board(records)
    assert row(board, "none").estimates["musiq"].value is None and "musiq: musiq.pth is missing" in board.notes
    assert to_csv(board).splitlines()[0].count("musiq") == 6


def test_zero_is_a_score_and_a_seed() -> None:
    board = make_board([record(i, 0.0) for i in "abc"])
    assert board.rows[0].estimates["psnr"].value == 0.0 and "| 0 ± 0 |" in to_markdown(board)


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
            assert (line["k"], line["records"], line["expected"]) == (20, 8, 8)
            assert (line["psnr_minus_none"], line["psnr_minus_none_low"]) == (difference.mean, difference.low)


def test_the_folder_gives_the_same_board_and_writes_both_files(tmp_path: Path, capsys) -> None:
    for item in two_rows():
        Ledger(tmp_path / "cells" / item["cell"]).write(item["image"]["id"], copy.deepcopy(item))
    assert to_csv(load_board(tmp_path)) == to_csv(make_board(two_rows()))
    assert show_leaderboard(tmp_path, write=False) == 0 and not (tmp_path / "leaderboard.csv").exists()
    assert show_leaderboard(tmp_path, write=True) == 0
    assert (tmp_path / "leaderboard.csv").read_text() == to_csv(make_board(two_rows()))
    assert "25.06 ±" in capsys.readouterr().out
