"""Files of trained metrics: entries of conf/weights/ that are fetched, once attempted per process, when a metric needs them."""

from dataclasses import dataclass

from adir.errors import InputError
from adir.weights import registry as checkpoints
from adir.weights.cache import known_sha256
from adir.weights.registry import offline

_failed_fetches: dict[str, str] = {}
"""File -> why. A process asks once, or a cell of 50 pictures would wait 50 times."""


@dataclass(frozen=True)
class WeightsFile(checkpoints.WeightsFile):
    """One file of weights in the folder where pyiqa (`pyiqa`) or torchvision (`checkpoints`) looks for it."""

    def unavailable(self) -> str | None:
        """None when the right file is there, after one attempt per process to fetch it; else one line: why, what to do.

        The environment variable HF_HUB_OFFLINE=1 forbids the attempt.
        """
        if not self.path.is_file():
            reason = self._attempt()
            if reason is not None:
                return (
                    f"{self.name} ({self.size_text}) is not here: put it into {self.path.parent}; from "
                    f"{', '.join(self.mirrors)} ({reason})"
                )
        found = known_sha256(self.path)
        if not found.startswith(self.sha256):
            return (
                f"{self.path}: its SHA-256 starts with {found[:8]}, {self.sha256} is expected, so it is damaged or "
                f"another file: delete it and run `adir weights get {self.entry}`"
            )
        return None

    def _attempt(self) -> str | None:
        """Download to `path`, whole or not at all. Returns None, or why not."""
        forbidden = offline()
        if forbidden is not None:
            return forbidden
        if self.name not in _failed_fetches:
            try:
                self.fetch()
            except (InputError, OSError) as error:  # the latter of the file system
                _failed_fetches[self.name] = f"fetching it failed: {error}"
            else:
                return None
        return _failed_fetches[self.name]


def registered(name: str) -> WeightsFile:
    """The entry of conf/weights/ of that name, which must be a file's."""
    found = checkpoints.entry(name)
    assert isinstance(found, checkpoints.WeightsFile), name
    return WeightsFile(**vars(found))
