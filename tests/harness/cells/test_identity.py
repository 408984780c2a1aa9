"""What is a cell, and what is not."""

import copy
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from adir.errors import InputError
from adir.files import hash_of
from adir.harness.cells import identity as module
from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.cells.identity import CellIdentity, cell_identity, described
from adir.tasks.operators import BoxBlur

MODES = ("none", "scd", "self", "knn", "pixel", "random")
WITH_CORPUS = ("knn", "pixel", "random")
HASHES = {"weights_sha256": "aa", "config_sha256": "bb"}


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """The configuration of `adaptation=knn adaptation/adapter=lora`, resolved."""
    composed = OmegaConf.to_container(
        compose(["adaptation=knn", "adaptation/adapter=lora"]), resolve=True
    )
    assert isinstance(composed, dict)
    return composed


def identity(
    full: dict[str, Any],
    mode: str = "knn",
    path: str = "seed",
    value: Any = 0,
    encoder: str = "ee",
    corpus: str = "cc",
) -> CellIdentity:
    """The identity in a mode, with the entry at a dotted path changed."""
    parts = copy.deepcopy(full)
    leaf = compose([f"adaptation={mode}"]).adaptation
    parts["adaptation"] |= {"_target_": leaf._target_, "name": mode}
    *above, last = path.split(".")
    place = parts
    for key in above:
        place = place[key]
    place[last] = value
    built = instantiate(parts["adaptation"], _convert_="all")
    backbone = HASHES | ({"weights_sha256": value} if path == "weights" else {})
    with_corpus = built.encoder is not None
    return cell_identity(
        parts,
        built,
        backbone=backbone,
        corpus=corpus if with_corpus else None,
        encoder=encoder if with_corpus else None,
        seed=parts["seed"],
    )


@pytest.mark.parametrize("mode", MODES)
def test_k_counts_only_where_there_is_a_corpus(full: dict[str, Any], mode: str) -> None:
    assert (identity(full, mode, "k", 5).sha256 == identity(full, mode, "k", 20).sha256) == (
        mode not in WITH_CORPUS
    )


@pytest.mark.parametrize(
    "path, value, unused",
    [
        ("adaptation.adapter.rank", 8, ["none"]),
        (
            "adaptation.fine_tuning.learning_rate",
            1e-3,
            ["none", "scd"],
        ),  # scd tunes while it samples
    ],
)
def test_adapter_and_fine_tuning_count_only_where_something_is_trained(
    full: dict[str, Any], path: str, value: Any, unused: list[str]
) -> None:
    for mode in MODES:
        assert (identity(full, mode, path, value) == identity(full, mode)) == (mode in unused)


def test_a_mode_that_tunes_while_it_samples_counts_with_its_settings_and_shows_its_adapter(
    full: dict[str, Any],
) -> None:
    plain = identity(full, "scd")
    assert identity(full, "scd", "adaptation.every", 10).sha256 != plain.sha256
    assert identity(full, "scd", "adaptation.every", 20).sha256 == plain.sha256  # the default, said
    assert (plain.axes.adaptation, plain.axes.adapter, plain.axes.k) == ("scd", "lora", None)


def test_a_corpus_that_withholds_images_is_another_cell_only_where_a_corpus_is_used(
    tmp_path: Path,
) -> None:
    for mode in (*WITH_CORPUS, "self"):
        words = [f"adaptation={mode}", "data=domains", "retrieval=domains", f"results={tmp_path}"]
        all_of_it, control = (
            resolve_cell(compose([*words, f"retrieval.corpus.own_photograph={own}"])).identity
            for own in (True, False)
        )
        assert (all_of_it.sha256 == control.sha256) == (mode == "self")
        assert "withholds" not in all_of_it.configuration.get(
            "retrieval", {}
        )  # as before there was such a corpus


@pytest.mark.parametrize("what", ["corpus", "encoder"])
def test_corpus_and_encoder_count_only_where_they_are_used(full: dict[str, Any], what: str) -> None:
    for mode in MODES:
        assert (identity(full, mode, **{what: "other"}) == identity(full, mode)) == (
            mode not in WITH_CORPUS
        )


@pytest.mark.parametrize(
    "path, value",
    [
        ("weights", "other"),
        ("task.version", 2),
        ("task.sigma_y", 10),
        ("task.operator.factor", 2),
        ("sampler.guidance_scale", 31),
        ("sampler.n_steps", 51),
        ("seed", 1),
        ("noise_seed", 1),
    ],
)
@pytest.mark.parametrize("mode", ["none", "knn"])
def test_what_changes_a_pixel_makes_another_cell(
    full: dict[str, Any], path: str, value: Any, mode: str
) -> None:
    assert identity(full, mode, path, value) != identity(full, mode)


def test_seed_0_is_a_seed(full: dict[str, Any]) -> None:
    assert identity(full).axes.seed == 0
    assert "-s0-" in str(identity(full).folder)


def test_the_folder_says_what_is_in_it(full: dict[str, Any]) -> None:
    found = identity(full)
    assert str(found.folder) == f"cells/embedded/sr4/knn-k20-lora-adir-s0-{found.sha256[:10]}"
    assert re.fullmatch(
        r"cells/embedded/sr4/none-adir-s0-[0-9a-f]{10}", str(identity(full, "none").folder)
    )


