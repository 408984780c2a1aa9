"""What `pip install` gives a user: a wheel that works away from the checkout, a light import, true
constraints.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent


def files_under(folder: Path) -> set[str]:
    """Files below `folder`, relative to its parent; without caches and hidden files."""
    paths = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if not any(p == "__pycache__" or p.startswith(".") for p in path.parts)
    }


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network by the backend of the `dev` extra."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("adir-*.whl"))


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
    ]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder


def run_installed(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in another folder, with the wheel and the dependencies on its path and the checkout
    not.

    -S: the editable installation puts the checkout on the path through a .pth file, which is then
        not read.
    """
    paths = [site, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_wheel_holds_the_package_its_embedded_files_and_conf_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    conf = {f"adir/{name}" for name in files_under(REPOSITORY / "conf")}
    assert any(name.endswith(".yaml") for name in conf)
    assert any(name.endswith(".safetensors") for name in inside)
    published = {
        f"adir/published/{path.name}" for path in (REPOSITORY / "results" / "published").iterdir()
    }
    assert published and inside == files_under(REPOSITORY / "adir") | conf | published


def test_wheel_carries_the_licence_and_the_version_of_the_package(wheel: Path) -> None:
    import adir

    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
    assert wheel.name.split("-")[1] == adir.__version__
    assert f"adir-{adir.__version__}.dist-info/licenses/LICENSE" in inside


def test_installed_wheel_finds_its_own_configuration_and_prior(site: Path, tmp_path: Path) -> None:
    code = (
        "import adir.configuration, adir.backbones.guided_diffusion as g;"
        "print(adir.configuration.config_dir()); "
        "print(g.GuidedDiffusion(folder=None).weights_sha256)"
    )
    done = run_installed(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    folder, sha256 = done.stdout.split()
    assert folder == str(site / "adir" / "conf")
    assert re.fullmatch("[0-9a-f]{64}", sha256)


@pytest.mark.parametrize("door", ["python -m adir", "adir"])
def test_installed_wheel_answers_help_and_lists_the_axes_from_any_folder(
    site: Path, tmp_path: Path, door: str
) -> None:
    command = [str(site / "bin" / "adir")] if door == "adir" else ["-m", "adir"]
    for arguments, expected in ([["--help"], "adir run"], [["list"], "sr4"]):
        done = run_installed(site, tmp_path, *command, *arguments)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    assert not list(tmp_path.iterdir()), "asking for help or the list must write nothing"


# What makes them slow to import. Python's start alone and these two take about a tenth of a second.
HEAVY = {
    "torch",
    "numpy",
    "hydra",
    "omegaconf",
    "pandas",
    "wandb",
    "diffusers",
    "pytorch_lightning",
}


@pytest.mark.parametrize(
    "arguments", [["-c", "import adir"], ["-m", "adir", "--help"]], ids=["import", "help"]
)
def test_import_and_help_wait_for_no_heavy_library(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "adir" in imported and HEAVY.isdisjoint(imported)


PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
]
CONSTRAINTS = [
    line
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def test_constraints_are_plain_and_name_no_platform() -> None:
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
        assert not re.match("nvidia|cuda|triton", line), f"{line}: exists on Linux only"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_constraints_pin_each_dependency_within_its_bounds(requirement: Requirement) -> None:
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in CONSTRAINTS)
    }
    version = pins[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), (
        f"{requirement} and {version} in constraints.txt"
    )
    assert {">=", "<"} <= {bound.operator for bound in requirement.specifier}, (
        f"{requirement} lacks a bound"
    )


@pytest.mark.parametrize("python", ["3.11.2", "3.12.0"])
def test_each_pin_can_be_installed_on_every_python_that_the_file_names(python: str) -> None:
    """3.11.2 is Debian 12's. A pin that asks for a later one stops `make` there."""
    bounds = {}
    for name, _, pinned in (line.partition("==") for line in CONSTRAINTS):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform or extra
            continue
        if found.version == pinned and (bound := found.metadata["Requires-Python"]) is not None:
            bounds[name] = SpecifierSet(bound)
    assert len(bounds) > 100
    assert [name for name, bound in bounds.items() if python not in bound] == []


def test_compromised_lightning_releases_are_excluded() -> None:
    (lightning,) = (r for r in REQUIREMENTS if r.name == "pytorch-lightning")
    assert not lightning.specifier.contains("2.6.2") and not lightning.specifier.contains("2.6.3")
    assert metadata.version("pytorch-lightning") not in ("2.6.2", "2.6.3")
