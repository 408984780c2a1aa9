"""The marker of a results folder, and which of the files below it are records."""

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_records import ledger_of, made_record, put, put_plan

from adir.errors import InputError
from adir.files import write_json
from adir.harness.records.layout import Layout, file_name, kind_of
from adir.harness.records.ledger import all_records
from adir.harness.tables.leaderboard import load_board


def test_a_mark_is_set_once_and_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "runs")
    assert not layout.is_marked()
    layout.mark()
    assert json.loads(layout.marker.read_text()) == {"format": "adir results", "schema": 3}
    before = layout.marker.stat()
    layout.mark()
    assert layout.is_marked() and layout.marker.stat() == before
    assert [path.name for path in layout.folder.iterdir()] == ["adir-results.json"]


@pytest.mark.parametrize("schema", [1, 2, None, "2"])
@pytest.mark.parametrize("where", ["marker", "record"])
def test_a_folder_of_another_schema_is_refused_in_one_line_and_stays(
    tmp_path: Path, where: str, schema: object
) -> None:
    layout = Layout(tmp_path)
    if where == "marker":
        write_json(layout.marker, {"format": "adir results", "schema": schema})
        refusing = [layout.mark, lambda: list(all_records(tmp_path))]
    else:
        (path,) = put(tmp_path, [made_record("a")])
        write_json(path, json.loads(path.read_text()) | {"schema": schema})
        refusing = [lambda: list(all_records(tmp_path))]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for refused in refusing:
        with pytest.raises(
            InputError, match=rf"schema {schema!r}, but this version of adir reads"
        ) as raised:
            refused()
        assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_marker_is_ours_by_its_name(tmp_path: Path) -> None:
    Layout(tmp_path).marker.write_text("{")
    assert Layout(tmp_path).is_marked()


def test_hidden_files_beside_ours_are_passed_over(tmp_path: Path) -> None:
    (path,) = put(tmp_path, [made_record("a")])
    plan = put_plan(tmp_path, [made_record("a")], ["a"], {})
    write_json(tmp_path / "manifests" / "made-0123456789.json", {})
    for ours in (path, plan, tmp_path / "manifests" / "made-0123456789.json"):
        ours.with_name(f"._{ours.name}").write_bytes(
            b"\0\5\26\7"
        )  # as macOS leaves it on other file systems
    layout = Layout(tmp_path)
    assert (list(layout.records()), layout.plans(), len(layout.manifests)) == ([path], [plan], 1)
    assert not any("damaged" in note for note in load_board(tmp_path).notes)


@pytest.mark.parametrize(
    "image", [".hidden.png", "..", "../a.png", "._a", "a.b", "é/ü.png", "a%2Eb"]
)
def test_every_id_has_a_record_that_is_found_and_can_be_packed(tmp_path: Path, image: str) -> None:
    put(tmp_path, [made_record(image)])
    (found,) = all_records(tmp_path)
    assert found == made_record(image).model_copy(update={"path": found.path})
    assert kind_of(found.path) == "record" and unquote(file_name(image).partition("@")[0]) == image
    assert kind_of(ledger_of(Path(), made_record(image)).image_path(image).as_posix()) == "restored"


def test_links_to_folders_of_cells_are_followed(tmp_path: Path) -> None:
    records = [made_record(image, task=task) for task in ("deblur", "sr4") for image in "ab"]
    put(tmp_path / "disk", records)
    for place in ("runs/cells/made/sr4", "runs2/cells/made", "runs3/cells"):
        link, target = (
            tmp_path / place,
            tmp_path / "disk" / Path(place).relative_to(Path(place).parts[0]),
        )
        link.parent.mkdir(parents=True)
        link.symlink_to(target, target_is_directory=True)
    assert [len(list(all_records(tmp_path / name))) for name in ("runs", "runs2", "runs3")] == [
        2,
        4,
        4,
    ]
    assert load_board(tmp_path / "runs").rows[0].have == 2


KINDS = {
    "cells/b/sr4/none/records/a.json": "record",
    "cells/b/sr4/none/images/a.png": "restored",
    "measurements/sr4-v1/a.png": "y",
    "measurements/sr4-v1/a.json": "y",
    "grids/0123456789abcdef.json": "plan",
    "manifests/div2k-0123456789.json": "data",
    f"images/{'a' * 64}.png": "shown",
    f"images/{'a' * 64}-thumbnail.png": "shown",
    f"losses/{'a' * 64}.json": "losses",
    "adir-results.json": None,
    "leaderboard.csv": None,
    f"adapters/{'a' * 64}.safetensors": None,
    f"images/{'a' * 63}.png": None,
    "cells/b/sr4/records/a.json": None,
    "cells/b/sr4/none/records/../a.json": None,
    "cells/b/../none/records/a.json": None,
    "/cells/b/sr4/none/records/a.json": None,
    "cells/C:/sr4/none/records/a.json": None,
    "cells\\b\\sr4\\none\\records\\a.json": None,
    "cells/b/sr4/none/records/a\n.json": None,
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_a_file_is_in_its_name(name: str) -> None:
    assert kind_of(name) == KINDS[name]


def test_the_places_of_a_folder_are_of_the_kinds_that_a_submission_may_hold(tmp_path: Path) -> None:
    layout, sha256 = Layout(Path()), "a" * 64
    places = {
        "plan": layout.plan(sha256),
        "data": layout.manifest("div2k", sha256),
        "y": layout.measurements / "sr4-v1" / "a.png",
        "shown": layout.image(sha256),
    }
    assert {kind: kind_of(path.as_posix()) for kind, path in places.items()} == {
        kind: kind for kind in places
    }
    assert kind_of(layout.image(sha256, thumbnail=True).as_posix()) == "shown"
    assert kind_of(layout.adapter(sha256).as_posix()) is None  # too large to send


def test_cells_behind_a_link_and_notes_of_other_programs_are_read_as_a_run_reads_them(
    tmp_path: Path,
) -> None:
    results = tmp_path / "runs"
    paths = put(results, [made_record("a"), made_record("b")])
    put_plan(results, [made_record("a")], ["a", "b"], {})
    board = load_board(results)
    for path in [*paths, *Layout(results).plans()]:
        path.with_name(f"._{path.name}").write_bytes(
            b"\x00\x05\x16\x07"
        )  # what macOS writes beside files elsewhere
    (backbone,) = (results / "cells").iterdir()
    backbone.rename(tmp_path / "scratch")
    backbone.symlink_to(tmp_path / "scratch")
    (results / "cells" / ".old").symlink_to(tmp_path / "scratch")
    assert [path.name for path in Layout(results).records()] == ["a.json", "b.json"]
    assert len(Layout(results).plans()) == 1
    again = load_board(results)
    assert (again.rows, again.notes) == (board.rows, board.notes)
