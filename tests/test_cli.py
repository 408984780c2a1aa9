"""The `adir` command: its examples, every file of conf/, the same result whatever the way, and
tracking.
"""

import argparse
import importlib
import inspect
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from adir.cli import EXAMPLES, main, parser
from adir.commands.list import AXES, choices
from adir.configuration import config_dir
from adir.data.embedded import TEST_FIELDS, corpus_fields, cut
from adir.errors import InputError
from adir.files import read_json, sha256_of_file
from adir.harness.cells.cell import Cell, NotApplicable, Refused, resolve_cell
from adir.harness.cells.compose import compose, launch
from adir.harness.running.grid import check_job
from adir.weights.registry import WeightsFile

IMAGES = "cells/**/images/*.png"
REPOSITORY = Path(__file__).resolve().parent.parent


def images(folder: Path) -> dict[str, str]:
    """{cell and image: SHA-256 of the restored file}."""
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in folder.glob(IMAGES)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The results of a small grid."""
    folder = tmp_path_factory.mktemp("reference")
    assert main(["run", "-m", *tiny, *MODES, f"results={folder}"]) == 0
    return folder


MODES = ["adaptation=none,self,knn"]


# --- the same seed gives the same images


def test_order_of_images_and_cells_changes_no_pixel(
    adir, tiny: list[str], reference: Path, photographs: Path, tmp_path: Path
) -> None:
    # The last image alone, and the modes in another order: nothing carries over from one image to
    # the next.
    alone = tmp_path / "alone"
    alone.mkdir()
    last = sorted(photographs.iterdir())[-1]
    (alone / last.name).write_bytes(last.read_bytes())
    results = tmp_path / "results"
    grid = [
        "run",
        "-m",
        *tiny,
        "adaptation=knn,self,none",
        f"data.path={alone}",
        f"results={results}",
    ]
    assert adir(*grid).status == 0
    found = images(results)
    assert len(found) == 3
    assert found == {
        path: sha256
        for path, sha256 in images(reference).items()
        if path.endswith(f"{last.name}.png")
    }


def test_embedded_fields_named_in_another_order_give_the_same_images(adir, tmp_path: Path) -> None:
    first, second = TEST_FIELDS[0].id, TEST_FIELDS[-1].id
    run = ["run", "sampler.n_steps=1", "scoring.metrics=[]"]
    assert adir(*run, f"data.only=[{first},{second}]", f"results={tmp_path / 'a'}").status == 0
    assert adir(*run, f"data.only=[{second},{first}]", f"results={tmp_path / 'b'}").status == 0
    assert images(tmp_path / "a") == images(tmp_path / "b") and len(images(tmp_path / "a")) == 2


def test_another_seed_gives_other_images_of_the_same_y(
    adir, tiny: list[str], reference: Path, tmp_path
) -> None:
    assert adir("run", *tiny, "seed=1", f"results={tmp_path}").status == 0
    assert not set(images(tmp_path).values()) & set(images(reference).values())

    def measurements(folder: Path) -> dict[str, str]:
        return {path.name: sha256_of_file(path) for path in folder.glob("measurements/*/*.png")}

    assert measurements(tmp_path) == measurements(reference)


def test_a_finished_grid_is_left_alone_and_a_hole_in_it_is_filled_alike(
    adir, tiny: list[str], reference: Path
) -> None:
    run = ["run", "-m", *tiny, *MODES, f"results={reference}"]
    before = {
        path: path.stat().st_mtime_ns
        for path in reference.rglob("*.*")
        if path.name != "multirun.yaml"
    }
    assert "0 images done, 9 already done, 0 failed" in adir(*run).out
    assert {path: path.stat().st_mtime_ns for path in before} == before

    expected = images(reference)
    for record in sorted(reference.glob("cells/**/records/*.json"))[::3]:
        (record.parent.parent / "images" / f"{record.stem}.png").unlink()
        record.unlink()
    reported = adir(*run, "existing=report")
    assert (
        reported.status == 1
        and "3 images without a record, because existing=report runs nothing" in reported.out
    )
    assert "0 images done" in reported.out and len(images(reference)) == 6
    assert "3 images done, 6 already done, 0 failed" in adir(*run).out
    assert images(reference) == expected


def test_redo_does_all_again_to_the_same_pixels(adir, tiny: list[str], reference: Path) -> None:
    expected = images(reference)
    run = ["run", "-m", *tiny, *MODES, f"results={reference}", "existing=redo"]
    assert "9 images done, 0 already done, 0 failed" in adir(*run).out
    assert images(reference) == expected


def test_report_runs_nothing_in_an_empty_folder(adir, tiny: list[str], tmp_path: Path) -> None:
    assert (
        "0 images done, 0 already done"
        in adir("run", *tiny, "existing=report", f"results={tmp_path}").out
    )
    assert not list(tmp_path.glob("cells/**/*.*"))


def test_modes_without_neighbours_are_run_once_for_all_k(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    finished = adir("run", "-m", *tiny, "adaptation=none", "k=1,2", f"results={tmp_path}")
    assert finished.status == 0 and "1 cell (2 combinations, 1 duplicate)" in finished.out
    assert "3 images done, 0 already done, 0 failed" in finished.out


def test_an_image_that_fails_leaves_its_error_and_the_rest_go_on(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    # Without its cap and with a scale that overflows float32, the literal algorithm diverges on
    # every image.
    run = ["run", *tiny, "sampler.cap=false", "sampler.guidance_scale=1e38", f"results={tmp_path}"]
    finished = adir(*run)
    assert finished.status == 1 and "0 images done, 0 already done, 3 failed" in finished.out
    for path in tmp_path.glob("cells/**/records/*.json"):
        record = read_json(path)
        assert record["status"] == "failed" and record["scores"] == {}
        assert (
            "step" in record["error"]
            and "1e+38" in record["error"]
            and "cap=true" in record["error"]
        )
    assert not images(tmp_path)
    assert "3 failed" in (again := adir(*run)).out and again.status == 1
    assert "FAILED" not in again.out and "FAILED" in adir(*run, "retry=failed").out


def test_a_record_holds_what_is_needed_to_trust_it(reference: Path) -> None:
    record = read_json(next(reference.glob("cells/**/knn-*/records/0.png.json")))
    assert record["scores"]["psnr"]["direction"] == "higher" and record["seed"] == 0
    assert {"measure", "retrieve", "adapt", "sample", "score"} <= record["seconds"].keys()
    assert (
        len(record["neighbours"]) == 2
        and record["neighbours"][0]["distance"] <= record["neighbours"][1]["distance"]
    )
    assert (
        record["process_peak_memory_mb"] > 0
        and record["versions"]["torch"]
        and record["threads"] == 1
    )
    assert (
        len(record["y"]["sha256"]) == len(record["adapter"]["sha256"]) == len(record["cell"]) == 64
    )
    assert (
        record["identity"]["backbone"]["weights_sha256"]
        and record["configuration"]["adaptation"]["name"] == "knn"
    )
    for file in (
        record["restored"],
        record["y"]["file"],
        f"adapters/{record['adapter']['key']}.safetensors",
    ):
        assert (reference / file).is_file()


# --- tracking


def test_wandb_offline_writes_a_run_under_the_hash_of_the_cell(
    adir, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that what the tracker sets is undone
    monkeypatch.delenv("WANDB_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    finished = adir("run", *tiny, "tracking=wandb", "tracking.mode=offline", f"results={tmp_path}")
    assert finished.status == 0 and "warning" not in finished.out
    record = read_json(next(tmp_path.glob("cells/**/records/*.json")))
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert run.name.endswith(record["cell"][:32]) and list(run.glob("*.wandb"))
    (table,) = run.glob("files/media/table/*.json")
    assert json.loads(table.read_text())["columns"][:4] == ["image", "status", "restored", "psnr"]
    staged = {
        sha256_of_file(path)
        for path in (tmp_path / "wandb" / "artifacts").rglob("*")
        if path.is_file()
    }
    assert set(images(tmp_path).values()) <= staged  # what `wandb sync` sends lies with the results
    assert not (tmp_path / "home" / ".local").exists()


@pytest.mark.parametrize("failing", ["init", "log"])
def test_a_failure_of_wandb_costs_no_record(
    adir, tiny: list[str], tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Run:
        def log(self, _: object) -> None:
            raise ConnectionError("out of\nreach")

        finish = log

    def init(**_: object) -> Run:
        if failing == "init":
            raise ConnectionError("out of\nreach")
        return Run()

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(wandb, "init", init)
    finished = adir("run", *tiny, "tracking=wandb", f"results={tmp_path}")
    assert finished.status == 0 and "3 images done" in finished.out
    assert (
        finished.out.count(
            "W&B failed (ConnectionError: out of reach); the run continues without it"
        )
        == 1
    )
    assert len(list(tmp_path.glob("cells/**/records/*.json"))) == 3


def test_a_key_without_a_network_gives_a_run_offline(
    adir, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    modes = []

    class Run:
        def log(self, _: object) -> None: ...
        def finish(self) -> None: ...

    def init(*, mode: str, **_: object) -> Run:
        modes.append(mode)
        if mode == "online":
            raise ConnectionError("out of reach")
        return Run()

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(wandb, "init", init)
    finished = adir("run", *tiny, "tracking=wandb", f"results={tmp_path}")
    assert finished.status == 0 and modes == ["online", "offline"]
    assert "W&B is out of reach (out of reach); the run is stored" in finished.out


def test_a_key_is_found_in_the_environment_or_after_a_login(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adir.harness.tracking.wandb import key_for

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert key_for("https://api.wandb.ai") is None
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x")
    assert key_for("https://api.wandb.ai")


# --- every file of conf/


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file as data=parquet and retrieval=parquet take it: 3 images to test on, 25 to
    retrieve.
    """
    rows = []
    for number, field in enumerate([*TEST_FIELDS[:3], *corpus_fields()[::12][:25]]):
        buffer = io.BytesIO()
        Image.fromarray(cut(field)).save(buffer, format="png")
        split = "test" if number < 3 else "corpus"
        rows.append(
            {"image": {"bytes": buffer.getvalue()}, "split": split, "category": field.photograph}
        )
    path = tmp_path_factory.mktemp("parquet") / "images.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


