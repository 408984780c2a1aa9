"""Verdicts by their definition, clusters against tables of their means, and the sentence that sums
a table up.
"""

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import made_records
import numpy as np
import pandas as pd
import pytest
import yaml
from made_records import changed, made_record, put
from scipy import stats
from statsmodels.stats.power import TTestPower

from adir.commands.leaderboard import main as leaderboard
from adir.configuration import config_dir
from adir.errors import InputError
from adir.harness.records.record import Record
from adir.harness.tables.board import Board, Row, make_board
from adir.harness.tables.formats import FORMATS, to_csv, to_html, to_latex, to_markdown
from adir.harness.tables.published import comparison
from adir.harness.tables.statistics import (
    PairedDifference,
    difference_interval,
    least_difference,
    mean_interval,
    paired_difference,
)
from adir.harness.tables.verdicts import Margin, margins, verdict_on, word_of


@pytest.mark.parametrize(
    "low, high, word",
    [
        (0.01, 0.5, "better"),
        (0.0, 0.5, "not worse"),  # better only above 0
        (-0.09, -0.01, "not worse"),  # a loss, and one below the margin
        (-0.1, -0.01, "worse"),
        (-0.1, 0.0, "undecided"),
        (-0.09, 3.0, "not worse"),
        (-math.inf, -0.01, "worse"),
        (-0.05, math.inf, "not worse"),
        (-3.0, math.inf, "undecided"),
    ],
)
def test_each_verdict_by_its_definition(low: float, high: float, word: str) -> None:
    assert word_of(low, high, margin=0.1) == word


def difference(
    mean: float, low: float | None, high: float | None, n: int = 12, reference: float = 4.0
) -> PairedDifference:
    return PairedDifference(mean, low, high, n, standard_error=0.01, reference=reference)


def test_a_gain_has_the_sign_of_the_better_direction_and_the_margin_that_of_its_metric() -> None:
    relative, absolute = Margin("made", percent=1), Margin("made", margin=0.1)
    # 1 % of 4 is 0.04.  Lower is better: a rise of at most 0.03 is not worse, one of at most 0.05
    # is undecided.
    assert verdict_on(difference(-0.02, -0.05, 0.03), "lower", relative).word == "not worse"
    assert verdict_on(difference(0.01, -0.03, 0.05), "lower", relative).word == "undecided"
    assert verdict_on(difference(0.01, -0.03, 0.05), "lower", absolute).word == "not worse"
    assert verdict_on(difference(-0.02, -0.05, -0.01), "lower", relative).word == "better"
    assert verdict_on(difference(-0.07, -0.09, -0.05), "higher", relative).word == "worse"
    assert (
        verdict_on(difference(0.01, -0.03, 0.05, reference=-8.0), "lower", relative).word
        == "not worse"
    )


@pytest.mark.parametrize("found", [difference(1.0, None, None), difference(1.0, 0.9, 1.1, n=5)])
def test_without_an_interval_or_with_five_clusters_nothing_is_decided(
    found: PairedDifference,
) -> None:
    verdict = verdict_on(found, "higher", Margin("made", margin=0.1))
    assert (verdict.word, verdict.least) == ("undecided", None)


@pytest.mark.parametrize(
    "given",
    [{}, {"margin": 0.1, "percent": 1}, {"margin": 0}, {"margin": -1}, {"percent": math.inf}],
)
def test_a_margin_is_one_number_above_zero(given: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"conf/margins.yaml: made needs"):
        Margin("made", **given)


def test_the_margins_are_those_of_the_file() -> None:
    written = yaml.safe_load((config_dir() / "margins.yaml").read_text())
    found = {name: (margin.margin, margin.percent) for name, margin in margins().items()}
    assert found == {
        "psnr": (0.1, None),
        "oracle-eps-change": (0.25, None),
        "deep-lite0": (None, 1),
    }
    assert found == {
        name: (entry.get("margin"), entry.get("percent")) for name, entry in written.items()
    }


@pytest.mark.parametrize("n", [6, 12, 46])
def test_the_least_difference_has_the_power_that_statsmodels_gives_it(n: int) -> None:
    # Of Student's interval, whose lower end is t_.95 standard errors below the mean.
    spread = 1.7
    error = spread / math.sqrt(n)
    least = least_difference(float(stats.t.ppf(0.95, n - 1)) * error, error, n)
    assert TTestPower().power(least / spread, n, 0.05, alternative="larger") == pytest.approx(
        0.8, abs=0.02
    )


