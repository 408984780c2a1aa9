"""A data set is its manifest: sets of one name are never averaged together, and one set under two
names is one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from adir.harness.cells.cell import _build_once
from adir.images import read_image, write_png


@pytest.fixture
def sets(tmp_path: Path, photographs: Path) -> Path:
    """Folders of test images in sets/:

    Set5/HR with 0 and 1, Set14/HR with 2, far/Set5/HR with a darker 0 called 3.
    """
    for name, images in (("Set5/HR", "01"), ("Set14/HR", "2")):
        for image in images:
            (tmp_path / "sets" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photographs / f"{image}.png", tmp_path / "sets" / name)
    write_png(
        tmp_path / "sets" / "far" / "Set5" / "HR" / "3.png", read_image(photographs / "0.png") * 0.5
    )
    return tmp_path / "sets"


def run(adir: Callable, results: Path, *folders: Path) -> None:
    """Restore every folder without a network, into one results folder."""
    _build_once.cache_clear()  # each run is a process of its own
    paths = ",".join(map(str, folders))
    words = [
        "data=folder",
        f"data.path={paths}",
        "sampler=bicubic",
        "scoring.metrics=[psnr]",
        f"results={results}",
    ]
    found = adir("run", "-m", *words)
    assert found.status == 0, found.err


def rows(adir: Callable, *results: Path) -> dict[str, int]:
    """{data set: images in its mean} of a table."""
    assert adir("leaderboard", *results).status == 0
    table = pd.read_csv(results[0] / "leaderboard.csv")
    return dict(zip(table["data"], table["psnr_n"], strict=True))


def test_two_sets_whose_last_folder_has_one_name_are_two_rows(
    adir: Callable, sets: Path, tmp_path: Path
) -> None:
    run(adir, tmp_path / "r", sets / "Set5" / "HR", sets / "Set14" / "HR")
    assert rows(adir, tmp_path / "r") == {"Set5/HR": 2, "Set14/HR": 1}


def test_a_name_is_as_long_as_it_takes(adir: Callable, sets: Path, tmp_path: Path) -> None:
    run(adir, tmp_path / "r", sets / "Set5" / "HR", sets / "far" / "Set5" / "HR")
    assert rows(adir, tmp_path / "r") == {"sets/Set5/HR": 2, "far/Set5/HR": 1}


def test_a_set_alone_keeps_its_short_name(adir: Callable, sets: Path, tmp_path: Path) -> None:
    run(adir, tmp_path / "r", sets / "Set5" / "HR")
    assert rows(adir, tmp_path / "r") == {"HR": 2}


def test_a_folder_whose_images_were_replaced_is_another_set(
    adir: Callable, sets: Path, tmp_path: Path
) -> None:
    folder = sets / "Set5" / "HR"
    run(adir, tmp_path / "r", folder)
    shutil.rmtree(folder)
    shutil.copytree(sets / "Set14" / "HR", folder)
    run(adir, tmp_path / "r", folder)
    found = rows(adir, tmp_path / "r")
    assert sorted(found.values()) == [1, 2] and all(name.startswith("HR #") for name in found)


def test_a_set_under_another_name_is_the_same_set(
    adir: Callable, sets: Path, tmp_path: Path
) -> None:
    run(adir, tmp_path / "one", sets / "Set5" / "HR")
    shutil.move(sets / "Set5" / "HR", sets / "moved")
    run(adir, tmp_path / "two", sets / "moved")
    assert adir("merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both").status == 0
    assert list(rows(adir, tmp_path / "both").values()) == [2]


def test_merged_and_submitted_results_keep_sets_of_one_name_apart(
    adir: Callable, sets: Path, tmp_path: Path
) -> None:
    run(adir, tmp_path / "one", sets / "Set5" / "HR")
    run(adir, tmp_path / "two", sets / "Set14" / "HR")
    assert adir("submit", tmp_path / "two", "--out", tmp_path / "two.zip").status == 0
    assert (
        adir("merge", tmp_path / "one", tmp_path / "two.zip", "--out", tmp_path / "both").status
        == 0
    )
    assert rows(adir, tmp_path / "both") == {"Set5/HR": 2, "Set14/HR": 1}
    assert adir("report", tmp_path / "both").status == 0
    assert "Set14/HR" in (tmp_path / "both" / "report.html").read_text()
