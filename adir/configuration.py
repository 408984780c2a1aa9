"""Location of the configuration files: `conf/` in a checkout, or its copy in the package."""

from pathlib import Path

from adir.errors import InputError

PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path = PACKAGE) -> Path:
    """Return the absolute path of the folder `conf/`.

    In an installed wheel, the folder is adir/conf. In a checkout, it is beside adir/, also after
    `pip install -e .`. adir/conf is tried first, because a folder conf beside an installed package
    may belong to another package in site-packages.

    Raises InputError if neither folder contains a subfolder `task`.
    """
    candidates = (package / "conf", package.parent / "conf")
    for folder in candidates:
        if (folder / "task").is_dir():
            return folder
    looked = " or ".join(map(str, candidates))
    raise InputError(
        f"no configuration files in {looked}; reinstall adir, or restore conf/ from git"
    )
