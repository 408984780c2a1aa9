"""Files are whole or not there; hashes are SHA-256."""

import errno
import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adir.errors import InputError
from adir.files import (
    RESULTS_MARKER,
    read_csv,
    read_json,
    read_text,
    sha256_of_bytes,
    sha256_of_file,
    walk,
    write_bytes,
    write_json,
)


def test_hashes_are_those_of_fips_180(tmp_path):
    # FIPS 180-4's example, and a file larger than any buffer against the same of its bytes.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_bytes(b"abc") == abc
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == abc
    big = os.urandom(3_000_000)
    (tmp_path / "big").write_bytes(big)
    assert sha256_of_file(str(tmp_path / "big")) == sha256_of_bytes(big)


def test_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_no_part_of_the_new(tmp_path, monkeypatch, fails):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_no_part_either(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    # A process that writes 1 MB of one digit over and over, killed without warning: the file holds
    # one digit throughout.
    path = tmp_path / "file"
    program = (
        "import itertools, sys\n"
        "from adir.files import write_bytes\n"
        "for i in itertools.count():\n"
        "    write_bytes(sys.argv[1], str(i % 10).encode() * 1_000_000)\n"
        "    print(i, flush=True)\n"
    )
    for kill_after in (1, 4):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
        ) as process:
            for _ in range(kill_after):
                process.stdout.readline()
            process.kill()
        content = path.read_bytes()
        assert len(content) == 1_000_000 and len(set(content)) == 1
    assert all(other.name.startswith(".") for other in tmp_path.iterdir() if other != path)


def test_two_processes_may_write_the_same_file(tmp_path):
    path = tmp_path / "file"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(write_bytes, [(path, bytes([65 + k]) * 100_000) for k in range(20)])
    assert len(set(path.read_bytes())) == 1 and list(tmp_path.iterdir()) == [path]


def test_long_names_fit(tmp_path):
    path = tmp_path / ("n" * 250)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_json_comes_back_and_floats_keep_every_digit(tmp_path):
    value = {"x": 0.1 + 0.2, "list": [1, None, "ü"], "nested": {"t": True}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert json.loads((tmp_path / "v.json").read_text()) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_no_json_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "v.json", {"score": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"\x00" * 10])
def test_a_damaged_json_file_raises_value_error(tmp_path, content):
    path = Path(tmp_path / "v.json")
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_json(path)


# Text that a user wrote, by whatever program

LINES = ["name,words", 'Größe,"a, b"', "x,", ""]
ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
]  # Notepad and Excel write the second, PowerShell's > the third


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_is_read_in_any_encoding_that_says_what_it_is(tmp_path, encoding, end):
    (tmp_path / "x.csv").write_bytes(end.join(LINES).encode(encoding))
    assert read_text(tmp_path / "x.csv") == end.join(LINES)
    assert read_csv(tmp_path / "x.csv") == [
        {"name": "Größe", "words": "a, b"},
        {"name": "x", "words": ""},
    ]
    (tmp_path / "x.json").write_bytes(end.join(["{", '"Größe": [1]', "}"]).encode(encoding))
    assert read_json(tmp_path / "x.json") == {"Größe": [1]}


def test_text_in_another_encoding_is_an_error_and_no_other_text(tmp_path):
    (tmp_path / "x.json").write_bytes('{"Größe": 1}'.encode("latin-1"))
    for read in (read_text, read_csv, read_json):
        with pytest.raises(UnicodeDecodeError):
            read(tmp_path / "x.json")


# Folders


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names(folder: Path, **options) -> list[str]:
    return [
        path.relative_to(folder).as_posix() for path in walk(folder, (".png", ".tar"), **options)
    ]


def test_a_walk_takes_suffixes_in_any_case_and_no_hidden_files(tmp_path):
    made(
        tmp_path,
        "b.PNG",
        "a.png",
        "c.Tar",
        "._a.png",
        ".c.png",
        "d.txt",
        "png",
        ".git/e.png",
        "sub/._b.PNG",
        "sub/f.pNg",
    )
    assert names(tmp_path) == ["a.png", "b.PNG", "c.Tar", "sub/f.pNg"]
    assert names(tmp_path, below=False) == ["a.png", "b.PNG", "c.Tar"]


def test_a_walk_follows_links_and_lists_each_folder_once_at_its_own_place(tmp_path):
    elsewhere = made(tmp_path / "elsewhere", "x.png", "deep/y.png")
    top = made(tmp_path / "top", "a.png", "z/b.png")
    (top / "m").symlink_to(elsewhere)
    (top / "n").symlink_to(elsewhere)  # a second way to the same images
    (top / "above").symlink_to(top / "z")  # before z in the alphabet
    (top / "file.png").symlink_to(elsewhere / "x.png")
    assert names(top) == ["a.png", "file.png", "z/b.png", "m/x.png", "m/deep/y.png"]
    assert names(top, below=False) == ["a.png", "file.png"]
    (tmp_path / "way in").symlink_to(top)
    assert names(tmp_path / "way in") == names(top)


@pytest.mark.parametrize(
    "links",
    [
        {"top/self": "top"},
        {"top/up": "."},
        {"top/a/b": "top/a"},
        {"top/a/to": "other", "other/back": "top/a"},
        {"top/one": "top/two", "top/two": "top/one"},  # to nothing but each other
        {"top/gone": "nowhere"},
    ],
    ids=["itself", "the folder above", "below", "two of each other", "no folder", "broken"],
)
def test_a_walk_ends_however_links_go_round(tmp_path, links):
    made(tmp_path, "top/p.png", "top/a/q.png", "other/r.png")
    for place, target in links.items():
        (tmp_path / place).symlink_to(tmp_path / target)
    found = [path.name for path in walk(tmp_path / "top", (".png",))]
    assert found[:2] == ["p.png", "q.png"] and len(set(found)) == len(found)
    assert ("r.png" in found) == ("top/up" in links or "top/a/to" in links)


def test_a_walk_leaves_results_below_out_and_refuses_those_that_are_named(tmp_path):
    made(
        tmp_path,
        "a.png",
        f"runs/{RESULTS_MARKER}",
        "runs/cells/b.png",
        f"x/y/{RESULTS_MARKER}",
        "x/y/c.png",
        "x/d.png",
    )
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    made(tmp_path / "set", "e.png")
    (tmp_path / "set/old").symlink_to(tmp_path / "runs")
    assert names(tmp_path) == ["a.png", "set/e.png", "x/d.png"] and names(tmp_path / "set") == [
        "e.png"
    ]
    for below in (True, False):
        for folder in (tmp_path / "runs", tmp_path / "link", tmp_path / "x/y"):
            with pytest.raises(InputError, match="holds results of adir") as caught:
                names(folder, below=below)
            assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
