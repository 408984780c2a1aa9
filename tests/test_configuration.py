"""Where conf/ is looked for."""

from pathlib import Path

import pytest

from adir.configuration import config_dir
from adir.errors import InputError
from adir.harness.cells.compose import compose


def test_a_checkout_uses_conf_beside_the_package(repository: Path) -> None:
    assert config_dir() == repository / "conf"


def test_an_installed_package_uses_its_own_conf_and_not_a_stranger_beside_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "conf" / "task").mkdir(parents=True)  # another package's, in the same site-packages
    (tmp_path / "adir" / "conf" / "task").mkdir(parents=True)
    assert config_dir(tmp_path / "adir") == tmp_path / "adir" / "conf"


def test_missing_configuration_is_one_line_that_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()  # a folder of that name without the axis `task` is not ours
    with pytest.raises(InputError) as raised:
        config_dir(tmp_path / "adir")
    message = str(raised.value)
    assert (
        str(tmp_path / "conf") in message
        and str(tmp_path / "adir" / "conf") in message
        and "\n" not in message
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_user_s_own_file_is_read_whatever_editor_wrote_it(
    tmp_path: Path, encoding: str, end: str
) -> None:
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "k: 3", "seed: 7", ""]
    (tmp_path / "experiment/mine.yaml").write_bytes(end.join(lines).encode(encoding))
    cfg = compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
    assert (cfg.k, cfg.seed) == (3, 7)


def test_a_launcher_whose_package_is_missing_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "cluster.yaml").write_text("defaults: [submitit_absent]\n")
    with pytest.raises(InputError) as raised:
        compose([f"hydra.searchpath=[file://{tmp_path}]", "hydra/launcher=cluster"])
    assert str(raised.value).endswith("run pip install 'adir[slurm]'") and "\n" not in str(
        raised.value
    )
