"""Trackers: what they write is what the records say, and their failures cost nothing.

W&B's files are read by hand.
"""

import csv
import gzip
import json
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from adir.cli import main
from adir.commands import sync as sync_command
from adir.errors import InputError
from adir.files import read_json
from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.records.record import parse_record
from adir.harness.tables.statistics import mean_interval
from adir.harness.tracking.base import Tracking, mean_curve, records_of, summary_of, within
from adir.harness.tracking.csv import CsvTracking
from adir.harness.tracking.tensorboard import TensorboardTracking
from adir.harness.tracking.wandb import WandbTracking, grid_is_done, key_for, server_of


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that what the tracker sets is undone
    monkeypatch.delenv("WANDB_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(WandbTracking, "silent", False)


def records(results: Path, mode: str = "*") -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(results.glob(f"cells/*/*/{mode}-*/records/*.json"))]


# ---- W&B, offline --------------------------------------------------------------------------------


def wandb_messages(path: Path) -> Iterator[Record]:
    """The messages of a .wandb file:

    LevelDB's log format, blocks of 32 KiB after a header of 7 bytes.
    """
    data, block, message = path.read_bytes(), 1 << 15, b""
    position = 7
    while position + 7 <= len(data):
        room = block - position % block
        if room < 7:  # what does not hold a record's header is padding
            position += room
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


