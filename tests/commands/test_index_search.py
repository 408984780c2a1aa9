"""`adir index search`: what it prints and draws, and what it answers to a query that is none."""

import json
import re
import shutil

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from adir.commands.index_search import encoder_of
from adir.data.corpus import folder_corpus
from adir.harness.report.contact_sheet import (
    GAP,
    QUERY,
    TILE,
    TITLE,
    Found,
    contact_sheet,
    shortened,
)
from adir.images import read_image, read_pixels
from adir.retrieval.encoders.clip import ClipEncoder, random_clip
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.index.memory import Index
from adir.retrieval.index.sharded import ShardedIndex


@pytest.fixture(scope="module")
def images(neighbourhood, tmp_path_factory):
    """The six images of the small corpus, where a test may move them away."""
    return shutil.copytree(neighbourhood, tmp_path_factory.mktemp("search") / "images")


@pytest.fixture(scope="module")
def built(images, tmp_path_factory):
    """Their index under the default encoder, made by the command."""
    from adir.cli import main

    folder = tmp_path_factory.mktemp("search") / "index"
    assert (
        main(
            [
                "index",
                "build",
                "corpus=folder",
                f"corpus.path={images}",
                f"out={folder}",
                "least_side=0",
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def index(built, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(built, tmp_path / "index")


def rows(out):
    """[(rank, distance, id)] of what was printed."""
    return [
        (int(r), float(d), i)
        for r, d, i in re.findall(r"^ +(\d+) +([\d.]+)  (.+)$", out, re.MULTILINE)
    ]


def refused(result, *words):
    assert result.status == 2 and result.out == ""
    assert result.err.startswith("adir: ") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err, result.err


def test_an_image_finds_what_a_search_in_memory_finds(adir, index, images, photographs):
    query = photographs / "1.png"
    result = adir("index", "search", index, query, "--k", "4")
    corpus, encoder = folder_corpus(images), ImagenetEncoder()
    ids, distances = Index.build(corpus, encoder).search(encoder.image(read_image(query)[None]), 4)
    assert result.status == 0
    assert [i for _, _, i in rows(result.out)] == ids[0] and [
        r for r, _, _ in rows(result.out)
    ] == [1, 2, 3, 4]
    np.testing.assert_allclose([d for _, d, _ in rows(result.out)], distances[0], atol=1e-6)


def test_an_image_of_the_corpus_finds_itself_first(adir, index, images):
    result = adir("index", "search", index, images / "3.png", "--k", "1")
    ((_, distance, found),) = rows(result.out)
    assert found == "3.png" and distance < 1e-3  # float16 on disk


def test_the_contact_sheet_shows_the_query_and_the_neighbours_in_their_places(
    adir, index, images, tmp_path
):
    out = tmp_path / "sheets" / "found.png"
    result = adir("index", "search", index, images / "2.png", "--k", "6", "--out", out)
    assert f"contact sheet: {out}" in result.out
    sheet = read_pixels(out)
    blocks = (
        read_pixels(images / "2.png").repeat(QUERY // 32, 0).repeat(QUERY // 32, 1)
    )  # 32 pixels, enlarged
    assert np.array_equal(sheet[TITLE : TITLE + QUERY, GAP : GAP + QUERY], blocks)
    for rank, _, found in rows(result.out):
        left = QUERY + 3 * GAP + (rank - 1) * (TILE + GAP)
        shown = read_pixels(images / found).repeat(TILE // 32, 0).repeat(TILE // 32, 1)
        assert np.array_equal(sheet[TITLE : TITLE + TILE, left : left + TILE], shown)


def test_neighbours_whose_images_are_gone_are_still_named(adir, index, images, tmp_path):
    (images / "0.png").rename(tmp_path / "0.png")
    try:
        result = adir(
            "index", "search", index, tmp_path / "0.png", "--k", "6", "--out", tmp_path / "a.png"
        )
        assert result.status == 1 and rows(result.out)[0][2] == "0.png"
        assert (
            "the contact sheet lacks 1 image that can no longer be read from the corpus, such as 0.png"
            in result.out
        )
        images.rename(images.with_name("moved"))
        result = adir(
            "index", "search", index, tmp_path / "0.png", "--k", "6", "--out", tmp_path / "b.png"
        )
        assert (
            result.status == 1
            and len(rows(result.out)) == 6
            and "the contact sheet lacks 6 images" in result.out
        )
    finally:
        images.with_name("moved").rename(images)
        (tmp_path / "0.png").rename(images / "0.png")


@pytest.fixture(scope="module")
def clip_index(images, tmp_path_factory):
    """An index under a tiny CLIP, and the checkpoint that it was made with."""
    from adir.cli import main

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    (folder / "tiny-search.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-search.json")
    torch.save(random_clip("tiny-search", 0).network.state_dict(), folder / "tiny.pt")
    words = ["encoder=clip", "encoder.architecture=tiny-search", "encoder.tag=null"]
    words += [
        f"encoder.checkpoint={folder / 'tiny.pt'}",
        "corpus=folder",
        f"corpus.path={images}",
        "least_side=0",
    ]
    assert main(["index", "build", *words, f"out={folder / 'index'}"]) == 0
    return folder / "index", folder / "tiny.pt"


def test_words_find_what_a_search_in_memory_finds(adir, clip_index, images, tmp_path):
    folder, checkpoint = clip_index
    result = adir(
        "index",
        "search",
        folder,
        "--text",
        "a brick wall",
        "--k",
        "3",
        "--out",
        tmp_path / "words.png",
    )
    encoder = ClipEncoder("tiny-search", None, checkpoint)
    ids, _ = Index.build(folder_corpus(images), encoder).search(encoder.text(["a brick wall"]), 3)
    assert [i for _, _, i in rows(result.out)] == ids[0]
    assert (tmp_path / "words.png").is_file()


def test_an_index_whose_weights_have_moved_says_where_they_were(adir, clip_index, images):
    folder, checkpoint = clip_index
    checkpoint.rename(checkpoint.with_suffix(".away"))
    try:
        from adir.harness.cells.cell import _build_once

        _build_once.cache_clear()  # as in a new process
        refused(
            adir("index", "search", folder, images / "0.png", "--k", "1"), "tiny.pt", "encoder.json"
        )
    finally:
        checkpoint.with_suffix(".away").rename(checkpoint)


def test_an_index_by_other_weights_of_the_same_encoder_is_refused_by_name(
    adir, index, images, monkeypatch
):
    from adir.harness.cells.cell import _build_once

    made = ImagenetEncoder().weights_sha256
    monkeypatch.setattr("adir.retrieval.encoders.imagenet.SHA256", "0" * 64)
    other = ImagenetEncoder().weights_sha256
    _build_once.cache_clear()  # as in a new process
    try:
        refused(
            adir("index", "search", index, images / "0.png"),
            f"imagenet ({made[:10]})",
            f"imagenet ({other[:10]})",
        )
    finally:
        _build_once.cache_clear()


@pytest.mark.parametrize(
    "leaf",
    [
        {"_target_": "os.system", "command": "touch ran"},
        {
            "_target_": "adir.retrieval.encoders.imagenet.ImagenetEncoder",
            "device": {"_target_": "os.system", "command": "touch ran"},
        },
        ["os.system"],
    ],
    ids=["foreign", "nested", "list"],
)
def test_an_index_from_someone_else_runs_no_code(adir, index, images, tmp_path, monkeypatch, leaf):
    monkeypatch.chdir(tmp_path)
    (index / "encoder.json").write_text(json.dumps(leaf))
    refused(adir("index", "search", index, images / "0.png"), "encoder.json", "refused")
    assert not (tmp_path / "ran").exists()


def test_queries_that_are_none_are_answered_in_one_line(adir, index, images, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.png").write_bytes((images / "0.png").read_bytes()[:200])
    image = images / "0.png"
    refused(adir("index", "search", index, "--text", "a dog"), "cannot encode text", "CLIP")
    refused(adir("index", "search", index, "--text", "  "), "--text is empty")
    refused(adir("index", "search", index), "--text")
    refused(adir("index", "search", index, image, "--text", "a dog"), "either an image file or")
    refused(adir("index", "search", index, tmp_path / "none.png"), "no such file")
    refused(adir("index", "search", index, tmp_path), "no such file")
    refused(adir("index", "search", index, tmp_path / "notes.txt"), "notes.txt", "not an image")
    refused(adir("index", "search", index, tmp_path / "cut.png"), "cut.png", "damaged")
    refused(adir("index", "search", index, image, "--k", "7"), "K=7", "6")
    refused(adir("index", "search", index, image, "--k", "0"), "K=0")
    refused(adir("index", "search", index, image, "--out", tmp_path / "sheet.jpg"), "ends in .png")


def test_a_folder_that_is_no_index_or_has_lost_its_encoder_is_answered_in_one_line(
    adir, index, images, tmp_path
):
    refused(adir("index", "search", tmp_path / "nothing", images / "0.png"), "holds no index")
    (index / "encoder.json").write_text("{")
    refused(adir("index", "search", index, images / "0.png"), "encoder.json", "damaged")
    (index / "encoder.json").unlink()
    refused(adir("index", "search", index, images / "0.png"), "encoder.json", "adir index build")


def test_the_folder_remembers_paths_that_hold_from_any_working_folder(
    clip_index, tmp_path, monkeypatch
):
    folder, checkpoint = clip_index
    monkeypatch.chdir(tmp_path)
    assert json.loads((folder / "encoder.json").read_text())["checkpoint"] == str(
        checkpoint.resolve()
    )
    assert encoder_of(ShardedIndex(folder)).name == "clip-tiny-search"


def test_an_index_made_on_another_device_is_searched_on_the_processor(
    adir, clip_index, images, tmp_path
):
    from adir.commands.index_search import remember_encoder

    folder = shutil.copytree(clip_index[0], tmp_path / "index")
    expected = adir("index", "search", folder, images / "0.png", "--k", "3").out
    leaf = json.loads((folder / "encoder.json").read_text())
    assert "device" not in leaf
    remember_encoder(
        folder, OmegaConf.create(leaf | {"device": "cuda:7"})
    )  # as a build on that device does
    assert adir("index", "search", folder, images / "0.png", "--k", "3").out == expected


# --- the sheet alone


def test_a_long_id_keeps_its_end_and_fits():
    from PIL import ImageFont

    font = ImageFont.load_default(11)
    short = shortened("train/photographs/2019/summer/holidays/image_000123.jpg", TILE, font)
    assert font.getlength(short) <= TILE and short.endswith("000123.jpg") and "..." in short
    assert shortened("a\nb.png", TILE, font) == "a?b.png"


def test_images_of_any_shape_keep_their_proportions_inside_their_square():
    wide = Image.new("RGB", (40, 10), "red")
    sheet = np.array(
        contact_sheet(wide, [Found("w", 0.1, wide), Found("gone", 0.2, None)], "title", "rad")
    )
    red = (sheet == (255, 0, 0)).all(2)
    assert (
        red[:, : QUERY + 2 * GAP].sum() == QUERY * QUERY // 4
        and red[:, QUERY + 2 * GAP :].sum() == TILE * TILE // 4
    )


@pytest.mark.parametrize("count", [1, 6, 7, 50])
def test_the_sheet_is_as_high_as_its_rows(count):
    image = Image.new("RGB", (8, 8), "blue")
    sheet = np.array(
        contact_sheet("words", [Found(str(n), 0.5, image) for n in range(count)], "title", "rad")
    )
    blue = (sheet == (0, 0, 255)).all(2)
    assert blue.sum() == count * TILE * TILE and not blue[-GAP:].any() and not blue[:, -GAP:].any()
