"""`adir index build` and `info`: one worker and several, on Hydra's launchers, and one of them
killed half way.
"""

import json
import os
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path

import pytest
from forked import Forked, start
from PIL import Image

from adir.data.sources.folder import FolderSource
from adir.files import read_json, write_json
from adir.harness.cells.cell import _build_once
from adir.harness.running.claims import Claims, machine
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.index.builder import require_same_index
from adir.retrieval.index.sharded import ShardedIndex

ENCODER = '''
import os, pathlib, time, torch

class Slow:
    """An encoder that notes which process embeds how many images; slow, and it begins when all
    workers are there.
    """
    name, metric, weights_sha256, input_size = "slow", "angular", "slow" * 16, 8

    def __init__(self, log, seconds, workers=1, device="cpu"):
        self.log, self.seconds, self.workers = pathlib.Path(log), seconds, workers
        self.log.with_suffix(f".{os.getpid()}").touch()

    def prepare(self, image):
        return torch.nn.functional.adaptive_avg_pool2d(image, 2)

    def vectors(self, inputs):
        until = time.monotonic() + 200
        while len(list(self.log.parent.glob("log.*"))) < self.workers and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {len(inputs)}\\n")
        return torch.nn.functional.normalize(inputs.flatten(1), dim=1)
'''


@pytest.fixture
def slow(tmp_path, neighbourhood, monkeypatch):
    """Overrides of a build of six images in six shards; the log of its encoder."""
    (tmp_path / "slow_encoder.py").write_text(ENCODER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log"
    log.touch()
    encoder = [f"+encoder.log={log}", "+encoder.seconds=0.2", "encoder._target_=slow_encoder.Slow"]
    corpus = [
        f"corpus.path={neighbourhood}",
        f"out={tmp_path / 'index'}",
        "shard_size=1",
        "least_side=0",
    ]
    return [*corpus, *encoder], log


def test_an_index_is_built_described_and_not_built_again(
    adir, neighbourhood: Path, tmp_path: Path
) -> None:
    words = [
        "index",
        "build",
        f"corpus.path={neighbourhood}",
        f"out={tmp_path / 'index'}",
        "shard_size=4",
        "least_side=0",
    ]
    done = adir(*words)
    assert done.status == 0 and "6 new images embedded, encoder busy" in done.out, done.err
    assert "shard 0: 4 images" in done.out and "; 0 shards left" in done.out
    assert "0 new images embedded" in adir(*words).out
    measured = {"arguments": {"n_probe": 8}, "n_queries": 50, "recall": {"20": 0.91}}
    write_json(tmp_path / "index/approximate-0.json", measured)
    told = adir("index", "info", tmp_path / "index")
    assert (
        told.status == 0
        and "6 images" in told.out
        and "encoder imagenet" in told.out
        and "0 rejects" in told.out
    )
    assert (
        "6 images with licence unknown" in told.out
        and "{'n_probe': 8}: recall 0.910 at K=20" in told.out
    )


def test_images_below_64_pixels_are_rejects_unless_asked_for(
    adir, neighbourhood: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 90), "red").save(
        neighbourhood_copy(neighbourhood, tmp_path) / "large.png"
    )
    words = ["index", "build", f"corpus.path={tmp_path / 'images'}", f"out={tmp_path / 'index'}"]
    assert "1 new image embedded" in adir(*words).out
    reasons = read_json(tmp_path / "index/rejects.json")
    assert (
        len(reasons) == 6
        and reasons["0.png"] == "0.png: 32x32, its shorter side is below least_side=64"
    )
    done = adir(*words, "least_side=0")
    assert (
        done.status == 2
        and "with least_side=64, but least_side=0 is requested" in done.err
        and done.err.count("\n") == 1
    )


def neighbourhood_copy(neighbourhood: Path, tmp_path: Path) -> Path:
    """The six images of 32x32 where a test may add some."""
    return Path(shutil.copytree(neighbourhood, tmp_path / "images"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["index", "build"], "corpus.path is missing"),
        (["index", "build", "corpus.path=/nowhere"], "no such folder"),
        (
            ["index", "build", "corpus.path=.", "shard_size=0"],
            "shard_size=0 must be a whole number of at least 1",
        ),
        (
            ["index", "build", "corpus.path=.", "least_side=-1"],
            "least_side=-1 must be a whole number of pixels; 0",
        ),
        (
            ["index", "build", "corpus.path=.", "loaders=0"],
            "loaders=0 must be a whole number of at least 1",
        ),
        (["index", "build", "corpus=folders"], "folders"),
        (["index", "info", "/nowhere"], "holds no index"),
    ],
)
def test_bad_words_are_one_line(adir, words: list[str], message: str) -> None:
    done = adir(*words)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1


