"""Grids: what is shared is made once, what does not go together is left out, plans tell before
anything is done.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from adir.commands import run
from adir.files import read_json, sha256_of_file
from adir.harness.cells.cell import _build_once
from adir.harness.running import claims, grid
from adir.harness.running.grid import check_grid, write_plan

RECORDS = "cells/**/records/*.json"
IMAGES = "cells/**/images/*.png"


def images(folder: Path) -> dict[str, str]:
    """{restored image: SHA-256}."""
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in folder.glob(IMAGES)}


def contents(folder: Path) -> set[str]:
    return (
        {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()
    )


def test_random_neighbours_of_two_tasks_share_their_adapters(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    grid = ["run", "-m", *tiny, "task=sr4,deblur", "adaptation=random", f"results={tmp_path}"]
    assert adir(*grid).status == 0
    assert len(list(tmp_path.glob(RECORDS))) == 2 * 3
    assert (
        len(list(tmp_path.glob("adapters/*.safetensors"))) == 3
    )  # a draw depends on seed and image alone


def test_neighbours_for_a_smaller_k_are_those_of_a_larger_one(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    for results, ks in (("together", "3,1"), ("alone", "1")):
        grid = [
            "run",
            "-m",
            *tiny,
            "task=sr4",
            "adaptation=knn",
            f"k={ks}",
            f"results={tmp_path / results}",
        ]
        assert adir(*grid).status == 0
    assert (
        len(list((tmp_path / "together/neighbours").iterdir())) == 3
    )  # of three images, for both K
    alone, together = images(tmp_path / "alone"), images(tmp_path / "together")
    assert len(alone) == 3 and alone.items() <= together.items()
    for path in (tmp_path / "together").glob(RECORDS):
        record = read_json(path)
        assert len(record["neighbours"]) == record["axes"]["k"]
        assert all(
            (tmp_path / f"together/images/{n['image']}-thumbnail.png").is_file()
            for n in record["neighbours"]
        )


def test_a_batch_of_images_gives_those_of_one_after_another(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    for results, batch_size in (("one", 1), ("two", 2)):
        assert (
            adir("run", *tiny, f"results={tmp_path / results}", f"batch_size={batch_size}").status
            == 0
        )
    assert len(images(tmp_path / "one")) == 3 and images(tmp_path / "two") == images(
        tmp_path / "one"
    )


def test_an_image_that_was_replaced_stops_a_run_before_any_work(
    adir, tiny: list[str], photographs: Path, tmp_path: Path
) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    words = [*tiny, f"data.path={tmp_path / 'data'}", f"results={tmp_path / 'runs'}"]
    assert adir("run", *words).status == 0
    last = max((tmp_path / "data").glob("*.png"))
    shutil.copy(min((tmp_path / "data").glob("*.png")), last)
    before = contents(tmp_path / "runs")
    _build_once.cache_clear()  # as in a new process
    for command in ("plan", "run"):
        finished = adir(command, *words, "seed=1")
        assert finished.status == 2 and f"another image with the id '{last.name}'" in " ".join(
            (finished.out + finished.err).split()
        )
    assert contents(tmp_path / "runs") == before


def test_an_image_that_fails_in_a_batch_fails_alone(adir, tiny: list[str], tmp_path: Path) -> None:
    # 1e30 without the cap overflows; the record of each image says so by itself
    words = [
        "sampler.guidance_scale=1e30",
        "sampler.cap=false",
        "batch_size=3",
        f"results={tmp_path}",
    ]
    assert adir("run", *tiny, *words).status == 1
    records = [read_json(path) for path in tmp_path.glob(RECORDS)]
    assert [record["status"] for record in records] == ["failed"] * 3


def test_combinations_that_do_not_go_together_are_left_out_and_named(
    adir, tiny: list[str], photographs: Path, tmp_path: Path
) -> None:
    tiny = [
        word for word in tiny if "n_steps" not in word
    ]  # bicubic has none, so ADIR takes all of its own: one image
    (tmp_path / "one").mkdir()
    shutil.copy(photographs / "0.png", tmp_path / "one")
    grid = [
        *tiny,
        "task=sr4",
        "sampler=adir,bicubic",
        "adaptation=none,knn",
        f"data.path={tmp_path / 'one'}",
    ]
    finished = adir("run", "-m", *grid, f"results={tmp_path}")
    assert finished.status == 0, finished.err
    assert re.search(r"skipped sr4 bicubic knn .*, which is not applicable", finished.out)
    assert {path.parent.parent.name.split("-s0")[0] for path in tmp_path.glob(RECORDS)} == {
        "none-adir",
        "none-bicubic",
        "knn-k2-full-adir",
    }


def test_claims_of_workers_that_were_killed_by_an_interruption_do_not_stay(
    adir, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Path] = []

    def launch(job, *arguments):
        if job.func is grid.check_job:
            return check(job, *arguments)
        dead = json.dumps(
            {"machine": claims.machine(), "pid": os.getpid(), "start": "of another process"}
        )
        for folder in (tmp_path / "adapters", tmp_path / left_cell / "claims"):
            folder.mkdir(parents=True)
            left.append(folder / "a.0.claim")
            left[-1].write_text(dead)
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a worker process was terminated")

    words = [*tiny, "adaptation=none", f"results={tmp_path}"]
    left_cell = next(iter(grid.check_grid(words, False).cells.values())).identity.folder
    check = grid.launch
    monkeypatch.setattr(grid, "launch", launch)
    monkeypatch.setattr(run, "launch", launch)
    assert adir("run", *words).status == 130
    assert len(left) == 2 and not any(path.exists() for path in left)


def test_a_cell_that_is_not_applicable_is_an_error_by_itself(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    words = [word for word in tiny if "n_steps" not in word]
    finished = adir("run", *words, "sampler=bicubic", "adaptation=knn", f"results={tmp_path}")
    assert finished.status == 2 and finished.err.count("\n") == 1 and "bicubic" in finished.err
    assert not list(tmp_path.glob(RECORDS))


def test_a_mode_that_tunes_while_it_samples_runs_with_dds_and_with_no_other_sampler(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    words = [
        *tiny,
        "adaptation=scd",
        "adaptation.n_iterations=1",
        f"results={tmp_path}",
        "oracle=true",
    ]
    refused = adir("run", *words)
    assert refused.status == 2 and refused.err.count("\n") == 1
    assert (
        "scd tunes the network during sampling, which sampler adir does not support; use sampler=dds"
        in refused.err
    )
    assert adir("run", *words, "sampler=dds").status == 0
    records = [read_json(path) for path in tmp_path.glob(RECORDS)]
    assert len(records) == 3
    for record in records:
        assert record["axes"]["adaptation"] == "scd" and record["axes"]["adapter"] == "lora"
        assert record["identity"]["adaptation"]["n_iterations"] == 1 and record["adapter"] is None
        assert "fine_tuning" not in record["identity"]["adaptation"]
        assert (
            "oracle-eps-error" not in record["scores"]
        )  # the network was another one at each step
        # Two steps, both due: each is asked untuned, tuned on once, and asked again.
        assert (
            record["sampler"]["network_evaluations"],
            record["sampler"]["gradient_evaluations"],
        ) == (6, 2)


def test_what_a_cluster_will_run_is_checked_on_the_cpu_and_run_on_the_device_that_was_asked_for(
    tiny: list[str], tmp_path: Path
) -> None:
    words = [*tiny, "adaptation=none,self", f"results={tmp_path}"]
    gpu = [
        "backbone.device=cuda:7",
        "scoring.device=cuda",
        "execution.offload=true",
        "execution.compile=false",
    ]
    cluster = check_grid(
        [*words, *gpu, "hydra/launcher=slurm", "hydra.launcher.partition=gpu"], multirun=True
    )
    assert (
        cluster.launcher == "SlurmLauncher" and cluster.problems == {} and len(cluster.cells) == 2
    )
    for cell in cluster.cells.values():
        assert cell.backbone.device.type == "cpu"
        assert (
            cell.configuration["backbone"]["device"]
            == cell.configuration["execution"]["device"]
            == "cuda:7"
        )
        assert (
            cell.configuration["scoring"]["device"] == "cuda"
            and cell.configuration["execution"]["offload"]
        )
    planned = read_json(write_plan(cluster))[
        "cells"
    ]  # what a worker that helps with a cell goes by
    assert [one["configuration"]["backbone"]["device"] for one in planned] == ["cuda:7"] * 2
    here = check_grid(words, multirun=True)
    assert [cell.identity for cell in here.cells.values()] == [
        cell.identity for cell in cluster.cells.values()
    ]


@pytest.mark.parametrize("launcher", ["basic", "two_processes"])
@pytest.mark.parametrize("part", ["backbone", "scoring"])
def test_a_device_that_this_machine_lacks_is_refused_before_a_launcher_of_this_machine_starts(
    adir, tiny: list[str], tmp_path: Path, launcher: str, part: str
) -> None:
    words = [*tiny, "adaptation=none", f"{part}.device=cuda:99", f"hydra/launcher={launcher}"]
    finished = adir("run", "-m", *words, f"results={tmp_path / 'results'}")
    assert finished.status == 2 and finished.err.count("\n") == 1
    assert re.match(f"adir: {part}.*device=cuda:99: torch finds", finished.err), finished.err
    assert contents(tmp_path) == set()  # nor Hydra's note of the grid


def test_the_plan_of_a_grid_is_stored_with_all_its_images(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    grid = ["run", "-m", *tiny, "adaptation=none,knn", f"results={tmp_path}"]
    assert adir(*grid).status == 0
    (path,) = tmp_path.glob("grids/*.json")
    before = path.read_bytes()
    assert [cell["images"] for cell in read_json(path)["cells"]] == [
        ["0.png", "1.png", "2.png"]
    ] * 2
    assert {cell["folder"] for cell in read_json(path)["cells"]} == {
        str(record.parent.parent.relative_to(tmp_path)) for record in tmp_path.glob(RECORDS)
    }
    (manifest,) = tmp_path.glob("manifests/*.json")
    assert set(read_json(manifest)["images"]) == {"0.png", "1.png", "2.png"}
    for record in map(
        read_json, tmp_path.glob(RECORDS)
    ):  # a folder tells neither licence nor source
        image = record["image"]
        assert (image["manifest"], image["licence"], image["source"]) == (
            read_json(manifest)["sha256"],
            None,
            None,
        )
        assert record["search"] is None
    assert adir(*grid).status == 0
    assert path.read_bytes() == before


# --- adir plan


def test_a_plan_tells_what_is_to_do_and_does_nothing(adir, tiny: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    grid = ["-m", *tiny, "adaptation=none,knn", "k=1,2", f"results={results}"]
    planned = adir("plan", *grid)
    assert planned.status == 0, planned.err
    assert contents(results) == set()
    assert (
        "3 cells (1 duplicate left out): 9 images to restore and 6 adapters to train" in planned.out
    )


def test_a_plan_counts_what_is_done_and_which_adapters_are_there(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    grid = ["-m", *tiny, "adaptation=none,knn", f"results={tmp_path}"]
    assert adir("run", *grid).status == 0
    knn = sorted(tmp_path.glob("cells/**/knn*/records/*.json"))
    knn[0].unlink()
    planned = adir("plan", *grid)
    assert planned.status == 0
    assert re.search(r"sr4 none seed=0 +│ +3 │ done", planned.out)
    assert re.search(
        r"sr4 knn k=2 full seed=0 +│ +3 │ 1 to do, 1 adapters cached, 2 done", planned.out
    )
    assert "1 image to restore and 0 adapters to train" in planned.out


def test_a_plan_names_every_cell_that_cannot_run_and_exits_with_2(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    finished = adir("plan", "-m", *tiny, "adaptation=none,knn", "k=2,99", f"results={tmp_path}")
    assert finished.status == 2
    assert "(1) K=99 neighbours requested from a corpus of 6 images" in finished.out
    assert re.search(r"embedded sr4 knn k=99 full seed=0 +│ +– │ CANNOT RUN \(1\)", finished.out)
    assert re.search(r"embedded sr4 knn k=2 full seed=0 +│ +3 │ 3 to do", finished.out)


def test_a_plan_says_of_each_cell_that_is_not_applicable_why(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    words = [word for word in tiny if "n_steps" not in word] + [
        f"results={tmp_path}",
        "adaptation=none,knn",
    ]
    finished = adir("plan", "-m", *words, "sampler=bicubic", "task=sr4,deblur", "k=0,2")
    assert finished.status == 0, finished.err
    for task in ("sr4", "deblur"):
        assert finished.out.count(f"embedded {task} bicubic none seed=0 ") == 1
        assert re.search(
            rf"embedded {task} bicubic knn k=0 full seed=0 +│ +– │ not applicable \(1\)",
            finished.out,
        )
        assert re.search(
            rf"embedded {task} bicubic knn k=2 full seed=0 +│ +– │ not applicable \(2\)",
            finished.out,
        )
    assert (
        finished.out.count("(1) adaptation=knn needs neighbours, but K=0")
        == finished.out.count("(2) sampler bicubic")
        == 1
    )
    assert "2 cells (2 duplicates left out)" in finished.out


def test_a_plan_names_all_that_is_wrong_with_a_cell_at_once(adir, tmp_path: Path) -> None:
    asked = [
        "backbone=gd512",
        "backbone.device=cuda:99",
        "scoring.device=cuda:99",
        "retrieval=index",
        "data=folder",
    ]
    finished = adir(
        "plan",
        "-m",
        *asked,
        "scoring=default",
        "adaptation=none,pixel",
        "k=2,3",
        f"results={tmp_path}",
    )
    assert finished.status == 2 and finished.err == ""
    notes = dict(re.findall(r"^\((\d)\) (\S+)", finished.out, re.MULTILINE))
    both = {"scoring.device=cuda:99:", "backbone.device=cuda:99:", "data.path", "gd512"}
    assert set(notes.values()) == both | {"an"} and "an index is needed" in finished.out
    rows = re.findall(r"│ (gd512 sr4 .*?) +│ +– │ CANNOT RUN \(([\d, ]+)\)", finished.out)
    assert {name: {notes[number] for number in numbers.split(", ")} for name, numbers in rows} == {
        "gd512 sr4 none seed=0": both,
        "gd512 sr4 pixel k=2 full seed=0": both | {"an"},
        "gd512 sr4 pixel k=3 full seed=0": both | {"an"},
    }
    assert len(rows) == 3


def test_a_plan_of_nothing_that_is_applicable_exits_with_2(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    words = [*tiny, "adaptation=knn", "k=0", f"results={tmp_path}"]
    planned, run = adir("plan", *words), adir("run", *words)
    assert planned.status == run.status == 2
    assert (
        "not applicable (1)" in planned.out
        and "adaptation=knn needs neighbours, but K=0" in run.err
    )


# --- scores whose weights are not here


@pytest.fixture
def no_metric_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of this machine's user are seen."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)


def test_a_run_says_once_which_scores_will_be_empty(
    adir, tiny: list[str], tmp_path: Path, no_metric_weights: None
) -> None:
    words = ["scoring.metrics=[psnr,musiq-ava]", "scoring.strict=false", f"results={tmp_path}"]
    finished = adir("run", "-m", *tiny, *words, "task=sr4,deblur")
    assert finished.status == 0, finished.err
    assert (
        finished.out.count("warning: the records will have no musiq-ava,")
        == finished.out.count("warning:")
        == 1
    )
    assert finished.out.index("warning:") < finished.out.index("0.png")
    records = [read_json(path) for path in tmp_path.glob(RECORDS)]
    assert len(records) == 6 and all("musiq-ava" in record["unavailable"] for record in records)


def test_a_plan_says_which_scores_want_weights_and_fetches_none(
    adir, tiny: list[str], tmp_path: Path, no_metric_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("adir.weights.registry.fetch", lambda *what: fetched.append(what))
    words = [
        "scoring.metrics=[psnr,lpips-alex,musiq-ava]",
        "scoring.strict=false",
        f"results={tmp_path / 'runs'}",
    ]
    finished = adir("plan", *tiny, *words)
    assert finished.status == 0 and fetched == []
    told = " ".join(finished.out.split())
    assert "weights of lpips-alex, musiq-ava are missing; `adir run` or `adir weights get" in told
    assert "`adir weights get lpips_alex alexnet musiq_ava`" in told


def test_a_plan_counts_an_adapter_that_two_cells_share_once(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    # as in a run, an adapter is known to be shared once y and neighbours are there
    grid = ["-m", *tiny, "task=sr4,deblur", "adaptation=random", f"results={tmp_path}"]
    assert adir("run", *grid).status == 0
    for path in [*tmp_path.glob("adapters/*.safetensors"), *tmp_path.glob(RECORDS)]:
        path.unlink()
    assert "6 images to restore and 3 adapters to train" in adir("plan", *grid).out


@pytest.mark.parametrize("batch_size", ["0", "x", "1.5"])
def test_a_batch_size_that_is_none_is_refused(
    adir, tiny: list[str], tmp_path: Path, batch_size: str
) -> None:
    finished = adir("run", *tiny, f"batch_size={batch_size}", f"results={tmp_path}")
    assert finished.status == 2 and "batch_size" in finished.err
