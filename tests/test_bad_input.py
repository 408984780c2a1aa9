"""Whatever a user brings along or asks for that cannot work: one line that says what to do, status
2, nothing lost.
"""

import contextlib
import errno
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from adir.files import sha256_of_file

Adir = Callable[..., "object"]


def contents(folder: Path) -> dict[str, str]:
    """{file below the folder: SHA-256}; Hydra's own note of a grid's command left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "multirun.yaml")
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in files}


def assert_refused(finished, *words: str) -> None:
    """Status 2, and one line on stderr that starts with `adir: ` and holds all the words."""
    assert finished.status == 2, finished
    assert finished.err.startswith("adir: ") and finished.err.count("\n") == 1, finished.err
    assert "Traceback" not in finished.err + finished.out
    for word in words:
        assert word in finished.err, f"{word!r} is missing from: {finished.err}"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """An image that restores."""
    path = tmp_path / "good.png"
    Image.fromarray(noise(16, 16, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A results folder with three finished images."""
    from adir.cli import main

    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", *tiny, f"results={folder}"]) == 0
    return folder


# --- a user's own images


def no_image(path: Path) -> None:
    path.write_text("this is text")


def float_levels(path: Path) -> None:
    Image.fromarray(noise(16, 16).astype(np.float32)).save(path, format="tiff")


def grey(path: Path) -> None:
    Image.fromarray(noise(16, 16)).save(path)


def colour(path: Path) -> None:
    Image.fromarray(noise(16, 16, 3)).save(path)


def cmyk(path: Path) -> None:
    Image.fromarray(noise(16, 16, 4), mode="CMYK").save(path, format="tiff")


def alpha(path: Path) -> None:
    Image.fromarray(noise(16, 16, 4)).save(path)


def one_pixel(path: Path) -> None:
    Image.fromarray(noise(1, 1, 3)).save(path)


def truncated(path: Path) -> None:
    colour(path)
    path.write_bytes(path.read_bytes()[:300])


def odd_size(path: Path) -> None:
    Image.fromarray(noise(37, 53, 3)).save(path)


@pytest.mark.parametrize(
    "make, task, remedy",
    [
        (no_image, "sr4", "not an image"),
        (float_levels, "sr4", "convert it to 8-bit"),
        (grey, "sr4", "convert it to RGB"),
        (colour, "colorization", "convert it to grey"),
        (cmyk, "sr4", "convert it to RGB"),
        (alpha, "deblur", "flatten it"),
        (one_pixel, "sr4", "use an image of at least"),
        (one_pixel, "deblur", "use an image of at least"),
        (truncated, "sr4", "damaged image"),
        (odd_size, "inpaint_box", "multiples of 8"),
    ],
)
def test_an_image_that_cannot_be_restored_is_named_before_any_other_is_restored(
    adir, make, task: str, remedy: str, tmp_path: Path
) -> None:
    good = tmp_path / "a_good_one.png"
    (grey if task == "colorization" else colour)(good)
    bad = tmp_path / ("bad.tif" if make is cmyk else "bad.png")
    make(bad)
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier.txt").write_text("kept")
    before = contents(tmp_path)
    assert_refused(
        adir("restore", good, bad, f"task={task}", "sampler.n_steps=2", "--out", out),
        str(bad),
        remedy,
    )
    assert contents(tmp_path) == before


