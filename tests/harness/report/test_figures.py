"""Figures for papers: what is drawn, with fonts inside, the same bytes each time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adir.harness.report.figures import STYLE, all_figures, columns, write_figures
from adir.harness.report.gather import Gathered, gather
from adir.images import read_pixels


@pytest.fixture(scope="module")
def gathered(results: Path) -> Gathered:
    return gather(results)


def test_columns_are_none_and_adir_with_the_largest_k(gathered: Gathered) -> None:
    numbers = [n for n, row in enumerate(gathered.board.rows) if row.axes["task"] == "sr4"]
    assert [title for title, _ in columns(gathered, numbers)] == ["none", "ADIR (knn k=4 full)"]


def test_the_comparison_shows_the_pixels_of_the_files(gathered: Gathered) -> None:
    figures = dict(all_figures(gathered))
    # deblur has no sweep: a record is missing at K = 4, so that mean is missing too.
    names = [
        "comparison tiny deblur",
        "scatter tiny deblur",
        "comparison tiny sr4",
        "scatter tiny sr4",
        "k-sweep tiny sr4",
    ]
    assert list(figures) == names
    axes = figures["comparison tiny sr4"].axes
    assert [a.get_title() for a in axes[:4]] == ["GT", "y", "none", "ADIR (knn k=4 full)"]
    scene = [s.image_id for s in gathered.scenes if s.task == "sr4"].index("plain")
    shown = axes[4 * scene + 3].images[0].get_array()
    np.testing.assert_array_equal(shown, read_pixels(gathered.folder / "cells/tiny/sr4/knn-4-s0/pictures/plain.png"))


def test_the_sweep_has_the_means_of_the_board(gathered: Gathered) -> None:
    (panel, _) = dict(all_figures(gathered))["k-sweep tiny sr4"].axes
    rows = {row.axes["k"]: row.estimates["psnr"].value for row in gathered.board.rows if row.axes["task"] == "sr4"}
    line = panel.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [1, 4])
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [rows[1], rows[4]])


def test_files_have_their_fonts_inside_and_are_the_same_each_time(
    make_results: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STYLE, "savefig.dpi", 50)  # for speed
    small = make_results(tasks=("sr4",), seeds=(0,))  # type: ignore[operator]
    first = write_figures(gather(small), tmp_path / "a")
    again = write_figures(gather(small), tmp_path / "b")
    assert {path.suffix for path in first} == {".png", ".pdf"}
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        if one.suffix == ".pdf":
            assert b"/FontFile2" in one.read_bytes() and b"/Type3" not in one.read_bytes()
            assert b"/CreationDate" not in one.read_bytes()
        else:
            with Image.open(one) as picture:
                assert picture.width >= 200