# --- the interval


def test_few_differences_have_students_interval_and_one_value_all_over_is_its_own() -> None:
    x = np.array([1.0, 2.5, 0.5, 4.0])
    low, high = stats.ttest_1samp(x, 0.0).confidence_interval(0.90)
    assert difference_interval(x) == (pytest.approx(low), pytest.approx(high))
    assert difference_interval([0.0] * 12) == (0.0, 0.0) and difference_interval([0.0] * 5) is None
    assert difference_interval([1.0, 2.0]) is None


def test_the_ends_are_the_tails_of_scipys_bootstrap_t() -> None:
    n = 12
    x = np.random.default_rng(3).gamma(2.0, size=n)
    error = x.std(ddof=1) / math.sqrt(n)
    resampled = stats.bootstrap(
        (x,),
        lambda sample, axis: (
            (sample.mean(axis) - x.mean()) / (sample.std(axis, ddof=1) / math.sqrt(n))
        ),
        n_resamples=40_000,
        method="percentile",
        rng=np.random.default_rng(9),
    )
    left, right = np.quantile(resampled.bootstrap_distribution, (0.05, 0.95))
    found = difference_interval(x)
    assert found is not None
    width = found[1] - found[0]
    assert found[0] == pytest.approx(x.mean() - right * error, abs=0.03 * width)
    assert found[1] == pytest.approx(x.mean() - left * error, abs=0.03 * width)


def test_where_most_differences_are_zero_a_rare_loss_leaves_the_lower_end_open_and_a_rare_gain_the_upper() -> (
    None
):
    # 11 % of the resamples, (10 / 12)^12, hold zeros alone: what the rare value could be on its
    # side is not bounded.
    x = np.array([0.0] * 10 + [-1.0, -1.2])
    low, high = difference_interval(x) or (0.0, 0.0)
    assert low == -math.inf and -1 < high < 0.1
    low, high = difference_interval(-x) or (0.0, 0.0)
    assert high == math.inf and -0.1 < low < 1


# --- tables of clusters


FIELDS = {f"photo{p}-{f}": f"photo{p}" for p in range(8) for f in range(1 + p % 3)}
"""{image: photograph}: 1, 2 or 3 fields of each of eight photographs."""
GAIN = {
    photo: float(gain)
    for photo, gain in zip(
        dict.fromkeys(FIELDS.values()), np.random.default_rng(1).normal(0.6, 0.4, 8), strict=True
    )
}


def fields(
    clusters: Mapping[str, str] = FIELDS,
    seeds: tuple[int, ...] = (0, 1),
    mode: str = "knn",
    task: str = "sr4",
    sign: int = 1,
) -> Iterator[Record]:
    """Records of `none` and of a mode, whose gain in psnr is that of the photograph, a part of the
    field and of the seed.
    """
    rng = np.random.default_rng(7)
    for image, photo in clusters.items():
        for seed in seeds:
            base = float(rng.normal(25, 3))
            gain = sign * GAIN[FIELDS[image]] + float(rng.normal(0, 0.1))
            for name, k, psnr in (("none", None, base), (mode, 20, base + gain)):
                one = made_record(
                    image,
                    mode=name,
                    k=k,
                    seed=seed,
                    task=task,
                    scores={"psnr": psnr, "ssim": psnr / 50},
                )
                yield changed(one, {"image.cluster": photo}) if photo != image else one


def row_of(board: Board, mode: str) -> Row:
    (found,) = [row for row in board.rows if row.axes["adaptation"] == mode]
    return found


