"""The paper's numbers as they are known, and the verdict on ours."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import made_record, put
from rich.console import Console

import adir.commands.table as module
from adir.commands.table import main as show_table
from adir.errors import InputError
from adir.files import write_bytes
from adir.harness.cells.compose import compose
from adir.harness.tables.board import Board, make_board
from adir.harness.tables.published import (
    Comparison,
    command_of,
    compare,
    published,
    published_dir,
    published_names,
)
from adir.harness.tables.statistics import mean_interval

# METHOD.md of the project's design, section 3: (none, ADIR) or (random, pixel, CLIP), by table and
# metric.
KNOWN = {
    "v2-table1": {
        "lpips": (0.365, 0.347),
        "musiq-ava": (4.36, 4.41),
        "musiq-koniq": (53.99, 55.89),
    },
    "v2-sr4-sd": {
        "lpips": (0.331, 0.213),
        "musiq-ava": (5.07, 5.51),
        "musiq-koniq": (69.18, 72.56),
    },
    "v2-deblur-256": {"musiq-koniq": (49.19, 55.78)},
    "v2-deblur-512": {"musiq-koniq": (58.66, 60.13)},
    "v2-colorization": {"musiq-ava": (4.195, 4.214), "musiq-koniq": (56.044, 58.679)},
    "v2-ablation": {"lpips": (0.430, 0.434, 0.347), "musiq-koniq": (52.89, 53.12, 55.89)},
}


@pytest.mark.parametrize("name", published_names())
def test_every_table_is_whole_and_every_cell_says_how_sure_it_is(
    name: str, repository: Path
) -> None:
    table = published(name)
    metrics = [metric["name"] for metric in table["metrics"]]
    for row in table["rows"]:
        assert list(row["cells"]) == metrics
        for cell in row["cells"].values():
            assert cell["confidence"] == ("unknown" if cell["value"] is None else "summary")
    assert table["source"] and table["unknown"]
    assert (repository / "conf" / "experiment" / f"{table['experiment']}.yaml").is_file()
    values = {m: tuple(row["cells"][m]["value"] for row in table["rows"]) for m in metrics}
    assert {m: v for m, v in values.items() if any(x is not None for x in v)} == KNOWN.get(name, {})


def test_every_table_that_is_known_of_is_there() -> None:
    v1 = {"v1-sr4-gd", "v1-sr4-sd", "v1-deblur", "v1-configuration", "v1-editing"}
    assert set(published_names()) == KNOWN.keys() | v1


def board(
    koniq: float, n: int = 50, spread: float = 1.0, lpips: float | None = 0.36, **changes: Any
) -> Board:
    """Ours of v2-table1, under the paper's conditions unless changed:

    `none` and `knn` with equal scores.
    """
    given: dict[str, Any] = {
        "backbone": "gd512",
        "data": "div2k-512",
        "n_steps": 1000,
        "k": 20,
        "rank": 16,
    } | changes
    wave = np.resize([-1.0, 1.0], n) * spread  # its mean is 0 for an even n
    fine_tuning = {"n_iterations": 400, "batch_size": 6, "learning_rate": 1e-4}
    lora = {"name": "lora", "version": 1, "rank": given["rank"], "alpha": 8}
    trained = {"adaptation.adapter": lora, "adaptation.fine_tuning": fine_tuning}
    records = [
        made_record(
            f"{number:03}",
            task="sr8",
            mode=mode,
            k=given["k"] if mode == "knn" else None,
            backbone=given["backbone"],
            adapter="lora",
            data=given["data"],
            scores={
                "musiq-koniq": koniq + wave[number],
                "musiq-ava": 4.4 + wave[number] / 10,
                "lpips-alex": lpips,
            },
            settings={"sampler.n_steps": given["n_steps"]} | (trained if mode == "knn" else {}),
        )
        for mode in ("none", "knn")
        for number in range(n)
    ]
    return make_board(records)


def cell(found: list[Comparison], method: str, metric: str) -> Comparison:
    (one,) = [c for c in found if (c.method, c.metric["name"]) == (method, metric)]
    return one


def test_a_number_inside_our_interval_is_inside_and_the_difference_is_ours_minus_the_papers() -> (
    None
):
    found = cell(compare(published("v2-table1"), board(54.0)), "GD", "musiq-koniq")
    assert (found.verdict, found.reasons, found.n) == ("inside", (), 50)
    assert found.difference == pytest.approx(54.0 - 53.99)
    values = 54.0 + np.resize([-1.0, 1.0], 50)
    assert found.interval == mean_interval(values) and found.interval is not None
    assert found.interval[0] < 53.99 < found.interval[1]


def test_a_number_outside_by_more_than_back_ends_differ_is_outside_and_by_less_it_is_not_comparable() -> (
    None
):
    # 50 values of ±1 around the mean: the interval reaches about 0.29 to each side.
    far = cell(compare(published("v2-table1"), board(53.99 + 2.0)), "GD", "musiq-koniq")
    assert (far.verdict, far.reasons) == ("outside", ())
    near = cell(compare(published("v2-table1"), board(53.99 - 1.0)), "GD", "musiq-koniq")
    assert near.verdict == "not comparable" and re.search(
        r"outside by 0\.7.*pyiqa differs.*1\.09", near.reasons[0]
    )
    ava = cell(
        compare(published("v2-table1"), board(54.0, spread=0.1)), "GD", "musiq-ava"
    )  # 4.40 beside 4.36
    assert ava.verdict == "not comparable" and "not measured" in ava.reasons[0]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"backbone": "embedded"}, "backbone is embedded, not gd512"),
        ({"data": "folder"}, "data is folder, not div2k-512"),
        ({"n_steps": 50}, "n_steps is 50, not 1000"),
        ({"k": 50}, "k is 50, not 20"),
        ({"rank": 4}, "rank is 4, not 16"),
        ({"n": 12}, "only 12 images, not about 50"),
        ({"n": 2}, "no interval from 2 images"),
    ],
)
def test_other_conditions_are_not_comparable_and_each_is_named(
    change: dict[str, Any], reason: str
) -> None:
    found = cell(compare(published("v2-table1"), board(54.0, **change)), "ADIR (GD)", "musiq-koniq")
    assert found.verdict == "not comparable" and reason in found.reasons
    plain = cell(compare(published("v2-table1"), board(54.0, **change)), "GD", "musiq-koniq")
    assert (plain.verdict == "inside") == (
        change in ({"k": 50}, {"rank": 4})
    )  # none has neither K nor an adapter


def test_an_unknown_network_an_unknown_number_and_a_missing_metric_are_not_comparable() -> None:
    found = compare(published("v2-table1"), board(54.0))
    assert any(
        "which network of LPIPS the paper took is unknown" in why
        for why in cell(found, "GD", "lpips").reasons
    )
    missing = compare(published("v2-table1"), board(54.0, lpips=None))
    assert "lpips-alex is missing in none" in cell(missing, "GD", "lpips").reasons
    unknown = compare(published("v1-sr4-gd"), board(54.0))
    assert all(c.paper is None and c.verdict == "not comparable" for c in unknown)
    assert all(
        "the paper's number is unknown" in c.reasons and "not run" in c.reasons for c in unknown
    )  # ours is sr8


def test_of_several_rows_of_a_mode_the_closest_to_the_paper_is_shown() -> None:
    table = published("v2-table1")
    far, near = board(40.0, n_steps=50), board(54.0)
    both = Board([*far.rows, *near.rows], near.metrics, near.versions)
    assert cell(compare(table, both), "GD", "musiq-koniq").ours == pytest.approx(54.0)


def test_the_command_shows_ours_beside_the_papers_and_says_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(
        tmp_path,
        [made_record(image, backbone="embedded", scores={"musiq-koniq": 55.5}) for image in "abc"],
    )
    assert show_table("v1-sr4-gd", tmp_path, latex=False) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "unknown" in out and "55.50" in out and "backbone is embedded" in out
    assert show_table("v2-ablation", None, latex=False) == 0
    assert "0.430 (summary)" in capsys.readouterr().out  # three digits, as published
    assert show_table(None, None, latex=False) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in published_names())


def test_the_command_of_a_table_names_the_index_that_its_experiment_retrieves_from(
    capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    for name in published_names():
        experiment = published(name)["experiment"]
        command = command_of(experiment)
        assert command.startswith(f"adir run -m experiment={experiment}")
        corpus = compose([f"experiment={experiment}"]).retrieval.corpus
        assert ("index=FOLDER" in command) == corpus["_target_"].endswith("IndexedCorpus")
    assert show_table("v2-table1", None, latex=False) == 0
    assert (
        "to run this experiment: adir run -m experiment=paper_v2_table1 index=FOLDER\n"
        in capsys.readouterr().out
    )


def test_a_number_with_a_source_of_its_own_is_shown_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = copy.deepcopy(published("v2-ablation"))
    table["rows"][0]["cells"]["lpips"]["source"] = "read off figure 7"
    monkeypatch.setattr(module, "published", lambda name: table)
    found = compare(table, None)
    assert [c.source for c in found] == ["read off figure 7"] + [table["source"]] * 5
    assert show_table("v2-ablation", None, latex=False) == 0
    out = capsys.readouterr().out
    assert (
        "0.430 (summary) [1]" in out
        and "[1] paper's number: read off figure 7" in out
        and out.count("[1]") == 2
    )
    assert f"paper: {table['source']}" in out
    assert show_table("v2-ablation", None, latex=True) == 0
    assert "%   random neighbours, LPIPS: from read off figure 7" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 200])
def test_no_verdict_is_broken_in_a_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(module, "wide_console", lambda: Console(width=width))
    monkeypatch.setattr(module, "load_board", lambda folder: board(54.0, k=50, n_steps=50))
    assert show_table("v2-table1", Path("runs"), latex=False) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    other_n_steps, other_k = (
        re.search(rf"\[(\d+)\] {name}", out).group(1)
        for name in ("n_steps is 50, not 1000", "k is 50, not 20")
    )
    assert f"not comparable [{other_n_steps}, {other_k}]" in out  # KonIQ after adapting
    assert re.search(r"│ +KonIQ ↑ │ 55\.89 \(summary\) │", out)


def test_latex_has_the_papers_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_table("v2-ablation", None, latex=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert r"Method & LPIPS $\downarrow$ & KonIQ $\uparrow$ \\" in lines
    assert (
        r"random neighbours & 0.430 & 52.89 \\" in lines
        and r"nearest in CLIP & 0.347 & 55.89 \\" in lines
    )
    assert show_table("v1-sr4-gd", None, latex=True) == 0
    assert r"GD & ? & ? \\" in capsys.readouterr().out.splitlines()


def test_an_unknown_table_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"no published table 'v3'; choose one of v2-ablation, .*v1-sr4-sd"
    ):
        show_table("v3", None, False)


def test_the_tables_are_found_in_an_installed_package_and_else_in_the_checkout(
    tmp_path: Path, repository: Path
) -> None:
    assert published_dir() == repository / "results" / "published"
    package = tmp_path / "site" / "adir"
    with pytest.raises(InputError, match="no published tables"):
        published_dir(package)
    write_bytes(package / "published" / "t.yaml", b"{}")
    assert published_dir(package) == package / "published"