def test_a_damaged_index_is_one_line_and_is_mended_by_building_again(
    adir, neighbourhood: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    words = [
        "index",
        "build",
        f"corpus.path={neighbourhood}",
        f"out={index}",
        "shard_size=2",
        "least_side=0",
    ]
    adir(*words)
    path = index / "shards/000001.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = adir("index", "info", index)
    assert (
        done.status == 2
        and "000001" in done.err
        and "checksum" in done.err
        and done.err.count("\n") == 1
    )
    path.write_bytes(good[:50])
    assert adir("index", "info", index).status == 2
    done = adir(*words)
    assert done.status == 2 and f"{path}: " in done.err and "remove the file and" in done.err
    path.unlink()
    done = adir(*words)
    assert done.status == 0 and "2 new images embedded" in done.out
    assert path.read_bytes() == good
    (index / "manifest.json").unlink()
    path.unlink()
    done = adir("index", "info", index)
    assert done.status == 2 and "2 of 3 planned shards" in done.err


def test_a_tar_that_climbs_out_of_itself_is_one_line_and_what_was_built_before_stays(
    adir, neighbourhood: Path, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        tar.add(neighbourhood / "0.png", "a/0.png")
    words = [
        "index",
        "build",
        "corpus=tar",
        f"corpus.path={tmp_path / 'tars'}",
        f"out={tmp_path / 'index'}",
    ]
    words.append("least_side=0")
    assert adir(*words).status == 0
    with tarfile.open(tmp_path / "tars/1.tar", "w") as tar:
        tar.add(neighbourhood / "1.png", "1.png")
        tar.add(neighbourhood / "2.png", "a/../../2.png")
    _build_once.cache_clear()  # as in a new process
    done = adir(*words)
    assert (
        done.status == 2
        and "1.tar: the path of member 'a/../../2.png' leads out of the tar" in done.err
    )
    assert (
        done.err.count("\n") == 1
        and "BufferedReader" not in done.err
        and not (tmp_path / "2.png").exists()
    )
    assert ShardedIndex(tmp_path / "index").shards[0].ids() == ["0.tar/a/0"]
    assert not list((tmp_path / "index/claims").glob("*"))


def test_what_a_killed_worker_leaves_is_cleared_away(
    adir, neighbourhood: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    words = [
        "index",
        "build",
        f"corpus.path={neighbourhood}",
        f"out={index}",
        "shard_size=2",
        "least_side=0",
    ]
    adir(*words)
    (index / "shards/000001.safetensors").rename(
        index / "shards/.000001.safetensors.99-ab.part"
    )  # killed while writing
    holder = {"machine": machine(), "pid": 2**22 + 1, "start": "0"}
    (index / "claims/000001.0.claim").write_text(json.dumps(holder))
    done = adir(*words)
    assert done.status == 0 and "2 new images embedded" in done.out
    assert not list(index.glob("**/.*.part")) and not list((index / "claims").glob("*"))


def test_of_two_builders_that_begin_at_once_with_other_encoders_one_is_refused(
    adir, slow, neighbourhood: Path, tmp_path: Path
) -> None:
    words, log = slow
    index = tmp_path / "index"
    claims = Claims(index / "claims")
    assert claims.take(
        "plan"
    )  # another builder, which has looked at the empty folder and is about to say what it is of
    refusals = []
    late = threading.Thread(target=lambda: refusals.append(adir("index", "build", *words)))
    late.start()
    time.sleep(1)
    require_same_index(
        index, FolderSource(neighbourhood), ImagenetEncoder()
    )  # takes all, as `words` do
    claims.release("plan")
    late.join()
    assert (
        refusals[0].status == 2
        and "index with encoder=imagenet" in refusals[0].err
        and not log.read_text()
    )


def test_a_folder_of_other_things_is_left_as_it_is(
    adir, neighbourhood: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = adir("index", "build", f"corpus.path={neighbourhood}", f"out={tmp_path}")
    assert done.status == 2 and "holds files that are not an index" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_workers_share_the_shards(slow, tmp_path: Path, launcher: str) -> None:
    words, log = slow
    several = [
        "-m",
        "worker=0,1",
        f"hydra/launcher={launcher}",
        *LAUNCHERS[launcher],
        "+encoder.workers=2",
    ]
    said = tmp_path / "said"
    assert start("index", "build", *several, *words, log=said).wait() == 0, said.read_text()
    assert "6 new images embedded" in said.read_text()
    embedded = [line.split() for line in log.read_text().splitlines()]
    assert sum(int(count) for _, count in embedded) == 6
    assert len({process for process, _ in embedded}) == 2
    assert len(ShardedIndex(tmp_path / "index")) == 6
    assert not list((tmp_path / "index/claims").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_worker_killed_half_way_costs_one_shard(
    adir, slow, tmp_path: Path, launcher: str
) -> None:
    words, log = slow
    several = ["-m", "worker=0,1", f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    running = start("index", "build", *words, *several, log=tmp_path / "said")
    victim = wait_for_worker(log, running)
    os.kill(victim, signal.SIGKILL)
    running.wait()
    # joblib takes the others down with the dead one, submitit does not; either way the same command
    # ends it.
    ended = adir("index", "build", *words)
    assert ended.status == 0, ended.err
    assert len(ShardedIndex(tmp_path / "index")) == 6
    assert len(read_json(tmp_path / "index/manifest.json")["shards"]) == 6
    embedded = sum(int(line.split()[1]) for line in log.read_text().splitlines())
    assert embedded <= 6 + 2  # at most what was under way in either worker is done again
    assert not list((tmp_path / "index/claims").glob("*"))


def wait_for_worker(log: Path, running: Forked) -> int:
    """The process that embeds, once it is at its second image."""
    until = time.monotonic() + 240
    while time.monotonic() < until and running.poll() is None:
        lines = log.read_text().splitlines()
        if len(lines) >= 2:
            return int(lines[-1].split()[0])
        time.sleep(0.02)
    raise AssertionError(f"no worker began: {log.with_name('said').read_text()}")
