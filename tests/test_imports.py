"""Imports go one way (CONTRIBUTING.md draws the house), and no file names a folder of the machine
it was written on.
"""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent

LAYERS = (
    {"errors", "checks"},
    {"files", "configuration", "environment"},
    {"images", "diffusion"},
    {"tasks", "weights", "data.sources"},
    {"data", "retrieval.encoders", "scoring"},
    {"backbones", "retrieval.index"},
    {"adaptation", "retrieval", "samplers"},
    {"harness.records", "bridges"},
    {"harness.cells", "harness.tables"},
    {"harness.running", "harness.report"},
    {"harness.planning", "harness.tracking"},
    {"commands", "api"},
    {"cli"},
    {"__main__"},
)
"""The rooms of the house, lowest first.

A room may import itself and lower ones, and none of its own layer.
"""

LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((REPOSITORY / "adir").rglob("*.py"))
}


def imports(source: str) -> set[str]:
    """Dotted names that a module imports, at its top or inside a function; `from a import b` gives
    a and a.b.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


PACKAGES = {"adir", "adir.harness"}
"""Folders of rooms, which hold nothing themselves."""

IMPORTS = {module: imports(path.read_text()) for module, path in MODULES.items()}


def room(module: str) -> str:
    """The room of a module:

    `tasks` for adir.tasks.operators, `retrieval.index` for adir.retrieval.index.search.
    """
    parts = module.split(".")[1:]
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in LEVEL), parts[0])


def faults(module: str, imported: set[str]) -> list[str]:
    """Imports of `module` that do not go downwards."""
    here = room(module)
    there = {
        room(name) for name in imported if name.startswith("adir.") and room(name) in LEVEL
    } - {here}
    return sorted(r for r in there if LEVEL[r] >= LEVEL[here])


@pytest.mark.parametrize("module", [name for name in MODULES if name not in PACKAGES])
def test_module_imports_only_what_stands_below_it(module: str) -> None:
    assert room(module) in LEVEL, (
        f"{module} has no place in LAYERS: say what it may know, here and in CONTRIBUTING.md"
    )
    assert faults(module, IMPORTS[module]) == []


def test_the_rule_finds_an_upward_import() -> None:
    assert faults("adir.tasks.operators", imports("from adir.errors import InputError")) == []
    assert faults("adir.tasks.operators", imports("from adir.harness import cells")) == [
        "harness.cells"
    ]
    assert faults("adir.diffusion.guidance", imports("def f():\n    import adir.backbones.x")) == [
        "backbones"
    ]
    assert faults("adir.harness.cells.cell", imports("from adir.cli import main")) == ["cli"]


def test_there_is_no_import_cycle() -> None:
    graph = {
        module: (names & MODULES.keys()) - {module, *PACKAGES} for module, names in IMPORTS.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


BELOW_HARNESS = [
    name
    for name in MODULES
    if name not in PACKAGES and LEVEL[room(name)] < LEVEL["harness.records"]
]


@pytest.mark.parametrize("module", BELOW_HARNESS)
def test_nothing_below_the_harness_knows_hydra_or_wandb(module: str) -> None:
    packages = {name.partition(".")[0] for name in IMPORTS[module]}
    assert packages.isdisjoint({"hydra", "omegaconf", "wandb"})


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("adir.diffusion")])
def test_the_mathematics_knows_tensors_only(module: str) -> None:
    packages = {name.partition(".")[0] for name in IMPORTS[module]}
    assert packages <= {
        "torch",
        "numpy",
        "math",
        "typing",
        "collections",
        "dataclasses",
        "functools",
        "adir",
    }


def test_every_package_that_adir_imports_is_one_of_its_dependencies() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["faiss"]]
    declared = {canonicalize_name(Requirement(line).name) for line in dependencies}
    imported = {name.partition(".")[0] for names in IMPORTS.values() for name in names} - set(
        sys.stdlib_module_names
    )
    providers = metadata.packages_distributions()
    missing = []
    for package in imported - {"adir"}:
        wheels = set(map(canonicalize_name, providers.get(package, [])))
        # pyiqa's wheel also claims the name `datasets`: the wheel of that name provides it, if there is one.
        wheels = wheels & {canonicalize_name(package)} or wheels
        if not declared & wheels:
            missing.append(package)
    assert missing == []


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every text file that git holds, or would take: {path in the checkout: content}."""
    git = [
        "git",
        "-C",
        str(REPOSITORY),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("needs a git checkout, to know which files belong to it")
    binary = {".png", ".jpg", ".npz", ".npy", ".safetensors", ".parquet", ".pdf"}
    paths = [
        Path(name) for name in done.stdout.split("\0") if name and Path(name).suffix not in binary
    ]
    return {
        str(p): (REPOSITORY / p).read_text(errors="replace")
        for p in paths
        if (REPOSITORY / p).is_file()
    }


def test_no_file_names_a_folder_of_one_machine(texts: dict[str, str]) -> None:
    home = re.compile(rf"(?<![\w.])/(home|Users|root)/\w|{re.escape(str(REPOSITORY))}/")
    assert [name for name, text in texts.items() if home.search(text)] == []


def test_the_product_needs_nothing_beside_the_checkout(texts: dict[str, str]) -> None:
    product = {
        name: text for name, text in texts.items() if not name.startswith(("tests/", ".ci/"))
    }
    assert [name for name, text in product.items() if "../shared" in text] == []
