"""Figures for papers: what is drawn, with fonts inside, the same bytes each time."""

from pathlib import Path

import numpy as np
import pytest
from made_records import ledger_of, made_record, put
from matplotlib.figure import Figure
from PIL import Image

from adir.harness.report.figures import (
    BESIDE,
    STYLE,
    WIDTH,
    all_figures,
    columns,
    legend_below,
    write_figures,
)
from adir.harness.report.gather import Gathered, gather
from adir.images import read_pixels


@pytest.fixture(scope="module")
def gathered(results: Path) -> Gathered:
    return gather(results)


def test_columns_are_none_and_adir_with_the_largest_k(gathered: Gathered) -> None:
    numbers = [n for n, row in enumerate(gathered.board.rows) if row.axes["task"] == "sr4"]
    assert [title for title, _ in columns(gathered, numbers)] == ["none", "ADIR (knn k=4 full)"]


def test_each_sampler_has_a_column_and_one_that_is_alone_has_none_and_adapted(
    several_samplers: Path,
) -> None:
    figures = dict(all_figures(gather(several_samplers)))
    axes = figures["comparison tiny sr4"].axes
    titles = ["adir none", "ADIR (knn k=4 full)", "ddrm", "diffpir", "pseudo_inverse"]
    assert [a.get_title() for a in axes[:7]] == ["GT", "y", *titles]
    assert all(a.images for a in axes[:7])
    assert not any("deblur" in name for name in figures)  # which has no record


def test_results_of_a_baseline_alone_are_shown(several_samplers: Path) -> None:
    found = gather(several_samplers)
    numbers = [n for n, row in enumerate(found.board.rows) if row.axes["sampler"] == "ddrm"]
    assert columns(found, numbers) == [("none", numbers[0])]


@pytest.mark.parametrize("n", [2, 21, 60])
def test_the_legend_lies_inside_its_figure_however_many_rows_there_are(n: int) -> None:
    figure = Figure(figsize=(WIDTH * 0.62, 2.6), layout="constrained")
    axes = figure.subplots()
    for number in range(n):
        axes.errorbar(number, number, yerr=1, label=f"sampler_{number} knn k={number} lora")
    legend_below(figure, WIDTH * 0.62, 2.6, axes)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == n
    assert inside.x0 >= 0 and inside.x1 <= whole.x1 and inside.y0 >= 0
    assert (
        inside.y1 < axes.get_window_extent().y0
        and axes.get_window_extent().height >= 1.5 * figure.dpi
    )


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
    ledger = ledger_of(gathered.folder, made_record(mode="knn", k=4, backbone="tiny"))
    np.testing.assert_array_equal(shown, read_pixels(ledger.image_path("plain")))


def test_the_sweep_has_the_means_of_the_board(gathered: Gathered) -> None:
    (panel, _) = dict(all_figures(gathered))["k-sweep tiny sr4"].axes
    rows = {
        row.axes["k"]: row.estimates["psnr"].value
        for row in gathered.board.rows
        if row.axes["task"] == "sr4"
    }
    line = panel.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [1, 4])
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [rows[1], rows[4]])


def test_error_bars_at_one_k_stand_beside_each_other(several_samplers: Path) -> None:
    figure = dict(all_figures(gather(several_samplers)))["k-sweep tiny sr4"]
    figure.draw_without_rendering()
    panel = figure.axes[0]
    bars = np.array(
        [[segment[0, 0] for segment in bar.get_segments()] for bar in panel.collections]
    )
    assert bars.shape == (2, 2)  # full and lora, at K = 1 and 4
    np.testing.assert_allclose(np.log(bars[1] / bars[0]) / np.log(4 / 1), [BESIDE, BESIDE])
    np.testing.assert_allclose(
        np.log(bars).mean(0), np.log([1, 4]), atol=1e-12
    )  # around K, on an axis of logarithms
    points = (
        72
        / figure.dpi
        * np.diff(panel.transData.transform(np.stack([bars[:, 0], [20, 20]], axis=1))[:, 0])
    )
    assert 3 < points < 6
    ends = np.concatenate([segment for bar in panel.collections for segment in bar.get_segments()])
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    assert ((left, low) < ends).all() and (ends < (right, high)).all()


def test_settings_of_one_mode_are_swept_apart(tmp_path: Path) -> None:
    means = {(scale, k): scale / 10 + k for scale in (30, 100) for k in (1, 5, 20)}
    for (scale, k), mean in means.items():
        settings = {"sampler.guidance_scale": scale}
        put(
            tmp_path,
            [made_record(mode="knn", k=k, settings=settings, scores={"psnr": mean, "piqe": 1.0})],
        )
    (panel, _) = dict(all_figures(gather(tmp_path)))["k-sweep made sr4"].axes
    lines = {
        bars.get_label(): list(map(float, bars.lines[0].get_ydata())) for bars in panel.containers
    }
    assert lines == {
        f"knn full guidance_scale={scale}": [means[scale, k] for k in (1, 5, 20)]
        for scale in (30, 100)
    }


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
            with Image.open(one) as image:
                assert image.width >= 200