FILES = [
    path.relative_to(config_dir()).with_suffix("") for path in sorted(config_dir().rglob("*.yaml"))
]
# Not composed as axes: the entries of `adir weights`, the margins of verdicts
# (tests/harness/tables/test_verdicts.py), and what experiments share, which is composed with each
# of them.
FILES = [
    file
    for file in FILES
    if file.parts[0] not in ("weights", "margins") and file.parts[:2] != ("experiment", "base")
]

# What files ask for that is not here, and how they say so.
MISSING = {
    "backbone/gd256": "gd256 needs 256x256_diffusion_uncond.pt",
    "backbone/imagenet256": "gd256 needs 256x256_diffusion_uncond.pt",
    "backbone/ffhq256": "ffhq256 needs ffhq_10m.pt",
    "backbone/diffusers": "backbone.folder is missing: set backbone.folder=...",
    "backbone/gd512": "gd512 needs 512x512_diffusion_uncond_finetune_008100.pt",
    "backbone/sd_x4": "sd_x4 needs",
    "backbone/sd_inpaint": "sd_inpaint needs",
    "backbone/sd15_inpaint": "sd15_inpaint needs",
    "encoder/clip": "open_clip_",
    "encoder/cyclip": "CLIP RN50-quickgelu: no weights are set",
    "encoder/blip": "BLIP: no folder of weights is set",
    "execution/small_gpu": "offload=true with device=cpu",
    "data/div2k": "div2k needs DIV2K_valid_HR.zip",
    "data/edit": "data.path is missing: set data.path=...",
    "retrieval/index": "set index=FOLDER",
}
EMBEDDED = [
    "backbone=embedded",
    "data=demo",
    "retrieval=embedded",
    "encoder=imagenet",
    "scoring=embedded",
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_is_composed_and_built_or_says_what_is_missing(
    file: Path, parquet: Path, photographs: Path, neighbourhood: Path, tmp_path: Path
) -> None:
    axis, value = str(file.parent), file.name
    if axis.startswith("sampler/"):
        check_tuned(axis.removeprefix("sampler/"), value)
        return
    if axis == ".":
        assert value in ("run", "index")
        assert value == "index" or resolve_cell(compose([])).mode.name == "none"
        return
    if axis == "corpus":
        assert "_target_" in compose([f"corpus={value}"], config_name="index").corpus
        return
    # The axis is asked for by its own name; neighbours need a corpus; one metric asks for weights
    # that are not here.
    overrides = ["adaptation=random"] if axis.startswith(("adaptation/", "retrieval")) else []
    overrides += ["adaptation=knn"] if axis == "encoder" else []
    overrides += ["sampler=dds"] if (axis, value) == ("adaptation", "scd") else []
    if value == "parquet":
        overrides.append(f"parquet={parquet}")
    if value == "folder":
        key, folder = (
            ("data.path", photographs)
            if axis == "data"
            else ("retrieval.corpus.path", neighbourhood)
        )
        overrides += [f"{key}={folder}", "k=2"]
    if axis == "experiment":
        check_experiment(value, overrides, parquet)
        return
    cfg = compose([f"{axis}={value}", *overrides])
    if str(file) in MISSING:
        with pytest.raises(InputError, match=re.escape(MISSING[str(file)])):
            resolve_cell(cfg)
        return
    if axis in ("sampler", "task") and value in ("sd_x4", "sd_inpaint", "edit"):
        with pytest.raises(
            NotApplicable
        ):  # they go with Stable Diffusion: tests/harness/test_latent_cells.py
            resolve_cell(cfg)
        return
    built = resolve_cell(cfg)
    if axis == "noise":
        assert (
            cfg.task.sigma_y == {"ddrm": 0.05 * 255, "dps": 0.05 * 127.5}[value]
        )  # of [0, 1], of [-1, 1]
    if axis == "tracking":
        from hydra.utils import instantiate

        instantiate(cfg.tracking)
    if axis in ("task", "adaptation", "backbone", "sampler"):
        assert getattr(built.identity.axes, axis) == value
    if axis == "adaptation/adapter":
        assert built.identity.axes.adapter == value.removesuffix(
            "_scd"
        )  # the same adapter, set otherwise


def check_tuned(folder: str, name: str) -> None:
    """A tuned sampler is the one of its name but for a setting or two, and has values for the tasks
    it was tuned on alone.
    """
    differing = set()
    for task in ("sr4", "deblur"):
        plain, tuned = (
            compose([f"task={task}", f"sampler={choice}"]).sampler
            for choice in (name, f"{folder}/{name}")
        )
        assert plain.keys() == tuned.keys()
        differing |= {key for key in plain if plain[key] != tuned[key]}
    assert 1 <= len(differing) <= 3 and not differing & {"_target_", "name", "n_steps"}
    cfg = compose(["task=deblur", f"sampler={folder}/{name}"])
    found = check_job(cfg)
    assert isinstance(found, Cell) and found.identity.axes.sampler == name
    if "for_task" in (config_dir() / "sampler" / folder / f"{name}.yaml").read_text():
        other = check_job(compose(["task=sr8", f"sampler={folder}/{name}"]))
        assert "no value is tuned for task=sr8, only for task=sr4, deblur" in str(other)


def check_experiment(name: str, overrides: list[str], parquet: Path) -> None:
    """An embedded experiment resolves; one of the paper says which weights are missing, and
    resolves with ours.
    """
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text()
    overrides = [*overrides, f"parquet={parquet}"] if "parquet" in text else overrides
    words = [f"experiment={name}", *overrides, "hydra/launcher=basic"]
    assert f"adir run -m experiment={name}" in text, "its first lines say how to run it"
    if name.startswith("paper_"):
        words += ["backbone.device=cpu", "scoring.device=cpu"]
        found = launch(check_job, words, multirun=True)
        assert len(found) > 1 and all(isinstance(one, InputError) for one in found)
        assert all(re.search(r" needs |is missing", str(one)) for one in found), found
        if name.endswith(("_sd", "_editing")):
            return  # tests/harness/test_latent_cells.py has small networks of that kind
        words += [*EMBEDDED, *(["~data.size"] if "\n  size:" in text else [])]
        words += [
            "sampler.n_steps=50",
            "sampler.variance=small",
            "adaptation.fine_tuning.crop_size=48",
        ]
    found = launch(check_job, words, multirun=True)
    assert len(found) > 1 and not any(
        isinstance(one, Refused) and one.applicable for one in found
    ), found


def documented() -> list[list[str]]:
    """The cells of docs/reproducing.md that name a backbone, as words."""
    lines = (REPOSITORY / "docs" / "reproducing.md").read_text().splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("adir run backbone=")]


