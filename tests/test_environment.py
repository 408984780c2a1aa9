"""What the caller's shell hands over does not break a run: streams, encodings, home folders, launchers, notebooks."""

import getpass
import io
import locale
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from adir import environment
from adir.environment import own_folder, require_home, require_utf8, settle, steady

# --- streams


@pytest.fixture
def broken() -> io.TextIOWrapper:
    """A stream of the kind of stdout, whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


def test_a_stream_without_a_reader_takes_all_that_is_written(broken: io.TextIOWrapper) -> None:
    with pytest.raises(BrokenPipeError):
        print("a line", file=broken, flush=True)
    stream = steady(open(broken.fileno(), "w", closefd=False))
    for number in range(1000):
        print(f"line {number}", file=stream, flush=True)
    os.write(broken.fileno(), b"and what others write to the descriptor")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_an_encoding_lacks_is_replaced(tmp_path: Path, encoding: str, errors: str) -> None:
    with open(tmp_path / "out", "w", encoding=encoding, errors=errors) as file:
        stream = steady(file)
        print("σ ü ✓ 写真 \udcff.", file=stream, flush=True)
    expected = "σ ü ✓ 写真 \udcff.\n".encode(encoding, "replace")
    assert (tmp_path / "out").read_bytes() == expected and b"?." in expected


def test_a_choice_of_the_callers_is_kept(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w", encoding="ascii", errors="backslashreplace") as file:
        print("σ", file=steady(file), flush=True)
    assert (tmp_path / "out").read_bytes() == b"\\u03c3\n"


# --- locales


@pytest.mark.parametrize("encoding", ["ANSI_X3.4-1968", "ISO-8859-15", "eucJP"])
def test_a_program_in_another_locale_starts_again_in_utf8_once(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: started.append(words))
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.setenv("PYTHONIOENCODING", "")
    monkeypatch.setattr(locale, "getencoding", lambda: encoding)
    require_utf8()
    assert started == [[sys.executable, *sys.orig_argv[1:]]] and os.environ["PYTHONUTF8"] == "1"
    require_utf8()  # in a Python that does not heed it: no second time
    assert len(started) == 1


# --- home folders


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without name and home, as `docker run --user 12345` makes one; the folder of temporary files."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR", "USER"):  # so that what is set is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("home", [None, ""])
def test_a_user_without_a_home_gets_a_folder_of_their_own_which_is_said(
    home: str | None, nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "")
    if home is None:
        monkeypatch.delenv("HOME")
    require_home()
    folder = nobody / f"adir-home-{os.getuid()}"
    assert Path.home() == folder == own_folder() and folder.stat().st_mode & 0o777 == 0o700
    assert f"caches are kept in {folder}" in capsys.readouterr().err
    assert getpass.getuser() == str(os.getuid())
    require_home()
    assert capsys.readouterr().err == ""


def test_a_folder_that_others_can_write_to_is_not_taken(nobody: Path) -> None:
    expected = nobody / f"adir-home-{os.getuid()}"
    (nobody / "another").mkdir()
    expected.symlink_to(nobody / "another")
    assert own_folder() not in (expected, nobody / "another") and own_folder().is_dir()
    expected.unlink()
    expected.mkdir()
    expected.chmod(0o777)
    assert own_folder() != expected


@pytest.mark.parametrize("home", ["/nonexistent", "/proc/1/nowhere", "/dev/null"])
def test_caches_do_not_go_into_a_home_that_cannot_be_written_to(
    home: str, nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.isdir(path))  # root may write to /dev/null
    require_home()
    assert os.environ["HOME"] == home and capsys.readouterr().err == ""  # what it holds is still read
    for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR"):
        assert Path(os.environ[name]).parent == own_folder()


# --- all of it at once, from outside


HOSTILE = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONIOENCODING": "ascii",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "n",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "nowhere.invalid",
    "OMPI_COMM_WORLD_RANK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_ENDPOINT": "http://127.0.0.1:1",
    "https_proxy": "http://127.0.0.1:1",
    "TMPDIR": "/nonexistent",
    "HOME": "/nonexistent",
}


@pytest.mark.slow
def test_a_run_in_a_hostile_shell_whose_reader_leaves_does_all_of_its_work(tiny: list[str], tmp_path: Path) -> None:
    results = tmp_path / "Läufe"
    results.symlink_to(tmp_path / "runs", target_is_directory=True)
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "adir", "run", *tiny, "adaptation=self", f"results={tmp_path / 'runs'}"]
    with subprocess.Popen(
        command, env=os.environ | HOSTILE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()  # head -1
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0 and first and err == "", err
    records = list((tmp_path / "runs").glob("cells/**/records/*.json"))
    assert len(records) == 3 and all(b'"status": "done"' in record.read_bytes() for record in records)

    table = [sys.executable, "-m", "adir", "leaderboard", str(results)]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *table], env=os.environ | HOSTILE, stderr=subprocess.PIPE, check=False
    )
    assert closed.returncode == 0 and closed.stderr == b""
    assert {path.suffix for path in (tmp_path / "runs").glob("leaderboard.*")} == {".csv", ".md", ".tex", ".html"}
    shown = subprocess.run(table, env=os.environ | HOSTILE, capture_output=True, check=True).stdout
    assert shown.isascii() and b"L?ufe" in shown


def test_settling_changes_nothing_for_a_caller_that_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execv", lambda path, words: pytest.fail("started again"))
    monkeypatch.setattr(environment, "steady_streams", lambda: None)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    home = os.environ["HOME"]
    settle()
    assert os.environ["MPLBACKEND"] == "agg" and os.environ["HOME"] == home
