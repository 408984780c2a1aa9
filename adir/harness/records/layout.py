"""Paths of the files in a results folder, and the file names that a submission may contain."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote

from safetensors import SafetensorError, safe_open

from adir.errors import InputError
from adir.files import LONGEST_NAME, RESULTS_MARKER, read_json, with_hash, write_json
from adir.harness.records.record import SCHEMA

KINDS = {
    "record": re.compile(r"cells/[^/]+/[^/]+/[^/]+/records/[^/]+\.json"),
    "restored": re.compile(r"cells/[^/]+/[^/]+/[^/]+/images/[^/]+\.png"),
    "y": re.compile(r"measurements/[^/]+/[^/]+\.(png|json)"),
    "plan": re.compile(r"grids/[0-9a-f]+\.json"),
    "data": re.compile(r"manifests/[^/]+\.json"),
    "shown": re.compile(r"images/[0-9a-f]{64}(-thumbnail)?\.png"),
    "losses": re.compile(r"losses/[0-9a-f]{64}\.json"),
}
"""{kind: pattern that the names of its files match}; a submission may hold no other files.

Task and backbone are folders, so their names contain no slash. `restored` is a restored image and
`data` the manifest of a data set. `shown` is a ground truth or a neighbour's thumbnail.
"""


def kind_of(name: str) -> str | None:
    """Return the kind of a file (a key of `KINDS`), or None if a submission must not contain it.

    Args:
        name: path of the file in the submission. The same paths are rejected on every operating
            system.
    """
    parts = name.split("/")
    if (
        not name.isprintable()
        or "\\" in name
        or ":" in name
        or any(part in ("", ".", "..") for part in parts)
    ):
        return None
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(name)), None)


RESERVED = re.compile(r"\.|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
"""Beginnings that a file name must not have: a dot (hidden files) and Windows device names."""


def file_name(words: str, most: int = LONGEST_NAME) -> str:
    """Return a file name without suffix for an image id or another text from a user's data.

    Two ids never share a file name, even on a file system that ignores case. A short id of
    lower-case letters, digits and `_.-~` is its own file name. All other characters are
    percent-encoded. The first character is percent-encoded too if the id begins with a dot or is a
    Windows device name, with or without a suffix (`RESERVED`). If the id has capitals, ends in a
    dot or needs more than `most` bytes, the file name ends in a hash of the id.
    """
    name = quote(words, safe="")
    if RESERVED.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name and len(name) <= most and not re.search(r"[A-Z]|\.\Z", words):
        return name
    return re.sub("%.?@", "@", with_hash(name, words, most))  # "%.?": an incomplete percent code


@dataclass(frozen=True)
class Layout:
    """Paths of the files and folders in a results folder.

    `Ledger` defines the paths inside a cell's folder, and `MeasurementStore` the paths of y.
    """

    folder: Path

    @property
    def marker(self) -> Path:
        """The file that marks a results folder, so that its images are not read as a data set."""
        return self.folder / RESULTS_MARKER

    def mark(self) -> None:
        """Write the marker file if it is missing.

        Raises InputError if the folder holds results of another schema.
        """
        if not self.is_marked():
            write_json(self.marker, {"format": "adir results", "schema": SCHEMA})

    def is_marked(self) -> bool:
        """Return whether the folder has the marker file.

        Raises InputError if the marker states another schema.
        """
        try:
            found = read_json(self.marker)
        except FileNotFoundError:
            return False
        except ValueError:
            return True  # damaged, but the file name is ours
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise InputError(
                f"{self.folder} holds results of schema {schema!r}, but this version of adir reads "
                f"and writes schema {SCHEMA}; choose another results folder, or use the version "
                "that wrote this one"
            )
        return True

    def records(self) -> Iterator[Path]:
        """Yield every record file in path order, including those in linked cell folders."""
        yield from self._files("cells/*/*/*/records/*.json")

    def _files(self, pattern: str) -> list[Path]:
        """Return the files that match a pattern, in path order and without hidden files.

        Hidden files belong to other programs; for example, macOS creates ._a.json.
        """
        depth = len(self.folder.parts)
        return sorted(
            p
            for p in self.folder.glob(pattern)
            if not any(part[0] == "." for part in p.parts[depth:])
        )

    def plans(self) -> list[Path]:
        """Return the plan files of all grids, sorted by name."""
        return self._files("grids/*.json")

    def plan(self, grid_sha256: str) -> Path:
        """Return the path of a grid's plan, which lists every requested cell and image."""
        return self.folder / "grids" / f"{grid_sha256[:16]}.json"

    def manifest(self, name: str, sha256: str) -> Path:
        """Return the path of a data set's manifest, the list of its images."""
        return self.folder / "manifests" / f"{file_name(name)}-{sha256[:10]}.json"

    @property
    def manifests(self) -> list[Path]:
        """The manifests of all data sets, sorted by name."""
        return self._files("manifests/*.json")

    @property
    def measurements(self) -> Path:
        """The folder of all measurements y.

        It has one subfolder per task version, configuration and noise seed.
        """
        return self.folder / "measurements"

    @property
    def adapters(self) -> Path:
        """The folder of trained adapters.

        A worker that trains an adapter marks it with a claim file in this folder.
        """
        return self.folder / "adapters"

    def adapter(self, key: str) -> Path:
        """Return the path of the adapter with this cache key."""
        return self.adapters / f"{key}.safetensors"

    def neighbours(self, key: str) -> Path:
        """Return the path of the JSON file with the neighbours stored under this cache key."""
        return self.folder / "neighbours" / f"{key}.json"

    @property
    def embeddings(self) -> Path:
        """The folder of embeddings of corpora that fit into memory."""
        return self.folder / "embeddings"

    def image(self, sha256: str, thumbnail: bool = False) -> Path:
        """Return the path of a ground truth, or of a neighbour's thumbnail, for the report."""
        return (
            self.folder / "images" / (f"{sha256}-thumbnail.png" if thumbnail else f"{sha256}.png")
        )

    def tracking(self, cell_name: str, what: str = "") -> Path:
        """Return the path of a CSV file that tracking=csv writes for a cell.

        `what` is the end of the file name before `.csv`, for a second file of the cell.
        """
        return self.folder / "tracking" / f"{cell_name}{what}.csv"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files of tracking=tensorboard, with one subfolder per cell."""
        return self.folder / "tensorboard"

    @property
    def wandb(self) -> Path:
        """The folder of runs of tracking=wandb."""
        return self.folder / "wandb"

    def leaderboard(self, ending: str, against: str = "none") -> Path:
        """Return the path of the leaderboard file.

        Args:
            ending: csv, md, tex or html.
            against: adaptation mode of the reference rows, which all other rows are compared with.
        """
        return (
            self.folder
            / f"leaderboard{'' if against == 'none' else f'-against-{against}'}.{ending}"
        )

    @property
    def report(self) -> Path:
        """The page written by `adir report`."""
        return self.folder / "report.html"

    @property
    def comparison(self) -> Path:
        """The image written by `adir sheet`."""
        return self.folder / "comparison.png"


def is_hash(text: Any) -> TypeGuard[str]:
    """Return whether the value is a SHA-256 in hex digits, as used in file names."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def stored_images(sha256: str | None) -> list[str]:
    """Return the two paths, in a results folder, of an image and of its thumbnail.

    The result is [] if `sha256`, which should be the image's hash, is not a hash.
    """
    return [f"images/{sha256}.png", f"images/{sha256}-thumbnail.png"] if is_hash(sha256) else []


def losses_of(results: Path, key: str) -> list[float] | None:
    """Return the loss of every training iteration of an adapter, or None if there are none.

    The losses are in the header of the adapter's own file. In a folder written by `adir merge`,
    which does not copy adapters, they are in a separate JSON file. A damaged file has no losses.
    """
    adapter = Layout(results).adapter(key)
    try:
        if adapter.exists():
            with safe_open(adapter, "np") as file:
                facts = json.loads(file.metadata()["facts"])
        else:
            facts = read_json(results / merged_losses(key))
        return [float(loss) for loss in facts["losses"]] or None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def merged_losses(key: str) -> str:
    """Return the name of the JSON file that holds an adapter's losses without its tensors."""
    return f"losses/{key}.json"
