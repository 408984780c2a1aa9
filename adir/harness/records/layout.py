"""Where everything lies below a results folder, the marker that says it is one, and what a
submission may hold of it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote

from adir.errors import InputError
from adir.files import LONGEST_NAME, RESULTS_MARKER, read_json, with_hash, write_json
from adir.harness.records.record import SCHEMA

MARK = {"format": "adir results", "schema": SCHEMA}

KINDS = {
    "record": re.compile(r"cells/[^/]+/[^/]+/[^/]+/records/[^/]+\.json"),
    "restored": re.compile(r"cells/[^/]+/[^/]+/[^/]+/images/[^/]+\.png"),
    "y": re.compile(r"measurements/[^/]+/[^/]+\.(png|json)"),
    "plan": re.compile(r"grids/[0-9a-f]+\.json"),
    "data": re.compile(r"manifests/[^/]+\.json"),
    "shown": re.compile(r"images/[0-9a-f]{64}(-thumbnail)?\.png"),
    "losses": re.compile(r"losses/[0-9a-f]{64}\.json"),
}
"""What a submission may hold, by name.

Task and backbone are folders, so their names hold no slash. data: the manifest of a test set.
shown: a ground truth, or a neighbour's thumbnail.
"""


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name; None for a name that a submission may not hold, on any
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
"""How a file's name does not begin: hidden files are not ours, and the others are devices of
Windows.
"""


def file_name(words: str, most: int = LONGEST_NAME) -> str:
    """Return the name of a file or folder, without its suffix, that is made of an id or another
    name from a user's data.

    Two ids never share a name, on a file system that does not tell capitals from small letters
    either. A short id of small letters, digits and `_.-~` is its own name; other characters are
    percent-encoded. A name that has capitals, ends in a dot or would be longer than `most` bytes
    ends in a hash of the id.
    """
    name = quote(words, safe="")
    if RESERVED.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name and len(name) <= most and not re.search(r"[A-Z]|\.\Z", words):
        return name
    return re.sub("%.?@", "@", with_hash(name, words, most))  # a character that was cut in two


@dataclass(frozen=True)
class Layout:
    """The places of a results folder.

    Every path below one is made here, so that a path is written down once.
    """

    folder: Path

    @property
    def marker(self) -> Path:
        """The file that marks the folder as results, so that nobody takes its images for a data
        set.
        """
        return self.folder / RESULTS_MARKER

    def mark(self) -> None:
        """Mark the folder as results, unless it is marked.

        Raises InputError where it holds results of another schema.
        """
        if not self.is_marked():
            write_json(self.marker, MARK)

    def is_marked(self) -> bool:
        """Return whether the folder says that it holds results.

        Raises InputError where it says so of another schema.
        """
        try:
            found = read_json(self.marker)
        except FileNotFoundError:
            return False
        except ValueError:
            return True  # damaged, and ours by its name
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise InputError(
                f"{self.folder}: holds results of schema {schema!r}, this version of adir reads "
                f"and writes schema {SCHEMA}: "
                "choose another results folder, or use the version that wrote it"
            )
        return True

    def records(self) -> Iterator[Path]:
        """Yield every record file, in path order; also below links to folders of cells."""
        yield from self._files("cells/*/*/*/records/*.json")

    def _files(self, pattern: str) -> list[Path]:
        """Files in path order, without the hidden ones that other programs leave, such as macOS's
        ._a.json.
        """
        depth = len(self.folder.parts)
        return sorted(
            p
            for p in self.folder.glob(pattern)
            if not any(part[0] == "." for part in p.parts[depth:])
        )

    def plans(self) -> list[Path]:
        """Return the plans of all grids, in order of their names."""
        return self._files("grids/*.json")

    def plan(self, grid_sha256: str) -> Path:
        """Return where a grid's plan lies: every cell and image that was asked for."""
        return self.folder / "grids" / f"{grid_sha256[:16]}.json"

    def manifest(self, name: str, sha256: str) -> Path:
        """Return where the list of a data set's images lies."""
        return self.folder / "manifests" / f"{file_name(name)}-{sha256[:10]}.json"

    @property
    def manifests(self) -> list[Path]:
        """The manifests of all data sets, in order of their names."""
        return self._files("manifests/*.json")

    @property
    def measurements(self) -> Path:
        """y of every task, a folder for each version, configuration and noise seed."""
        return self.folder / "measurements"

    @property
    def adapters(self) -> Path:
        """Trained adapters, and the claims of workers that train one."""
        return self.folder / "adapters"

    def adapter(self, key: str) -> Path:
        """Return where the adapter under the hash of what made it lies."""
        return self.adapters / f"{key}.safetensors"

    def neighbours(self, key: str) -> Path:
        """Return where the neighbours under the hash of what they follow from lie."""
        return self.folder / "neighbours" / f"{key}.json"

    @property
    def embeddings(self) -> Path:
        """Embeddings of corpora that fit into memory."""
        return self.folder / "embeddings"

    def image(self, sha256: str, thumbnail: bool = False) -> Path:
        """Return where a ground truth, or a neighbour's thumbnail, is kept for the report."""
        return (
            self.folder / "images" / (f"{sha256}-thumbnail.png" if thumbnail else f"{sha256}.png")
        )

    def tracking(self, cell_name: str, what: str = "") -> Path:
        """Return the CSV file of tracking=csv for a cell."""
        return self.folder / "tracking" / f"{cell_name}{what}.csv"

    @property
    def tensorboard(self) -> Path:
        """Events of tracking=tensorboard, a folder for each cell."""
        return self.folder / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Runs of tracking=wandb."""
        return self.folder / "wandb"

    def leaderboard(self, ending: str, against: str = "none") -> Path:
        """Return the table's file: csv, md, tex or html. against: the mode whose rows the others
        are compared with.
        """
        return (
            self.folder
            / f"leaderboard{'' if against == 'none' else f'-against-{against}'}.{ending}"
        )

    @property
    def report(self) -> Path:
        """The page of `adir report`."""
        return self.folder / "report.html"

    @property
    def comparison(self) -> Path:
        """The image of `adir sheet`."""
        return self.folder / "comparison.png"


def is_hash(text: Any) -> TypeGuard[str]:
    """Whether this is a SHA-256, of which file names are made."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def stored_images(sha256: str | None) -> list[str]:
    """Where the results may keep the image with this hash (`hash_of_image`), the larger one first."""
    return [f"images/{sha256}.png", f"images/{sha256}-thumbnail.png"] if is_hash(sha256) else []


MOST_HEADER_BYTES = 100_000_000  # what the safetensors library itself allows


def losses_of(results: Path, key: str) -> list[float] | None:
    """The losses of an adapter of a results folder: beside its tensors, or as `adir merge` brings
    them, which leaves the tensors where they are.
    """
    losses = read_losses(results / "adapters" / f"{key}.safetensors")
    if losses is None:
        try:
            losses = [
                float(loss) for loss in read_json(results / merged_losses(key))["losses"]
            ] or None
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return losses


def merged_losses(key: str) -> str:
    """The name of an adapter's losses without its tensors."""
    return f"losses/{key}.json"


def read_losses(path: Path) -> list[float] | None:
    """The loss of every iteration of an adapter's training, or None where the file is not there, is
    damaged or has none.

    Reads the header alone: the tensors of a full adapter are of the size of the network.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER_BYTES:
                return None
            metadata = json.loads(file.read(size)).get("__metadata__", {})
        losses = json.loads(metadata["facts"])["losses"]
        return [float(loss) for loss in losses] or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
