"""Records packed on one machine and taken in on another, and files that nobody should take in."""

import copy
import itertools
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_records import changed, ledger_of, made_record, put, put_plan, sha256_of
from safetensors.numpy import save

from adir.commands.leaderboard import main as leaderboard
from adir.commands.merge import main as merge
from adir.commands.submit import main as submit
from adir.data.base import manifest_sha256
from adir.errors import InputError
from adir.files import json_bytes, read_json, sha256_of_bytes, write_bytes, write_json
from adir.harness.records import archive
from adir.harness.records.archive import open_archive
from adir.harness.records.layout import kind_of, losses_of
from adir.harness.records.ledger import all_records
from adir.harness.records.record import Record
from adir.harness.running.stores import keep_image
from adir.harness.tables.formats import to_csv
from adir.harness.tables.leaderboard import load_board
from adir.images import from_uint8, to_uint8

Json = dict[str, Any]
IMAGES = tuple("abcdefgh")


def write_results(folder: Path, seeds: tuple[int, ...] = (0,), task: str = "sr4") -> Path:
    """A results folder: two modes on eight images, with small files in place of images."""
    rng = np.random.default_rng([*seeds, len(task)])
    for (mode, k), seed, image in itertools.product((("none", None), ("knn", 20)), seeds, IMAGES):
        record = made_record(
            image, task=task, mode=mode, k=k, seed=seed, scores={"psnr": rng.normal(25, 1)}
        )
        y, restored = (
            f"measurements/{task}-v1/{image}.png",
            ledger_of(folder, record).image_path(image),
        )
        changes = {
            "y.file": y,
            "restored": restored.relative_to(folder).as_posix(),
            "seconds.sample": rng.random(),
        }
        put(folder, [changed(record, changes | {"versions.adir": "0", "commit": "c0ffee"})])
        write_bytes(restored, f"{mode} {seed} {image}".encode())
        write_bytes(folder / y, f"y of {image}".encode())
        write_json((folder / y).with_suffix(".json"), {"image": image})
    return folder


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder and its submission, written once: each file waits for the disk."""
    folder = tmp_path_factory.mktemp("written")
    assert submit(write_results(folder / "results"), images=False, out=folder / "mine.zip") == 0
    return folder


@pytest.fixture
def results(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "results", tmp_path / "results"))


@pytest.fixture
def submission(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written / "mine.zip", tmp_path / "mine.zip"))


def test_a_submission_gives_the_table_of_its_folder(results: Path, submission: Path) -> None:
    assert to_csv(load_board(submission)) == to_csv(load_board(results))
    assert leaderboard([submission]) == 0


def test_a_submission_holds_no_images_unless_asked_and_its_manifest_tells_every_hash(
    results: Path, submission: Path, tmp_path: Path
) -> None:
    assert submit(results, images=True, out=tmp_path / "all.zip") == 0
    for path, kinds in (
        (submission, {"record"}),
        (tmp_path / "all.zip", {"record", "restored", "y"}),
    ):
        with zipfile.ZipFile(path) as packed:
            names = set(packed.namelist()) - {"manifest.json"}
            manifest = json.loads(packed.read("manifest.json"))
            assert {kind_of(name) for name in names} == kinds and set(manifest["files"]) == names
            assert all(
                told["sha256"] == sha256_of_bytes(packed.read(name))
                for name, told in manifest["files"].items()
            )
            assert all(packed.read(name) == (results / name).read_bytes() for name in names)
        assert (manifest["records"], manifest["commits"], manifest["weights"]) == (
            16,
            ["c0ffee"],
            [sha256_of("weights of made")],
        )


def test_equal_folders_give_equal_bytes_and_another_file_is_not_replaced(
    results: Path, submission: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "elsewhere" / "results"
    shutil.copytree(results, copied)
    assert submit(copied, False, tmp_path / "again.zip") == 0
    assert (tmp_path / "again.zip").read_bytes() == submission.read_bytes()
    next(results.glob("cells/**/records/*.json")).unlink()
    before = submission.read_bytes()
    with pytest.raises(InputError, match=r"mine\.zip already exists"):
        submit(results, False, submission)
    assert submission.read_bytes() == before and [p.name for p in tmp_path.glob("*.part*")] == []


def test_merging_gives_the_table_of_all_and_the_folder_of_all(tmp_path: Path) -> None:
    both = write_results(write_results(tmp_path / "both"), task="deblur")
    one, two = write_results(tmp_path / "one"), write_results(tmp_path / "two", task="deblur")
    assert submit(two, images=True, out=tmp_path / "two.zip") == 0
    out = tmp_path / "out"
    assert merge([one, tmp_path / "two.zip", one], out) == 0
    assert files_below(out) == files_below(both)
    assert (
        to_csv(load_board(out))
        == to_csv(load_board(both))
        == to_csv(load_board(one, tmp_path / "two.zip"))
    )
    assert merge([one], out) == 0  # what is there already is one of the sources
    assert to_csv(load_board(out)) == to_csv(load_board(both))


def test_the_plans_of_a_folder_travel_so_that_what_is_missing_stays_missing(
    results: Path, tmp_path: Path
) -> None:
    put_plan(results, [made_record()], "az", {})
    assert (
        submit(results, False, tmp_path / "planned.zip") == 0
        and merge([tmp_path / "planned.zip"], tmp_path / "out") == 0
    )
    for source in (results, tmp_path / "planned.zip", tmp_path / "out"):
        assert {(r.have, r.expected) for r in load_board(source).rows} == {(8, 9)}


def test_the_same_record_measured_elsewhere_counts_once_and_one_that_differs_is_refused_and_named(
    results: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(results, other)
    path = min(other.glob("cells/**/records/*.json"))
    record = read_json(path)
    write_json(path, record | {"seconds": {"sample": 99.0}, "commit": "other"})
    assert to_csv(load_board(results, other)) == to_csv(load_board(results))
    changed = copy.deepcopy(record)
    changed["scores"]["psnr"]["value"] += 1e-9
    write_json(path, changed)
    name = path.relative_to(other).as_posix()
    for refused in (
        lambda: load_board(results, other),
        lambda: merge([results, other], tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="differ in score psnr") as raised:
            refused()
        assert f"{results / name} and {other / name}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_left_out_said_and_seen_in_the_status(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    min(results.glob("cells/**/records/*.json")).write_text("{")
    assert submit(results, False, tmp_path / "rest.zip") == 1
    assert (
        "skipped" in capsys.readouterr().out
        and len(list(open_archive(tmp_path / "rest.zip").records())) == 15
    )


# --- files of somebody else


def repack(
    path: Path, change: Callable[[dict[str, bytes], Json], None], honest: bool = True
) -> None:
    """Unpack, change members or manifest, and pack again; `honest`: with the manifest's hashes and
    sizes made to fit.
    """
    with zipfile.ZipFile(path) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    change(members, manifest)
    if honest:
        manifest["files"] = {
            n: {"sha256": sha256_of_bytes(c), "bytes": len(c)} for n, c in members.items()
        }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (members | {"manifest.json": json.dumps(manifest).encode()}).items():
            packed.writestr(name, content)


def a_record(members: dict[str, bytes]) -> str:
    return min(name for name in members if "/records/" in name)


def edit(members: dict[str, bytes], **changes: Any) -> None:
    """Change fields of a record; `fields` of a nested one as a dict are put over it."""
    name = a_record(members)
    record = json.loads(members[name])
    for key, value in changes.items():
        record[key] = (
            record[key] | value
            if isinstance(value, dict) and isinstance(record[key], dict)
            else value
        )
    members[name] = json.dumps(record).encode()


DISHONEST = {
    "a score was changed": lambda m, _: edit(
        m, scores={"psnr": {"value": 99.0, "direction": "higher", "version": "1"}}
    ),
    "one letter was changed": lambda m, _: m.update(
        {a_record(m): m[a_record(m)].replace(b"c0ffee", b"c0ffe0")}
    ),
    "a record was taken out": lambda m, _: m.pop(a_record(m)),
    "a record was put in": lambda m, _: m.update(
        {a_record(m).replace("/a.json", "/zz.json"): b"{}"}
    ),
    "the manifest lost a hash": lambda _, f: f["files"].popitem(),
    "the manifest's sizes are no numbers": lambda _, f: f["files"].update(
        {min(f["files"]): {"sha256": "", "bytes": "1"}}
    ),
    "another format": lambda _, f: f.update(format="zip of images"),
}


@pytest.mark.parametrize("what", DISHONEST)
def test_a_changed_submission_is_refused(submission: Path, tmp_path: Path, what: str) -> None:
    repack(submission, DISHONEST[what], honest=False)
    for refused in (lambda: load_board(submission), lambda: merge([submission], tmp_path / "out")):
        with pytest.raises(InputError, match=r"mine\.zip: "):
            refused()
    assert not (tmp_path / "out").exists()


def test_a_changed_plan_is_refused_in_one_sentence(tmp_path: Path) -> None:
    put(tmp_path / "runs", [made_record()])
    plan = put_plan(tmp_path / "runs", [made_record()], "az", {})
    assert submit(tmp_path / "runs", False, tmp_path / "mine.zip") == 0
    name = f"grids/{plan.name}"
    repack(tmp_path / "mine.zip", lambda m, _: m.update({name: m[name] + b" "}), honest=False)
    with pytest.raises(InputError, match=rf"mine\.zip: {name} does not have the size") as raised:
        load_board(tmp_path / "mine.zip")
    assert str(raised.value).count("mine.zip") == 1


WRONG = {
    "no JSON": (lambda m: m.update({a_record(m): b"{"}), "invalid JSON"),
    "NaN": (
        lambda m: m.update(
            {a_record(m): m[a_record(m)].replace(b'"value": 2', b'"value": NaN, "x": 2')}
        ),
        "invalid JSON",
    ),
    "deeply nested": (lambda m: m.update({a_record(m): b"[" * 100_000}), "invalid JSON"),
    "a list": (lambda m: m.update({a_record(m): b"[]"}), "not a JSON object"),
    "another schema": (lambda m: edit(m, schema=99), "schema 99"),
    "a cell that is not its identity's": (
        lambda m: edit(m, identity={"guidance": 5}),
        "not the hash of `identity`",
    ),
    "another image's name": (
        lambda m: edit(m, image={"id": "zz"}),
        "the file name does not match the image id",
    ),
    "a word for a score": (
        lambda m: edit(m, scores={"psnr": {"value": "1"}}),
        "scores.psnr.value: Input should be",
    ),
    "a path upwards": (
        lambda m: m.update({"../../evil.json": b"{}"}),
        "'.*evil.json' is not a file of a submission",
    ),
    "a path upwards inside": (
        lambda m: m.update({"cells/b/../x/records/evil.json": b"{}"}),
        "'.*evil.json' is not a file of a submission",
    ),
    "an absolute path": (
        lambda m: m.update({"/etc/evil.json": b"{}"}),
        "'.*evil.json' is not a file of a submission",
    ),
    "a drive": (lambda m: m.update({"cells/C:/x/y/records/a.json": b"{}"}), "C:"),
    "a program": (
        lambda m: m.update({"cells/b/sr4/x/images/evil.sh": b"#!"}),
        "'.*evil.sh' is not a file of a submission",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_submission_that_is_honest_about_wrong_content_is_refused(
    submission: Path, tmp_path: Path, what: str
) -> None:
    change, message = WRONG[what]
    repack(submission, lambda members, _: change(members))
    with pytest.raises(InputError, match=message):
        merge([submission], tmp_path / "deep" / "er" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"mine.zip"}


def test_two_members_of_one_name_are_refused(submission: Path) -> None:
    with zipfile.ZipFile(submission) as packed:
        name = a_record(dict.fromkeys(packed.namelist(), b""))
    with zipfile.ZipFile(submission, "a") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr(name, b"{}")
    with pytest.raises(InputError, match=r"two files in this \.zip have the same name"):
        load_board(submission)


def test_a_size_that_is_larger_than_the_list_of_members_says_is_not_unpacked(
    submission: Path,
) -> None:
    content = submission.read_bytes()
    with zipfile.ZipFile(submission) as packed:
        member = max(
            packed.infolist(), key=lambda m: m.file_size if m.filename != "manifest.json" else 0
        )
    size = member.file_size.to_bytes(4, "little")
    changed = content[: packed.start_dir] + content[packed.start_dir :].replace(
        size, (10).to_bytes(4, "little"), 1
    )
    submission.write_bytes(changed)
    with pytest.raises(InputError):
        load_board(submission)


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_a_truncated_submission_is_refused(submission: Path, cut: float) -> None:
    submission.write_bytes(submission.read_bytes()[: int(cut * submission.stat().st_size)])
    with pytest.raises(InputError, match=r"mine\.zip"):
        load_board(submission)


def test_flipped_bits_are_refused(submission: Path) -> None:
    whole = submission.read_bytes()
    rng = np.random.default_rng(0)
    expected = to_csv(load_board(submission))
    for place in rng.integers(0, len(whole), size=150):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        submission.write_bytes(flipped)
        try:
            found = to_csv(load_board(submission))
        except InputError:
            continue
        assert found == expected  # a date or an attribute: nothing that is read


def test_limits_on_a_member_and_on_all_hold(
    submission: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"would unpack to .* bytes, but the limit is 1000"),
    ):
        patch.setattr(archive, "LARGEST_MEMBER", 1000)
        load_board(submission)
    monkeypatch.setattr(archive, "LARGEST_TOTAL", 1000)
    with pytest.raises(InputError, match="bytes in total"):
        load_board(submission)


def test_what_is_neither_folder_nor_submission_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w"):
        pass
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text", "neither"),
        ("other.zip", "has no manifest"),
        ("gone", "no such"),
        ("empty", "no records"),
    ):
        with pytest.raises(InputError, match=message):
            load_board(tmp_path / name)
    with pytest.raises(InputError, match="no records"):
        submit(tmp_path / "empty", False, tmp_path / "x.zip")
    with pytest.raises(InputError, match="no records found"):
        merge([tmp_path / "empty"], tmp_path / "out")


@pytest.fixture
def shown(results: Path) -> Path:
    """The results with what their report shows: a ground truth, a neighbour, a manifest and an
    adapter.
    """
    x = torch.linspace(-1, 1, 48).reshape(3, 4, 4).mul(127.5).round().div(127.5)
    truth = keep_image(results, from_uint8(to_uint8(x)))
    near = sha256_of("near")
    neighbours = [
        {"id": "n", "distance": 0.5, "image": near},
        {"id": "m", "distance": 0.6, "image": "../../secret"},
    ]
    for record in [r for r in all_records(results) if isinstance(r, Record) and r.image.id == "a"]:
        more = {"neighbours": neighbours} if record.axes.adaptation == "knn" else {}
        put(results, [changed(record, more | {"image.sha256": truth})])
        if record.adapter is not None:
            key = record.adapter.key
    for name in (f"{near}-thumbnail.png", f"{'0' * 64}.png"):
        write_bytes(results / "images" / name, name.encode())
    listed = {"a": {"sha256": "a" * 64, "licence": "CC0"}}
    sha256 = manifest_sha256({"a": "a" * 64})
    write_json(
        results / "manifests" / f"set-{sha256[:10]}.json",
        {"name": "set", "sha256": sha256, "images": listed},
    )
    facts = json.dumps({"losses": [3.0, 2.0]})
    write_bytes(
        results / "adapters" / f"{key}.safetensors",
        save({"w": np.zeros(2, np.float32)}, {"facts": facts}),
    )
    return results


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_merged_folder_has_what_its_report_shows(shown: Path, tmp_path: Path) -> None:
    assert (
        merge([shown], tmp_path / "once") == 0
        and merge([tmp_path / "once"], tmp_path / "twice") == 0
    )
    expected = files_below(shown)
    del expected[f"images/{'0' * 64}.png"]  # which no record shows
    (adapter,) = (name for name in expected if name.startswith("adapters/"))
    del expected[adapter]
    losses = f"losses/{Path(adapter).stem}.json"
    expected[losses] = json_bytes({"losses": [3.0, 2.0]})
    assert files_below(tmp_path / "once") == files_below(tmp_path / "twice") == expected
    assert losses_of(tmp_path / "twice", Path(losses).stem) == [3.0, 2.0]
    assert (
        merge([tmp_path / "once", shown], tmp_path / "twice") == 0
    )  # what is there already is left as it is
    # As a file too, if that has the images; the manifest is in it anyway.
    for source in (shown, tmp_path / "once"):
        packed = tmp_path / f"{source.name}.zip"
        assert (
            submit(source, True, packed) == 0
            and merge([packed], tmp_path / f"of {source.name}") == 0
        )
        assert files_below(tmp_path / f"of {source.name}") == expected
    assert (
        submit(shown, False, tmp_path / "bare.zip") == 0
        and merge([tmp_path / "bare.zip"], tmp_path / "bare") == 0
    )
    kinds = {
        kind_of(name) for name in files_below(tmp_path / "bare") if name != "adir-results.json"
    }
    assert kinds == {"record", "data"}


def test_a_record_cannot_make_merge_copy_a_file_from_elsewhere(
    results: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_text("secret")
    path = min(results.glob("cells/**/records/*.json"))
    record = read_json(path)
    write_json(
        path, record | {"y": record["y"] | {"file": "../secret.png"}, "restored": "../secret.png"}
    )
    assert merge([results], tmp_path / "out") == 0
    assert submit(results, True, tmp_path / "all.zip") == 0
    assert not list((tmp_path / "out").rglob("secret*")) and not any(
        "secret" in name for name in zipfile.ZipFile(tmp_path / "all.zip").namelist()
    )


def test_the_report_of_a_submission_s_folder_is_that_of_the_folder_it_was_made_of(
    adir: Callable[..., Any], tiny: list[str], tmp_path: Path
) -> None:
    here, there, packed = (
        tmp_path / "here" / "runs",
        tmp_path / "there" / "runs",
        tmp_path / "mine.zip",
    )
    assert adir("run", *tiny, "adaptation=knn", f"results={here}").status == 0
    assert adir("submit", here, "--images", "--out", packed).status == 0
    assert adir("merge", packed, "--out", there).status == 0
    pages = []
    for folder in (here, there):
        assert adir("report", folder, "--out", folder / "report.html").status == 0
        pages.append((folder / "report.html").read_text())
    data = [
        json.loads(page.split('type="application/json"')[1].partition(">")[2].partition("<")[0])
        for page in pages
    ]
    assert all(scene["truth"] is not None for scene in data[1]["scenes"])
    assert data[1]["losses"] and all(image is not None for _, image in data[1]["neighbours"])
    assert data[0] == data[1]