class Offline:
    """What one offline run holds."""

    def __init__(self, folder: Path):
        (file,) = folder.glob("run-*.wandb")
        self.folder, self.history, self.summary, self.artifacts = folder, [], {}, []
        for message in wandb_messages(file):
            kind = message.WhichOneof("record_type")
            if kind == "run":
                self.run = message.run
            elif kind == "history":
                self.history.append(
                    {
                        ".".join(i.nested_key) or i.key: json.loads(i.value_json)
                        for i in message.history.item
                    }
                )
            elif kind == "summary":
                self.summary |= {
                    i.key or i.nested_key[0]: json.loads(i.value_json)
                    for i in message.summary.update
                }
            elif kind == "artifact":
                self.artifacts.append(message.artifact)
            elif kind == "request" and message.request.WhichOneof("request_type") == "log_artifact":
                self.artifacts.append(message.request.log_artifact.artifact)
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A grid of two cells, tracked offline, and run again."""
    folder = tmp_path_factory.mktemp("tracked")
    settings = ["tracking=wandb", "tracking.mode=offline", f"results={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb"))
        patch.setenv("HOME", str(folder / "home"))
        command = [
            "run",
            "-m",
            *tiny,
            "adaptation=none,knn",
            "adaptation.fine_tuning.n_iterations=3",
            *settings,
        ]
        assert main(command) == 0 == main(command)
        # as at the end of a process: what the service still holds of the last run goes to its file
        wandb.teardown()
    return folder


@pytest.fixture(scope="module")
def runs(tracked: Path) -> dict[str, Offline]:
    """{mode: the run of its cell, of the second time}."""
    found = [
        Offline(folder)
        for folder in sorted(tracked.glob("wandb/offline-run-*"), key=lambda f: f.stat().st_mtime)
    ]
    assert len(found) == 4
    return {run.run.job_type: run for run in found}


def test_a_run_is_its_cell_and_its_group_the_grid(tracked: Path, runs: dict[str, Offline]) -> None:
    (plan,) = tracked.glob("grids/*.json")
    assert set(runs) == {"none", "knn"}
    for mode, run in runs.items():
        (record, *_) = records(tracked, mode)
        assert run.run.run_id == record["cell"][:32] and run.run.run_group == plan.stem
        assert set(run.run.tags) >= {"embedded", "sr4", "adir", mode, "seed=0"}
        assert ("k=2" in run.run.tags) == (mode == "knn")
        assert (
            run.config["cell"] == record["cell"]
            and run.config["sampler"] == record["configuration"]["sampler"]
        )


def test_the_summary_is_the_mean_with_its_interval(tracked: Path, runs: dict[str, Offline]) -> None:
    for mode, run in runs.items():
        psnr = [record["scores"]["psnr"]["value"] for record in records(tracked, mode)]
        assert run.summary["psnr"] == pytest.approx(sum(psnr) / 3)
        assert (run.summary["psnr_low"], run.summary["psnr_high"]) == pytest.approx(
            mean_interval(psnr)
        )
        assert (
            run.summary["images"],
            run.summary["failed"],
            run.summary["network_evaluations"],
        ) == (3, 0, 2)


def test_a_mean_over_a_part_of_the_images_is_no_mean_of_the_cell(tracked: Path) -> None:
    found = [parse_record(record) for record in records(tracked, "none")]
    whole = summary_of(found, 3)
    assert {"psnr", "psnr_se", "psnr_low", "seconds"} <= set(whole)
    failed = found[2].model_copy(update={"status": "failed", "scores": {}})
    for part, counts in ((found[:2], (2, 0)), ([*found[:2], failed], (2, 1)), ([], (0, 0))):
        summary = summary_of(part, 3)
        assert not any(name.startswith(("psnr", "residual", "seconds")) for name in summary)
        assert (summary["images"], summary["failed"]) == counts


def test_the_table_has_every_image_also_of_an_earlier_run(
    tracked: Path, runs: dict[str, Offline]
) -> None:
    for mode, run in runs.items():  # the second run found all records there, and restored nothing
        (path,) = run.folder.glob("files/media/table/*.json")
        table = json.loads(path.read_text())
        assert table["columns"] == [
            "image",
            "status",
            "restored",
            "psnr",
            "residual",
            "y",
            "seconds",
            "error",
        ]
        expected = [
            [r["image"]["id"], "done", r["scores"]["psnr"]["value"]] for r in records(tracked, mode)
        ]
        assert [[row[0], row[1], row[3]] for row in table["data"]] == expected
        (artifact,) = [a for a in run.artifacts if a.type == "run_table"]
        sent = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        full = json.loads(sent["images.table.json"].read_text())
        for row, record in zip(full["data"], records(tracked, mode), strict=True):
            for image, file in ((row[2], record["restored"]), (row[5], record["y"]["file"])):
                assert sent[image["path"]].read_bytes() == (tracked / file).read_bytes()


def test_the_losses_of_adaptation_are_a_curve(tracked: Path, runs: dict[str, Offline]) -> None:
    losses = [row["adaptation/loss"] for row in runs["knn"].history if "adaptation/loss" in row]
    adapters = [record["adapter"] for record in records(tracked, "knn")]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(sum(adapter["first_loss"] for adapter in adapters) / 3)
    assert losses[-1] == pytest.approx(sum(adapter["last_loss"] for adapter in adapters) / 3)
    assert not any("adaptation/loss" in row for row in runs["none"].history)


def test_the_leaderboard_is_an_artifact_once_the_grid_is_done(
    tracked: Path, runs: dict[str, Offline]
) -> None:
    (plan,) = tracked.glob("grids/*.json")
    boards = [a for run in runs.values() for a in run.artifacts if a.type == "leaderboard"]
    assert boards and all(board.name == f"leaderboard-{plan.stem}" for board in boards)
    files = {
        entry.path: Path(entry.local_path).read_text() for entry in boards[-1].manifest.contents
    }
    assert set(files) == {"leaderboard.csv", "leaderboard.md"}
    assert {row["adaptation"] for row in csv.DictReader(files["leaderboard.csv"].splitlines())} == {
        "none",
        "knn",
    }


def test_a_grid_is_done_when_its_last_record_is_there(tracked: Path, tmp_path: Path) -> None:
    (plan,) = tracked.glob("grids/*.json")
    for part in ("cells", "grids"):
        shutil.copytree(tracked / part, tmp_path / part)
    assert grid_is_done(tmp_path, plan.stem) and grid_is_done(tmp_path, None)
    next(tmp_path.glob("cells/*/*/none-*/records/*.json")).unlink()
    assert not grid_is_done(tmp_path, plan.stem)


# ---- failures ------------------------------------------------------------------------------------


class Silence:
    """A call that hangs, until the test that made it is over; `ended`: it was waited for."""

    def __init__(self) -> None:
        self.over, self.ended = threading.Event(), False

    def __call__(self, **_: object) -> None:
        self.over.wait(60)
        self.ended = True


@pytest.fixture
def silence() -> Iterator[Silence]:
    hanging = Silence()
    yield hanging
    hanging.over.set()


class FakeRun:
    """A run of which one call fails, or hangs first."""

    def __init__(self, failing: str, hangs: Silence | None):
        self.failing, self.hangs, self.summary = failing, hangs, {}

    def _call(self, name: str) -> None:
        if name == self.failing:
            if self.hangs is not None:
                self.hangs()
            raise ConnectionError("out of\nreach")

    def log(self, _: object) -> None:
        self._call("log")

    def log_artifact(self, _: object) -> None:
        self._call("log_artifact")

    def define_metric(self, *_: object, **__: object) -> None:
        self._call("define_metric")

    def finish(self) -> None:
        self._call("finish")


@pytest.fixture
def knn(tracked: Path, tiny: list[str]) -> Cell:
    """The adapted cell, whose records are all there."""
    return resolve_cell(
        compose(
            [*tiny, "adaptation=knn", "adaptation.fine_tuning.n_iterations=3", f"results={tracked}"]
        )
    )


def tell(tracker: Tracking, cell: Cell) -> None:
    """What running the cell tells a tracker."""
    tracker.start(cell)
    for record in records_of(cell):
        tracker.record(record, cell.ledger.image_path(record.image.id))
    tracker.finish()


@pytest.mark.parametrize("hangs", [False, True], ids=["raises", "hangs"])
@pytest.mark.parametrize("failing", ["init", "log", "define_metric", "log_artifact", "finish"])
def test_whatever_fails_in_wandb_is_said_once_and_goes_no_further(
    knn: Cell,
    failing: str,
    hangs: bool,
    silence: Silence,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def init(**_: object) -> FakeRun:
        run = FakeRun(failing, silence if hangs else None)
        run._call("init")
        return run

    monkeypatch.setattr(wandb, "init", init)
    tell(WandbTracking(patience=1 if hangs else 20), knn)
    assert not silence.ended
    reason = "TimeoutError: no answer within 1 s" if hangs else "ConnectionError: out of reach"
    assert (
        capsys.readouterr().out == f"warning: W&B failed ({reason}); the run continues without it\n"
    )


def test_after_a_silence_a_process_asks_wandb_no_more(
    knn: Cell, silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def init(**_: object) -> None:
        asked.append(1)
        silence()

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(3):
        tell(WandbTracking(patience=0.1), knn)
    assert len(asked) == 1


def test_a_run_goes_on_when_wandb_hangs_at_its_end(
    adir: Callable,
    tiny: list[str],
    tmp_path: Path,
    silence: Silence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun("finish", silence))
    finished = adir("run", *tiny, "tracking=wandb", "tracking.patience=1", f"results={tmp_path}")
    assert finished.status == 0 and "3 images done" in finished.out and len(records(tmp_path)) == 3
    assert finished.out.count("warning: W&B failed (TimeoutError: no answer within 1 s)") == 1


@pytest.mark.parametrize("tracker", [CsvTracking, TensorboardTracking])
def test_a_tracker_that_cannot_write_says_so_once(
    tracker: type, knn: Cell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = replace(knn, results=tmp_path)
    shutil.copytree(knn.results / "cells", tmp_path / "cells")
    (tmp_path / "tracking").write_text("a file in the way")
    (tmp_path / "tensorboard").write_text("a file in the way")
    tell(tracker(), blocked)
    out = capsys.readouterr().out
    assert out.count("\n") == out.count("warning: tracking=") == 1


def test_within_gives_back_what_the_call_returns_or_raises(silence: Silence) -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError, match="lost"):
        within(5, lambda: {}["lost"])
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, silence)
    assert not silence.ended


# ---- CSV and TensorBoard -------------------------------------------------------------------------


def test_csv_has_a_line_per_image_and_the_losses(knn: Cell) -> None:
    tell(CsvTracking(), knn)
    path = knn.results / "tracking" / f"embedded-sr4-{knn.identity.folder.name}.csv"
    found = records_of(knn)
    with path.open() as file:
        for row, record in zip(csv.DictReader(file), found, strict=True):
            assert (row["image"], row["status"], row["error"]) == (record.image.id, "done", "")
            assert float(row["psnr"]) == record.value("psnr")
    with path.with_name(f"{path.stem}-losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    for record in found:
        ends = (record.adapter.first_loss, record.adapter.last_loss)
        assert (float(rows[0][record.image.id]), float(rows[-1][record.image.id])) == ends


def test_tensorboard_shows_scores_images_losses_and_means(knn: Cell) -> None:
    tell(TensorboardTracking(), knn)
    events = EventAccumulator(
        str(knn.results / "tensorboard" / f"embedded-sr4-{knn.identity.folder.name}")
    )
    events.Reload()
    psnr = [record.value("psnr") for record in records_of(knn)]
    assert [(e.step, e.value) for e in events.Scalars("scores/psnr")] == list(
        enumerate(map(pytest.approx, psnr))
    )
    assert len(events.Images("restored")) == 3 and len(events.Scalars("adaptation/loss")) == 3
    assert events.Scalars("mean/psnr")[-1].value == pytest.approx(sum(psnr) / 3)


def test_the_mean_curve_goes_as_far_as_the_shortest() -> None:
    assert mean_curve({"a": [4.0, 2.0, 1.0], "b": [2.0, 1.0]}) == [3.0, 1.5]
    assert mean_curve({}) == []


# ---- adir sync -----------------------------------------------------------------------------------


def test_sync_sends_what_waits_by_wandbs_own_command(
    adir: Callable, tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[list[str], dict[str, str]]] = []

    def run(
        command: list[str], env: dict[str, str], check: bool, timeout: float
    ) -> subprocess.CompletedProcess:
        called.append((command, env))
        return subprocess.CompletedProcess(command, 0)  # as it does although nothing was sent

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(sync_command.subprocess, "run", run)
    monkeypatch.setattr(sync_command, "refusal", lambda server, key: None)
    finished = adir("sync", tracked)
    assert (
        finished.status == 1
        and "4 of 4 runs were not sent (`wandb sync` ended with status 0)" in finished.out
    )
    ((command, environment),) = called
    assert command[1:4] == ["-m", "wandb", "sync"] and len(command) == 4 + 4
    assert (
        environment["WANDB_DATA_DIR"] == str(tracked / "wandb") and "WANDB_MODE" not in environment
    )

    # The real command takes it, and finds these runs; --dry-run sends nothing.
    monkeypatch.undo()
    real = subprocess.run(
        [*command, "--dry-run"], env=environment, capture_output=True, text=True, check=False
    )
    assert real.returncode == 0, real.stderr
    told = real.stdout + real.stderr
    assert all(Path(folder).name.rsplit("-", 1)[1] in told for folder in command[4:])


class FakeServer(BaseHTTPRequestHandler):
    """As much of W&B's server as `wandb sync` asks; it has every artifact already, so nothing is
    uploaded.
    """

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        reply = {}
        if self.path == "/graphql":
            query = json.loads(
                gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
            )
            variables = query.get("variables") or {}
            self.asked.append((query["operationName"], variables))
            reply = {"data": self.answer(query["operationName"], variables)}
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "b",
            "name": variables.get("name"),
            "displayName": "d",
            "config": "{}",
            "project": project,
        }
        artifact = {
            "id": "a",
            "state": "COMMITTED",
            "artifactSequence": {"latestArtifact": {"id": "a"}},
        }
        return {
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "Viewer": {"viewer": {"id": "me"}},
            "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
        }.get(operation, {})

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_a_server_gets_every_run_once(
    adir: Callable, tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    newest = sorted(tracked.glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_mtime)[
        -2:
    ]
    for folder in newest:
        shutil.copytree(folder, results / "wandb" / folder.name)
    FakeServer.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    finished = adir("sync", results)
    server.shutdown()
    assert finished.status == 0, finished.err
    (plan,) = tracked.glob("grids/*.json")
    sent = {
        v["name"]: v for name, v in FakeServer.asked if name == "UpsertBucket" and v["groupName"]
    }
    assert set(sent) == {record["cell"][:32] for record in records(tracked)}
    assert {(v["groupName"], v["jobType"]) for v in sent.values()} == {
        (plan.stem, "none"),
        (plan.stem, "knn"),
    }
    artifacts = {
        v["input"]["artifactCollectionName"]
        for name, v in FakeServer.asked
        if name == "CreateArtifact"
    }
    assert artifacts == {f"leaderboard-{plan.stem}", *(f"run-{name}-images" for name in sent)}
    assert "contains no unsent W&B runs" in adir("sync", results).out


def test_sync_leaves_out_what_was_sent_and_needs_a_key(adir: Callable, tmp_path: Path) -> None:
    assert "contains no unsent W&B runs" in adir("sync", tmp_path).out
    run = tmp_path / "wandb" / "offline-run-20260101_000000-abc"
    run.mkdir(parents=True)
    (run / "run-abc.wandb").touch()
    with pytest.raises(InputError, match=r"key is missing, so 1 run in .*: set WANDB_API_KEY"):
        sync_command.main(tmp_path)
    (run / "run-abc.wandb.synced").touch()
    assert sync_command.main(tmp_path) == 0
    with pytest.raises(InputError, match="no such folder"):
        sync_command.main(tmp_path / "elsewhere")


class Refusing(BaseHTTPRequestHandler):
    """A server that is none of W&B's, or none that takes this key: its path says what it answers."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with a run that was tracked offline; a key; and a short patience."""
    run = tmp_path / "wandb" / "offline-run-20260101_000000-abc"
    run.mkdir(parents=True)
    (run / "run-abc.wandb").write_bytes(b"run")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(sync_command, "SERVER_TIMEOUT", 0.5)
    return tmp_path


