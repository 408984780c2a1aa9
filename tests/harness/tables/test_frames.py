"""Frames hold what records hold."""

import io
from pathlib import Path

import pandas as pd
import pytest
from made_records import changed, made_record, put

from adir.errors import InputError
from adir.files import read_json
from adir.harness.tables.formats import to_csv
from adir.harness.tables.frames import records_frame
from adir.harness.tables.leaderboard import load_board


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for number, image in enumerate("abc"):
        for mode, k in (("none", None), ("knn", 2)):
            record = made_record(
                image, mode=mode, k=k, scores={"psnr": 25.0 + number + (k or 0) / 3}
            )
            put(
                folder,
                [
                    changed(
                        record,
                        {
                            "seconds.sample": number + 0.5,
                            "sampler.gradient_evaluations": 7 * number,
                        },
                    )
                ],
            )
    return folder


def test_a_frame_has_a_line_per_record_with_its_scores(results: Path) -> None:
    frame = records_frame(results)
    assert len(frame) == 6 and set(frame["adaptation"]) == {"none", "knn"}
    for path in results.glob("cells/**/records/*.json"):
        record = read_json(path)
        (line,) = frame[
            (frame["cell"] == record["cell"]) & (frame["image"] == record["image"]["id"])
        ].to_dict("records")
        assert (
            line["psnr"] == record["scores"]["psnr"]["value"] and line["y"] == record["y"]["sha256"]
        )
        assert line["seconds_sample"] == record["seconds"]["sample"]
        assert line["network_evaluations"] == 50
        assert line["gradient_evaluations"] == record["sampler"]["gradient_evaluations"]
        assert (None if pd.isna(line["k"]) else line["k"]) == record["axes"]["k"]


def test_a_record_that_failed_is_a_line_without_scores(tmp_path: Path) -> None:
    put(tmp_path, [made_record("a"), made_record("b", status="failed")])
    (line,) = records_frame(tmp_path).query("status == 'failed'").to_dict("records")
    assert line["image"] == "b" and pd.isna(line["psnr"]) and pd.isna(line["network_evaluations"])


def test_the_csv_of_a_board_has_the_means_of_the_frame_of_its_records(results: Path) -> None:
    board = pd.read_csv(io.StringIO(to_csv(load_board(results))), index_col="adaptation")
    means = records_frame(results).groupby("adaptation")["psnr"].mean()
    assert board["psnr"].to_dict() == pytest.approx(means.to_dict())
    assert board.loc["knn", "psnr_minus_none"] == pytest.approx(means["knn"] - means["none"])


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        records_frame(tmp_path)
