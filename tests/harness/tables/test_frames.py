"""Frames hold what records and leaderboards hold."""

from pathlib import Path

import pytest

from adir.errors import InputError
from adir.files import read_json
from adir.harness.tables.frames import board_frame, records_frame
from adir.harness.tables.leaderboard import load_board


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    from adir.cli import main

    folder = tmp_path_factory.mktemp("results")
    assert main(["run", "-m", *tiny, "adaptation=none,knn", f"results={folder}"]) == 0
    return folder


def test_a_frame_has_a_line_per_record_with_its_scores(results: Path) -> None:
    frame = records_frame(results)
    assert len(frame) == 6 and set(frame["adaptation"]) == {"none", "knn"}
    for path in results.glob("cells/**/records/*.json"):
        record = read_json(path)
        (line,) = frame[(frame["cell"] == record["cell"]) & (frame["image"] == record["image"]["id"])].to_dict(
            "records"
        )
        assert line["psnr"] == record["scores"]["psnr"]["value"]
        assert line["seconds_sample"] == record["seconds"]["sample"]
        assert line["network_evaluations"] == 2


def test_the_frame_of_a_board_has_the_means_of_the_frame_of_its_records(results: Path) -> None:
    board = board_frame(load_board(results)).set_index("adaptation")
    means = records_frame(results).groupby("adaptation")["psnr"].mean()
    assert board["psnr"].to_dict() == pytest.approx(means.to_dict())
    assert board.loc["knn", "psnr_minus_none"] == pytest.approx(means["knn"] - means["none"])


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        records_frame(tmp_path)
