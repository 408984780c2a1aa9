"""What is a cell, and what is not."""

import copy
import re
from typing import Any

import pytest

from adir.files import hash_of
from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.cells.identity import MODES, WITH_NEIGHBOURS, cell_identity
from adir.retrieval import leakage as crops

PARTS: dict[str, Any] = {
    "backbone": {"name": "embedded", "weights_sha256": "aa", "resolution": 64},
    "task": {"name": "sr4", "version": 1, "operator": {"factor": 4}, "sigma_y": 0, "guidance_scale": 30},
    "adaptation": {
        "name": "knn",
        "adapter": {"name": "lora", "rank": 16},
        "fine_tuning": {"n_iterations": 40, "learning_rate": 3e-4},
    },
    "retrieval": {"corpus": "cc", "encoders": {"knn": "ee", "pixel": "pp"}},
    "sampler": {"name": "adir", "n_steps": 50, "guidance_scale": 30},
    "k": 20,
    "seed": 0,
    "noise_seed": 0,
}


def changed(path: str, value: Any, mode: str = "knn") -> str:
    """The hash of PARTS in a mode, with the entry at a dotted path changed."""
    parts = copy.deepcopy(PARTS)
    parts["adaptation"]["name"] = mode
    *above, last = path.split(".")
    place = parts
    for key in above:
        place = place[key]
    place[last] = value
    return cell_identity(**parts).sha256


@pytest.mark.parametrize("mode", MODES)
def test_k_counts_only_where_there_are_neighbours(mode: str) -> None:
    assert (changed("k", 5, mode) == changed("k", 20, mode)) == (mode not in WITH_NEIGHBOURS)


@pytest.mark.parametrize(
    "path, value",
    [
        ("adaptation.adapter.rank", 8),
        ("adaptation.fine_tuning.learning_rate", 1e-4),
        ("retrieval.corpus", "other"),
        ("retrieval.encoders.knn", "other"),
    ],
)
def test_adapter_and_corpus_count_only_where_they_are_used(path: str, value: Any) -> None:
    assert changed(path, value, "knn") != changed("seed", 0, "knn")
    assert changed(path, value, "none") == changed("seed", 0, "none")
    used_by_self = path.startswith("adaptation")
    assert (changed(path, value, "self") != changed("seed", 0, "self")) == used_by_self


def test_the_encoder_of_another_mode_does_not_count() -> None:
    assert changed("retrieval.encoders.pixel", "other", "knn") == changed("seed", 0, "knn")


@pytest.mark.parametrize(
    "path, value",
    [
        ("backbone.weights_sha256", "bb"),
        ("task.version", 2),
        ("task.sigma_y", 10),
        ("sampler.guidance_scale", 31),
        ("sampler.n_steps", 51),
        ("seed", 1),
        ("noise_seed", 1),
    ],
)
@pytest.mark.parametrize("mode", ["none", "knn"])
def test_what_changes_a_pixel_makes_another_cell(path: str, value: Any, mode: str) -> None:
    assert changed(path, value, mode) != changed("seed", 0, mode)


def test_seed_0_is_a_seed() -> None:
    assert cell_identity(**PARTS).axes["seed"] == 0
    assert "-s0-" in str(cell_identity(**PARTS).folder)


def test_the_folder_says_what_is_in_it() -> None:
    identity = cell_identity(**PARTS)
    assert str(identity.folder) == f"cells/embedded/sr4/knn-k20-lora-adir-s0-{identity.sha256[:10]}"
    bare = cell_identity(**{**PARTS, "adaptation": {**PARTS["adaptation"], "name": "none"}})
    assert re.fullmatch(r"cells/embedded/sr4/none-adir-s0-[0-9a-f]{10}", str(bare.folder))


def test_a_hash_is_of_the_values_and_not_of_their_order() -> None:
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": [1, 2], "a": 1}) != hash_of({"a": 1, "b": [2, 1]})
    with pytest.raises(ValueError):
        hash_of({"a": float("nan")})


# The same through conf/, where a forgotten key would hide.


def resolved(*overrides: str) -> str:
    return resolve_cell(compose(["data.only=[rocket-s2-y080-x098]", "adaptation=random", *overrides])).identity.sha256


@pytest.mark.parametrize(
    "override",
    "results=elsewhere|threads=2|backbone.device=cpu:0|scoring.metrics=[psnr]|data.only=null|oracle=true|existing=redo|"
    "retry=failed|progress=true|tracking=wandb|parquet=no.parquet".split("|"),
)
def test_what_changes_no_pixel_makes_no_other_cell(override: str) -> None:
    assert resolved(override) == resolved()


@pytest.mark.parametrize(
    "override",
    "k=21|seed=1|noise_seed=1|task=deblur|task.guidance_scale=3|sampler.n_steps=49|sampler.cap=false|sampler.clip_x0=false|"
    "adaptation=pixel|adaptation/adapter=lora|adaptation.fine_tuning.flip=false".split("|"),
)
def test_what_changes_a_pixel_makes_another_cell_through_conf(override: str) -> None:
    assert resolved(override) != resolved()


def test_modes_without_neighbours_are_one_cell_for_every_k_and_corpus(tmp_path) -> None:
    def bare(*overrides: str) -> str:
        return resolve_cell(compose(["data.only=[rocket-s2-y080-x098]", *overrides])).identity.sha256

    assert bare("k=0") == bare("k=20") == bare("retrieval=folder", f"retrieval.corpus.path={tmp_path / 'no'}")


@pytest.mark.parametrize("mode", MODES)
def test_the_rule_that_leaves_out_copies_is_part_of_the_modes_that_retrieve(mode: str, monkeypatch) -> None:
    before = changed("seed", 0, mode)
    monkeypatch.setattr(crops, "LEFT_OUT", {**crops.LEFT_OUT, "hamming": 9})
    assert (changed("seed", 0, mode) != before) == (mode in ("knn", "random"))


def test_a_method_without_randomness_is_one_cell_for_all_seeds(tmp_path) -> None:
    def cell(*overrides: str) -> Any:
        return resolve_cell(compose([f"results={tmp_path}", *overrides]))

    direct = cell("sampler=bicubic", "seed=3")
    assert direct.identity == cell("sampler=bicubic", "seed=0").identity and direct.seed == 0
    assert direct.identity != cell("sampler=adjoint", "seed=3").identity
    assert direct.identity != cell("sampler=bicubic", "noise_seed=1").identity
    assert cell("seed=3").identity != cell("seed=0").identity


# The hashes of cells that stand in results folders: whoever changes one orphans these.
@pytest.mark.parametrize(
    "mode, folder",
    [
        ("none", "none-adir-s0-dd53d8cad9"),
        ("self", "self-lora-adir-s0-78a608c5e7"),
        ("pixel", "pixel-k20-lora-adir-s0-374045ac30"),
    ],
)
def test_cells_that_have_records_keep_their_folders(mode: str, folder: str) -> None:
    parts = copy.deepcopy(PARTS)
    parts["adaptation"]["name"] = mode
    assert cell_identity(**parts).folder.name == folder