@pytest.mark.parametrize("words", documented(), ids=lambda words: words[0])
def test_the_documented_cell_of_each_backbone_lacks_nothing_but_what_is_to_be_fetched(
    words: list[str],
) -> None:
    words = [word.replace("=cuda", "=cpu") for word in words]
    (found,) = launch(check_job, words, multirun=False)
    assert found.applicable
    wanted = {
        re.match(r"(gd512|sd_x4|sd_inpaint|div2k|FOLDER|INDEX|CLIP)", reason)[0]
        for reason in found.reasons
    }
    backbone = words[0].partition("=")[2]
    assert wanted == {backbone, "FOLDER" if backbone == "sd_inpaint" else "div2k", "INDEX", "CLIP"}
    crop = {"gd512": 256, "sd_x4": 256, "sd_inpaint": 512}[
        backbone
    ]  # its stride may be larger than an embedded crop
    assert compose(words).adaptation.fine_tuning.crop_size == crop


def test_the_list_of_axes_is_that_of_conf_and_each_choice_has_a_line(adir) -> None:
    folders = {str(file.parent) for file in FILES} - {"."}
    assert set(AXES) == folders - {
        "hydra/launcher",
        "sampler/tuned",
        "sampler/tuned_100",
    }  # a way to run, and choices of the axis sampler
    out = adir("list").out
    for axis in AXES:
        for value, text in choices(axis).items():
            assert text, f"conf/{axis}/{value}.yaml has no comment that says what it is"
            assert re.search(rf"^  {re.escape(value)} +{re.escape(text)}$", out, re.MULTILINE)