def test_an_empty_folder_and_a_missing_file_are_named(adir, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(
        adir("restore", empty, "task=sr4", "--out", tmp_path / "out"),
        str(empty),
        "no images",
        ".png",
    )
    missing = tmp_path / "gone.png"
    assert_refused(
        adir("restore", missing, "--out", tmp_path / "out"), str(missing), "no such file"
    )
    assert_refused(adir("restore", "task=sr4", "--out", tmp_path / "out"), "adir restore IMAGE")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task, shape", [("sr4", (148, 212)), ("deblur", (37, 53))])
def test_an_image_of_odd_size_is_restored_once_and_not_replaced_unasked(
    adir, task: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    image, out = tmp_path / "odd.png", tmp_path / "out"
    odd_size(image)
    # 53 * 4 = 212 pixels with a margin of 16 a side are more than one tile of 128.
    call = ["restore", image, f"task={task}", "sampler.n_steps=1", "--out", out, "--tile", 128]
    assert adir(*call).status == 0
    target = out / f"odd-{task}-none.png"
    with Image.open(target) as restored:
        assert (restored.height, restored.width, restored.mode) == (*shape, "RGB")
    assert target.with_suffix(".json").is_file()

    before = contents(tmp_path)
    again = adir(*call)
    assert (again.status, contents(tmp_path)) == (0, before) and "already done" in again.out
    assert_refused(adir(*call, "seed=1"), str(target), "--overwrite")
    assert contents(tmp_path) == before
    assert adir(*call, "seed=1", "--overwrite").status == 0
    assert contents(tmp_path)[f"out/odd-{task}-none.png"] != before[f"out/odd-{task}-none.png"]


def test_a_restoration_without_its_image_is_done_again(adir, good: Path, tmp_path: Path) -> None:
    call = ["restore", good, "sampler.n_steps=1", "--out", tmp_path / "out"]
    assert adir(*call).status == 0
    (target,) = (tmp_path / "out").glob("*.png")
    content = target.read_bytes()
    target.unlink()
    again = adir(*call)
    assert again.status == 0 and "already done" not in again.out
    assert target.read_bytes() == content
    # Its note alone is not in the way of the same, but of another: it is somebody's.
    target.unlink()
    before = contents(tmp_path)
    assert_refused(adir(*call, "seed=1"), str(target.with_suffix(".json")), "--overwrite")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwriting", [False, True])
@pytest.mark.parametrize("at", ["write_json", "write_png"])
def test_a_restoration_that_was_killed_while_writing_is_done_again(
    adir, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, overwriting: bool
) -> None:
    from adir.commands import restore

    call = ["restore", good, "sampler.n_steps=1", "--out", tmp_path / "out"]
    if overwriting:
        assert adir(*call).status == 0
        call += ["seed=1", "--overwrite"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(restore, at, killed)
        adir(*call)
    if overwriting:  # the old image beside the new note is not taken for the new one
        (target,) = (tmp_path / "out").glob("*.png")
        assert_refused(adir(*call[:-1]), str(target), "--overwrite")
    finished = adir(*call)
    assert finished.status == 0 and "already done" not in finished.out
    assert "already done" in adir(*[word for word in call if word != "--overwrite"]).out


def test_a_restoration_with_other_tiles_is_another_one_and_an_image_of_one_tile_is_not(
    adir, good: Path, tmp_path: Path
) -> None:
    # 16x16 enlarged 4 times with a margin of 16 a side: 96 pixels, so tiles of 96 and of 256 are
    # one, and 64 are four.
    call = ["restore", good, "sampler.n_steps=1", "--out", tmp_path / "out", "--tile"]
    assert adir(*call, 96).status == 0
    before = contents(tmp_path)
    again = adir(*call, 256)
    assert again.status == 0 and "already done" in again.out
    assert_refused(adir(*call, 64), "good", "--overwrite")
    assert contents(tmp_path) == before
    assert adir(*call, 64, "--overwrite").status == 0 and "already done" in adir(*call, 64).out
    assert_refused(adir(*call, 96), "good", "--overwrite")


# --- out of memory, as a CPU's allocator says it


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """exhausted(n): the n-th call of the sampler from now on fails."""
    from adir.samplers.adir import ADIR

    def exhaust(n: int) -> None:
        whole, calls = ADIR.restore, []

        def restore(self: ADIR, *arguments: object) -> object:
            calls.append(1)
            if len(calls) == n:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            return whole(self, *arguments)

        monkeypatch.setattr(ADIR, "restore", restore)

    return exhaust


def test_restore_out_of_memory_names_the_tile_and_keeps_what_is_restored(
    adir, good: Path, exhausted: Callable[..., None], tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(noise(16, 24, 3)).save(other)
    exhausted(2)
    call = ["restore", good, other, "sampler=adir", "sampler.n_steps=1", "--out", tmp_path / "out"]
    words = [
        "out of memory on cpu while sampling 1 image of 128x96",
        "1 of 2 images are restored, and the next run does only the rest",
    ]
    assert_refused(adir(*call), *words, "try a smaller --tile;")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["good-sr4-none.png"]
    exhausted(1)
    assert_refused(
        adir(*call, "--tile", 96), "of 128x96 in tiles of 96", "0 of 1 images are restored"
    )
    assert "already done" in adir(*call).out


def test_plan_out_of_memory_names_the_cell(
    adir, tiny: list[str], exhausted: Callable[..., None], tmp_path: Path
) -> None:
    exhausted(1)
    finished = adir("plan", *tiny, "sampler.n_steps=3", f"results={tmp_path / 'results'}")
    assert_refused(
        finished,
        "while sampling 1 image of 32x32",
        "no cell was run, because this happened while planning sr4 none seed=0",
    )


@pytest.mark.parametrize("damage", ["no note", "damaged note", "another image"])
def test_an_image_that_is_not_of_its_note_is_not_replaced_unasked(
    adir, good: Path, tmp_path: Path, damage: str
) -> None:
    call = ["restore", good, "sampler.n_steps=1", "--out", tmp_path / "out"]
    assert adir(*call).status == 0
    (target,) = (tmp_path / "out").glob("*.png")
    note = target.with_suffix(".json")
    if damage == "no note":
        note.unlink()
    elif damage == "damaged note":
        note.write_text("{")
    else:
        colour(target)
    before = contents(tmp_path)
    assert_refused(adir(*call), str(target), "--overwrite")
    assert contents(tmp_path) == before
    assert adir(*call, "--overwrite").status == 0 and "already done" in adir(*call).out


# --- what is asked of `adir run`


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["adaptation=knn", "k=7"], ["K=7", "6 images", "lower K"]),
        (["adaptation=random", "k=7"], ["K=7", "6 images", "lower K"]),
        (["adaptation=knn", "k=0"], ["K=0", "adaptation=none"]),
        (["adaptation=knn", "k=-1"], ["K=-1", "k=1 or more"]),
        (["task=sr5"], ["sr5", "sr4", "sr8", "deblur", "colorization"]),
        (["adaptation=best"], ["best", "none", "self", "knn", "random", "pixel"]),
        (["backbone=gd999"], ["gd999", "embedded"]),
        (["adaptation/adapter=dora"], ["dora", "full", "lora"]),
        (["task.sigma_y=-3"], ["sigma_y", "-3", "not negative"]),
        (["task.guidance_scale=-1"], ["guidance_scale", "-1", "not negative"]),
        (["task.operator.factor=0"], ["factor", "0", "at least 2"]),
        (["sampler.n_steps=0"], ["n_steps", "0"]),
        (["sampler.n_steps=1001"], ["n_steps", "1001", "1000"]),
        (["sampler=dmsp", "sampler.n_steps=0"], ["n_steps=0", "at least 1"]),
        (["sampler=dps", "sampler.n_steps=2000"], ["n_steps=2000", "1000"]),
        (["sampler=diffpir", "sampler.n_steps=1"], ["n_steps=1", "at least 2"]),
        (["sampler.variance=learned"], ["variance", "small"]),
        (["sampler.variance=tiny"], ["variance", "tiny", "small"]),
        (["adaptation=self", "adaptation.fine_tuning.n_iterations=-1"], ["n_iterations", "-1"]),
        (["adaptation=self", "adaptation.fine_tuning.batch_size=0"], ["batch_size", "0"]),
        (["adaptation=self", "adaptation.fine_tuning.crop_size=4"], ["crop_size", "4"]),
        (["adaptation=self", "adaptation.fine_tuning.learning_rate=0"], ["learning_rate", "0"]),
        (
            ["adaptation=self", "adaptation/adapter=lora", "adaptation.adapter.rank=0"],
            ["rank", "0"],
        ),
        (
            ["adaptation=self", "adaptation/adapter=lora", "adaptation.adapter.layers=all_of_them"],
            ["all_of_them"],
        ),
        (["scoring.metrics=[psnr,beauty]"], ["beauty", "psnr", "ssim"]),
        (["kk=3"], ["kk"]),
        (["task.sigma=3"], ["sigma"]),
        (["seed=zero"], ["seed", "zero", "whole number"]),
        (["seed=1.5"], ["seed", "1.5", "whole number"]),
        (["k=true"], ["k=True", "whole number"]),
        (["threads=0"], ["threads=0", "at least 1"]),
        (["existing=keep"], ["existing=keep", "skip", "redo", "report"]),
        (["retry=all"], ["retry=all", "failed"]),
        (["seed=0,1"], ["seed=0,1", "--multirun"]),
        (
            ["backbone.device=cuda:99"],
            ["backbone", "cuda" if torch.cuda.is_available() else "CUDA"],
        ),
        (["task"], ["task"]),
        (["experiment=demo"], ["-m"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_request_that_cannot_run_is_refused_before_any_work(
    adir, overrides: list[str], words: list[str], tiny: list[str], finished_folder: Path
) -> None:
    before = contents(finished_folder)
    assert_refused(adir("run", *tiny, *overrides, f"results={finished_folder}"), *words)
    assert contents(finished_folder) == before


def test_one_bad_cell_of_a_grid_stops_it_before_the_first_one_runs(
    adir, tiny: list[str], finished_folder: Path
) -> None:
    before = contents(finished_folder)
    grid = [
        "run",
        "-m",
        *tiny,
        "seed=5",
        "adaptation=none,knn",
        "k=99",
        f"results={finished_folder}",
    ]
    assert_refused(adir(*grid), "K=99", "lower K")
    assert contents(finished_folder) == before


@pytest.mark.parametrize(
    "task, size, words", [("sr4", 36, "multiples of 8"), ("sr4", 34, "multiples of 4")]
)
def test_a_test_set_with_an_image_that_the_task_or_the_backbone_cannot_take_is_refused_before_any_work(
    adir, task: str, size: int, words: str, tmp_path: Path
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.fromarray(noise(32, 32, 3)).save(photographs / "a.png")
    Image.fromarray(noise(size, 32, 3)).save(photographs / "b.png")
    run = [
        "run",
        "data=folder",
        f"data.path={photographs}",
        f"task={task}",
        f"results={tmp_path / 'results'}",
    ]
    assert_refused(adir(*run), "b.png", f"32x{size}", words, "crop")
    assert not contents(tmp_path / "results")


def test_a_test_set_with_a_damaged_image_is_refused_and_not_shortened(adir, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.fromarray(noise(32, 32, 3)).save(photographs / "a.png")
    truncated(photographs / "b.png")
    run = ["run", "data=folder", f"data.path={photographs}", f"results={tmp_path / 'results'}"]
    assert_refused(adir(*run), "b.png", "damaged image")


def test_a_damaged_image_of_a_corpus_is_named_once_and_left_out(
    adir, tiny: list[str], neighbourhood: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for file in neighbourhood.iterdir():
        (corpus / file.name).write_bytes(file.read_bytes())
    truncated(corpus / "x.png")
    run = [
        "run",
        *tiny,
        "adaptation=random",
        f"retrieval.corpus.path={corpus}",
        f"results={tmp_path / 'results'}",
    ]
    finished = adir(*run)
    assert finished.status == 0 and finished.out.count("unreadable") == 1
    assert "x.png" in finished.out and "damaged image" in finished.out


def test_an_empty_and_a_missing_test_set_are_refused(adir, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    results = f"results={tmp_path / 'results'}"
    assert_refused(
        adir("run", "data=folder", f"data.path={empty}", results),
        str(empty),
        "no image files",
        ".png",
    )
    assert_refused(
        adir("run", "data=folder", f"data.path={empty}/no", results),
        f"{empty}/no",
        "no such folder",
    )
    assert_refused(adir("run", "data=folder", results), "data.path")
    assert_refused(adir("run", "data.only=[moon]", results), "moon", "astronaut")


def test_another_test_set_whose_images_have_the_same_names_is_refused(
    adir, tiny: list[str], finished_folder: Path, neighbourhood: Path
) -> None:
    # Otherwise its images would count as finished, with the scores of others.
    before = contents(finished_folder)
    run = ["run", *tiny, f"data.path={neighbourhood}", f"results={finished_folder}"]
    assert_refused(adir(*run), "0.png", "another results folder")
    assert_refused(adir(*run, "seed=3"), "0.png", "another results folder")
    assert contents(finished_folder) == before


# --- places that cannot be written to


def mounted(*command: str) -> None:
    """Mount something, or skip: it takes root and a kernel that lets a container do it."""
    done = (
        subprocess.run(["mount", *command], capture_output=True, text=True)
        if os.geteuid() == 0
        else None
    )
    if done is None or done.returncode:
        pytest.skip(
            "needs the right to mount: " + ("run as root" if done is None else done.stderr.strip())
        )


@pytest.fixture
def read_only(finished_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The finished folder where nobody, root included, can write."""
    place = tmp_path / "read-only"
    place.mkdir()
    mounted("--bind", str(finished_folder), str(place))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_results_folder_is_refused_and_still_read(
    adir, tiny: list[str], read_only: Path
) -> None:
    before = contents(read_only)
    assert_refused(
        adir("run", *tiny, "seed=1", f"results={read_only}"),
        str(read_only),
        "Read-only",
        "results=",
    )
    assert adir("leaderboard", read_only, "--no-write").status == 0
    assert_refused(adir("leaderboard", read_only), "leaderboard.csv", "--no-write")
    assert contents(read_only) == before


def test_a_file_where_the_results_folder_should_be_is_refused_and_kept(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "results"
    place.write_text("mine")
    assert_refused(adir("run", *tiny, f"results={place}"), str(place), "results=")
    image = tmp_path / "photo.png"
    colour(image)
    assert_refused(adir("restore", image, "sampler.n_steps=1", "--out", place), str(place), "--out")
    assert place.read_text() == "mine"


def test_a_folder_that_may_not_be_made_is_refused(adir, tiny: list[str]) -> None:
    assert_refused(adir("run", *tiny, "results=/proc/adir"), "/proc/adir", "results=")


@contextlib.contextmanager
def small_files(bytes_: int) -> Iterator[None]:
    """No file can grow beyond this.

    As on a full disk, write() fails, and the file system stays out of it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_survives_a_full_disk(adir, tiny: list[str], folder: Path, full, code: int) -> None:
    """The adapter of 18 MB does not fit: the run stops with one line, and what was there stays
    readable and true.
    """
    assert adir("run", *tiny, f"results={folder}").status == 0
    assert adir("leaderboard", folder).status == 0
    before = contents(folder)
    with full:
        assert_refused(
            adir("run", *tiny, "adaptation=self", f"results={folder}"),
            str(folder),
            os.strerror(code),
        )
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path.endswith(".part")]
    assert adir("leaderboard", folder, "--no-write").status == 0


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
    try:
        assert_survives_a_full_disk(
            adir, tiny, disk / "results", contextlib.nullcontext(), errno.ENOSPC
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_cannot_grow_stops_the_run_and_keeps_what_is_there(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    assert_survives_a_full_disk(
        adir, tiny, tmp_path / "results", small_files(1_000_000), errno.EFBIG
    )
    # With room again, the same command does what is missing.
    again = adir("run", *tiny, "adaptation=self", f"results={tmp_path / 'results'}")
    assert again.status == 0 and "3 images done" in again.out


# --- damaged files of ours


def test_damaged_records_adapters_and_measurements_are_named_set_aside_and_made_again(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    run = ["run", *tiny, "adaptation=self", f"results={tmp_path}"]
    assert adir(*run).status == 0 and adir("leaderboard", tmp_path).status == 0
    table, before = (tmp_path / "leaderboard.csv").read_bytes(), contents(tmp_path)

    record = sorted(tmp_path.glob("cells/**/records/*.json"))[1]
    adapter = tmp_path / "adapters" / f"{key_of(record)}.safetensors"
    measurement = next(tmp_path.glob(f"measurements/*/{record.stem}.png"))
    tensors = load_file(adapter)
    damage = {
        record: b'{"schema": 3, "sta',
        adapter: adapter.read_bytes()[:-1000],
        measurement: b"\x89PNG nothing",
    }
    for path, content in damage.items():
        path.write_bytes(content)

    finished = adir(*run)
    assert finished.status == 0 and "1 image done, 2 already done, 0 failed" in finished.out
    for path, content in damage.items():
        assert f"{path}: damaged" in finished.out and "set aside" in finished.out
        assert [aside.read_bytes() for aside in path.parent.glob(f"{path.name}.corrupt-*")] == [
            content
        ]
    after = contents(tmp_path)
    assert (
        after[str(measurement.relative_to(tmp_path))]
        == before[str(measurement.relative_to(tmp_path))]
    )
    made_anew, numbers = load_file(adapter), {k: v.tobytes() for k, v in tensors.items()}
    assert {
        k: v.tobytes() for k, v in made_anew.items()
    } == numbers  # its facts tell another training time
    assert adir("leaderboard", tmp_path).status == 0
    assert (tmp_path / "leaderboard.csv").read_bytes() == table


def key_of(record: Path) -> str:
    from adir.files import read_json

    return read_json(record)["adapter"]["key"]


def test_the_leaderboard_names_a_damaged_record_and_leaves_the_mean_missing(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    assert adir("run", "-m", *tiny, "adaptation=none,self", f"results={tmp_path}").status == 0
    record = sorted(tmp_path.glob("cells/**/none-*/records/*.json"))[0]
    record.write_bytes(b"\xff\xfe")
    for _ in range(2):  # the table leaves it in place
        finished = adir("leaderboard", tmp_path)
        assert finished.status == 1 and "skipped 1 damaged file;" in finished.out
        table = (tmp_path / "leaderboard.md").read_text()
        assert str(record) in table and re.search(
            r"\| sr4[^|]* \| Caltech-101 \| none \| – \| – \| 2/3 \| – \(n=2\) \|", table
        )
    for words in (
        ["table", "v2-table1", tmp_path],
        ["report", tmp_path],
        ["sheet", tmp_path],
        ["submit", tmp_path, "--out", tmp_path / "s"],
    ):
        finished = adir(*words)
        assert finished.status == 1, words
        assert re.search("skipped|left out", finished.out + finished.err), words
    assert record.read_bytes() == b"\xff\xfe" and not list(record.parent.glob("*.corrupt-*"))


def test_the_leaderboard_of_a_folder_without_records_is_refused(adir, tmp_path: Path) -> None:
    assert_refused(adir("leaderboard", tmp_path), str(tmp_path), "no records", "adir run")
    assert_refused(adir("leaderboard", tmp_path / "no"), str(tmp_path / "no"), "no such folder")
