"""Quote the settings that hold paths, so that paths may contain any characters.

Hydra would otherwise parse the paths on the command line by its own grammar.
"""

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from adir.configuration import config_dir
from adir.errors import InputError
from adir.files import storable

READ = frozenset(
    {
        "parquet",
        "index",
        "data.path",
        "data.folder",
        "data.corpus.path",
        "retrieval.corpus.path",
        "retrieval.corpus.folder",
        "retrieval.corpus.images.path",
        "retrieval.corpus.corpus.path",
        "corpus.path",
        "corpus.lists",
        "corpus.images",
        "backbone.folder",
        "encoder.folder",
        "encoder.checkpoint",
        "scoring.clip.checkpoint",
        "hydra.searchpath",
    }
)
"""All settings that name a file or folder to read. With -m, commas separate several paths."""
WRITTEN = frozenset({"results", "out"})
"""All settings that name a folder to write to, never several folders."""
LISTS = frozenset({"corpus.lists", "hydra.searchpath"})
"""Settings that accept `[PATH,PATH]`."""
NUMBER = re.compile(r"[+-]?[0-9][0-9_.eE+-]*|true|false", re.IGNORECASE)
"""Pattern of texts that Hydra parses as a number or a boolean."""


def with_paths_quoted(overrides: list[str], multirun: bool = False) -> list[str]:
    """Return command-line arguments with their paths in quotes, so that Hydra does not parse them.

    A leading `~` of a path is expanded. `null` and values in Hydra's own quotes stay unchanged.

    Args:
        overrides: arguments of the form KEY=VALUE.
        multirun: whether a comma separates several paths. If the whole value is an existing path,
            it is not split. In a list of paths, the user must quote each path that contains a
            comma.

    Raises:
        InputError: for an empty path, or a name that is not UTF-8.
    """
    return [word_with_path_quoted(word, multirun) for word in overrides]


def word_with_path_quoted(word: str, multirun: bool) -> str:
    """Return KEY=VALUE with VALUE in quotes if it is a path.

    VALUE is also quoted if it names a file of a configuration group and Hydra would parse the name
    as a number, such as 2024_11_24.
    """
    key, _, value = word.partition("=")
    setting = key.lstrip("+")
    # Names of choices are texts, also 2024_11_24, which Hydra would parse as a number.
    if value and (config_dir() / setting).is_dir():
        names = [quoted(name) if NUMBER.fullmatch(name) else name for name in value.split(",")]
        return f"{key}={','.join(names)}"
    if setting not in READ | WRITTEN or "=" not in word or is_quoted(value):
        return word
    if setting in LISTS and value.startswith("[") and value.endswith("]") and not exists(value):
        paths = [one_path(setting, path.strip()) for path in value[1:-1].split(",")]
        return f"{key}=[{','.join(paths)}]"
    several = multirun and setting in READ and not exists(value)
    paths = [one_path(setting, path) for path in (re.split(", *", value) if several else [value])]
    return f"{key}={','.join(paths)}"


def one_path(setting: str, path: str) -> str:
    """Return one path as a value in Hydra's grammar; null stays null.

    Raises InputError for an empty path, or a name that is not UTF-8.
    """
    if not path:
        raise InputError(f"{setting}= is empty: name a path, such as . for the current folder")
    if storable(path) != path:
        raise InputError(
            f"{setting}={storable(path)}: the path is not valid UTF-8, so records cannot store it; "
            f"rename it, or change to that folder and pass `{setting}=.`"
        )
    return path if path == "null" or is_quoted(path) else quoted(os.path.expanduser(path))


def exists(path: str) -> bool:
    """Return whether a file or folder exists.

    A leading `~` is expanded, and a leading `file://` is ignored.
    """
    return os.path.exists(os.path.expanduser(path.removeprefix("file://")))


def is_quoted(value: str) -> bool:
    """Return whether a value is a text in quotes of Hydra's grammar.

    If a file exists whose name includes the quotes, the result is False.
    """
    return (
        value[:1] in ("'", '"')
        and value[-1:] == value[:1]
        and parses(f"key={value}")
        and not exists(value)
    )


def parses(word: str) -> bool:
    """Return whether Hydra can parse this override."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """Return a text in quotes, so that Hydra parses exactly this text.

    Inside quotes, Hydra takes a backslash as an escape only before a quote or at the end of the
    text. The text is also escaped for OmegaConf, which processes it after Hydra.
    """
    return (
        "'"
        + re.sub(
            r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), escaped(text)
        )
        + "'"
    )


def escaped(text: str) -> str:
    """Return a text with `${` escaped, so that OmegaConf finds no interpolation in it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def from_plain(configuration: dict[str, Any]) -> DictConfig:
    """Return plain values, such as a record's configuration, as a DictConfig.

    The result has no interpolations, because every `${` is escaped.
    """
    return OmegaConf.create(literal(configuration))


def literal(value: Any) -> Any:
    """Return a copy of a value whose strings, at any depth, are escaped for OmegaConf."""
    if isinstance(value, dict):
        return {key: literal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [literal(part) for part in value]
    return escaped(value) if isinstance(value, str) else value
