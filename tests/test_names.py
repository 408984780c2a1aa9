"""Names that users give: any file name goes from a test set through records, tables and submissions
and comes back whole.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from PIL import Image

from adir.files import LONGEST_NAME, set_aside
from adir.harness.records.archive import open_archive
from adir.harness.records.layout import Layout, file_name
from adir.harness.records.ledger import all_records

DIRECT = ["sampler=bicubic", "scoring.metrics=[psnr]", "data=folder"]
"""A cell that needs no network."""
LONG = "夏休みに家族みんなで行った北海道の美しい湖と山の写真コレクションその一.png"
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=60
).map(lambda t: f"{t}.png")


def put(folder: Path, *names: str, side: int = 24) -> Path:
    """An image of noise under each name; no two are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        noise = np.random.default_rng([seed, *name.encode()]).integers(
            0, 256, (side, side, 3), np.uint8
        )
        Image.fromarray(noise).save(folder / name)
    return folder


def ids_of(results: Path) -> set[str]:
    return {record.image.id for record in all_records(results)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)
@given(st.sets(NAMES, min_size=4, max_size=4))
@example({LONG, "Photo (1), final.png", "photo (1), final.png", "con.png", "-m.png", "${a}\\.PNG"})
def test_any_file_name_goes_through_run_leaderboard_submit_and_merge_and_comes_back(
    adir, names: set[str]
) -> None:
    assume(not any(name.startswith(".") or len(name.encode()) > 255 for name in names))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data, runs, packed, merged = (
            folder / name for name in ("data", "runs", "packed.zip", "merged")
        )
        put(data, *sorted(names))
        assert adir("run", *DIRECT, f"data.path={data}", f"results={runs}").status == 0
        assert ids_of(runs) == names
        again = adir("run", *DIRECT, f"data.path={data}", f"results={runs}", "existing=skip")
        assert f"0 images done, {len(names)} already done" in again.out
        assert adir("leaderboard", runs).status == 0
        assert f",{len(names)}," in (runs / "leaderboard.csv").read_text()
        assert adir("submit", runs, "--images", "--out", packed).status == 0
        assert {record.image.id for record in open_archive(packed).records()} == names
        assert adir("merge", packed, "--out", merged).status == 0
        assert ids_of(merged) == names
        assert len(list(merged.glob("cells/*/*/*/images/*.png"))) == len(names)


HOSTILE = [
    LONG,
    "a" * 251 + ".png",
    "A" * 251 + ".png",
    "Ä" * 100,
    "IMG_0001.JPG",
    "img_0001.jpg",
    "Img_0001.jpg",
    "img_0001.jpg@",
    "con",
    "CON.png",
    "lpt1.tar.gz",
    "a:b?c*d|e<f>g",
    "..",
    "",
    " ",
    "folder/of/many/" * 20 + "a.png",
    "\n",
    "~",
    "-",
]


def test_names_made_of_ids_are_bounded_portable_and_never_shared() -> None:
    names = [file_name(image_id) for image_id in HOSTILE]
    assert len({name.casefold() for name in names}) == len(HOSTILE), (
        "also where capitals are not told from small letters"
    )
    for name in names:
        assert 0 < len(name.encode()) <= LONGEST_NAME and name.isascii() and name.isprintable()
        assert not set(name) & set('<>:"/\\|?* ') and name[0] != "." and name[-1] != "."
        assert name.partition(".")[0].lower() not in (
            "con",
            "prn",
            "aux",
            "nul",
            "lpt1",
            "com1",
        )  # Windows' devices
    assert file_name("IMG_0001.JPG").startswith("IMG_0001.JPG@"), "readable"


@pytest.mark.parametrize("image_id", ["0801", "rocket-s2-y080-x098", "a.png", "baby_1~2.png"])
def test_a_short_plain_id_is_its_own_name(image_id: str) -> None:
    assert file_name(image_id) == image_id


@given(NAMES, NAMES)
def test_two_ids_never_share_a_name(one: str, other: str) -> None:
    assert (file_name(one).casefold() == file_name(other).casefold()) == (one == other)
    assert (
        file_name(one.swapcase()).casefold() != file_name(one).casefold() or one.swapcase() == one
    )


def test_the_longest_name_leaves_room_for_what_is_put_after_it(tmp_path: Path) -> None:
    path = tmp_path / f"{file_name('x' * 500)}.json"
    path.write_text("{")
    assert "set aside as" in set_aside(path)
    ((aside),) = os.listdir(tmp_path)
    assert len(aside) < 255


def test_the_record_holds_the_whole_id_and_its_files_a_bounded_name(adir, tmp_path: Path) -> None:
    data = put(tmp_path / "data", LONG)
    results = tmp_path / "runs"
    assert (
        adir("run", *DIRECT, f"data.path={data}", f"results={results}", "tracking=csv").status == 0
    )
    (record,) = all_records(results)
    assert record.image.id == LONG and record.configuration["data"]["path"] == str(data)
    for path in results.rglob("*"):
        assert len(path.name.encode()) <= LONGEST_NAME + len("-thumbnail.png")
    (manifest,) = Layout(results).manifests
    assert list(json.loads(manifest.read_text())["images"]) == [LONG]