# --- help and examples


def examples() -> list[list[str]]:
    """The commands of `adir --help`, as words."""
    lines = [line.split("  ")[1] for line in EXAMPLES.splitlines() if line.startswith("  adir")]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("example", examples(), ids=" ".join)
def test_the_examples_of_the_help_do_what_they_say(
    adir, example: list[str], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "sampler.n_steps=1",
        "adaptation.fine_tuning.n_iterations=1",
        "adaptation.fine_tuning.batch_size=1",
    ]
    if example[0] == "run":
        multirun = "-m" in example
        overrides = [word for word in example[1:] if word != "-m"] + [f"results={tmp_path}"]
        plain = ["hydra/launcher=basic"] if multirun else []
        cells = launch(check_job, [*overrides, *plain], multirun)
        assert (
            len({cell.identity.folder for cell in cells})
            == {"task=sr4": 1, "task=sr4,deblur": 6, "experiment=demo": 3}[overrides[0]]
        )
    elif example[0] == "restore":
        Image.fromarray(cut(TEST_FIELDS[0])[::8, ::8].copy()).save("photo.png")
        assert adir(*example, *small).status == 0
        assert (tmp_path / "restored" / "photo-sr4-none.png").is_file()
    elif example[-1] == "runs":
        shutil.copytree(reference, tmp_path / "runs")
        finished = adir(*example)
        assert (
            finished.status == 0
            and {"leaderboard": "psnr", "report": "report.html", "table": "paper_v2_table1"}[
                example[0]
            ]
            in finished.out
        )
    else:
        assert adir(*example).status == 0


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["restore", "--help"], ["--version"]]
)
def test_help_is_on_stdout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr()
    assert stop.value.code == 0 and printed.out and not printed.err