def test_without_a_server_sync_says_a_line_and_ends_with_1_at_once(
    adir: Callable, waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sync_command, "send", lambda *_: pytest.fail("sent to a server that is not there")
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    refusing = f"http://127.0.0.1:{server.server_port}"
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as silent:  # takes the connection, and never answers
        reasons = {
            "http://127.0.0.1:1": "<urlopen error [Errno 111] Connection refused>",
            f"http://127.0.0.1:{silent.getsockname()[1]}": "timed out",
            "api.example": "unknown url type",
            f"{refusing}/401": "HTTP Error 401: Unauthorized",
            f"{refusing}/503": "HTTP Error 503: Service Unavailable",
            f"{refusing}/200": "Expecting value",  # a page, as a hotel's
        }
        for address, reason in reasons.items():
            monkeypatch.setenv("WANDB_BASE_URL", address)
            finished = adir("sync", waiting)
            assert finished.status == 1, address
            first, last = finished.out.splitlines()
            assert first.startswith("sending 1 W&B run of") and first.endswith(address)
            assert last.startswith(f"1 of 1 runs were not sent ({address}: {reason}"), last
    server.shutdown()


def test_a_wandb_sync_that_never_ends_is_ended(
    adir: Callable, waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: object, timeout: float, **_: object) -> None:
        assert timeout == pytest.approx(60, abs=1)  # one run of 3 bytes
        raise subprocess.TimeoutExpired("wandb sync", timeout)

    monkeypatch.setattr(sync_command.subprocess, "run", run)
    monkeypatch.setattr(sync_command, "refusal", lambda server, key: None)
    finished = adir("sync", waiting)
    assert finished.status == 1 and "(`wandb sync` was stopped after 60 s)" in finished.out


def test_the_server_is_that_of_the_environment_or_of_the_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert server_of() == "https://api.wandb.ai" and key_for(server_of()) is None
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab.example/\n")
    (tmp_path / "netrc").write_text("machine wandb.lab.example login user password secret\n")
    assert server_of() == "https://wandb.lab.example" and key_for(server_of()) == "secret"
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert server_of() == "https://api.wandb.ai" and key_for(server_of()) is None


# ---- sweeps --------------------------------------------------------------------------------------

SWEEPS = sorted((Path(__file__).resolve().parents[3] / "examples/sweeps").glob("*.yaml"))


def agents_command(sweep: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """The words that `wandb agent` runs for one choice of parameters, by wandb's own functions
    where it has them.
    """
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    args = {name: {"value": value} for name, value in chosen.items()}
    variables = create_sweep_command_args({"args": args}) | {
        "program": [sweep["program"]],
        "env": ["/usr/bin/env"],
    }
    words: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        macro = word.startswith("${") and word.endswith("}")
        words += variables[word[2:-1]] if macro else [word]
    return words


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_of_an_agent_is_a_cell(path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    sweep = load_sweep_config(str(path))
    assert sweep == yaml.safe_load(path.read_text()) and sweep["method"] in (
        "grid",
        "random",
        "bayes",
    )
    assert f"examples/sweeps/{path.name}" in path.read_text().splitlines()[0]  # how to start it
    identities = set()
    for end in (0, -1):
        chosen = {
            name: choice["values"][end]
            if "values" in choice
            else choice["min" if end == 0 else "max"]
            for name, choice in sweep["parameters"].items()
        }
        program, verb, *overrides = agents_command(sweep, chosen)
        assert (program, verb) == ("adir", "run")
        cell = resolve_cell(compose(overrides))
        assert cell.configuration["tracking"]["_target_"].endswith("WandbTracking")
        assert sweep["metric"]["name"] in cell.configuration["scoring"]["metrics"]
        assert (
            sweep["metric"]["goal"]
            == {"psnr": "maximize", "deep-lite0": "minimize"}[sweep["metric"]["name"]]
        )
        identities.add(cell.identity.sha256)
    assert len(identities) == 2  # the parameters do change the cell


def test_under_an_agent_the_run_is_the_sweeps(
    adir: Callable, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The agent names the run by its environment; wandb then ignores our id, and the summary has the
    # sweep's metric.
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    wandb.teardown()  # an agent's run is a process of its own, which reads these when it starts
    finished = adir("run", *tiny, "tracking=wandb", "tracking.mode=offline", f"results={tmp_path}")
    wandb.teardown()
    assert finished.status == 0 and "warning" not in finished.out
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    run = Offline(folder)
    assert run.run.run_id == "fromagent" and run.run.sweep_id == "sweep1" and "psnr" in run.summary
