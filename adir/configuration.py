"""Where the configuration files are:

`conf/` of a checkout, or its copy inside the installed package.
"""

from pathlib import Path

from adir.errors import InputError

PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path = PACKAGE) -> Path:
    """The folder `conf/`, absolute.

    An installed wheel carries it as adir/conf; a checkout (`pip install -e .`, or none) has it
    beside adir/. The copy inside the package is asked first: beside an installed package stands
    whatever else lives in site-packages, and a checkout has no adir/conf.

    Raises InputError when neither holds the axis `task`.
    """
    candidates = (package / "conf", package.parent / "conf")
    for folder in candidates:
        if (folder / "task").is_dir():
            return folder
    looked = " and ".join(map(str, candidates))
    raise InputError(
        f"no configuration files of adir (looked in {looked}): install adir again, or check "
        "conf/ out"
    )
