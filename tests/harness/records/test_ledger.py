"""Records are whole or not there, and what is damaged is kept."""

import json
import os
from pathlib import Path

import pytest
from made_records import changed, made_record

from adir.errors import InputError
from adir.harness.records.ledger import DamagedFile, Ledger, all_records
from adir.harness.records.record import Record

RECORD = made_record("a/b.png")
NOT_JSON = json.dumps(RECORD.as_json()).replace('"value": 25.0', '"value": NaN').encode()
CELL = Path("cells") / "made" / "sr4" / "x"


def test_a_record_comes_back_under_an_id_with_a_slash(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / CELL)
    assert ledger.read("a/b.png") is None
    ledger.write("a/b.png", RECORD)
    assert ledger.read("a/b.png") == RECORD
    assert ledger.record_path("a/b.png").parent == tmp_path / CELL / "records"
    (found,) = all_records(tmp_path)
    assert found == RECORD.model_copy(update={"path": "cells/made/sr4/x/records/a%2Fb.png.json"})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    ledger = Ledger(tmp_path)
    ledger.write("a", RECORD)
    old = ledger.record_path("a").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError) as raised:
        ledger.write("a", changed(RECORD, {"scores.psnr.value": 1.0}))
    assert raised.value.filename == str(ledger.record_path("a"))
    monkeypatch.undo()
    assert ledger.record_path("a").read_bytes() == old
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["a.json"]


def test_a_score_that_is_no_number_is_refused_and_leaves_the_old_record(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write("a", RECORD)
    for change in (
        {"seconds": {"sample": float("nan")}},
        {"configuration": {"weight": float("inf")}},
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            ledger.write("a", RECORD.model_copy(update=change))
    assert ledger.read("a") == RECORD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema": 3,',
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"schema": 3}',
        b"[" * 100_000,
        NOT_JSON,
    ],
)
def test_a_damaged_record_is_named_and_set_aside_with_its_content(
    tmp_path: Path, content: bytes
) -> None:
    ledger = Ledger(tmp_path / CELL)
    path = ledger.record_path("a")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="set aside") as raised:
        ledger.read("a")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    (aside,) = path.parent.iterdir()
    assert aside.read_bytes() == content and aside.name in str(raised.value)
    assert ledger.read("a") is None
    ledger.write("a", RECORD)
    (known,) = all_records(tmp_path)
    assert not isinstance(known, DamagedFile) and aside.read_bytes() == content


def test_what_a_kill_leaves_behind_is_no_record(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / CELL)
    ledger.write("a", RECORD)
    (ledger.record_path("b").parent / ".b.json.123-abcd.part").write_bytes(b'{"schema')
    (found,) = all_records(tmp_path)
    assert isinstance(found, Record) and found.image.id == "a/b.png"


@pytest.mark.parametrize("more", [RECORD.as_json(), {}], ids=["the same fields", "other fields"])
@pytest.mark.parametrize("schema", [1, 2, "2", None])
def test_a_record_of_another_schema_is_refused_and_stays(
    tmp_path: Path, schema: object, more: dict
) -> None:
    ledger = Ledger(tmp_path / CELL)
    path = ledger.record_path("a")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**more, "schema": schema}))
    content = path.read_bytes()
    for read in (lambda: ledger.read("a"), lambda: list(all_records(tmp_path))):
        with pytest.raises(InputError, match="another results folder") as raised:
            read()
        assert str(path) in str(raised.value) and f"schema {schema!r}" in str(raised.value)
    assert [file.read_bytes() for file in path.parent.iterdir()] == [content]


def test_a_table_names_a_damaged_record_and_leaves_it_in_place(tmp_path: Path) -> None:
    path = Ledger(tmp_path / CELL).record_path("a")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    for _ in range(2):
        (found,) = all_records(tmp_path)
        assert isinstance(found, DamagedFile) and str(found).startswith(
            f"{path}: damaged record (invalid JSON: "
        )
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    assert Ledger(tmp_path / CELL).peek("a") is None and path.exists()


def test_a_record_of_another_cell_is_refused_and_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write("a", RECORD)
    assert ledger.read("a", RECORD.cell) == ledger.read("a") == RECORD
    assert ledger.read("b", RECORD.cell) is None
    with pytest.raises(InputError, match="another cell") as raised:
        ledger.read("a", "d")
    assert str(ledger.record_path("a")) in str(raised.value)
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["a.json"]


def test_a_stamp_tells_one_writing_of_a_record_from_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.stamp("a") is None
    ledger.write("a", RECORD)
    first = ledger.stamp("a")
    assert first is not None and ledger.stamp("a") == first
    ledger.write("a", RECORD)
    assert ledger.stamp("a") != first


def test_images_without_a_record_are_seen_by_the_names_of_the_files(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.any_missing(["a/b.png"]) and not ledger.any_missing([])
    ledger.write("a/b.png", RECORD)
    assert not ledger.any_missing(["a/b.png"]) and ledger.any_missing(["a/b.png", "c"])
