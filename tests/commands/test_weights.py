"""`adir weights`: listed, fetched from a local server, verified; wrong files are set aside."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from adir.commands.weights import main as weights
from adir.errors import InputError
from adir.weights import registry as checkpoints

CONTENT = bytes(1000)
ENTRY = """# A small file
file: {file}
size: {size}
sha256: "{sha256}"
licence: null
mirrors: [{url}/gone.pt, {url}/{file}]
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "small.pt").write_bytes(CONTENT)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def registry(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two entries: `small`, and `changed`, whose file is another than the registry says."""
    folder = tmp_path / "conf" / "weights"
    folder.mkdir(parents=True)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    (folder / "small.yaml").write_text(
        ENTRY.format(file="small.pt", size=1000, sha256=sha256, url=url)
    )
    (folder / "changed.yaml").write_text(
        ENTRY.format(file="small.pt", size="null", sha256="0" * 64, url=url)
    )
    monkeypatch.setattr(checkpoints, "config_dir", lambda: tmp_path / "conf")
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    checkpoints.registry.cache_clear()
    yield
    checkpoints.registry.cache_clear()


def here(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "weights").iterdir())


def test_get_fetches_once_and_list_and_verify_tell(tmp_path, capsys):
    assert weights("list", []) == 0
    assert "small    missing  1 kB          licence unknown  sha256 " in capsys.readouterr().out
    assert weights("get", ["small"]) == 0
    out = capsys.readouterr().out
    assert out == f"small: fetched and verified, {tmp_path / 'cache' / 'weights' / 'small.pt'}\n"
    assert here(tmp_path) == ["small.pt"]
    assert weights("get", ["small"]) == 0
    assert "small: already here" in capsys.readouterr().out
    weights("list", ["small"])
    assert "small  here  1 kB  licence unknown  sha256 " in capsys.readouterr().out
    assert weights("verify", ["small"]) == 0
    assert "small: verified" in capsys.readouterr().out


def test_the_columns_of_the_list_stand_below_each_other_whatever_they_hold(tmp_path, capsys):
    text = (tmp_path / "conf" / "weights" / "small.yaml").read_text()
    text = text.replace("licence: null", "licence: a licence of quite some length, even a sentence")
    (tmp_path / "conf" / "weights" / "small_of_a_longer_name.yaml").write_text(text)
    assert weights("list", []) == 0
    *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len({line.index("  sha256 ") for line in lines}) == 1


def test_a_damaged_file_is_found_set_aside_and_fetched_again(tmp_path, capsys):
    weights("get", ["small"])
    path = tmp_path / "cache" / "weights" / "small.pt"
    path.write_bytes(CONTENT[:-1] + b"x")
    assert weights("verify", ["small"]) == 1
    assert "small: WRONG (SHA-256" in capsys.readouterr().out
    assert not path.exists() and here(tmp_path)[0].startswith("small.pt.corrupt-")
    path.write_bytes(b"wrong again")
    assert weights("get", ["small"]) == 0
    assert path.read_bytes() == CONTENT and len(here(tmp_path)) == 3


def test_a_file_with_another_hash_is_not_put_into_place(tmp_path):
    with pytest.raises(
        InputError, match=r"gone\.pt \(HTTP 404.*small\.pt \(the downloaded file has SHA-256"
    ):
        weights("get", ["changed"])
    assert not [name for name in here(tmp_path) if not name.startswith("small.pt.part.corrupt-")]


def test_verifying_what_is_missing_is_wrong_only_where_it_was_named(capsys):
    assert weights("verify", []) == 0
    assert "small: not here" in capsys.readouterr().out
    assert weights("verify", ["small"]) == 1
    assert "run `adir weights get small`" in capsys.readouterr().out


@pytest.mark.parametrize(
    "action, names, words",
    [
        ("get", ["gd1024"], "unknown weights 'gd1024'; choose one of changed, small"),
        ("get", [], "`adir weights get` needs a NAME: choose from changed, small"),
    ],
)
def test_what_cannot_be_asked_lists_what_can(action, names, words):
    with pytest.raises(InputError, match=words):
        weights(action, names)


def test_what_can_be_fetched_is_fetched_whatever_else_fails(tmp_path, capsys):
    assert weights("get", ["changed", "small"]) == 1
    fetched, failed = capsys.readouterr().out.splitlines()
    assert fetched.startswith("small: fetched and verified") and failed.startswith(
        "changed: small.pt: the download failed"
    )
    with pytest.raises(InputError, match=r"changed: small\.pt: the download failed"):
        weights("get", ["changed"] * 2)


def test_offline_get_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        InputError,
        match=r"small\.pt: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or put the file into",
    ):
        weights("get", ["small"])
