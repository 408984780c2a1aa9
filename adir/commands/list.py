"""`adir list`: print the axes and their values, read from the configuration files.

An axis is a setting whose value names a configuration file, such as `task` in task=sr4.
"""

from pathlib import Path

from adir.configuration import config_dir
from adir.files import read_text

AXES = (
    "backbone",
    "execution",
    "task",
    "noise",
    "adaptation",
    "adaptation/adapter",
    "adaptation/fine_tuning",
    "retrieval",
    "encoder",
    "corpus",
    "sampler",
    "scoring",
    "data",
    "tracking",
    "experiment",
)


def choices(axis: str) -> dict[str, str]:
    """Return {value: one-line description} of an axis, such as `task`.

    The description is the first comment in the value's configuration file.
    """
    folder = config_dir() / axis
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("tuned/*.yaml"))]
    return {
        path.relative_to(folder).with_suffix("").as_posix(): description(path) for path in paths
    }


def description(path: Path) -> str:
    """Return the first comment line of a configuration file, or "" if it has no comment.

    Hydra directives (`# @...`) are ignored.
    """
    for line in read_text(path).splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
    return ""


def main() -> int:
    """Print every axis with its values and their descriptions, and return 0."""
    for axis in AXES:
        print(axis)
        values = choices(axis)
        width = max(map(len, values), default=0)
        for value, text in values.items():
            print(f"  {value:<{width}}  {text}")
    return 0