@pytest.mark.parametrize(
    "folder",
    ["2024_11_24", "Größe", "photos (2019), final", "lr=0.1 [x]", "夏" * 80, ".hidden", "A"],
)
def test_a_folder_of_any_name_is_a_test_set_and_its_results_can_be_packed(
    adir, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path(folder), "a.png")
    results = f"Läufe, {folder}"[:80]
    assert adir("run", *DIRECT, f"data.path={folder}", f"results={results}").status == 0
    (record,) = all_records(Path(results))
    assert (record.image.data, record.configuration["data"]["path"]) == (folder, folder)
    assert record.configuration["results"] == results
    assert adir("submit", results).status == 0
    (packed,) = Path().glob("*-submission.zip")
    assert len(open_archive(packed).names["data"]) == 1
    assert adir("leaderboard", packed).status == 0


@pytest.mark.parametrize("name", ["b/c", "SR 4", "夏" * 50, "con"])
def test_a_task_of_any_name_has_folders_of_its_own(adir, name: str, tmp_path: Path) -> None:
    data, results = put(tmp_path / "data", "a.png"), tmp_path / "runs"
    words = [
        f"data.path={data}",
        f"results={results}",
        "tracking=csv",
        f"task.name='{name}'",
        f"backbone.name='{name}'",
    ]
    assert adir("run", *DIRECT, *words).status == 0
    (record,) = all_records(results)
    assert record.axes.task == record.axes.backbone == name
    assert len(list((results / "tracking").glob("*.csv"))) == 1
    assert adir("submit", results, "--images", "--out", tmp_path / "packed.zip").status == 0


def test_images_of_one_name_are_restored_side_by_side(adir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = put(tmp_path / "one", "x.png", "夏" * 80 + ".png") / "x.png"
    second = put(tmp_path / "two", "other.png", "x.png") / "x.png"
    third = put(tmp_path / "two", "X.bmp") / "X.bmp"
    same = tmp_path / "three" / "x.png"
    same.parent.mkdir()
    shutil.copy(first, same)
    call = ["restore", tmp_path / "one", second, third, same, "sampler=bicubic", "--out", out]
    assert adir(*call).status == 0
    names = sorted(path.name for path in out.glob("*.png"))
    assert len(names) == 4 and all(len(name.encode()) < 200 for name in names)
    assert sum(name.lower().startswith("x-") for name in names) == 3
    assert adir(*call).out.count("(already done)") == 5
    assert adir("restore", first, "sampler=bicubic", "--out", tmp_path / "alone").status == 0
    assert (tmp_path / "alone" / "x-sr4-none.png").is_file()


def test_a_file_that_is_not_there_is_named_and_not_taken_for_an_override(
    adir, tmp_path: Path
) -> None:
    for word in ("photos/x.png", f"{tmp_path}/seed=1.png", "./k=20.png"):
        finished = adir("restore", word, "--out", tmp_path / "out")
        assert finished.status == 2 and f"{word.removeprefix('./')}: no such file" in finished.err


def test_files_whose_names_begin_with_a_dash(
    adir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path(), "-a.png", "--out.png", "b.png")
    put(Path("-data"), "a.png")
    assert (
        adir(
            "restore", "b.png", "./-a.png", "./--out.png", "sampler=bicubic", "--out", "out"
        ).status
        == 0
    )
    assert {path.name for path in Path("out").glob("*.png")} == {
        f"{n}-sr4-none.png" for n in ("-a", "--out", "b")
    }
    assert adir("run", *DIRECT, "data.path=-data", "results=-runs").status == 0
    assert adir("leaderboard", "--no-write", "./-runs").status == 0
    with pytest.raises(SystemExit):
        adir("restore", "b.png", "-a.png")


def test_an_interrupted_run_prints_a_command_that_can_be_pasted(
    adir, tmp_path: Path, monkeypatch
) -> None:
    import shlex

    from adir.commands import run

    monkeypatch.chdir(tmp_path)
    data = "it's (2019), ${x}"
    put(Path(data), "a.png")
    words = [*DIRECT, f"data.path={data}", "results=a b"]

    def interrupted(job: object, overrides: list[str], multirun: bool) -> list[object]:
        (tmp_path / "a b").mkdir(exist_ok=True)
        for stop in stops:
            stop.write_text("")
        return []

    stops: list[Path] = []
    new_stop_file = run.new_stop_file
    monkeypatch.setattr(
        run, "new_stop_file", lambda plan: stops.append(new_stop_file(plan)) or stops[-1]
    )
    with monkeypatch.context() as patch:
        patch.setattr(run, "launch", interrupted)
        finished = adir("run", *words)
    assert finished.status == 130
    command = shlex.split(finished.out.splitlines()[-1])
    assert command == ["adir", "run", *words]
    assert adir(*command[1:]).status == 0
