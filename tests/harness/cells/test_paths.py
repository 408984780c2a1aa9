"""Paths on the command line: any of them arrives as it was typed, and every setting of conf/ that
is one is known.
"""

import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object
from hypothesis import assume, example, given, strategies as st
from omegaconf import DictConfig

from adir.configuration import config_dir
from adir.errors import InputError
from adir.harness.cells.cell import build, resolved
from adir.harness.cells.compose import compose, is_override, launch
from adir.harness.cells.paths import READ, WRITTEN, from_plain, with_paths_quoted

ODD = [
    "2024_11_24",
    "1e5",
    "true",
    "0x1F",
    "Größe",
    "夏休み",
    "photos (2019), final",
    "lr=0.1",
    "[a]",
    "{a: b}",
    "50%",
    "it's",
    'say "x"',
    "-m",
    " two  spaces ",
    "${oc.env:HOME}",
    "\\${x}\\",
    "C:\\data\\2019",
    "a#b;c&d|e*?",
    "line\nbreak",
    "Null",
]
"""Names that Hydra, YAML or OmegaConf read as something else."""


def path_settings(node: Any, at: tuple[str, ...]) -> Iterator[str]:
    """The dotted keys below a node of conf/ that its classes' constructors annotate as paths, said
    or not.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            parameters = inspect.signature(get_object(node["_target_"])).parameters
            yield from (
                ".".join((*at, name))
                for name, found in parameters.items()
                if "Path" in str(found.annotation)
            )
        for key, value in node.items():
            yield from path_settings(value, (*at, key))


def test_every_setting_of_conf_that_is_a_path_is_listed() -> None:
    found, files = set(), sorted(config_dir().glob("*/**/*.yaml"))
    for file in files:
        axis = file.relative_to(config_dir()).parent.parts
        if axis[0] not in ("experiment", "sweep", "weights", "hydra"):
            found |= set(path_settings(yaml.safe_load(file.read_text()), axis))
    tops = "".join((config_dir() / f"{name}.yaml").read_text() for name in ("run", "index"))
    found |= set(re.findall(r"^(\w+): .*# (?:the )?(?:file|folder) ", tops, re.MULTILINE))
    assert {"data.path", "parquet", "results", "out"} <= found, (
        "the search finds what is known to be there"
    )
    assert found - (READ | WRITTEN) == set()


@given(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
    )
)
@example("${data.path}")
@example("\\\\${")
@example("'")
@example("a\\")
def test_any_path_survives_the_command_line(path: str) -> None:
    assume(path not in ("null", "???") and not (path[0] == path[-1] and path[0] in "'\""))
    words = [
        "data=folder",
        f"data.path={path}",
        "retrieval=parquet",
        f"parquet={path}",
        f"results={path}",
    ]
    made = [
        f"{part}._target_=builtins.dict"
        for part in ("data", "retrieval.corpus", "retrieval.corpus.corpus")
    ]
    cfg = compose([*words, *made])
    full, expanded = resolved(cfg), os.path.expanduser(path)
    assert [full["data"]["path"], full["parquet"], full["results"]] == [expanded] * 3
    assert full["retrieval"]["corpus"]["corpus"]["path"] == expanded  # through ${parquet}
    assert build(cfg.data, "data") == {"path": expanded}
    assert build(cfg.retrieval.corpus, "retrieval.corpus")["corpus"]["path"] == expanded
    assert resolved(from_plain(full)) == full  # as a record gives it back


def paths_of(cfg: DictConfig) -> tuple[str, str]:
    return cfg.data.path, cfg.results


def test_paths_survive_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = [name for name in ODD if "," not in name and name[0] != " "]
    results = "a${b}, c"
    found = launch(
        paths_of, ["data=folder", f"data.path={','.join(odd)}", f"results={results}"], multirun=True
    )
    assert found == [(name, results) for name in odd]


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_one_value_outside_of_a_grid(name: str) -> None:
    assert paths_of(compose(["data=folder", f"data.path={name},{name}", f"results={name}"])) == (
        f"{name},{name}",
        name,
    )


def test_a_comma_separates_unless_a_path_has_this_very_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("a,b").mkdir()

    def said(value: str, key: str = "data.path", multirun: bool = True) -> str:
        return with_paths_quoted([f"{key}={value}"], multirun)[0].removeprefix(f"{key}=")

    assert said("a,b") == "'a,b'"
    assert said("c,x, y") == "'c','x','y'"  # spaces after a comma are Hydra's habit
    assert said("a,b,c") == "'a','b','c'" and said("'a,b','c'") == "'a,b','c'"
    assert said("~/c,~/x") == f"'{tmp_path}/c','{tmp_path}/x'"
    assert said("null,c") == "null,'c'"
    assert said("c,x", multirun=False) == "'c,x'"
    assert said("c,x", key="results") == "'c,x'"  # a grid has one results folder
    assert said("c,x", key="seed") == "c,x"


@pytest.mark.parametrize("value", ["null", "'a,b'", '"a b"', "'a','b'"])
def test_null_and_what_hydra_quotes_stay(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_paths_quoted(
        [f"parquet={value}", f"+parquet={value}", f"~parquet={value}"], multirun=True
    ) == [f"{sign}parquet={value}" for sign in ("", "+", "~")]
    if value != "null":
        monkeypatch.chdir(tmp_path)
        Path(value).mkdir()
        assert compose([f"parquet={value}"]).parquet == value  # a folder of this very name is there


def test_lists_of_paths_are_lists_unless_one_path_has_this_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def lists(value: str) -> object:
        return compose(
            ["corpus=open_images", f"corpus.lists={value}"], config_name="index"
        ).corpus.lists

    assert lists("[Größe/a b.csv,2019, (1).csv]") == ["Größe/a b.csv", "2019", "(1).csv"]
    Path("[a,c]").mkdir()
    assert lists("[a,c]") == "[a,c]"


def test_a_folder_of_any_name_holds_a_users_own_configuration(tmp_path: Path) -> None:
    folders = [tmp_path / "Größe (1)" / "conf", tmp_path / "two" / "conf"]
    for number, folder in enumerate(folders):
        (folder / "sampler").mkdir(parents=True)
        (folder / "sampler" / f"own{number}.yaml").write_text(
            f"_target_: builtins.dict\nname: own{number}\n"
        )
    words = f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"
    assert [compose([words, f"sampler=own{number}"]).sampler.name for number in (0, 1)] == [
        "own0",
        "own1",
    ]
    with pytest.raises(InputError, match="sampler/3"):
        compose(["sampler=3"])


@pytest.mark.parametrize("value, words", [("", "is empty"), ("a\udcff", r"a\udcff: the path")])
@pytest.mark.parametrize("key", ["data.path", "results"])
def test_a_path_that_no_setting_holds_is_refused_with_what_to_type(
    key: str, value: str, words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        compose([f"{key}={value}"])
    assert str(raised.value).isascii() and key in str(raised.value)


@pytest.mark.parametrize("value", ["Größe", "a (b)", "x'y", "(50 %"])
def test_what_hydra_cannot_read_comes_with_the_word_that_it_can(value: str) -> None:
    with pytest.raises(InputError) as raised:
        compose([f"backbone.trained_on={value}"])
    _, _, remedy = str(raised.value).partition(", type ")
    (word,) = shlex.split(remedy)
    assert compose([word]).backbone.trained_on == value


@pytest.mark.parametrize(
    "word, override",
    [
        ("task=sr4", True),
        ("data.path=photos/a.png", True),
        ("adaptation/adapter=lora", True),
        ("hydra/launcher=gpus", True),
        ("data@_global_.data=folder", True),
        ("+data.x=1", True),
        ("~data.size", True),
        ("photos/a.png", False),
        ("./task=sr4.png", False),
        ("~/task=sr4.png", False),
        ("/data=x.png", False),
        ("task", False),
    ],
)
def test_a_word_is_an_override_where_it_has_a_key(word: str, override: bool) -> None:
    assert is_override(word) == override
