"""`adir score`: other metrics for images that are already restored."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adir.files import read_json, write_json
from adir.harness.records.ledger import all_records
from adir.harness.records.record import Record


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Three restored images, scored with nothing."""
    from adir.cli import main

    folder = tmp_path_factory.mktemp("rescored")
    assert main(["run", *tiny, "scoring.metrics=[]", f"results={folder}"]) == 0
    return folder


def records(folder: Path) -> list[Record]:
    return [record for record in all_records(folder) if isinstance(record, Record)]


def test_scoring_again_adds_the_metrics_and_keeps_the_rest(
    adir, results: Path, photographs: Path
) -> None:
    before = {record.image.id: record for record in records(results)}
    assert len(before) == 3 and all(
        set(record.scores) == {"residual"} for record in before.values()
    )
    assert adir("score", results, "scoring.metrics=[psnr]").status == 0
    for record in records(results):
        image_id, value = record.image.id, record.value("psnr")
        # PSNR by hand, from the two files
        pair = [results / str(record.restored), photographs / image_id]
        x_hat, x = (np.array(Image.open(path).convert("RGB"), dtype=np.float64) for path in pair)
        assert value == pytest.approx(10 * math.log10(255**2 / np.mean((x_hat - x) ** 2)), abs=1e-4)
        old = before[image_id]
        assert record == old.model_copy(
            update={"scores": record.scores, "unavailable": record.unavailable}
        )
        assert record.scores["residual"] == old.scores["residual"]


def test_a_record_of_another_ground_truth_keeps_its_scores(adir, results: Path) -> None:
    path = min(results.glob("cells/**/records/*.json"))
    record = read_json(path)
    changed = record | {"image": record["image"] | {"sha256": "0" * 64}, "scores": {}}
    write_json(path, changed)
    finished = adir("score", results, "scoring.metrics=[psnr]")
    assert finished.status == 1 and "has changed" in finished.out
    assert read_json(path) == changed
    write_json(path, record)


def test_a_record_of_the_wrong_shape_is_named_and_left_as_it_is(adir, results: Path) -> None:
    path = min(results.glob("cells/**/records/*.json"))
    record = read_json(path)
    wrong = record | {"image": {"sha256": "0" * 64}}
    write_json(path, wrong)
    finished = adir("score", results, "scoring.metrics=[psnr]")
    assert (
        finished.status == 1
        and f"{path}: damaged record (image.id: Field required)" in finished.out
    )
    assert read_json(path) == wrong
    write_json(path, record)


def test_an_empty_folder_is_one_line_and_status_2(adir, tmp_path: Path) -> None:
    finished = adir("score", tmp_path)
    assert finished.status == 2 and "no restored images" in finished.err


# --- a command that says "scored with" has scored


@pytest.mark.parametrize(
    "metrics, empty",
    [
        ("[psnr, musiq-koniq]", {"musiq-koniq"}),
        ("[lpips-alex, psnr, lpips-vgg]", {"lpips-alex", "lpips-vgg"}),
        ("[musiq-ava]", {"musiq-ava"}),
        ("[psnr, clip-prompt]", {"clip-prompt"}),  # these images have no prompt
    ],
)
def test_a_score_that_stays_empty_is_named_with_its_reason_and_is_status_1(
    adir,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metrics: str,
    empty: set[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no weights of this machine
    finished = adir("score", results, f"scoring.metrics={metrics}", "scoring.strict=false")
    *said, last = finished.out.splitlines()
    assert finished.status == 1
    assert {line.partition(" stays empty in 3 of 3 records: ")[0] for line in said} == empty
    reason = "needs a prompt" if "clip-prompt" in empty else "HF_HUB_OFFLINE is set"
    assert all(reason in line for line in said)
    given = [name for name in metrics.strip("[]").split(", ") if name not in empty]
    assert last == f"3 records scored with {', '.join(given) or 'no metric'}"
    for record in records(results):
        assert {name for name in empty if record.value(name) is not None} == set()


def test_the_default_scores_without_network_say_which_of_them_stay_empty(
    adir, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    finished = adir("score", results, "scoring=default")
    assert (
        finished.status == 1
        and finished.out.splitlines()[-1]
        == "3 records scored with psnr, ssim, fsim, deep-lite0, piqe"
    )
    for name in ("lpips-alex", "musiq-koniq", "musiq-ava"):
        assert f"{name} stays empty in 3 of 3 records: " in finished.out


def test_an_image_that_is_gone_or_failed_is_counted(adir, results: Path) -> None:
    first, second, _ = records(results)
    image = results / str(first.restored)
    content, path = image.read_bytes(), results / str(second.path)
    image.unlink()
    was = read_json(path)
    write_json(
        path,
        was | {"status": "failed", "error": "no", "scores": {}, "restored": None, "sampler": None},
    )
    try:
        finished = adir("score", results, "scoring.metrics=[psnr]")
        assert finished.status == 1 and f"{image}: no such file" in finished.out
        assert (
            "1 failed image without scores" in finished.out
            and "1 record not scored" in finished.out
        )
        assert finished.out.splitlines()[-1] == "1 record scored with psnr"
    finally:
        image.write_bytes(content)
        write_json(path, was)
