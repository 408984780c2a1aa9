"""Where the cache is, and hashes that are remembered there."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from adir.files import sha256_of_file
from adir.weights import cache as backbone_cache
from adir.weights.cache import cache_dir, known_sha256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_cache_follows_its_variables(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("ADIR_CACHE")
    assert cache_dir() == Path("/somewhere/adir")
    monkeypatch.setenv("ADIR_CACHE", "~/weights")
    assert cache_dir() == Path.home() / "weights"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and has not changed for a while."""
    monkeypatch.setattr(backbone_cache, "SMALL", 10)
    monkeypatch.setattr(backbone_cache, "SETTLED_SECONDS", 0.05)
    path = tmp_path / "large.pt"
    path.write_bytes(b"first content")
    time.sleep(0.06)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are really hashed."""
    seen: list[Path] = []

    def counted(path: Path) -> str:
        seen.append(path)
        return sha256_of_file(path)

    monkeypatch.setattr(backbone_cache, "sha256_of_file", counted)
    return seen


def test_a_large_file_is_hashed_once(large, hashed):
    assert known_sha256(large) == known_sha256(large) == sha256_of(b"first content")
    assert hashed == [large]


@pytest.mark.parametrize("how", ["rewritten", "replaced", "same size and mtime"])
def test_a_file_that_changed_is_hashed_again(large, hashed, how):
    known_sha256(large)
    stat = large.stat()
    if how == "replaced":
        other = large.with_name("other")
        other.write_bytes(b"other content")
        os.replace(other, large)
    else:
        large.write_bytes(b"other content")
    if how == "same size and mtime":
        os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert known_sha256(large) == sha256_of(b"other content")
    assert len(hashed) == 2


def test_a_file_that_has_just_changed_is_not_remembered(large, hashed):
    large.write_bytes(b"other content")
    known_sha256(large)
    large.write_bytes(b"third content")  # within the clock's grain it could look the same
    assert known_sha256(large) == sha256_of(b"third content")


def test_a_damaged_note_and_a_cache_that_cannot_be_written_cost_time_only(
    large, hashed, cache, monkeypatch
):
    known_sha256(large)
    (note,) = (cache / "hashes").iterdir()
    note.write_text("{")
    assert known_sha256(large) == sha256_of(b"first content")
    blocked = cache / "blocked"
    blocked.write_text("a file where a folder is wanted")
    monkeypatch.setenv("ADIR_CACHE", str(blocked))
    assert known_sha256(large) == sha256_of(b"first content")