def test_a_table_of_clusters_is_the_table_of_their_means() -> None:
    board = make_board(fields())
    records = list(fields())
    means: dict[
        tuple[str, str], dict[str, float]
    ] = {}  # by hand: seeds within an image, then images within a photograph
    for mode in ("none", "knn"):
        for metric in ("psnr", "ssim"):
            of_image = {
                image: np.mean(
                    [
                        r.value(metric)
                        for r in records
                        if (r.image.id, r.axes.adaptation) == (image, mode)
                    ]
                )
                for image in FIELDS
            }
            means[mode, metric] = {
                photo: float(np.mean([of_image[i] for i, p in FIELDS.items() if p == photo]))
                for photo in GAIN
            }
    single = make_board(
        made_record(
            photo,
            mode=mode,
            k=20 if mode == "knn" else None,
            scores={m: means[mode, m][photo] for m in ("psnr", "ssim")},
        )
        for mode in ("none", "knn")
        for photo in GAIN
    )
    for ours, theirs in zip(board.rows, single.rows, strict=True):
        for metric in ("psnr", "ssim"):
            for one, other in ((ours.estimates[metric], theirs.estimates[metric]),):
                assert (one.value, one.standard_error, one.n) == (
                    pytest.approx(other.value), pytest.approx(other.standard_error), 8
                )  # fmt: skip
        assert ours.ranking == theirs.ranking and ours.verdicts.keys() == theirs.verdicts.keys()
    ours, theirs = (row_of(b, "knn").to_reference["psnr"] for b in (board, single))
    assert ours is not None and theirs is not None and ours.n == 8
    assert (ours.mean, ours.low, ours.high, ours.p) == tuple(
        pytest.approx(value) for value in (theirs.mean, theirs.low, theirs.high, theirs.p)
    )
    # Of 15 images taken for independent the interval would be another, and narrower than it may be.
    apart = row_of(make_board(fields({image: image for image in FIELDS})), "knn").to_reference[
        "psnr"
    ]
    assert apart is not None and apart.n == len(FIELDS) == 15 and apart.p != ours.p
    note = "15 images form 8 clusters, such as photo1; each cluster counts once: sr4"
    assert note in board.notes and "over 8 clusters" in board.summary
    assert not any("clusters" in n for n in single.notes) and "over 8 images" in single.summary


def test_an_image_that_one_mode_lacks_leaves_its_cluster_with_the_others() -> None:
    a = {"x1": 1.0, "x2": 5.0, "y": 2.0, "z": 9.0}
    b = {"x1": 0.0, "x2": None, "y": 0.0, "z": 0.0}
    found = paired_difference(a, b, {"x1": "x", "x2": "x", "z": "y"})
    # x: 1 by its one image; y: the mean of 2 and 9.
    assert found is not None and (found.mean, found.n, found.dropped) == (
        pytest.approx((1 + 5.5) / 2),
        2,
        ("x2",),
    )


def test_an_image_in_two_clusters_is_refused_and_a_record_that_tells_none_follows_the_others() -> (
    None
):
    records = list(fields())
    silent = [
        changed(r, {"image.cluster": None}) if r.axes.adaptation == "none" else r for r in records
    ]
    assert to_csv(make_board(silent)) == to_csv(make_board(records))
    place = next(n for n, r in enumerate(records) if r.image.cluster)
    records[place] = changed(records[place], {"image.cluster": "another"})
    with pytest.raises(
        InputError, match=r"image photo0-0 of made has cluster \w+ in .* but \w+ in .*; keep"
    ):
        make_board(records)


def test_nine_images_of_three_photographs_are_too_few_to_mark_a_row() -> None:
    few = {
        image: photo for image, photo in FIELDS.items() if photo in ("photo2", "photo5", "photo7")
    }
    apart, together = (
        make_board(fields(clusters)) for clusters in ({image: image for image in few}, few)
    )
    assert [row.ranking.get("psnr") for row in apart.rows] == [None, "best"]
    assert [row.ranking.get("psnr") for row in together.rows] == [None, None]
    assert any(
        note.startswith("with 8 images in 3 clusters, no row is marked") for note in together.notes
    )
    assert row_of(apart, "knn").verdicts["psnr"].word == "better"
    assert row_of(together, "knn").verdicts["psnr"].word == "undecided"