def test_doctor_says_what_is_there_and_downloads_nothing(
    adir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(file: WeightsFile) -> None:
        pytest.fail(f"{file.name} would be downloaded")

    monkeypatch.setattr(WeightsFile, "fetch", fetch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    finished = adir("doctor")
    assert (
        finished.status == 0 and "embedded corpus" in finished.out and "MISSING" not in finished.out
    )
    assert "adir weights get musiq_koniq" in finished.out


def test_the_sheet_shows_a_row_per_image_and_a_column_per_mode(
    adir, reference: Path, tmp_path: Path
) -> None:
    assert adir("sheet", reference, "--out", tmp_path / "sheet.png").status == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        # ground truth, y, none, self, knn; three images and a line of titles.
        assert sheet.width == 5 * 256 and sheet.height == 26 + 3 * (256 + 26)


def test_progress_is_silent_in_a_log(adir, tiny: list[str], tmp_path: Path) -> None:
    finished = adir("run", *tiny, "adaptation=self", f"results={tmp_path}")
    # Three images, the size of the crops of each, what the adapter is, the end.
    assert finished.err == "" and len(finished.out.splitlines()) == 3 + 3 + 1 + 1


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands, those of `index` its actions'."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for one in action.choices.values():
            yield from commands_of(one)
    if not below:
        yield parser


def test_a_commands_parameters_are_the_words_that_can_be_typed() -> None:
    for command in commands_of(parser()):
        name = command.get_default("command") or command.prog.split()[-1]
        words = {action.dest for action in command._actions} - {"help"}
        main = importlib.import_module(f"adir.commands.{name}").main
        assert set(inspect.signature(main).parameters) == words, name
