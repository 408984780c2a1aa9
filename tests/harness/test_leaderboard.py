"""The table against its definition: hand-made records, and numpy."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import ImageDraw, ImageFont

from adir.errors import InputError
from adir.harness.leaderboard import Board, Row, load_board, make_board, show_leaderboard, to_csv, to_markdown
from adir.harness.ledger import Ledger
from adir.harness.report.sheet import FONT, TILE, caption, write_sheet

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
    # nor a difference over the rest, in either direction: knn seed 0 alone against both seeds of none
    assert found.to_none == {"psnr": None}
    (line,) = [line for line in csv_lines(board) if line["adaptation"] == "knn"]
    assert line["psnr_n"] == 9
    assert [line[f"psnr{end}"] for end in ("", "_se", "_minus_none", "_minus_none_low", "_minus_none_high")] == [
        None
    ] * 5


def test_a_reference_that_lacks_anything_gives_no_difference() -> None:
    records = [r for r in two_rows() if not (r["cell"] == "none-None-1" and r["image"]["id"] == "c")]
    found = row(make_board(records), "knn", 20)
    assert found.estimates["psnr"].value is not None and found.to_none == {"psnr": None}


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
    with pytest.raises(InputError, match="task sr4: version 1 in none-None-0, 2 in knn-20-1"):
        make_board(records)


def test_rows_of_different_y_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["y"]["sha256"] = "0123456789abc"
    with pytest.raises(InputError, match="none-None-0 and knn-20-1 were restored from different y") as raised:
        make_board(records)
    assert "0123456789" in str(raised.value) and "picture j" in str(raised.value)


def test_scores_of_different_metric_versions_are_refused_and_both_are_named() -> None:
    records = two_rows()
    records[-1]["scores"]["psnr"]["version"] = "adir 2"
    with pytest.raises(InputError, match=r"psnr: version 'adir 1' in none-None-0, 'adir 2' in knn-20-1.*adir score"):
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


def test_a_metric_that_could_not_be_computed_is_empty_and_its_reason_is_told() -> None:
    records = two_rows()
    for item in records:
        item["scores"]["musiq"] = {"value": None, "direction": "higher", "version": "1"}
        item["unavailable"] = {"musiq": "musiq.pth is missing"}
    board = make_board(records)
    assert row(board, "none").estimates["musiq"].value is None and "musiq: musiq.pth is missing" in board.notes
    assert to_csv(board).splitlines()[0].count("musiq") == 7


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
    assert show_leaderboard(tmp_path, write=False) == 0 and not (tmp_path / "leaderboard.csv").exists()
    assert show_leaderboard(tmp_path, write=True) == 0
    assert (tmp_path / "leaderboard.csv").read_text() == to_csv(make_board(two_rows()))
    assert f"{np.mean(list(PSNR.values())):.4g} ±" in capsys.readouterr().out


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