def test_ties_are_told_by_clusters() -> None:
    # Six photographs of three images each gain, one of a single image loses more than any gains: of
    # 19 images the signed rank test finds a difference, of 7 clusters it finds none.
    clusters = {f"p{photo}-{field}": f"p{photo}" for photo in range(6) for field in range(3)} | {
        "lost": "lost"
    }
    gains = {
        image: -3.0 if image == "lost" else 1 + number / 50 for number, image in enumerate(clusters)
    }
    assert (
        stats.wilcoxon(list(gains.values())).pvalue < 0.01
        and stats.wilcoxon([1, 2, 3, 4, 5, 6, -7]).pvalue > 0.05
    )
    for told, standing in ((False, [{}, {"psnr": "best"}]), (True, [{"psnr": "tied"}] * 2)):
        records = [
            changed(
                made_record(image, mode=mode, k=k, scores={"psnr": 20 + gain * (mode == "knn")}),
                {"image.cluster": clusters[image] if told else None},
            )
            for image, gain in gains.items()
            for mode, k in (("none", None), ("knn", 20))
        ]
        assert [row.ranking for row in make_board(records).rows] == standing


def test_a_published_number_is_held_against_the_interval_over_clusters() -> None:
    board = make_board(fields())
    cell = {"value": 25.0, "confidence": "made", "source": "made"}
    found = comparison("knn", {"name": "psnr", "ours": "psnr"}, cell, row_of(board, "knn"), ())
    values = {
        photo: [] for photo in GAIN
    }  # every image has two seeds, so a mean over all of them is one over images
    for record in fields():
        if record.axes.adaptation == "knn":
            values[FIELDS[record.image.id]].append(record.value("psnr"))
    assert found.n == 8
    assert found.interval == pytest.approx(
        mean_interval([float(np.mean(of_one)) for of_one in values.values()])
    )


# --- what a table says


def test_verdicts_stand_in_every_form_and_only_where_a_margin_is() -> None:
    board = make_board(fields())
    row = row_of(board, "knn")
    assert row.verdicts.keys() == {"psnr"} and row.verdicts["psnr"].word == "better"
    for text in (to_markdown(board), to_html(board), to_latex(board)):
        assert text.count("] better") == 1 and board.summary in text
    table = pd.read_csv(io.StringIO(to_csv(board)))
    (line,) = table.query("adaptation == 'knn'").to_dict("records")
    gain, verdict = row.to_reference["psnr"], row.verdicts["psnr"]
    assert gain is not None and verdict.least is not None
    assert (line["psnr_minus_none_verdict"], line["psnr_minus_none_least"]) == (
        "better",
        pytest.approx(verdict.least),
    )
    assert (line["psnr_minus_none_low"], line["psnr_minus_none_n"]) == (pytest.approx(gain.low), 8)
    assert (
        f"smallest gain detected with 80 % power at n = 8 is, depending on the row, psnr {verdict.least:.2g} "
        "dB: sr4" in board.notes
    )
    assert "not corrected for the number of rows" in to_markdown(board)
    (bare,) = [make_board(r for r in fields() if r.axes.adaptation == "none")]
    assert (
        bare.summary == ""
        and "Verdicts" not in to_markdown(bare)
        and "power" not in to_markdown(bare)
    )


def test_one_sentence_sums_a_table_up() -> None:
    records = [*fields(), *fields(task="deblur", sign=-1)]
    gains = {
        r.axes["task"]: r.to_reference["psnr"] for r in make_board(records).rows if r.to_reference
    }
    sr4, deblur = (gains[task] for task in ("sr4", "deblur"))
    assert sr4 is not None and deblur is not None
    assert make_board(records).summary == (
        f"Against none, over 8 clusters: knn is better in PSNR on sr4 ({sr4.mean:+.2g} dB) "
        f"and worse on deblur ({deblur.mean:+.2g} dB)."
    )
    assert (
        make_board(fields()).summary
        == f"Against none, over 8 clusters: knn is better in PSNR ({sr4.mean:+.2g} dB)."
    )


def test_a_large_table_is_counted() -> None:
    records = [record for record in fields() if record.axes.adaptation == "none"]
    for k in range(1, 13):
        more = [
            record for record in fields(sign=1 if k > 3 else -1) if record.axes.adaptation == "knn"
        ]
        records += [
            made_record(
                r.image.id, mode="knn", k=k, seed=r.seed, scores={"psnr": r.value("psnr")}
            ).model_copy(update={"image": r.image})
            for r in more
        ]  # fmt: skip
    summary = make_board(records).summary
    assert (
        summary
        == "Against none, over 8 clusters, in PSNR on sr4: the 12 rows are better in 9 of 12 "
        "comparisons and worse in 3."
    )


# --- another reference