def test_a_hash_is_of_the_values_and_not_of_their_order() -> None:
    assert (
        hash_of({"a": 1, "b": [1, 2]})
        == hash_of({"b": [1, 2], "a": 1})
        != hash_of({"a": 1, "b": [2, 1]})
    )
    with pytest.raises(ValueError):
        hash_of({"a": float("nan")})


# Names and versions in place of Python paths.


def strings(value: Any) -> list[str]:
    """Every key and every text of a nested value."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in [key, *strings(inner)]]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_no_python_path_is_part_of_an_identity(full: dict[str, Any]) -> None:
    for mode in MODES:
        texts = strings(identity(full, mode).configuration)
        assert not [text for text in texts if "_target_" in text or "adir." in text]


def test_every_part_has_a_name_and_a_version(full: dict[str, Any]) -> None:
    found = identity(full).configuration
    parts = [found[name] for name in ("backbone", "task", "sampler", "adaptation")]
    parts += [
        found["task"]["operator"],
        found["adaptation"]["adapter"],
        found["adaptation"]["fine_tuning"],
    ]
    assert all(isinstance(part["name"], str) and isinstance(part["version"], int) for part in parts)


def test_moving_a_class_changes_no_identity(
    full: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = ModuleType("elsewhere")
    elsewhere.BoxBlur = BoxBlur  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    here = described("operator", {"_target_": "adir.tasks.operators.BoxBlur", "size": 5})
    assert described("operator", {"_target_": "elsewhere.BoxBlur", "size": 5}) == here
    assert here["size"] == 5 and here["name"] == "box_blur"


def test_a_default_that_is_spelt_out_makes_no_other_cell() -> None:
    leaf = {"_target_": "adir.tasks.operators.SuperResolution", "factor": 4}
    assert described("operator", leaf | {"centre": None}) == described("operator", leaf)


@dataclass(frozen=True)
class Nameless:
    """An operator that forgot to say who it is."""

    size: int = 5


@dataclass(frozen=True)
class Impostor:
    """Another operator of the same settings, under the name of one of ours."""

    name: ClassVar[str] = "box_blur"
    version: ClassVar[int] = 1
    size: int = 5


@dataclass(frozen=True)
class Mine(Impostor):
    """One under a name of its own."""

    name: ClassVar[str] = "mine"


@dataclass(frozen=True)
class AlsoMine(Impostor):
    """And one that takes that name too."""

    name: ClassVar[str] = "mine"


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with the operators above; its name."""
    found = ModuleType("operators_of_a_user")
    for cls in (Nameless, Impostor, Mine, AlsoMine):
        setattr(found, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setattr(module, "_named", {})
    return found.__name__


def test_a_class_without_a_name_is_refused(operators: str) -> None:
    with pytest.raises(InputError, match=r"operator operators_of_a_user\.Nameless has no name"):
        described("operator", {"_target_": f"{operators}.Nameless"})


def test_two_classes_under_one_name_raise(operators: str) -> None:
    with pytest.raises(
        InputError,
        match=r"'box_blur', but adir\.tasks\.operators\.blurs\.BoxBlur already has this name",
    ):
        described("operator", {"_target_": f"{operators}.Impostor"})
    assert described("operator", {"_target_": f"{operators}.Mine"})["name"] == "mine"
    assert described("operator", {"_target_": f"{operators}.Mine"})["name"] == "mine"
    with pytest.raises(InputError, match=r"'mine', but .*Mine already has this name"):
        described("operator", {"_target_": f"{operators}.AlsoMine"})


# The same through conf/, where a forgotten key would hide.


def resolved(*overrides: str) -> str:
    return resolve_cell(
        compose(["data.only=[rocket-s2-y080-x098]", "adaptation=random", *overrides])
    ).identity.sha256


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
        return resolve_cell(
            compose(["data.only=[rocket-s2-y080-x098]", *overrides])
        ).identity.sha256

    assert (
        bare("k=0")
        == bare("k=20")
        == bare("retrieval=folder", f"retrieval.corpus.path={tmp_path / 'no'}")
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_rule_that_leaves_out_copies_is_part_of_the_modes_that_retrieve(
    full: dict[str, Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity(full, mode)
    monkeypatch.setattr(module, "COPY_RULE", {**module.COPY_RULE, "detail": 0.5})
    assert (identity(full, mode) != before) == (mode in WITH_CORPUS)


def test_a_method_without_randomness_is_one_cell_for_all_seeds(tmp_path) -> None:
    def cell(*overrides: str) -> Any:
        return resolve_cell(compose([f"results={tmp_path}", *overrides]))

    direct = cell("sampler=bicubic", "seed=3")
    assert direct.identity == cell("sampler=bicubic", "seed=0").identity and direct.seed == 0
    assert direct.identity != cell("sampler=adjoint", "seed=3").identity
    assert direct.identity != cell("sampler=bicubic", "noise_seed=1").identity
    assert cell("seed=3").identity != cell("seed=0").identity
