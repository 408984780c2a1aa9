"""A shard comes back as it was written, and says so when it does not."""

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from adir.errors import InputError
from adir.retrieval.index.shards import IndexedImage, Shard, write_shard


def image(name, number, **attribution):
    fingerprint = np.full((16, 16), -number, np.int8)
    return IndexedImage(
        name, f"{number:064x}", 10 * number, (number, 2 * number), fingerprint, attribution
    )


@pytest.fixture
def path(tmp_path):
    images = [
        image("z/é.png", 1),
        image("a.png", 2, licence="CC BY 2.0", author="Ümit"),
        image("b", 3),
    ]
    path = tmp_path / "0.safetensors"
    write_shard(path, images, torch.eye(3), {"bad": "no image"}, {"encoder": {"name": "e"}})
    return path


def test_a_shard_holds_what_was_written_in_the_order_of_ids(path):
    shard = Shard.open(path)
    assert shard.ids() == ["a.png", "b", "z/é.png"] and len(shard) == 3
    assert [shard.row(name) for name in ("a.png", "b", "z/é.png", "c", "", "zz")] == [
        0,
        1,
        2,
        None,
        None,
        None,
    ]
    assert torch.equal(shard.part.vectors, torch.eye(3)[[1, 2, 0]].half())
    assert shard.part.half_squares.tolist() == [0.5] * 3
    assert shard.image_sha256(2) == f"{1:064x}" and shard.columns["size"].tolist() == [
        [2, 4],
        [3, 6],
        [1, 2],
    ]
    assert (
        shard.attribution(0) == {"licence": "CC BY 2.0", "author": "Ümit"}
        and shard.attribution(1) == {}
    )
    assert shard.columns["fingerprint"][:, 0, 0].tolist() == [-2, -3, -1]
    assert shard.rejects == {"bad": "no image"} and shard.facts == {"encoder": {"name": "e"}}
    assert shard.damage() is None


def test_licences_are_counted_as_the_attributions_name_them(tmp_path):
    tricky = 'of "licence": "fake", \\ and é'
    origins = [
        {"licence": tricky},
        {"author": f'"licence": "{tricky}"'},
        {},
        {"licence": "CC0", "source": "x"},
        {"licence": "CC0"},
    ]
    images = [image(str(number), number, **origin) for number, origin in enumerate(origins)]
    write_shard(tmp_path / "0", images, torch.eye(5), {}, {})
    assert Shard.open(tmp_path / "0").licences() == {tricky: 1, "CC0": 2, "unknown": 2}


def test_other_tools_can_open_it(path):
    assert safetensors.numpy.load_file(path)["embeddings"].dtype == np.float16


def test_a_shard_without_images_can_be_opened(tmp_path):
    write_shard(tmp_path / "0", [], torch.empty(0, 4), {"bad": "no image"}, {})
    shard = Shard.open(tmp_path / "0")
    assert (
        len(shard) == 0 and shard.ids() == [] and shard.row("a") is None and shard.damage() is None
    )


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_shard_that_is_cut_short_is_named(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(InputError, match=r"0\.safetensors: .*(truncated|empty)"):
        Shard.open(path)


def test_a_changed_bit_is_found(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "checksum" in Shard.open(path).damage()


def test_whatever_is_broken_in_a_shard_is_an_error_that_names_it(path):
    draw, whole = np.random.default_rng(0), path.read_bytes()
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.integers(1, 4)):  # header and data
            content[draw.integers(len(content))] = draw.integers(256)
        path.write_bytes(content)
        try:
            shard = Shard.open(path)
            assert (
                len(shard.ids()) == len(shard.part.vectors) == len(shard)
                and shard.rejects is not None
            )
            assert shard.damage() is not None or shard.columns["embeddings"].tobytes() in whole
        except InputError as error:
            assert "0.safetensors" in str(error)
            refused += 1
    assert 50 < refused < 390


def test_a_shard_whose_columns_differ_in_length_or_whose_ids_are_no_text_is_named(path):
    whole = path.read_bytes()
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    columns = safetensors.numpy.load(whole)
    path.write_bytes(
        safetensors.numpy.save(columns | {"n_bytes": columns["n_bytes"][:2]}, metadata)
    )
    with pytest.raises(InputError, match=r"0\.safetensors: not a shard"):
        Shard.open(path)
    path.write_bytes(whole.replace("é".encode(), b"\xff\xff"))
    with pytest.raises(
        InputError, match=r"0\.safetensors: damaged data \(column ids is not UTF-8\)"
    ):
        Shard.open(path).ids()


def test_another_schema_is_refused(path, monkeypatch):
    monkeypatch.setattr("adir.retrieval.index.shards.SCHEMA", 9)
    with pytest.raises(InputError, match="schema 3, but this version of adir reads schema 9"):
        Shard.open(path)


def test_vectors_that_float16_cannot_hold_are_refused(tmp_path):
    for bad in (float("nan"), 1e6):
        with pytest.raises(ValueError, match="float16"):
            write_shard(tmp_path / "0", [image("a", 1)], torch.full((1, 3), bad), {}, {})
    assert list(tmp_path.iterdir()) == []
