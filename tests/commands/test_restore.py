"""`adir restore` of images as phones, cameras and editors save them, and of folders that hold its
own.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adir import cli
from adir.commands.restore import SAMPLERS
from adir.files import RESULTS_MARKER, read_json
from adir.images import read_pixels

PIXELS = np.array(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)).resize((32, 24))
)


def restored(adir, out: Path, *images: Path) -> list[np.ndarray]:
    """What `adir restore` makes of them, by the sampler that needs no network."""
    done = adir("restore", *images, "task=sr4", "sampler=bicubic", "--out", out)
    assert done.status == 0, done.err
    return [read_pixels(out / f"{image.stem}-sr4-none.png") for image in images]


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation, turns", [(6, -1), (8, 1), (3, 2)])
def test_a_phone_s_photograph_comes_out_upright(
    adir, tmp_path: Path, orientation: int, turns: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(PIXELS)
    phone = saved(tmp_path / "phone.jpg", image, exif=exif, quality=95)
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=95)
    turned = saved(
        tmp_path / "turned.png",
        Image.fromarray(np.rot90(np.array(Image.open(stream)), turns).copy()),
    )
    one, other = restored(adir, tmp_path / "out", phone, turned)
    np.testing.assert_array_equal(one, other)
    assert one.shape[:2] == ((96, 128) if orientation == 3 else (128, 96))


@pytest.mark.parametrize("name, mode", [("x.png", "RGBA"), ("x.tif", "RGBA"), ("x.png", "P")])
def test_opaque_images_are_restored_as_those_without_alpha(
    adir, tmp_path: Path, name: str, mode: str
) -> None:
    image = Image.fromarray(PIXELS).quantize(8)
    plain = saved(tmp_path / "plain.png", image.convert("RGB"))
    options = {"transparency": 100} if mode == "P" else {}  # a colour that is in no pixel
    opaque = saved(
        tmp_path / name, image if mode == "P" else image.convert("RGB").convert(mode), **options
    )
    one, other = restored(adir, tmp_path / "out", plain, opaque)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name, pixels, options, task, words",
    [
        (
            "broken.png",
            PIXELS,
            {"icc_profile": b"no profile"},
            "sr4",
            "its colour profile cannot be used",
        ),
        (
            "deep.png",
            PIXELS[:, :, 0].astype(np.uint16) * 257,
            {},
            "colorization",
            "16 bits per channel are scaled to 8",
        ),
    ],
)
def test_what_was_done_to_an_image_unasked_is_said(
    adir, tmp_path: Path, name, pixels, options, task, words
) -> None:
    path = saved(tmp_path / name, Image.fromarray(pixels), **options)
    with pytest.warns(UserWarning, match=f"{path}: {words}"):
        assert (
            adir(
                "restore", path, f"task={task}", "sampler=adjoint", "--out", tmp_path / "out"
            ).status
            == 0
        )


def test_restored_images_are_not_read_again(adir, tmp_path: Path) -> None:
    saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    saved(tmp_path / "._a.png", Image.fromarray(PIXELS))
    out = tmp_path / "out"
    words = ["task=sr4", "sampler=bicubic", "--out"]
    assert adir("restore", tmp_path, *words, out).status == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a-sr4-none.json",
        "a-sr4-none.png",
        RESULTS_MARKER,
    ]
    for again in (
        adir("restore", out, *words, tmp_path / "again"),
        adir(
            "run",
            "data=folder",
            f"data.path={out}",
            "sampler=bicubic",
            f"results={tmp_path / 'runs'}",
        ),
        adir("index", "build", "corpus=folder", f"corpus.path={out}", f"out={tmp_path / 'index'}"),
    ):
        assert (
            again.status == 2
            and f"{out}: holds results of adir" in again.err
            and again.err.count("\n") == 1
        )
    refused = adir("restore", tmp_path, *words, tmp_path)
    assert refused.status == 2 and "this folder is an input too" in refused.err
    assert not (tmp_path / RESULTS_MARKER).exists()
    assert adir("restore", tmp_path / "a.png", *words, out).status == 0  # the folder itself goes on


def test_a_folder_with_a_kind_of_file_that_is_not_taken_is_refused_and_not_shortened(
    adir, tmp_path: Path
) -> None:
    saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    (tmp_path / "b.HEIC").write_bytes(b"")
    done = adir("restore", tmp_path, "task=sr4", "sampler=bicubic", "--out", tmp_path / "out")
    assert done.status == 2 and "b.HEIC: this file format is not supported" in done.err


# ---- the sampler of a user who names none, and several samples -----------------------------------

SMALL = Image.fromarray(PIXELS[:20, :20])
"""20x20 pixels: the least side that sr4 takes with its margin, and restored in a second by two
steps.
"""


def test_without_a_sampler_named_it_is_the_default(adir, tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", SMALL)
    done = adir("restore", image, "task=sr4", "sampler.n_steps=2", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    note = read_json(tmp_path / "out" / "a-sr4-none.json")
    assert note["axes"]["sampler"] == SAMPLERS[0] and "does not apply" not in done.out + done.err


def test_the_help_names_the_default_sampler_and_the_paper_s(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["restore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        f"The default sampler is {SAMPLERS[0]}" in text
        and "sampler=adir" in text
        and "--samples N" in text
    )


def test_a_named_sampler_is_used(adir, tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", SMALL)
    words = [
        "restore",
        image,
        "task=sr4",
        "sampler=adir",
        "sampler.n_steps=2",
        "--out",
        tmp_path / "out",
    ]
    assert adir(*words).status == 0
    assert read_json(tmp_path / "out" / "a-sr4-none.json")["axes"]["sampler"] == "adir"


def test_where_the_default_sampler_does_not_apply_the_next_is_used_and_said(
    adir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adir.samplers.svd.has_full_svd", lambda physics: False)
    image = saved(tmp_path / "a.png", SMALL)
    done = adir("restore", image, "task=sr4", "--out", tmp_path / "out", "sampler.n_steps=2")
    assert done.status == 0, done.err
    reason = (
        "sampler ddrm needs the singular value decomposition of A, which is unknown for task sr4"
    )
    assert f"because sampler=ddrm does not apply: {reason}\n" in done.out + done.err
    assert read_json(tmp_path / "out" / "a-sr4-none.json")["axes"]["sampler"] == "adir_clean"


def test_several_samples_give_their_mean_and_a_map_of_their_deviation(adir, tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", SMALL)
    words = ["restore", image, "task=sr4", "sampler.n_steps=2"]
    for seed in (3, 4, 5):
        assert adir(*words, f"seed={seed}", "--out", tmp_path / str(seed)).status == 0
    out = tmp_path / "out"
    done = adir(*words, "seed=3", "--samples", 3, "--out", out)
    assert done.status == 0, done.err
    singles = np.stack(
        [read_pixels(tmp_path / str(seed) / "a-sr4-none.png") for seed in (3, 4, 5)]
    ).astype(float)
    for single, seed in zip(singles, (3, 4, 5), strict=True):
        np.testing.assert_array_equal(read_pixels(out / f"a-sr4-none-sample{seed}.png"), single)
    np.testing.assert_allclose(
        read_pixels(out / "a-sr4-none.png"), singles.mean(0), rtol=0, atol=0.5001
    )
    # five grey levels per grey level of the root of the mean over channels of the unbiased
    # variance, up to white
    deviation = np.sqrt(((singles - singles.mean(0)) ** 2).sum(0).mean(2) / 2)
    assert deviation.max() > 1
    shown = read_pixels(out / "a-sr4-none-std.png")
    np.testing.assert_allclose(shown[:, :, 0], np.minimum(5 * deviation, 255), rtol=0, atol=0.5001)
    note = read_json(out / "a-sr4-none.json")
    assert [sample["sampler_seed"] for sample in note["samples"]] == [3, 4, 5]
    assert note["std"]["mean"] == pytest.approx(deviation.mean(), abs=1e-3)


def test_samples_are_made_again_where_one_of_their_files_is_gone_or_their_number_is_another(
    adir, tmp_path: Path
) -> None:
    image, out = saved(tmp_path / "a.png", SMALL), tmp_path / "out"
    words = ["restore", image, "task=sr4", "sampler.n_steps=1", "--out", out, "--samples"]
    assert adir(*words, 2).status == 0
    assert "(already done)" in adir(*words, 2).out
    gone = out / "a-sr4-none-std.png"
    gone.unlink()
    assert adir(*words, 2).status == 0 and gone.is_file()
    refused = adir(*words, 3)
    assert refused.status == 2 and "written with other settings" in refused.err
    assert adir(*words, 1).status == 2


@pytest.mark.parametrize(
    "samples, sampler, words", [(0, "ddrm", "at least 1"), (2, "bicubic", "is not random")]
)
def test_numbers_of_samples_that_make_no_sense_are_refused(
    adir, tmp_path: Path, samples, sampler, words
) -> None:
    image = saved(tmp_path / "a.png", SMALL)
    call = [
        "restore",
        image,
        "task=sr4",
        f"sampler={sampler}",
        "--samples",
        samples,
        "--out",
        tmp_path / "out",
    ]
    refused = adir(*call)
    assert refused.status == 2 and words in refused.err and refused.err.count("\n") == 1