def three_modes() -> list[Record]:
    """`none`, `knn` with K of 5 and 20, and `random` with K of 5 and 20."""
    records = []
    for number, image in enumerate("abcdefgh"):
        for mode, k, gain in (
            ("none", None, 0.0),
            ("knn", 5, 1.0),
            ("knn", 20, 2.0),
            ("random", 5, 0.5),
            ("random", 20, 0.25),
        ):
            psnr = 20.0 + number + gain + (number % 3) * 0.01 * (k or 0)
            records.append(made_record(image, mode=mode, k=k, scores={"psnr": psnr}))
    return records


def test_rows_can_be_compared_with_another_mode_of_their_k() -> None:
    board = make_board(three_modes(), against="random")
    found = {(r.axes["adaptation"], r.axes["k"]): r.to_reference.get("psnr") for r in board.rows}
    gains = {key: round(one.mean, 6) for key, one in found.items() if one is not None}
    assert gains == {("knn", 5): 0.5, ("knn", 20): 1.75}  # each against its own K
    assert (
        "2 rows of the mode random could be the reference, so no difference is shown: sr4 none"
        in board.notes
    )
    assert board.summary.startswith(
        "Against random, over 8 images: knn k=5 full is better in PSNR (+0.5 dB)"
    )
    assert "psnr_minus_random_verdict" in to_csv(board) and "minus_none" not in to_csv(board)
    assert "the paired difference to random" in to_markdown(board)
    one = make_board(
        [r for r in three_modes() if (r.axes.adaptation, r.axes.k) != ("random", 5)],
        against="random",
    )
    of_none = row_of(one, "none").to_reference["psnr"]
    assert of_none is not None and of_none.mean == pytest.approx(
        -0.25 - 0.2 * np.mean([n % 3 for n in range(8)])
    )


def test_a_row_is_compared_with_the_random_neighbours_of_its_own_corpus() -> None:
    records = [r for r in three_modes() if r.axes.k != 5]
    control = [r for r in records if r.axes.k == 20]
    withheld = [changed(r, {"identity.retrieval.withholds": "own photograph"}) for r in control]
    withheld = [
        changed(r, {"scores.psnr.value": r.value("psnr") - (r.axes.adaptation == "knn")})
        for r in withheld
    ]
    board = make_board(records + withheld, against="random")
    gains = {
        r.axes["setting"]: d.mean
        for r in board.rows
        if (d := r.to_reference.get("psnr")) and r.axes["k"]
    }
    assert gains == pytest.approx({"withholds=none": 1.75, "withholds=own photograph": 0.75})


def test_a_mode_that_no_row_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, three_modes())
    with pytest.raises(
        InputError, match="--against self: no row has this mode; choose one of none, knn, random"
    ):
        leaderboard([tmp_path], against="self")
    assert leaderboard([tmp_path], against="random") == 0
    assert (
        "Against random" in capsys.readouterr().out and not (tmp_path / "leaderboard.csv").exists()
    )
    assert all((tmp_path / f"leaderboard-against-random.{ending}").is_file() for ending in FORMATS)


def test_new_metrics_have_verdicts_of_their_own_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = {"oracle-eps-change": "lower", "deep-lite0": "lower"}
    monkeypatch.setattr(made_records, "DIRECTIONS", made_records.DIRECTIONS | lower)
    records = []
    for number, image in enumerate("abcdefgh"):
        shift = 0.001 * (number % 4)
        none = {"oracle-eps-change": 0.0, "deep-lite0": 4.0 + number, "fsim": 0.8}
        knn = {
            "oracle-eps-change": -0.6 + shift,
            "deep-lite0": 4.02 + number + shift,
            "fsim": 0.7 + shift,
        }
        records += [
            made_record(image, scores=none),
            made_record(image, mode="knn", k=20, scores=knn),
        ]
    row = row_of(make_board(records), "knn")
    # deep-lite0 rises by 0.02, which is below 1 % of the mean of 7.5; fsim has no margin, so no
    # verdict.
    assert {name: verdict.word for name, verdict in row.verdicts.items()} == {
        "oracle-eps-change": "better", "deep-lite0": "not worse"
    }  # fmt: skip
    assert "$-$0.59" in to_latex(make_board(records)) and "& -0" not in to_latex(
        make_board(records)
    )
