"""What the caller's shell hands over does not break a run: streams, encodings, home folders,
launchers, notebooks.
"""

import getpass
import io
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from adir import environment
from adir.environment import prepare_process, require_user, require_utf8, tolerant_stream

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
    stream = tolerant_stream(open(broken.fileno(), "w", closefd=False))
    for number in range(1000):
        print(f"line {number}", file=stream, flush=True)
    os.write(broken.fileno(), b"and what others write to the descriptor")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_an_encoding_lacks_is_replaced(tmp_path: Path, encoding: str, errors: str) -> None:
    with open(tmp_path / "out", "w", encoding=encoding, errors=errors) as file:
        stream = tolerant_stream(file)
        print("σ ü ✓ 写真 \udcff.", file=stream, flush=True)
    expected = "σ ü ✓ 写真 \udcff.\n".encode(encoding, "replace")
    assert (tmp_path / "out").read_bytes() == expected and b"?." in expected


def test_a_choice_of_the_callers_is_kept(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w", encoding="ascii", errors="backslashreplace") as file:
        print("σ", file=tolerant_stream(file), flush=True)
    assert (tmp_path / "out").read_bytes() == b"\\u03c3\n"


# --- locales


def test_a_program_in_a_locale_of_other_file_names_says_what_to_set(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-15")
    with pytest.raises(SystemExit, match="2"):
        require_utf8()
    assert "iso8859-15, but adir needs UTF-8: set PYTHONUTF8=1" in capsys.readouterr().err


# --- home folders


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without name and home, as `docker run --user 12345` makes one; the folder of temporary
    files.
    """

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "")  # so that what is set is undone
    monkeypatch.delenv("USER")
    for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_home_gets_a_folder_of_their_own_which_is_said(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "")  # so that what is set is undone
    monkeypatch.delenv("HOME")
    require_user()
    assert Path.home().parent == nobody and Path.home().stat().st_mode & 0o777 == 0o700
    assert f"caches are in {Path.home()}" in capsys.readouterr().err
    assert getpass.getuser() == str(os.getuid())
    require_user()
    assert capsys.readouterr().err == ""


def test_caches_do_not_go_into_a_home_that_cannot_be_written_to(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/proc/1/nowhere")
    monkeypatch.setenv("WANDB_CACHE_DIR", "/chosen")
    require_user()
    assert (
        os.environ["HOME"] == "/proc/1/nowhere" and capsys.readouterr().err == ""
    )  # what it holds is still read
    assert (
        Path(os.environ["MPLCONFIGDIR"]).parent == nobody
        and os.environ["WANDB_CACHE_DIR"] == "/chosen"
    )


# --- all of it at once, from outside


HOSTILE = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONIOENCODING": "ascii",
    "LC_ALL": "C",
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
    "HOME": "/proc/1/nowhere",
}


@pytest.mark.slow
def test_a_run_in_a_hostile_shell_whose_reader_leaves_does_all_of_its_work(
    tiny: list[str], tmp_path: Path
) -> None:
    results = tmp_path / "Läufe"
    results.symlink_to(tmp_path / "runs", target_is_directory=True)
    (tmp_path / "runs").mkdir()
    command = [
        sys.executable,
        "-m",
        "adir",
        "run",
        *tiny,
        "adaptation=self",
        f"results={tmp_path / 'runs'}",
    ]
    with subprocess.Popen(
        command, env=os.environ | HOSTILE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()  # head -1
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0 and first and err == "", err
    records = list((tmp_path / "runs").glob("cells/**/records/*.json"))
    assert len(records) == 3 and all(
        b'"status": "done"' in record.read_bytes() for record in records
    )

    table = [sys.executable, "-m", "adir", "leaderboard", str(results)]
    for closed in (
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
    ):  # the last is how a login node's shell starts a job that outlives it
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *table]
        assert (
            subprocess.run(
                command, env=os.environ | HOSTILE, capture_output=True, check=False
            ).returncode
            == 0
        ), closed
    shown = subprocess.run(table, env=os.environ | HOSTILE, capture_output=True, check=True).stdout
    assert shown.isascii() and b"L?ufe" in shown
    assert {path.suffix for path in (tmp_path / "runs").glob("leaderboard.*")} == {
        ".csv",
        ".md",
        ".tex",
        ".html",
    }


def test_settling_changes_nothing_for_a_caller_that_is_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "use_tolerant_streams", lambda: None)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    home = os.environ["HOME"]
    prepare_process()
    assert os.environ["MPLBACKEND"] == "agg" and os.environ["HOME"] == home
